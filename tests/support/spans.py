"""Questions about bookings, and span policies on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import TaskType, get_peft_model
from torch import nn
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, set_seed

from rlhf.data.records import Prompt, Spanned, as_role
from rlhf.data.windows import WindowCodec
from rlhf.models.adapters import lora_config
from rlhf.models.roles import CRITIC, Roles
from rlhf.policies.span import SpanPolicy, SpanRow
from tests.support.models import strengthened
from tests.support.projects import NAMES, THINGS


def questions(count: int = 40) -> list[dict[str, Any]]:
    """Rows in SQuAD's columns: who asks, and about what; every fifth question has no answer."""
    rows = []
    for number in range(count):
        name, thing = NAMES[number % 10], THINGS[number % 4]
        context = f"{name} asks about {thing} {number}."
        question, answer = ("Who asks?", name) if number % 2 else ("About what?", f"{thing} {number}")
        if number % 5 == 0:
            question, answer = "Which colour?", None
        texts = [] if answer is None else [answer]
        answers = {"text": texts, "answer_start": [context.index(text) for text in texts]}
        rows.append({"question": question, "context": context, "answers": answers})
    return rows


def records(rows: list[dict[str, Any]]) -> list[Spanned]:
    """Rows as records."""
    result = []
    for number, row in enumerate(rows):
        answers = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        spans = tuple((start, start + len(text)) for text, start in answers)
        result.append(Spanned(row["context"], row["question"], spans, {}, f"rows:{number}"))
    return result


def span_rows(base: Path, rows: list[dict[str, Any]], max_length: int | None = None) -> list[SpanRow]:
    """The rows as a policy takes them."""
    codec = WindowCodec(AutoTokenizer.from_pretrained(base), max_length)
    result = []
    for record in records(rows):
        prompt = as_role(record, "prompts")
        assert isinstance(prompt, Prompt)
        windowed = codec.windows(record.question, record.context)
        result.append(SpanRow(windowed.windows, windowed.offsets, prompt.prompt, json.loads(json.dumps(prompt.extra))))
    return result


def make_roles(base: Path, adapter: bool = True, critic: bool = True, factor: float = 6.0) -> Roles:
    """Policy, reference and, if wanted, critic; with matrices so large that answers differ in likelihood."""

    def model() -> Any:
        set_seed(0)
        return strengthened(AutoModelForQuestionAnswering.from_pretrained(base), factor)

    policy = model()
    head = nn.Linear(policy.config.hidden_size, 1) if critic else None
    if not adapter:
        return Roles(policy, head, model().base_model if critic else None, model())
    adapted = get_peft_model(policy, lora_config({"r": 4}, TaskType.QUESTION_ANS, joined=False))
    if critic:
        adapted.add_adapter(CRITIC, lora_config({"r": 4}, TaskType.QUESTION_ANS, joined=False))
    return Roles(adapted, head)


def make_policy(base: Path, roles: Roles | None = None, temperature: float = 1.0, longest: int = 6) -> SpanPolicy:
    """A policy that answers."""
    pad = AutoTokenizer.from_pretrained(base).pad_token_id
    policy = SpanPolicy(roles if roles is not None else make_roles(base), pad, temperature, 3, longest)
    policy.eval()
    return policy
