"""How likely policies find held-out rows of the project's own sets: what is measured where nothing judges replies."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from rlhf.config.project import ProjectConfig
from rlhf.data.prepare import iter_records
from rlhf.data.records import Demonstration, Preference, Record
from rlhf.data.splits import content_key, own_prompt
from rlhf.evaluation.retain import RetainedSet
from rlhf.evaluation.unjudged import CHOSEN, DEMONSTRATIONS, REJECTED, LikelihoodRow


def held_out_sets(project: ProjectConfig) -> list[RetainedSet]:
    """The held-out demonstrations, and the two sides of the held-out pairs; those of each that the project has.

    At most `evaluate.prompts` rows of a set; of more, their hashes decide which, so that their order does not matter.
    """
    sets = []
    if project.data.demonstrations is not None:
        records = _held_out(project, "demonstrations", project.evaluate.prompts)
        replies = [record for record in records if isinstance(record, Demonstration)]
        sets.append(RetainedSet(DEMONSTRATIONS, None, tuple(replies), held_out=True))
    if project.data.preferences is not None:
        records = _held_out(project, "preferences", project.evaluate.prompts)
        pairs = [record for record in records if isinstance(record, Preference)]
        for name, side in ((CHOSEN, "chosen"), (REJECTED, "rejected")):
            replies = [Demonstration(pair.prompt, getattr(pair, side), origin=pair.origin) for pair in pairs]
            sets.append(RetainedSet(name, None, tuple(replies), whole=True, held_out=True))
    return [each for each in sets if each.records]


def _held_out(project: ProjectConfig, role: str, limit: int) -> list[Record]:
    """Held-out rows of a set, in its order."""
    rows = (
        (_key(record), number, record)
        for number, (record, side) in enumerate(iter_records(project, role))
        if side == "eval"
    )
    chosen = heapq.nsmallest(limit, rows, key=lambda row: row[:2])
    return [record for _, _, record in sorted(chosen, key=lambda row: row[1])]


def _key(record: Record) -> bytes:
    return content_key(own_prompt(record), *(side for side in (getattr(record, "chosen", None),) if side is not None))


def likelihood_rows(
    sets: Sequence[RetainedSet], values: Mapping[str, Mapping[str, Sequence[float | None]]]
) -> list[LikelihoodRow]:
    """The lines of `likelihoods.jsonl`: one for each row of the sets, with the value of every policy.

    Args:
        sets: Those of `held_out_sets`.
        values: Of each policy, of each set, its values.
    """
    prompts: dict[bytes, int] = {}
    return [
        LikelihoodRow(
            set=each.name, origin=record.origin,
            prompt=prompts.setdefault(content_key(own_prompt(record)), len(prompts)),
            values={policy: of_sets[each.name][index] for policy, of_sets in values.items()},
        )
        for each in sets
        for index, record in enumerate(each.records)
    ]  # fmt: skip
