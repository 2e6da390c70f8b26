"""What values a setting takes: an interval for each number, a list for each closed choice.

The tables are of fields that several trainers have, those of `transformers.TrainingArguments` above all; the fields of
one trainer stand in its stage's file. Nothing is imported: the YAML is held against this.
"""

from __future__ import annotations

import math
import re
import reprlib
from dataclasses import dataclass
from typing import Any

from rlhf.errors import unknown_name

_FORM = re.compile(r"(?P<open>[\[(])(?P<low>\S+), (?P<high>\S+)(?P<close>[\])])( or (?P<also>\S+))?")


@dataclass(frozen=True)
class Interval:
    """Numbers between two bounds, and at most one beside them."""

    low: float
    high: float
    above: bool
    """Whether `low` itself is left out."""
    below: bool
    """Whether `high` itself is left out."""
    also: float | None = None
    """A number outside that stands for "not set"."""

    @classmethod
    def of(cls, text: str) -> Interval:
        """The interval that is written as in mathematics: `[0, 1)` has 0 and not 1, `(0, inf)` all positive numbers."""
        form = _FORM.fullmatch(text)
        if form is None:
            raise ValueError(f"not an interval: {text}")
        also = form["also"]
        return cls(
            float(form["low"]), float(form["high"]), form["open"] == "(", form["close"] == ")",
            None if also is None else float(also),
        )  # fmt: skip

    def problem(self, value: float) -> str | None:
        """Which bound a number does not keep, or None; NaN keeps neither."""
        try:
            value = float(value)  # as libraries use it
        except OverflowError:
            value = math.inf if value > 0 else -math.inf
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        if (low and high) or value == self.also:
            return None
        words = []
        if not low and self.low > -math.inf:
            words.append(f"{'above' if self.above else 'at least'} {_number(self.low)}")
        if not high and self.high < math.inf:
            words.append(f"{'below' if self.below else 'at most'} {_number(self.high)}")
        return f"must be {' and '.join(words) or 'finite'}" + (
            "" if self.also is None else f", or {_number(self.also)}"
        )


def _number(value: float) -> str:
    return f"{int(value):,}" if value.is_integer() else str(value)


_POSITIVE, _FINITE, _SHARE = "(0, inf)", "[0, inf)", "[0, 1]"
_ROWS, _STEPS, _COUNT = "[1, 1e6]", "(0, 1e9]", "[1, 1e9]"

INTERVALS = {name: Interval.of(text) for name, text in {
    # transformers.TrainingArguments
    "adam_beta1": "[0, 1)", "adam_beta2": "[0, 1)", "adam_epsilon": _FINITE, "dataloader_num_workers": "[0, 1024]",
    "dataloader_prefetch_factor": _ROWS, "ddp_bucket_cap_mb": _ROWS, "ddp_timeout": _COUNT,
    "eval_accumulation_steps": _COUNT, "eval_delay": "[0, 1e9]", "eval_steps": "[0, 1e9]",
    "gradient_accumulation_steps": _ROWS, "label_smoothing_factor": _SHARE, "learning_rate": _POSITIVE,
    "logging_steps": _STEPS, "max_grad_norm": "[0, inf]", "max_steps": "[1, 1e9] or -1",
    "neftune_noise_alpha": _FINITE, "num_train_epochs": "(0, 1e6]", "per_device_eval_batch_size": _ROWS,
    "per_device_train_batch_size": _ROWS, "save_steps": _STEPS, "save_total_limit": "[0, 1e9]",
    "torch_empty_cache_steps": _COUNT, "warmup_steps": "[0, 1e9]", "weight_decay": _FINITE,
    # of several trainers
    "dataset_num_proc": "[1, 1024]", "max_length": _COUNT, "pad_to_multiple_of": _ROWS, "router_aux_loss_coef": _FINITE,
}.items()}  # fmt: skip
"""Numeric field: its interval. Of a list or a mapping it holds for each number. An upper bound on a count keeps out
what would never end or fit; an infinity that switches something off is in."""

CHOICES: dict[str, tuple[str, ...]] = {
    "include_num_input_tokens_seen": ("all", "non_padding", "no"),
    "log_level": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "log_level_replica": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "train_sampling_strategy": ("random", "sequential", "group_by_length", "batch_rebalance"),
    "truncation_mode": ("keep_start", "keep_end"),
}  # fmt: skip
"""Field: the words it takes, where its library refuses others only while it trains. Those of its enumerations are read
from source (`rlhf.config.trainer_fields`)."""


def problem(value: Any, interval: Interval | None, choices: tuple[str, ...] = ()) -> str | None:
    """What is wrong with a value of the right type for a trainer's field, or None.

    Args:
        value: What the field is set to; of a list or a mapping each value is looked at.
        interval: The numbers that it takes.
        choices: The words that it takes; none where any will do.
    """
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
    for part in parts:
        if isinstance(part, str) and choices and part not in choices:
            return f"unknown {part!r}; {unknown_name(part, choices)}"
        if (
            interval
            and isinstance(part, int | float)
            and not isinstance(part, bool)
            and (why := interval.problem(part))
        ):
            return f"{why}, not {shown(part)}"
    return None


def shown(value: Any) -> str:
    """A value as a message repeats it: cut where it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)
