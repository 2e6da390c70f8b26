"""What a report calls its stages, policies and judges, in tables and inside sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rlhf.evaluation.compare import Comparison
from rlhf.evaluation.seeds import SeedSummary
from rlhf.report import schema
from rlhf.report.schema import Report
from rlhf.workflow import BASE, is_base

Kind = Literal["better", "worse", "no difference", "doubtful", "alarm", "measured"]
"""What a statement of a report is; each has a mark and a colour. What is `measured` is no verdict."""
_BASE_LABEL = "Base"


Row = Comparison | SeedSummary
"""A comparison in any of its forms."""


class Statement(NamedTuple):
    """What a report says: what it is about, its kind, the finding in words, and the numbers it rests on."""

    id: tuple[str, ...]
    """What it is about: `("comparison", policy, baseline, judge)`, `("gate", model)`, …"""
    kind: Kind
    finding: str
    numbers: str

    @property
    def text(self) -> str:
        """One line."""
        return f"{self.finding}: {self.numbers}."


@dataclass(frozen=True)
class Names:
    """The names of one report."""

    labels: Mapping[str, str]
    """Stage without its repetition -> how it is written in a table."""
    scorers: frozenset[str]
    """The stages that left a reward model, which judges under the stage's name."""
    base: str = "the base model"
    """The base model inside a sentence; of a later round it is what the round before left."""

    @classmethod
    def of(cls, report: Report) -> Names:
        """The names of a report, as its stages gave them."""
        labels = {
            entry.get("kind", _first(name)): entry["label"]
            for name, entry in report["provenance"].items()
            if "label" in entry
        }
        own = frozenset(schema.reward_models(report))
        if report["rounds"] is None:
            return cls({BASE: _BASE_LABEL, **labels}, own)
        before = report["rounds"]["rounds"][-2]
        started = f"ound {before['round']}'s {before['label']}"
        return cls({**labels, BASE: f"R{started}"}, own, f"r{started}")

    def label(self, name: str) -> str:
        """A stage, policy or judge in a table; `dpo@1`, from another seed, as `DPO@1`."""
        stage, *more = re.split(r"(?=[@ ])", name, maxsplit=1)
        return "".join([self.labels.get(stage, stage), *more])

    def policy(self, name: str) -> str:
        """A policy inside a sentence."""
        if not is_base(name):
            return self.label(name)
        return self.base if name == BASE else f"{self.label(_first(name))}'s own base model"

    def judge(self, name: str) -> str:
        """A judge inside a sentence."""
        return self._own(name) or name

    def reward_model(self, name: str) -> str:
        """A reward model inside a sentence, of which not every one is the run's own."""
        return self._own(name) or f"the reward model {name}"

    def versus(self, row: Row) -> str:
        """The two policies of a comparison in a table."""
        return self.pair(row["policy"], row["baseline"])

    def pair(self, policy: str, baseline: str) -> str:
        """Two policies in a table."""
        return f"{self.label(policy)} vs {self.label(baseline)}"

    def _own(self, name: str) -> str | None:
        if name not in self.scorers:
            return None
        label = self.label(name)
        return f"the {label[:1].lower()}{label[1:]}"


def _first(name: str) -> str:
    return re.split(r"[@ ]", name, maxsplit=1)[0]


def shown_verdict(row: Row) -> Kind:
    """The verdict of a comparison as it is shown: `doubtful` where the judge that gives one is."""
    return "doubtful" if row["doubted"] and row["verdict"] != "no difference" else row["verdict"]


def capital(text: str) -> str:
    """A text that begins a sentence."""
    return text[:1].upper() + text[1:]


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
