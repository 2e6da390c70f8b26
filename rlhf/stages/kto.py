"""The kto stage: TRL's KTOTrainer on completions that were judged good or bad, one at a time.

Without `data.feedback` the two sides of each preference are such judgements. KTO estimates the KL divergence from
completions under another prompt of the same batch, so rows keep their batches: pairs stand in them as TRL lays out
preferences, first all chosen sides and then all rejected ones, and both passes share the prompts of a pair exactly.
"""

from __future__ import annotations

import functools
import random
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf.config.project import ProjectConfig
from rlhf.stages._reference import (
    held_to_reference,
    policy_arguments,
    settle_reference,
    train_with_reference,
    try_with_reference,
)
from rlhf.workflow import TRL_CONFIG, Metrics, Stage, StageContext
from rlhf.workload import Circumstances, Workload

if TYPE_CHECKING:
    from datasets import Dataset

    from rlhf.data.records import Encoded, Feedback, Preference
    from rlhf.data.tokenize import Codec
    from rlhf.training.ready import Ready

_BALANCE = (1.0, 4 / 3)
"""How the weighted desirable rows should stand to the weighted undesirable ones, Eq. (8) of the paper."""


def prepare(context: StageContext) -> Ready:
    """Read and tokenise the judgements as prompt, completion and label, in the batches that they will stand in."""
    from rlhf.data.tokenize import Codec
    from rlhf.policies.kinds import Encoder
    from rlhf.training.ready import Ready, prepared_data

    start, args = policy_arguments(context)
    codec = Codec(start.tokenizer, args.max_length)
    encoder = Encoder(functools.partial(encode, codec), {"max_length": args.max_length}, codec.ahead)
    data = prepared_data(context, start, encoder)
    data = replace(
        data,
        train=in_batches(data.train, args.per_device_train_batch_size, args.seed),
        eval=in_batches(data.eval, args.per_device_eval_batch_size, args.seed),
    )
    if (caveat := unbalanced(data.train["label"], args.desirable_weight, args.undesirable_weight)) is not None:
        print(f"{context.name}: {caveat}", file=sys.stderr)
    settle_reference(context, start, args, len(data.train))
    return Ready(start, args, data)


def encode(codec: Codec, record: Feedback | Preference) -> list[Encoded]:
    """A row for each judgement of a record: `prompt_ids`, `completion_ids`, `label`, and whether it is of a pair.

    Raises:
        Unusable: The prompt leaves no room for a completion within the limit.
    """
    from rlhf.data.records import Encoded, Feedback, Unusable

    if isinstance(record, Feedback):
        paired, judgements = False, [(record.completion, record.label)]
    else:
        paired, judgements = True, [(record.chosen, True), (record.rejected, False)]
    rows = []
    for completion, label in judgements:
        ids, begin = codec.sequence(record.prompt, completion)
        stop = len(ids) if codec.max_length is None else min(len(ids), codec.max_length)
        if begin >= stop:
            raise Unusable("prompt longer than max_length")
        columns = {"prompt_ids": ids[:begin], "completion_ids": ids[begin:stop], "label": label, "paired": paired}
        rows.append(Encoded(columns, truncated=stop < len(ids), eos_lost=stop < len(ids)))
    return rows


def in_batches(rows: Dataset, size: int, seed: int) -> Dataset:
    """Shuffle rows and put them into the batches that they will stand in, each with another row's completion.

    The row before gives `KL_completion_ids`, within batches of `size` rows, as in TRL. Where all rows are of pairs and
    batches are even, a batch has n chosen sides and then the n rejected ones of the same prompts; so a completion never
    comes from the row's own pair, unless a batch has a single one. The order is that of every epoch.

    Args:
        rows: The two rows of a pair stand behind one another, the chosen side first.
        size: Rows of a batch on one device.
        seed: Of the shuffling.
    """
    pairs = size % 2 == 0 and len(rows) > 0 and all(rows["paired"])
    units = list(range(0, len(rows), 2 if pairs else 1))
    random.Random(seed).shuffle(units)
    order = units
    if pairs:
        parts = [units[first : first + size // 2] for first in range(0, len(units), size // 2)]
        order = [row + side for part in parts for side in (0, 1) for row in part]
    return rows.select(order).map(_with_other_completions, batched=True, batch_size=size)


def _with_other_completions(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    completions = batch["completion_ids"]
    return {"KL_completion_ids": [completions[-1], *completions[:-1]]}


def unbalanced(labels: list[bool], desirable_weight: float, undesirable_weight: float) -> str | None:
    """What to be told where good and bad rows do not weigh about the same, or None.

    Source: Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization" (2024), Eq. (8).
    """
    good = sum(labels)
    bad = len(labels) - good
    if not good or not bad:
        return f"every row is {'desirable' if good else 'undesirable'}: there is nothing to tell apart"
    ratio = desirable_weight * good / (undesirable_weight * bad)
    low, high = _BALANCE
    if low <= ratio <= high:
        return None
    return (
        f"{good} desirable and {bad} undesirable rows weigh as {ratio:.2f} to 1; between {low:.0f} and {high:.2f} is "
        f"advised: set desirable_weight between {low * undesirable_weight * bad / good:.2f} and "
        f"{high * undesirable_weight * bad / good:.2f}"
    )


@functools.cache
def trainer_class() -> Any:
    """TRL's trainer with what saves time, made on demand since TRL is heavy."""
    import trl

    from rlhf.trl_trainers.reference import ReferenceTrainer

    class KTOTrainer(ReferenceTrainer, trl.KTOTrainer):
        """TRL's trainer on single judgements, whose pairs share their prompts."""

        group_size = 2

        def separable(self) -> bool:
            """False: each row's loss depends on the KL estimate of its batch."""
            return False

    return KTOTrainer


def dry_run(context: StageContext, ready: Ready) -> None:
    """Make the trainer once without training."""
    try_with_reference(ready, trainer_class())


def run(context: StageContext) -> Metrics:
    """Train from the parent's model, which is also the reference."""
    metrics, _ = train_with_reference(context, prepare(context), trainer_class())
    return metrics


def workload(project: ProjectConfig, name: str, given: Circumstances) -> Workload:
    """A policy that is trained, and its reference."""
    return held_to_reference(project, name, given, (("prompt_ids", "completion_ids"),))


STAGE = Stage(
    name="kto",
    order=45,
    label="KTO",
    leaves="policy",
    run=run,
    prepare=prepare,
    dry_run=dry_run,
    workload=workload,
    method="Kahneman-Tversky optimisation",
    shows={"loss": "loss", "eval_loss": "held-out loss", "rewards/margins": "margin", "kl": "KL"},
    data="feedback",
    rows_of=("rank",),
    follows=("rft", "sft"),
    trainer=(*TRL_CONFIG, "trl.trainer.kto_config:KTOConfig"),
    intervals={
        "beta": "(0, inf)", "desirable_weight": "[0, inf)", "undesirable_weight": "[0, inf)",
        "precompute_ref_batch_size": "[1, 1e6]", "ref_model_mixup_alpha": "[0, 1]", "ref_model_sync_steps": "[1, 1e9]",
    },
    choices={"loss_type": ("kto", "apo_zero_unpaired")},
    checkpoint_judge=True,
)  # fmt: skip
