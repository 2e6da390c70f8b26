"""The name of a stage of a project."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class StageId:
    """A stage of a project: which stage, and which training of it, each with a seed of its own."""

    kind: str
    """The stage: the name of its file in `rlhf/stages/`."""
    repetition: int = 0
    """0 for the first; what follows the stage starts from that one."""

    @classmethod
    def parse(cls, name: str) -> StageId:
        """What a name says: `dpo`, or `dpo@2`.

        Raises:
            ValueError: It is neither.
        """
        kind, at, number = name.partition("@")
        if at and not number.isdecimal():
            raise ValueError(f"not the name of a stage: {name}")
        return cls(kind, int(number or 0))

    def __str__(self) -> str:
        return f"{self.kind}@{self.repetition}" if self.repetition else self.kind
