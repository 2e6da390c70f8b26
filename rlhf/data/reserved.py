"""Prompts whose side of the split something else decides than their hash.

Those of `data.prompts` are held out. Those of a source that is all trained on, such as votes, are trained on and leave
the held-out side of every set, so that a prompt is on one side only. Those of the final comparison stay held out even
then, so that it is the same with votes and without.
"""

from __future__ import annotations

from collections.abc import Iterable

from rlhf.config.project import ProjectConfig
from rlhf.config.sets import SourceConfig
from rlhf.data.index import Index
from rlhf.data.inspector import Inspector
from rlhf.data.ledger import ALL_TRAINED, COMPARED, HELD_OUT, Ledger
from rlhf.data.records import Prompt, Record, Text
from rlhf.data.sets import always_trained, records
from rlhf.data.splits import Side, content_key, contexts, opening, side


class Reserved:
    """Decides the side of each record of a set, or why it is dropped.

    Args:
        project: The project.
        role: The set.
        index: Where the prompts are remembered.
        compared: The prompts of the final comparison, of a project in which a source is all trained on.
        inspector: Sees the prompts of `data.prompts`.
    """

    def __init__(
        self, project: ProjectConfig, role: str, index: Index, compared: Iterable[Prompt], inspector: Inspector | None
    ) -> None:
        self._project, self._role, self._index = project, role, index
        self._held_out = role != "prompts" and project.data.prompts is not None
        if self._held_out:
            for record, _, _ in records(project, "prompts", Ledger("prompts")):
                for prompt in contexts(record):
                    index.add(_key(HELD_OUT, prompt))
                if inspector is not None:
                    inspector.hold_out(record)
        for compared_prompt in compared:
            index.add(_key(COMPARED, opening(compared_prompt)))
        for name in always_trained(project):
            for record, _, _ in records(project, name, Ledger(name), wanted=lambda source: source.all_trained):
                if not self._known(COMPARED, opening(record)):
                    index.add(_key(ALL_TRAINED, opening(record)))

    def place(self, record: Record, source: SourceConfig) -> tuple[Side, str | None]:
        """The side of a record, and the reason for which it is dropped or None.

        Args:
            record: The record.
            source: Where it comes from.
        """
        if source.all_trained:
            return "train", COMPARED if self._known(COMPARED, opening(record)) else None
        prompts = contexts(record)
        where = "eval" if self._role == "prompts" else side(prompts[0], self._project.holdout, self._project.seed)
        if where == "eval":
            return "eval", ALL_TRAINED if self._known(ALL_TRAINED, opening(record)) else None
        held_out = self._held_out and any(self._known(HELD_OUT, prompt) for prompt in prompts)
        return "train", HELD_OUT if held_out else None

    def _known(self, kind: str, prompt: Text) -> bool:
        return _key(kind, prompt) in self._index


def _key(kind: str, prompt: Text) -> bytes:
    return kind.encode() + content_key(prompt)
