"""Which prompts the arena shows, and which comparisons of them first.

Prompts of the final comparison are never shown: who has seen them here would train on what is measured later.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from rlhf.config.project import ProjectConfig
from rlhf.config.sets import SourceConfig
from rlhf.data.checks import fault
from rlhf.data.formats import find
from rlhf.data.prepare import evaluation_prompts, iter_records
from rlhf.data.records import Demonstration, Prompt, Record, Text, Unusable, as_conversation, as_role
from rlhf.data.sources import read_rows
from rlhf.data.splits import content_key, opening, own_prompt
from rlhf.data.votes import Origin, Reply
from rlhf.errors import UserError

_SETS = ("preferences", "demonstrations", "feedback", "rollouts")
"""Sets whose held-out prompts are shown."""


@dataclass(frozen=True)
class Pool:
    """Prompts to compare policies on."""

    prompts: list[Prompt]
    """Each once, in an order that their contents decide."""
    origin: Origin
    """`held out`, or `file`."""
    compared: int
    """Prompts of the final comparison that were left out."""
    unusable: int = 0
    """Rows of a file that hold no prompt."""

    def in_messages(self) -> Pool:
        """The same prompts for policies trained on messages: plain text is what a user says."""
        return replace(
            self, prompts=[replace(prompt, prompt=as_conversation(prompt.prompt)) for prompt in self.prompts]
        )


@dataclass(frozen=True)
class Candidate:
    """Two replies to a prompt that could be shown."""

    prompt: int
    """Number of the prompt among those sampled together."""
    replies: tuple[Reply, Reply]

    @property
    def pair(self) -> frozenset[str]:
        """The two policies."""
        return frozenset(reply.policy for reply in self.replies)


def held_out_pool(project: ProjectConfig) -> Pool:
    """The held-out prompts of the run's sets that are not among the final comparison's.

    Args:
        project: The project; prompts of `data.prompts` are for the comparison alone.

    Returns:
        The prompts; none where the comparison takes them all.
    """
    compared = _compared(project)
    found: dict[bytes, Prompt] = {}
    left_out = set()
    for name in _SETS:
        if getattr(project.data, name) is None:
            continue
        for record, where in iter_records(project, name):
            if where == "train":
                continue
            key = content_key(own_prompt(record))
            if _asked(record) & compared:
                left_out.add(key)
            elif prompt := _prompt(record):
                found.setdefault(key, prompt)
    return Pool([found[key] for key in sorted(found)], "held out", len(left_out))


def file_pool(project: ProjectConfig, file: str) -> Pool:
    """The prompts of a file, in any format of the data layer, that are not among the final comparison's.

    Raises:
        UserError: It cannot be read, or leaves no prompt.
    """
    compared = _compared(project)
    found: dict[bytes, Prompt] = {}
    left_out, unusable, layout = set(), 0, None
    for row, origin in read_rows(SourceConfig(source=file), Path.cwd()):
        layout = layout or find(None, row, origin)
        try:
            records = layout.records(row, origin)
        except Unusable:
            unusable += 1
            continue
        for record in records:
            if (prompt := _prompt(record)) is None:
                unusable += 1
            elif _asked(record) & compared:
                left_out.add(content_key(prompt.prompt))
            else:
                found.setdefault(content_key(prompt.prompt), prompt)
    if not found:
        why = f"all {len(left_out)} are among those of the final comparison" if left_out else "it holds none"
        raise UserError(f"{file}: no prompt to show: {why}")
    return Pool([found[key] for key in sorted(found)], "file", len(left_out), unusable)


def most_informative(candidates: Sequence[Candidate], judge: str | None) -> list[Candidate]:
    """One comparison of each prompt, those first from which most is learned.

    A comparison tells more the more the two replies differ, and the less certain the reward model is which is better:
    candidates are ranked by both, and the better of the two ranks counts. Pairs of policies take turns, so that all
    are compared equally often. Equal replies are left out.

    Args:
        candidates: What could be shown.
        judge: The reward model among the replies' scores; None for none.
    """
    candidates = [each for each in candidates if each.replies[0].text.strip() != each.replies[1].text.strip()]
    different = _ranks([difference(each.replies[0].text, each.replies[1].text) for each in candidates])
    uncertain = _ranks([uncertainty(each.replies[0].scores, each.replies[1].scores, judge) for each in candidates])
    order = sorted(
        range(len(candidates)),
        key=lambda place: (min(different[place], uncertain[place]), different[place] + uncertain[place]),
    )
    queues: dict[frozenset[str], list[Candidate]] = {}
    for place in order:
        queues.setdefault(candidates[place].pair, []).append(candidates[place])
    chosen: list[Candidate] = []
    taken: set[int] = set()
    while any(queues.values()):
        for queue in queues.values():
            while queue and (first := queue.pop(0)):
                if first.prompt not in taken:
                    taken.add(first.prompt)
                    chosen.append(first)
                    break
    return chosen


def candidates_of(number: int, replies: Mapping[str, Reply], pairs: Collection[frozenset[str]]) -> list[Candidate]:
    """The comparisons of the replies to one prompt, but for pairs of policies that have one.

    Args:
        number: Of the prompt.
        replies: By policy.
        pairs: Pairs that were compared on it.
    """
    return [
        Candidate(number, (replies[first], replies[second]))
        for first, second in combinations(replies, 2)
        if frozenset((first, second)) not in pairs
    ]


def difference(first: str, second: str) -> float:
    """How much two replies differ, 0 to 1: the share of their words that is not common to both, in order."""
    return 1.0 - difflib.SequenceMatcher(None, first.split(), second.split(), autojunk=False).ratio()


def uncertainty(first: Mapping[str, float | None], second: Mapping[str, float | None], judge: str | None) -> float:
    """How uncertain a reward model is which of two replies is better, 0 to 1: twice the smaller probability.

    The probability is that of Bradley and Terry, sigmoid(difference of the scores).

    Args:
        first: Scores of one reply, by judge.
        second: Scores of the other.
        judge: The reward model; without, or without its scores, nothing is known, and 0 is returned.
    """
    a, b = (scores.get(judge) if judge is not None else None for scores in (first, second))
    if a is None or b is None:
        return 0.0
    return 2.0 / (1.0 + math.exp(min(abs(a - b), 700.0)))


def _ranks(values: Sequence[float]) -> list[int]:
    """The place of each value among all, 0 for the largest; equal values share a place."""
    first = {value: place for place, value in reversed([*enumerate(sorted(values, reverse=True))])}
    return [first[value] for value in values]


def _compared(project: ProjectConfig) -> set[bytes]:
    """How the prompts of the final comparison open, with and without what stands before the user's first turn.

    With `data.prompts` they are all that it could take.
    """
    if not project.evaluate.enabled:
        return set()
    limit = sys.maxsize if project.data.prompts is not None else project.evaluate.prompts
    prompts = evaluation_prompts(project, limit)
    return {content_key(text) for prompt in prompts for text in (opening(prompt), _turns_of_user(prompt.prompt)[0])}


def _asked(record: Record) -> set[bytes]:
    """What a record's prompt is compared by: its opening, and the user's first and last turn by themselves."""
    said = _turns_of_user(own_prompt(record))
    return {content_key(text) for text in (opening(record), said[0], said[-1])}


def _turns_of_user(prompt: Text) -> list[Text]:
    """What the user says in a prompt; the prompt itself where that is nothing."""
    if isinstance(prompt, str):
        return [prompt]
    return [message["content"] for message in prompt if message["role"] == "user"] or [prompt]


def _prompt(record: object) -> Prompt | None:
    """The prompt of a record; None where it has none."""
    if isinstance(record, Demonstration) and not record.prompt:
        return None
    prompt = as_role(record, "prompts")  # type: ignore[arg-type]
    assert isinstance(prompt, Prompt)
    return prompt if prompt.prompt and fault(prompt) is None else None
