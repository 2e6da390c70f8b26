"""The sft stage: imitate demonstrations (TRL's SFTTrainer), or fine-tune an encoder to classify labelled text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf.errors import UserError
from rlhf.workflow import TRL_CONFIG, Metrics, Stage, StageContext

if TYPE_CHECKING:
    from transformers import Trainer

    from rlhf.training.ready import Ready


def prepare(context: StageContext) -> Ready:
    """Read and tokenise `data.demonstrations`: replies for a causal model, `text` and `label` for an encoder."""
    from dataclasses import replace

    from rlhf.data.classes import class_names
    from rlhf.data.tokenize import Codec
    from rlhf.training.ready import Ready, arguments, prepared_data
    from rlhf.training.starting_point import starting_point

    start = starting_point(context)
    args: Any = arguments(context, start)
    codec = Codec(start.tokenizer, args.max_length, args.truncation_mode, encoder=start.encoder)
    encode = codec.labelled if start.encoder else codec.demonstration
    settings = {"max_length": args.max_length, "keep": codec.keep}
    data = prepared_data(context, start, encode, settings, ahead=codec.ahead)
    if start.encoder:
        sides = (data.train, data.eval)
        learned, held_out = ({name for row in rows["classes"] for name in row} for rows in sides)
        class_names(learned)
        outputs = {name: n for n, name in enumerate(class_names(learned | held_out))}  # also for those held out
        if any(len(row) != 1 for rows in sides for row in rows["classes"]):
            raise UserError("data.demonstrations: a row has several labels, or none, as a list; give each row one")
        train, held = (
            rows.remove_columns("classes").add_column("labels", [outputs[row[0]] for row in rows["classes"]])
            for rows in sides
        )
        data = replace(data, train=train, eval=held)
    return Ready(start, args, data)


def dry_run(context: StageContext, ready: Ready) -> None:
    """Build the trainer once as a dry run."""
    from peft import TaskType

    from rlhf.training.dry_run import try_trainer
    from rlhf.trl_trainers.sft import SFTTrainer
    from rlhf.trl_trainers.speedups import NO_SPEEDUPS

    if ready.start.encoder:
        try_trainer(ready, TaskType.SEQ_CLS, _classifier, labels=_labels(ready))
    else:
        try_trainer(ready, TaskType.CAUSAL_LM, lambda few, model: few.trainer(SFTTrainer, model, speedups=NO_SPEEDUPS))


def run(context: StageContext) -> Metrics:
    """Train a causal model to imitate, or an encoder to classify."""
    from peft import TaskType

    from rlhf.prefix_sharing.support import packing_check
    from rlhf.training.run import run_training
    from rlhf.training.save import save_model
    from rlhf.training.starting_point import adapted, starting_policy
    from rlhf.trl_trainers.sft import SFTTrainer
    from rlhf.trl_trainers.speedups import speedups_of

    ready = prepare(context)
    if ready.start.encoder:
        trainer = _classifier(ready, _new_classifier(ready))
    else:
        policy = starting_policy(context, ready.start)
        if (ready.args.packing or ready.args.padding_free) and (reason := packing_check(policy.base_model)):
            raise UserError(f"stages.sft.packing: the demonstrations of a row would see one another: {reason}")
        model = adapted(policy, ready.start, TaskType.CAUSAL_LM, ready.args)
        trainer = ready.trainer(SFTTrainer, model, speedups=speedups_of(context))
    metrics = run_training(trainer, context)
    return {**metrics, **save_model(trainer, ready, context)}


def _new_classifier(ready: Ready) -> Any:
    """The encoder with a new head, drawn from the seed."""
    from peft import TaskType
    from transformers import set_seed

    from rlhf.training.starting_point import adapted

    start = ready.start
    set_seed(ready.args.seed)
    scorer = start.opened.with_new_head(_labels(ready))
    return adapted(scorer.model, start, TaskType.SEQ_CLS, ready.args, scorer.fresh)


def _classifier(ready: Ready, model: Any) -> Trainer:
    """Plain cross-entropy on class labels with transformers' own Trainer: TRL has no classifier."""
    from transformers import DataCollatorWithPadding, Trainer

    from rlhf.trl_trainers.sft import accuracy

    collator = DataCollatorWithPadding(ready.start.tokenizer)
    return ready.trainer(Trainer, model, data_collator=collator, compute_metrics=accuracy)


def _labels(ready: Ready) -> int:
    """Classes of the data, at least two."""
    return max(2, 1 + max(max(ready.data.train["labels"]), max(ready.data.eval["labels"], default=0)))


STAGE = Stage(
    name="sft",
    order=10,
    label="SFT",
    leaves="policy",
    run=run,
    prepare=prepare,
    dry_run=dry_run,
    method="Supervised fine-tuning on demonstrations",
    data="demonstrations",
    trainer=(*TRL_CONFIG, "trl.trainer.sft_config:SFTConfig"),
    choices={
        "loss_type": ("nll", "chunked_nll", "dft"),
        "packing_strategy": ("bfd", "bfd_split", "bfd-requeue", "wrapped"),
    },
)
