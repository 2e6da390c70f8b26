"""Numbers, counts and names of a report as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlhf.stages import is_base

Kind = Literal["better", "worse", "no difference", "doubtful", "alarm"]
"""What a statement of a report is; each has a mark and a colour."""
_LABELS = {"base": "Base", "sft": "SFT", "dpo": "DPO", "ppo": "PPO", "reward": "Reward model", "gate": "Gate"}
_PLURALS = {
    "rollout": "rollouts",
    "reply": "replies",
    "row": "rows",
    "prompt": "prompts",
    "token": "tokens",
    "pair": "pairs",
    "seed": "seeds",
    "comparison": "comparisons",
}


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


def number(value: float | None, digits: int | None = None, signed: bool = False) -> str:
    """A number with a true minus sign; about three significant digits unless told; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if digits is None:
        digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
        if value and abs(value) < 0.01:
            return f"{value:.1e}".replace("-", "−").replace("e−0", "e−")
    text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    return (text if float(text.replace(",", "")) else text.lstrip("+-")).replace("-", "−")


def estimate(
    value: float | None, interval: Sequence[float] | None, digits: int | None = None, signed: bool = False
) -> str:
    """An estimate with its interval, to the digits the interval deserves: `+0.12 [0.09, 0.15]`.

    Further digits are added where rounding would put an end of the interval on zero that is not there.
    """
    if interval is None:
        return number(value, digits, signed)
    if digits is None:
        width = abs(interval[1] - interval[0])
        digits = min(4, max(2, math.ceil(-math.log10(width)))) if width > 0 else 2
        while digits < 6 and any(end and not round(end, digits) for end in interval):
            digits += 1
    return f"{number(value, digits, signed)} [{number(interval[0], digits)}, {number(interval[1], digits)}]"


def percent(share: float | None, interval: Sequence[float] | None = None) -> str:
    """A share as whole percent: `71% [66%, 75%]`."""
    if share is None or not math.isfinite(share):
        return "–"
    text = f"{100 * share:.0f}%".replace("-", "−")
    return text if interval is None else f"{text} [{percent(interval[0])}, {percent(interval[1])}]"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: `41 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    if minutes:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def count(n: int, noun: str) -> str:
    """`1 reply`, `1,200 replies`."""
    return f"{n:,} {noun if n == 1 else _PLURALS[noun]}"
