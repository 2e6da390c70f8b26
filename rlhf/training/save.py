"""What a finished training leaves behind: weights or an adapter, the tokenizer, and what its manifest records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from rlhf.artifacts.open import check_saved
from rlhf.data.prepare import Prepared, iter_records
from rlhf.models import probe
from rlhf.models.adapters import join_adapters, sort_modules
from rlhf.models.labels import classes_named
from rlhf.models.processor import pixel_values
from rlhf.models.tasks import LABEL
from rlhf.models.tokenizer import mark_eos, tokenizer_record
from rlhf.training.ready import Ready
from rlhf.training.starting_point import StartingPoint
from rlhf.workflow import StageContext, stage_of


def save_model(
    trainer: Trainer, ready: Ready, context: StageContext, model: PeftModel | PreTrainedModel | None = None
) -> dict[str, Any]:
    """Write the trained model so that plain peft or transformers load it: one adapter on the original base, or weights.

    Collective under FSDP and DeepSpeed: every process must call it.

    Args:
        trainer: The finished trainer.
        ready: What the stage started from, its arguments and its data.
        context: The stage.
        model: What is saved, where it is only part of what was trained.

    Returns:
        What the manifest records: `tokenizer`, `max_length`, `lineage`, and the `probe` by which whoever loads the
        artefact can tell that it is the same model (none where the weights are sharded).

    Raises:
        UserError: What was saved, loaded again as the next stage will, is not the model that was trained (looked at
            where the weights are not sharded).
    """
    start, folder = ready.start, context.directory
    model = model if model is not None else trainer.accelerator.unwrap_model(trainer.model)
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    state = trainer.accelerator.get_state_dict(trainer.model) if sharded else None
    adapter = isinstance(model, PeftModel)
    if trainer.is_world_process_zero():
        write_model(model, start, folder, state)
    trainer.accelerator.wait_for_everyone()
    tokenizer = tokenizer_record(start.processor)
    stored = None if sharded else _probe(model, ready)
    if stored is not None and trainer.is_world_process_zero():
        check_saved(model, stored, folder, start.config, tokenizer)
    source = start.source
    return {
        "tokenizer": tokenizer,
        "max_length": ready.args.max_length,
        "prompt_format": _prompt_format(context),
        "lineage": {
            "base": source.base, "revision": source.revision, "commit": probe.base_commit(source), "adapter": adapter,
        },
        "probe": stored,
    }  # fmt: skip


def write_model(
    model: PeftModel | PreTrainedModel, start: StartingPoint, folder: Path, state: dict[str, Any] | None = None
) -> None:
    """Write a model as a folder that plain peft or transformers load: one adapter on the original base, or weights.

    Args:
        model: The model in training.
        start: What the stage started from: its parent's adapter is joined with the new one.
        folder: Where to.
        state: The weights, where they had to be gathered.
    """
    if isinstance(model, PeftModel):
        # TRL's reference adapter, where it makes one, is no part of the result
        model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False, selected_adapters=["default"])
        sort_modules(folder)
        if start.source.adapter is not None:
            join_adapters(start.source.adapter, folder, folder)
        if start.task.policy == LABEL.policy and len(model.config.id2label) > 1:
            classes_named(model).write(folder)
    else:
        model.save_pretrained(folder, state_dict=state)
    if isinstance(start.processor, PreTrainedTokenizerBase):
        mark_eos(start.processor)
    start.processor.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card; publishing writes the real one


def _prompt_format(context: StageContext) -> str:
    """Whether the stage learned from `messages` or from plain `text`: what chat and the model card must write."""
    role = stage_of(context.name).data
    assert role is not None
    record, _ = next(iter_records(context.data_project, role))
    return "messages" if isinstance(getattr(record, "prompt", ""), list) else "text"


def _probe(model: PeftModel | PreTrainedModel, ready: Ready) -> dict[str, Any]:
    processor = ready.start.processor
    if isinstance(processor, PreTrainedTokenizerBase):
        return probe.make(model, _probe_sequences(ready.data))
    return probe.make(model, [], pixel_values(processor, model.config, ready.data.train[0]["image"]).shape)


def _probe_sequences(data: Prepared) -> list[list[int]]:
    rows = (data.eval if len(data.eval) else data.train).select(range(min(probe.SIZE, len(data.eval or data.train))))
    if "input_ids" in rows.column_names:
        return rows["input_ids"][:]
    if "windows" in rows.column_names:
        return [windows[0] for windows in rows["windows"][:]]
    prompts = rows["prompt_ids"][:] if "prompt_ids" in rows.column_names else [[] for _ in range(len(rows))]
    if "chosen_ids" not in rows.column_names:
        return prompts
    return [[*prompt, *chosen] for prompt, chosen in zip(prompts, rows["chosen_ids"][:], strict=True)]
