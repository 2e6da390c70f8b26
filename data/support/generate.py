"""Write the support dataset: demonstrations.jsonl, preferences.jsonl and prompts.jsonl.

    python data/support/generate.py

Deterministic: the same arguments give the same bytes. Needs Python 3.11 and nothing else.
"""

import argparse
import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gold
import phrases

TOPICS = [(text, steps, True) for text, steps in phrases.COMPLAINTS] + [
    (text, steps, False) for text, steps in phrases.QUESTIONS
]
MIN_GAP = 1.5 / 7  # the two replies of a pair differ by at least two parts of the true quality
NOISE = 0.1  # share of preference pairs whose label is turned round
SKILL = (0.3, 0.95)  # an agent's chance of getting a part right is drawn from this range
TARGET_LENGTH = (40.0, 54.0)  # neutral sentences fill every reply up to a length drawn from this range, good or bad
MISTAKEN = 0.1  # of the names, products and orders that are not right, the share that is wrong and not just vague
INVENTED_NAMES = 140


@dataclass(frozen=True)
class Case:
    """What a customer writes about: the columns of every row, which gold.score reads."""

    name: str
    product: str
    order: str
    complaint: bool
    topic: int


class Customers:
    """Draws cases and words them, so that no order number and no prompt comes twice."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        invented: set[str] = set()
        while len(invented) < INVENTED_NAMES:
            name = rng.choice(phrases.FIRST_SYLLABLES) + rng.choice(phrases.LAST_SYLLABLES)
            invented |= {name} - set(phrases.REAL_NAMES)
        self.names = [*phrases.REAL_NAMES, *sorted(invented)]
        self.orders = rng.sample(range(10000, 100000), 20000)

    def draw(self, held_out: bool) -> Case:
        """Draw a case; the held-out ones pair products with names and topics that no training case has."""
        while True:
            name, topic, product = (self.rng.randrange(len(x)) for x in (self.names, TOPICS, gold.PRODUCTS))
            unseen = ((name + product) % 5 == 0, (topic + product) % 4 == 0)
            if all(unseen) if held_out else not any(unseen):
                order = str(self.orders.pop())
                return Case(self.names[name], gold.PRODUCTS[product], order, TOPICS[topic][2], topic)

    def message(self, case: Case) -> str:
        """Word a case as the customer's message."""
        rng = self.rng
        body = [TOPICS[case.topic][0], rng.choice(phrases.ORDER_LINES)]
        rng.shuffle(body)
        if rng.random() < 0.4:
            body.insert(rng.randrange(len(body) + 1), rng.choice(phrases.ASIDES))
        if rng.random() < 0.6:
            body.append(rng.choice(phrases.COMPLAINT_ENDINGS if case.complaint else phrases.QUESTION_ENDINGS))
        if rng.random() < 0.6:
            body.insert(0, rng.choice(phrases.NAME_FIRST))
        else:
            body.append(rng.choice(phrases.NAME_LAST))
        return self.fill(" ".join(body), case)

    def fill(self, text: str, case: Case) -> str:
        """Put the case's words into the gaps; `other` and `friend` are somebody else's."""
        other = self.rng.choice([p for p in gold.PRODUCTS if p != case.product])
        friend = self.rng.choice([n for n in self.names if n != case.name])
        return text.format(**asdict(case), other=other, friend=friend)


class Agents:
    """Words replies. Each reply comes from an agent with a skill of their own: the chance that a part is right."""

    def __init__(self, rng: random.Random, customers: Customers) -> None:
        self.rng = rng
        self.customers = customers

    def reply(self, case: Case) -> str:
        """Write a reply to a case."""
        rng = self.rng
        skill = rng.uniform(*SKILL)
        right = {part: rng.random() < skill for part in gold.PARTS}
        greeting = self._greeting(case) if right["greets"] else self._bad_greeting(case)
        tone = phrases.APOLOGY if right["apology"] == case.complaint else phrases.NO_APOLOGY
        body = [self._takes_up(case, right["product"], right["order"]), rng.choice(tone)]
        if not right["no_blame"]:
            body.insert(rng.randrange(3), rng.choice(phrases.BLAME))
        body.append(self._step(case, right["next_step"]))
        ending = [rng.choice(phrases.CLOSINGS)] if right["stops"] else self._bad_ending(body)
        opener = rng.choice(phrases.OPENERS)
        target = rng.uniform(*TARGET_LENGTH)
        for filler in rng.sample(phrases.FILLERS, len(phrases.FILLERS)):
            if length(" ".join([greeting, opener, *body, *ending])) + length(filler) / 2 > target:
                break
            body.insert(rng.randrange(1, len(body) + 1), filler)
        return " ".join([greeting, opener, *body, *ending])

    def _greeting(self, case: Case) -> str:
        return self.customers.fill(self.rng.choice(phrases.GREET_GOOD), case)

    def _bad_greeting(self, case: Case) -> str:
        table = phrases.GREET_WRONG if self.rng.random() < MISTAKEN else phrases.GREET_BAD
        return self.customers.fill(self.rng.choice(table), case)

    def _takes_up(self, case: Case, right_product: bool, right_order: bool) -> str:
        rng = self.rng
        product, order = "the " + case.product, "order " + case.order
        if not right_product:
            wrong = rng.random() < MISTAKEN
            product = self.customers.fill("the {other}", case) if wrong else rng.choice(phrases.PRODUCT_VAGUE)
        if not right_order:
            wrong = rng.random() < MISTAKEN
            order = f"order {misread(case.order, rng)}" if wrong else rng.choice(phrases.ORDER_VAGUE)
        return rng.choice(phrases.TAKES_UP).format(product=product, order=order)

    def _step(self, case: Case, right: bool) -> str:
        rng = self.rng
        step, when = rng.choice(TOPICS[case.topic][1]), rng.choice(phrases.WHEN)
        text = rng.choice(phrases.STEP_GOOD if right else phrases.STEP_BAD)
        return text.format(step=step, when=when, When=when[0].upper() + when[1:])

    def _bad_ending(self, body: list[str]) -> list[str]:
        """Wander off, say a thing twice, or break off."""
        kind = self.rng.random()
        if kind < 0.6:
            return [self.rng.choice(phrases.WANDERING)]
        if kind < 0.8:
            return [body[-1], self.rng.choice(phrases.CLOSINGS)]
        return [self.rng.choice(phrases.CUT_OFF)]


def misread(order: str, rng: random.Random) -> str:
    """Return the order number with one digit wrong."""
    place = rng.randrange(len(order))
    digit = rng.choice([d for d in "123456789" if d != order[place]])
    return order[:place] + digit + order[place + 1 :]


def length(text: str) -> float:
    """Estimate a text's length in tokens: one for five characters, and more for digits, each a token."""
    return len(text) / 5 + 0.5 * sum(c.isdigit() for c in text)


def true_quality(reply: str, case: Case) -> float:
    """Return gold's score of one reply."""
    return gold.score([None], [reply], **{key: [value] for key, value in asdict(case).items()})[0]


def user(text: str) -> list[dict[str, str]]:
    """Return the text as a message of the customer."""
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    """Return the text as a message of the agent."""
    return [{"role": "assistant", "content": text}]


def demonstration(customers: Customers, agents: Agents) -> dict[str, Any]:
    """Write one demonstration: a reply of whatever quality the agent has."""
    case = customers.draw(held_out=False)
    return {"prompt": user(customers.message(case)), "completion": assistant(agents.reply(case)), **asdict(case)}


def preference(customers: Customers, agents: Agents, flipped: bool) -> dict[str, Any]:
    """Write one pair of replies of clearly different true quality; where flipped, the worse one is called chosen."""
    case = customers.draw(held_out=False)
    worse = better = agents.reply(case)
    while abs(true_quality(worse, case) - true_quality(better, case)) < MIN_GAP:
        worse, better = agents.reply(case), agents.reply(case)
    if (true_quality(worse, case) > true_quality(better, case)) != flipped:
        worse, better = better, worse
    prompt = user(customers.message(case))
    return {"prompt": prompt, "chosen": assistant(better), "rejected": assistant(worse), **asdict(case)}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    """Read the arguments and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--demonstrations", type=int, default=1500)
    parser.add_argument("--preferences", type=int, default=2000)
    parser.add_argument("--prompts", type=int, default=200)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    customers = Customers(rng)
    agents = Agents(rng, customers)
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "demonstrations.jsonl", (demonstration(customers, agents) for _ in range(args.demonstrations)))
    flipped = set(rng.sample(range(args.preferences), round(NOISE * args.preferences)))
    pairs = (preference(customers, agents, i in flipped) for i in range(args.preferences))
    write(args.out / "preferences.jsonl", pairs)
    cases = [customers.draw(held_out=True) for _ in range(args.prompts)]
    write(args.out / "prompts.jsonl", ({"prompt": user(customers.message(c)), **asdict(c)} for c in cases))


if __name__ == "__main__":
    main()
