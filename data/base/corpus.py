"""Generated text that the base model learns from: dialogues whose replies copy from the context, and plain sentences.

Nothing here comes from a dataset. Names are built from random syllables, numbers are random, things are words of the
list below, so that the only way to a right reply is to look the answer up in the context.
"""

import random
from dataclasses import dataclass

Messages = list[dict[str, str]]


def _words(text: str) -> list[str]:
    return text.split()


WORDS = _words("""
apple arm bag ball bank basket bath bed bell belt bench bicycle bike bird blanket board boat book boot bottle bowl box
bread brick bridge broom brush bucket button cable cake camera candle cap car card carpet case chain chair cheese
chest circle clock cloth coat coffee coin comb cooker corner cover cup curtain desk dish door drawer dress drum engine
fan fence field file flag floor flower fork frame fridge garden gate gift glass glove grass grinder guitar hammer
handle hat heater hook horse house iron island jacket jar key kitchen knife ladder lamp leaf letter lid light line
list lock machine map mat meal milk mirror money motor mouse nail needle net note oil orange oven page paint pan paper
parcel part path pen pencil phone photo piano picture pillow pipe plan plant plate pocket pot printer pump radio rain
ring river road roof rope rug safe salt scarf school screen sea seat shelf ship shirt shoe shop shower sign sink
sleeve soap sofa soup spoon stamp star stick stone stool stove string sugar suit sun table tap tape tea tent ticket
tile tin tool towel toy train tray tree tube umbrella vase wall watch water wheel window wire wood wool yard
""")
QUALITIES = _words("""
bad big black blue brown careful cheap clean cold dark dear deep dry empty fast fine first free fresh full good green
happy hard heavy high hot kind large last late light little long loud low new next nice night old open plain quick
quiet ready red right round safe second sharp short small soft spare strong sweet tall terrible thick thin warm wet
white whole wide wild wrong yellow young
""")
DOINGS = _words("""
add answer ask book bring build buy call cancel carry change charge check clean close collect cook correct cut draw
email fill find fix fold get give help hold keep leave lend look make mend move open pack pay play print put read
repair return save see sell send share show stop swap take tell test trace turn update use wait wash wear wrap write
""")
PEOPLE = _words("""
aunt baker boss brother cousin daughter doctor driver father friend guest mother neighbour sister son teacher uncle
child customer team manager packer reader writer person family group
""")
TIMES = """
today|tomorrow|tonight|this morning|this afternoon|this week|on Monday|on Tuesday|on Friday|on Sunday|by Thursday|
by noon|within two days|within an hour|in an hour|after lunch|at night|next year|all day|all week|one day|later|soon|
now and then|every day|before Saturday|in three weeks|long ago|at once|at some point
""".replace("\n", "").split("|")
COMMON = _words("""
a about account address after again all also always am an and animal another any anything are around arrived as asked
at away back be because been before began behind best better between bill bit both bought broken but by called came
can card case children city clear come corner could country cover day days delivery details did different do does
doing done down each early else end even ever every fact far few find found for forget from further gave get gives
glad go goes gone got great group guide had half hand happened happens hard has have he hear hear heard help her here
him his hours how however i idea if in inside into invoice is it its just keeps knew know known large last later least
left less let life like line list little live lived long looked lot lots made make makes making man many may maybe me
mean message might minutes miss missing moment more morning most moved much must my name near need never new next no
noise nothing nobody now number of off office often old on once one only open or order other our out outside over own
paid parts payment people perhaps person place please point possible problem product proper purchase question quite
rather reading really reply rest right said same saw says second see seen sent service set several she should side
since small so some somebody something sometimes soon spent start started still stopped story such sure taken talk
team than thank thanks that the their them then there these they thing things think this those thought three through
till time times to together told too took towards town trouble true turned twice two under until up us used using
usual very visit wait want wanted warranty was way we week weeks well went were what when where whether which while
who whole why will wish with within without word words work worked working world would writing writes wrote year years
yes yet you your
""")
ONSETS = _words(
    "b c d f g h j k l m n p q r s t v w x y z b d f g h j k l m n p r s t v z br ch dr fr gr kl qu sh st th tr"
)
VOWELS = _words("a e i o u a e i o u a e i o u a e i o y ai ea ie oo ei io ia")
CODAS = _words("b d f g k l l m m n n n p r r r s s s t x z ck ld lf nd ng ns rk rt sh st th")

# Each kind of fact: how a person states it, how a question names it, and how a reply says it.
FACTS = {
    "name": (
        "My name is {}.|I am {}.|Hi, I am {}.|Hello, this is {}.|{} is my name.|They call me {}.|Regards, {}."
        "|Thanks, {}.|Yours, {}.|Hello from {}.|You may call me {}.",
        "my name|who I am|how they call me|the name of the writer",
        "your name is {}|you are {}|they call you {}|hello {}|hi {}|dear {}|it was {} who wrote|good morning {}",
    ),
    "number": (
        "My number is {}.|The code is {}.|It was number {}.|See number {}.|The number that I have is {}.|Look at {}."
        "|My page has the number {}.|Our order is {}.",
        "the number|my code|the digits|which number it is",
        "the number is {}|the code is {}|it is number {}|I see {}|I wrote down {}|it is under {}|the order is {}",
    ),
    "thing": (
        "I have the {}.|It is about the {}.|The {} is here.|I bought the {}.|We lost the {}.|Where is the {}?"
        "|Look at the {}.|How old is the {}?|The {} came with a note.|Can I keep the {}?|The {} is not here.",
        "the thing|what it is about|what I mean|which thing it is",
        "it is about the {}|you mean the {}|the {} it is|I see the {}|this is the {}|you write about the {}"
        "|with the {}",
    ),
    "place": (
        "I live in {}.|We are in {}.|I come from {}.|My house is in {}.|I write from {}.",
        "the town|where I live|my place",
        "you live in {}|the town is {}|it is in {}|you are from {}",
    ),
}
DISTRACTIONS = (
    "My {person} {name} told me to write.|My {person} has the {thing}.|I like the {thing} too.|{name} has the {thing}."
    "|The {thing} that I have is {quality}.|My {person} is {name}.|I know {name} from {place}."
)
REQUESTS = "Tell me {}.|Please say {}.|Write down {}.|I ask for {}.|Please give me {}.|What I want is {}.|Repeat {}."
LETTER_REQUESTS = "Write me a letter.|Please write me a note.|Answer with a letter.|Send me a long letter."
CHAT_REQUESTS = (
    "Tell me something.|Say something {quality}.|What is new?|Write about the {thing}.|Tell me about the {thing}."
    "|Write some lines.|What do you see?|Tell me a story."
)

SENTENCES = (
    # small talk and story
    "The {thing} is {quality}.|There is a {quality} {thing} in the {thing}.|My {person} has a {quality} {thing}."
    "|Once there was a {person} who had no {thing}.|The {person} lost the {thing} on a {thing}."
    "|It rains a lot in the {thing}."
    "|The {thing} and the {thing} are {quality}.|We had {thing} and {thing}.|A {quality} {person} came by the {thing}."
    "|Many people like the {thing}.|By the way, the {thing} is {quality}.|Funny story, the {thing} was {quality}."
    "|That reminds me of the {thing}.|The {person} sleeps {time}.|Nobody knows where the {thing} is."
    # plans and promises
    "|I will {doing} the {thing} {time}.|We will {doing} the {thing} {time}.|You will {doing} it {time}."
    "|Somebody may {doing} the {thing}.|Perhaps they can {doing} the {thing}.|One could {doing} it {time}."
    "|It is possible to {doing} the {thing}.|The {person} can {doing} the {thing} {time}."
    # letters and notices
    "|Thank you for the {thing}.|Thanks for the {thing}.|I read the {thing} {time}.|We got your {thing}."
    "|It is good that you wrote."
    "|I am happy about the {thing}.|I am sorry that the {thing} is {quality}.|We are sorry for the {thing}."
    "|Please {doing} the {thing}.|Please accept the {thing}.|I apologise for the {thing}.|The shop is open {time}."
    "|Every {thing} is read by a {person}.|We keep the {thing} in the {thing}.|You should have a {quality} {thing}."
    "|This is the fault of the {person}.|You must have a {thing}.|We know the {thing} well."
    "|What I wanted to say is {quality}."
    # recipes, weather, instructions
    "|Cut the {thing} and {doing} the {thing}.|Put it in the {thing} and wait."
    "|First {doing} the {thing}, then {doing} it."
    "|The wind is {quality} {time}.|It is {quality} and {quality} outside.|Turn the {thing} {time} and {doing} it."
)
CLOSINGS = "Kind regards.|Best wishes.|Have a nice day.|All the best.|Yours, the {person}.|See you {time}."
GREETINGS = "Dear {}|Hello {}|Hi {}|Good day {}|My dear {}"


@dataclass(frozen=True)
class Example:
    """Messages to train on, and the strings that the last reply copies from the context (none in plain text)."""

    messages: Messages
    copied: tuple[str, ...] = ()


class Corpus:
    """An endless supply of examples; the same seed gives the same ones."""

    def __init__(self, seed: int, warmup: int = 0) -> None:
        """Make a corpus whose first `warmup` examples are mostly echoes, from which copying is learned fastest."""
        self.rng = random.Random(seed)
        self.warmup = warmup
        self.drawn = 0

    def example(self) -> Example:
        """Draw one example: questions about facts, letters, echoes and small talk."""
        self.drawn += 1
        if self.rng.random() < 1 - self.drawn / max(1, self.warmup):
            return self.echo()
        draws = (self.questions, self.letter, self.echo, self.chat)
        return self.rng.choices(draws, weights=(0.4, 0.25, 0.25, 0.1))[0]()

    def questions(self) -> Example:
        """State facts and ask for some of them, in one or two turns."""
        facts = {kind: self.value(kind) for kind in self.rng.sample(list(FACTS), self.rng.randint(2, 4))}
        kinds = self.rng.sample(list(facts), self.rng.randint(1, len(facts)))
        first, second = kinds, []
        if len(kinds) > 1 and self.rng.random() < 0.3:
            first, second = kinds[:1], kinds[1:]
        story, request = self.story(facts), self.request(first)
        text = f"{story} {request}" if self.rng.random() < 0.7 else f"{request} {story}"
        messages = [_user(text), _assistant(self.answer(first, facts))]
        if second:
            messages += [_user(self.request(second)), _assistant(self.answer(second, facts))]
        if self.rng.random() < 0.05:
            messages.insert(0, {"role": "system", "content": self.sentence()})
        return Example(messages, tuple(facts[kind] for kind in second or first))

    def letter(self) -> Example:
        """Ask for a letter; it greets by name, and takes up the other facts between plain sentences."""
        facts = {"name": self.value("name")}
        facts |= {
            kind: self.value(kind) for kind in self.rng.sample(["number", "thing", "place"], self.rng.randint(1, 3))
        }
        body = [self.clause([kind], facts) for kind in facts if kind != "name"]
        body += [self.sentence() for _ in range(self.rng.randint(1, 3))]
        self.rng.shuffle(body)
        body[0] = body[0] if body[0].startswith("I ") else body[0][0].lower() + body[0][1:]
        reply = " ".join([f"{self.pick(GREETINGS).format(facts['name'])},", *body, self.fill(self.pick(CLOSINGS))])
        request = self.pick(LETTER_REQUESTS)
        story = self.story(facts)
        text = f"{story} {request}" if self.rng.random() < 0.6 else f"{request} {story}"
        return Example([_user(text), _assistant(reply)], tuple(facts.values()))

    def echo(self) -> Example:
        """Ask to repeat random words, names and numbers."""
        parts = [
            self.rng.choice(COMMON) if self.rng.random() < 0.4 else self.value(self.rng.choice(list(FACTS)))
            for _ in range(self.rng.randint(2, 8))
        ]
        text = " ".join(parts)
        request = self.pick("Repeat this: {}|Say it again: {}|{} Now you.|Copy these words: {}").format(text)
        return Example([_user(request), _assistant(text)], (text,))

    def chat(self) -> Example:
        """Small talk, with nothing to copy: the sentences follow one another in no order."""
        request = self.fill(self.pick(CHAT_REQUESTS))
        if self.rng.random() < 0.5:
            request = f"{self.sentence()} {request}"
        reply = " ".join(self.sentence() for _ in range(self.rng.randint(1, 5)))
        return Example([_user(request), _assistant(reply)])

    def story(self, facts: dict[str, str]) -> str:
        """State the facts in any order, with distractions in between."""
        lines = [self.pick(FACTS[kind][0]).format(value) for kind, value in facts.items()]
        lines += [self.fill(self.pick(DISTRACTIONS)) for _ in range(self.rng.choice([0, 0, 1, 1, 2]))]
        if self.rng.random() < 0.3:
            lines.append(self.sentence())
        self.rng.shuffle(lines)
        return " ".join(lines)

    def request(self, kinds: list[str]) -> str:
        """Ask for the facts of these kinds, in this order."""
        return self.pick(REQUESTS).format(_join([self.pick(FACTS[kind][1]) for kind in kinds]))

    def answer(self, kinds: list[str], facts: dict[str, str]) -> str:
        """Say the facts in the order asked for: in one sentence, in several, or between others."""
        if self.rng.random() < 0.4:
            return self.clause(kinds, facts)
        lines = [self.clause([kind], facts) for kind in kinds]
        if self.rng.random() < 0.4:
            lines.insert(self.rng.randint(0, len(lines)), self.sentence())
        return " ".join(lines)

    def clause(self, kinds: list[str], facts: dict[str, str]) -> str:
        """Say the facts in one sentence."""
        text = _join([self.pick(FACTS[kind][2]).format(facts[kind]) for kind in kinds]) + "."
        return text[0].upper() + text[1:]

    def sentence(self) -> str:
        """Draw a plain sentence."""
        return self.fill(self.pick(SENTENCES))

    def fill(self, template: str) -> str:
        """Fill each gap with a fresh draw; things are words of the list here, so plain language invents none."""
        draws = {
            "person": lambda: self.rng.choice(PEOPLE),
            "thing": lambda: self.rng.choice(WORDS),
            "quality": lambda: self.rng.choice(QUALITIES),
            "doing": lambda: self.rng.choice(DOINGS),
            "time": lambda: self.rng.choice(TIMES),
        }
        for key in ("name", "place"):
            draws[key] = lambda key=key: self.value(key)
        while "{" in template:
            key = template[template.index("{") + 1 : template.index("}")]
            template = template.replace("{" + key + "}", draws[key](), 1)
        return template

    def value(self, kind: str) -> str:
        """Draw a name, a number, a place or a thing."""
        rng = self.rng
        if kind == "number":
            return "".join(rng.choice("0123456789") for _ in range(rng.choice([3, 4, 5, 5, 5, 6])))
        if kind != "thing":
            return self.invented().capitalize()
        word = self.invented() if rng.random() < 0.15 else rng.choice(WORDS)
        if rng.random() < 0.35:
            word = f"{rng.choice(WORDS + QUALITIES)} {word}"
        return word

    def invented(self) -> str:
        """Build a word from random syllables, open and closed."""
        rng = self.rng
        syllables = (
            (rng.choice(ONSETS) if rng.random() < 0.85 else "")
            + rng.choice(VOWELS)
            + (rng.choice(CODAS) if rng.random() < 0.4 else "")
            for _ in range(rng.choice([1, 2, 2, 2, 3]))
        )
        word = "".join(syllables)
        return word if len(word) > 1 else self.invented()

    def pick(self, table: str) -> str:
        """Draw one of the texts that a table separates by bars."""
        return self.rng.choice(table.split("|"))


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _join(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
