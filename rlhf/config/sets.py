"""The `data:` section of a project: its sets, where their rows come from, and how rows are read."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic.dataclasses import dataclass

from rlhf.config.fields import PLAIN, STRICT, Count, Flag, Share, within

VOTES = "votes:"
"""Before the folder or the name of a run, as a source: what people said of its policies."""
MOST_WEIGHT = 1000
Weight = Annotated[float, PLAIN, within(f"(0, {MOST_WEIGHT}]")]


@dataclass(frozen=True, config=STRICT)
class SourceConfig:
    """Where rows come from."""

    source: str
    """A file (jsonl, json, csv, tsv, parquet; gzip too), a folder of them, a hub id, or votes:RUN."""
    format: str | None = None
    """Name of a format of `rlhf.data.formats`; null looks at the columns."""
    weight: Weight = 1.0
    """How often each training row is used: 2 repeats all, 0.5 keeps half."""
    split: str | None = None
    """Split of a hub dataset (`train` if not named)."""
    streaming: Flag = False
    """Read a hub dataset row by row instead of downloading it first."""
    limit: Count | None = None
    """Stop after so many rows."""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """Our column name: the file's column name."""
    values: dict[str, dict[Any, Any]] = dataclasses.field(default_factory=dict)
    """Our column name: what its values stand for, such as `label: {up: true, down: false}`; null is no value. A value
    that is not listed is an error."""
    chat: Flag = False
    """Read plain text as a conversation, which the chat template writes: the prompt is what the user says, after a
    column `system` if there is one, and the completion what the assistant replies."""
    train_all: Flag | None = None
    """Hold none of its rows out, and none of other rows with its prompts; null does so with votes."""

    @property
    def all_trained(self) -> bool:
        """Whether all its rows are trained on."""
        return self.source.startswith(VOTES) if self.train_all is None else self.train_all


@dataclass(frozen=True, config=STRICT)
class DatasetConfig:
    """A dataset: one source or a mixture."""

    sources: tuple[SourceConfig, ...]
    """The sources, each with its weight."""
    holdout: Annotated[float, PLAIN, within("[0, 1)")] | None = None
    """Share of prompts kept out of training; the largest of a project holds for all its sets (0.1 if none is given)."""


@dataclass(frozen=True, config=STRICT)
class LimitsConfig:
    """The most that may be wrong with a set, as shares; more ends its preparation. Null allows any share."""

    dropped: Share | None = None
    """Rows dropped because nothing can be learned from them, or too long; of rows read."""
    truncated: Share | None = None
    """Rows cut to the length limit; of rows read."""
    eos_lost: Share | None = None
    """Rows that lost their end-of-sequence token by that; of rows read."""
    duplicates: Share | None = None
    """Exact duplicates, which are dropped; of rows read."""
    near_duplicates: Share | None = None
    """Prompts (of demonstrations: prompt and reply) that nearly repeat an earlier one."""
    contradictory: Share | None = None
    """Pairs that an earlier row has the other way round; of rows that are no duplicates."""
    conflicting: Share | None = None
    """Pairs with a reply that an earlier row judges the other way; of rows that are no duplicates."""
    leaked: Share | None = None
    """Held-out prompts that are nearly those of training rows."""
    markers: Share | None = None
    """Rows with a token or turn marker of a chat template in a reply."""
    undecodable: Share | None = None
    """Rows with control or replacement characters, or HTML entities."""
    other_language: Share | None = None
    """Rows with a reply in another script than most."""


SUPPLIERS = {
    "feedback": ("feedback", "preferences"),
    "prompts": ("prompts", "rollouts", "preferences", "feedback", "demonstrations"),
    "rollouts": ("rollouts", "preferences", "feedback", "demonstrations"),
}
"""Roles that other sets can supply, too, in order of preference: pairs are judgements, and all rows have prompts."""


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """The sets of a project, by what they are for."""

    demonstrations: DatasetConfig | None = None
    """What SFT imitates."""
    preferences: DatasetConfig | None = None
    """What the reward model and DPO learn from."""
    feedback: DatasetConfig | None = None
    """Completions that were judged good or bad, one at a time; the two sides of the preferences, if not given."""
    prompts: DatasetConfig | None = None
    """Prompts for evaluation; held-out prompts of the other sets if not given."""
    rollouts: DatasetConfig | None = None
    """Prompts that online training replies to; those of the preferences, else of the demonstrations, if not given."""
    limits: LimitsConfig = dataclasses.field(default_factory=LimitsConfig)
    """What may be wrong with any of these sets before it is refused."""

    def supplier(self, role: str) -> str | None:
        """The set that supplies a role: its own, or the first substitute that the project has."""
        return next((name for name in SUPPLIERS.get(role, (role,)) if getattr(self, name) is not None), None)
