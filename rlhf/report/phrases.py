"""Names of a report's stages, policies and judges as text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlhf.workflow import is_base

Kind = Literal["better", "worse", "no difference", "doubtful", "alarm"]
"""What a statement of a report is; each has a mark and a colour."""
_LABELS = {"base": "Base", "sft": "SFT", "dpo": "DPO", "ppo": "PPO", "reward": "Reward model", "gate": "Gate"}


def label(name: str) -> str:
    """A stage, policy or judge as it is written in a table; `dpo@1`, of another seed, as `DPO@1`."""
    stage, *more = re.split(r"(?=[@ ])", name, maxsplit=1)
    return "".join([_LABELS.get(stage, stage), *more])


def in_sentence(name: str) -> str:
    """A policy inside a sentence."""
    if not is_base(name):
        return label(name)
    return "the base model" if name == "base" else f"{label(name.removesuffix(' base'))}'s own base model"


def judge_in_sentence(name: str) -> str:
    """A judge inside a sentence."""
    return "the reward model" if name == "reward" else name


def reward_model(name: str) -> str:
    """A reward model that the gate was asked about, inside a sentence; `reward` is the run's own."""
    return "the reward model" if name == "reward" else f"the reward model {name}"


def versus(row: Mapping[str, Any]) -> str:
    """The two policies of a comparison as they are written in a table."""
    return f"{label(row['policy'])} vs {label(row['baseline'])}"


def shown_verdict(row: Mapping[str, Any]) -> Kind:
    """The verdict of a comparison as it is shown: `doubtful` where the judge that gives one is."""
    verdict: Kind = row["verdict"]
    return "doubtful" if row.get("doubted") and verdict != "no difference" else verdict


def capital(text: str) -> str:
    """A text that begins a sentence."""
    return text[:1].upper() + text[1:]


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
