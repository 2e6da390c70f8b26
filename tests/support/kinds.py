"""A PPO trainer on a tiny model of each kind of policy that is no causal language model, built without a project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoTokenizer, set_seed

from rlhf.data.windows import WindowCodec
from rlhf.models.adapters import lora_config
from rlhf.models.fsdp import shard
from rlhf.models.labels import Classes
from rlhf.models.roles import CRITIC, Roles
from rlhf.models.tasks import LABEL, SEQ2SEQ, SPAN, Task
from rlhf.policies.label import LabelPolicy, LabelRow
from rlhf.policies.readers import TextReader
from rlhf.policies.seq2seq import Seq2SeqPolicy, SourceRow
from rlhf.policies.span import SpanPolicy, SpanRow
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.trainer import PPOTrainer
from rlhf.rewards.compose import Rewards
from tests.support.models import strengthened
from tests.support.ppo import PROMPTS, wordy

NAMES = ["broken", "late", "lost"]


class Kind(NamedTuple):
    """How a kind is made."""

    fixture: str
    """The model's folder."""
    task: Task
    factor: float
    """How much larger the matrices are made, so that what is drawn depends on the input."""
    policy: Callable[[Roles, Any, PPOConfig], Any]
    row: Callable[[Any, str, dict[str, Any]], Any]
    """An input of tokenizer, text and columns."""


def _classifier(roles: Roles, tokenizer: Any, args: PPOConfig, classes: Classes) -> LabelPolicy:
    reader = TextReader(tokenizer, roles.config)
    return LabelPolicy(roles, reader, classes, args.temperature, args.sampling_batch_size)


def _label(roles: Roles, tokenizer: Any, args: PPOConfig) -> LabelPolicy:
    return _classifier(roles, tokenizer, args, Classes(NAMES))


def _labels(roles: Roles, tokenizer: Any, args: PPOConfig) -> LabelPolicy:
    return _classifier(roles, tokenizer, args, Classes(NAMES, several=True))


def _seq2seq(roles: Roles, tokenizer: Any, args: PPOConfig) -> Seq2SeqPolicy:
    return Seq2SeqPolicy(roles, tokenizer, args.max_new_tokens, args.temperature, args.sampling_batch_size)


def _span(roles: Roles, tokenizer: Any, args: PPOConfig) -> SpanPolicy:
    return SpanPolicy(roles, tokenizer.pad_token_id, args.temperature, args.sampling_batch_size, args.max_new_tokens)


def _span_row(tokenizer: Any, text: str, columns: dict[str, Any]) -> SpanRow:
    windows, offsets = WindowCodec(tokenizer, 16).windows("Who?", text)  # long texts have several
    return SpanRow(windows, offsets, text, {"context": text, **columns})


def _of_ids(row: Any) -> Callable[[Any, str, dict[str, Any]], Any]:
    return lambda tokenizer, text, columns: row(tokenizer(text)["input_ids"], text, columns)


KINDS = {
    "label": Kind("tiny_bert", LABEL, 4.0, _label, _of_ids(LabelRow)),
    "labels": Kind("tiny_bert", LABEL, 4.0, _labels, _of_ids(LabelRow)),
    "t5": Kind("tiny_t5", SEQ2SEQ, 1.5, _seq2seq, _of_ids(SourceRow)),
    "bart": Kind("tiny_bart", SEQ2SEQ, 8.0, _seq2seq, _of_ids(SourceRow)),
    "span": Kind("tiny_bert", SPAN, 4.0, _span, _span_row),
}


def load(kind: Kind, base: Path) -> Any:
    """The kind's model, the same every time."""
    set_seed(0)
    options = {"num_labels": len(NAMES)} if kind.task is LABEL else {}
    return strengthened(kind.task.model_class.from_pretrained(base, **options).eval(), kind.factor)


def make_roles(kind: Kind, base: Path, adapter: bool = True, critic: bool | str = True) -> Roles:
    """Policy, reference and, if wanted, critic: one of its own, or `shared`, a head on the policy."""
    model = load(kind, base)
    head = nn.Linear(model.config.hidden_size, 1) if critic else None
    own = critic and critic != "shared"
    if not adapter:
        return Roles(model, head, load(kind, base).base_model if own else None, load(kind, base))
    configs = [lora_config({"r": 4}, kind.task.peft, joined=False) for _ in range(2)]
    policy = get_peft_model(model, configs[0])
    if own:
        policy.add_adapter(CRITIC, configs[1])
    return Roles(policy, head)


def make_trainer(
    name: str,
    folder: Path,
    base: Path,
    adapter: bool = True,
    function: Any = wordy,
    stir: bool = False,
    sharded: bool = False,
    **fields: Any,
) -> PPOTrainer:
    """A trainer whose rollouts are 8 completions, 2 passes each.

    Args:
        name: One of `KINDS`.
        folder: Where it writes.
        base: The model's folder.
        adapter: Whether it trains an adapter, or all weights.
        function: What is maximised.
        stir: Whether fresh adapters get weights that change something.
        sharded: Whether the weights are sharded over the processes.
        fields: Settings that differ.
    """
    settings = {
        "output_dir": str(folder), "report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no",
        "per_device_train_batch_size": 8, "num_ppo_epochs": 2, "max_steps": 4, "learning_rate": 1e-2,
        "adam_epsilon": 1e-5, "max_new_tokens": 6, "normalize_samples": 0, "truncated": "score",
        "missing_eos_penalty": 0.0, "logging_steps": 1, "lr_scheduler_type": "constant", **fields,
    }  # fmt: skip
    args = PPOConfig(**settings)
    kind, tokenizer = KINDS[name], AutoTokenizer.from_pretrained(base)
    roles = make_roles(kind, base, adapter, args.estimator.needs_values and args.critic)
    if stir:
        generator = torch.Generator().manual_seed(5)
        for part, parameter in roles.named_parameters():
            if "lora_B" in part:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if sharded:
        shard(roles, args.device)
    policy = kind.policy(roles, tokenizer, args)
    return PPOTrainer(policy, args, rows(kind, tokenizer), Rewards({"reward": function}, {"reward": 1.0}))


def rows(kind: Kind, tokenizer: Any, texts: Sequence[str] = PROMPTS) -> list[Any]:
    """Inputs of a kind."""
    return [kind.row(tokenizer, text, {"number": number}) for number, text in enumerate(texts)]
