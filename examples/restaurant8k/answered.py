"""F1 of the questions that have an answer: where most have none, the mean over all says little of the rest."""

from __future__ import annotations

from typing import Any

from rlhf.rewards.spans import span_f1


def f1(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    """F1 as SQuAD has it; None where there is no answer."""
    scores = span_f1(prompts, completions, **columns)
    return [score if answers["text"] else None for score, answers in zip(scores, columns["answers"], strict=True)]
