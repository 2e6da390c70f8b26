"""Measures a policy on the sets of `evaluate.retain`: text it should still find likely, tasks it should still solve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf import processes
from rlhf.artifacts.open import OpenedModel
from rlhf.config.project import EvaluateConfig, ProjectConfig, RetainConfig
from rlhf.config.sets import SourceConfig
from rlhf.data.checks import fault
from rlhf.data.formats import find
from rlhf.data.records import Demonstration, Prompt, Unusable, as_completion, as_role
from rlhf.data.sources import read_rows
from rlhf.data.tokenize import IGNORED, Codec
from rlhf.errors import UserError, unknown_name
from rlhf.evaluation.regressions import Measure, RetainedRow
from rlhf.models.load import context_length
from rlhf.models.tasks import CAUSAL_LM
from rlhf.policies.kinds import policy_kind
from rlhf.rewards import RewardFunction, columns_of


@dataclass(frozen=True)
class RetainedSet:
    """A set on which no policy should get worse."""

    name: str
    judge: str | None
    """The reward that scores completions; None for text, whose log-likelihood counts."""
    records: tuple[Demonstration | Prompt, ...]
    whole: bool = False
    """Whether the log-likelihood is that of a whole reply, the sum over its tokens, and not their mean."""
    held_out: bool = False
    """Whether these are held-out rows of the project's own sets, and none of `evaluate.retain`."""

    @property
    def measure(self) -> Measure:
        """What a value of it is; of both, more is better."""
        return "log-likelihood" if self.judge is None else "score"


def read_retained(project: ProjectConfig) -> list[RetainedSet]:
    """The sets of `evaluate.retain`.

    Raises:
        UserError: One cannot be read, has no usable row, or names a judge that is not there or compares.
    """
    return [_read(name, config, project) for name, config in project.evaluate.retain.items()]


def _read(name: str, config: RetainConfig, project: ProjectConfig) -> RetainedSet:
    where = f"evaluate.retain.{name}"
    known = [key for key, reward in project.rewards.items() if reward.endpoint is None]
    if config.judge is not None and config.judge not in known:
        hint = unknown_name(config.judge, known)
        raise UserError(f"{where}.judge: there is no {config.judge!r} that scores under rewards:; {hint}")
    source = SourceConfig(
        source=config.source, format=config.format, split=config.split, columns=config.columns, limit=config.limit
    )
    role = "demonstrations" if config.judge is None else "prompts"
    layout, records = None, []
    for row, origin in read_rows(source, project.path.parent):
        layout = layout or find(source.format, row, origin)
        try:
            read = [as_role(record, role) for record in layout.records(row, origin)]
        except Unusable:
            continue
        records += [record for record in read if fault(record) is None]
    if not records:
        raise UserError(f"{where}: no row of {config.source} can be used")
    return RetainedSet(name, config.judge, tuple(records))  # type: ignore[arg-type]  # as_role gives these two


def log_likelihoods(
    retained: RetainedSet, opened: OpenedModel, model: PreTrainedModel, first: int, last: int
) -> list[float | None]:
    """Log-likelihood of rows of a set, nats/token, more is better; None where no token is within the context.

    Args:
        retained: A set of texts; where `whole`, nats/reply.
        opened: What the policy is, and its tokenizer.
        model: The policy.
        first: The first row.
        last: The row behind the last.

    Raises:
        UserError: The policy has no log-likelihood of a text, as it writes none.
    """
    if opened.task is not CAUSAL_LM:
        raise UserError(
            f"evaluate.retain.{retained.name}: the likelihood of a text is that of a language model, not of a "
            f"{opened.task.policy} policy: name a judge"
        )
    limited = Codec(opened.tokenizer, context_length(model.config))
    return [_log_likelihood(model, limited, record, retained.whole) for record in retained.records[first:last]]


def greedy_completions(
    retained: RetainedSet, opened: OpenedModel, model: PreTrainedModel, settings: EvaluateConfig, first: int, last: int
) -> list[str]:
    """What a policy writes to prompts of a set, decoded greedily.

    Args:
        retained: A set of prompts.
        opened: What the policy is, and its tokenizer.
        model: The policy.
        settings: Longest completion, and completions generated at once.
        first: The first row.
        last: The row behind the last.
    """
    greedy, label = replace(settings, temperature=0.0), f"{retained.name}:" if processes.is_main() else ""
    prompts = _prompts(retained)[first:last]
    completed = policy_kind(opened).complete(model, prompts, greedy, samples=1, seed=0, label=label, first=first)
    return [row[0].text for row in completed.completions]


def judged(retained: RetainedSet, texts: Sequence[str], judge: RewardFunction) -> list[float | None]:
    """A judge's score of the completion of each row, more is better; None where it gives none."""
    prompts = _prompts(retained)
    asked = [prompt.prompt for prompt in prompts]
    completions = [as_completion(prompt, text) for prompt, text in zip(asked, texts, strict=True)]
    return judge(asked, completions, **columns_of([prompt.extra for prompt in prompts]))


def _prompts(retained: RetainedSet) -> list[Prompt]:
    return [record for record in retained.records if isinstance(record, Prompt)]


@torch.no_grad()
def _log_likelihood(model: PreTrainedModel, codec: Codec, record: Any, whole: bool) -> float | None:
    """Log-probability of the tokens that a demonstration teaches: their mean, nats/token, or their sum (`whole`)."""
    try:
        columns = codec.demonstration(record).columns
    except Unusable:
        return None
    ids = torch.tensor([columns["input_ids"]], device=model.device)
    targets = torch.tensor(columns["labels"][1:], device=model.device)
    log_probs = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
    kept = targets != IGNORED
    if not kept.any():
        return None
    taught = log_probs[kept].gather(-1, targets[kept, None])
    return float(taught.sum() if whole else taught.mean())


def retained_rows(
    sets: Sequence[RetainedSet], values: Mapping[str, Mapping[str, Sequence[float | None]]]
) -> list[RetainedRow]:
    """The lines of `retained.jsonl`: one a row, with the value of every policy.

    Args:
        sets: The sets.
        values: Of each policy, of each set, its values.
    """
    return [
        RetainedRow(
            set=retained.name, measure=retained.measure, origin=record.origin,
            values={policy: of_sets[retained.name][index] for policy, of_sets in values.items()},
        )
        for retained in sets
        for index, record in enumerate(retained.records)
    ]  # fmt: skip
