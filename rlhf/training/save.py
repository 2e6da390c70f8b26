"""What a finished training leaves behind: weights or an adapter, the tokenizer, and what its manifest records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from rlhf.artifacts.open import check_saved
from rlhf.config.project import ModelConfig
from rlhf.data.prepare import Prepared, iter_records
from rlhf.models import probe
from rlhf.models.adapters import join_adapters, sort_modules
from rlhf.models.labels import classes_named
from rlhf.models.processor import pixel_values
from rlhf.models.shards import counted, is_sharded, local, own_parts, whole_state
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
        What the manifest records: `tokenizer`, `max_length`, `lineage`, the `probe` by which whoever loads the artefact
        can tell that it is the same model, and of a launch of several `processes` what the main one held.

    Raises:
        UserError: What was saved, loaded again as the next stage will, is not the model that was trained.
    """
    start, folder = ready.start, context.directory
    model = model if model is not None else trainer.accelerator.unwrap_model(trainer.model)
    shares = trainer.is_deepspeed_enabled or is_sharded(model)
    state = gathered(model, start.config, trainer.is_world_process_zero()) if shares else None
    adapter = isinstance(model, PeftModel)
    if trainer.is_world_process_zero():
        write_model(model, start, folder, state)
    trainer.accelerator.wait_for_everyone()
    tokenizer = tokenizer_record(start.processor)
    stored = _probe(model, ready, trainer.accelerator.mixed_precision if is_sharded(model) else "no")
    if trainer.is_world_process_zero():
        check_saved(model, stored, folder, start.config, tokenizer)
    trainer.accelerator.wait_for_everyone()
    source = start.source
    return {
        "tokenizer": tokenizer,
        "max_length": ready.args.max_length,
        "prompt_format": _prompt_format(context),
        "lineage": {
            "base": source.base, "revision": source.revision, "commit": probe.base_commit(source), "adapter": adapter,
        },
        "probe": stored,
        **({"processes": _processes(trainer, model)} if trainer.args.world_size > 1 else {}),
    }  # fmt: skip


def _processes(trainer: Trainer, model: PeftModel | PreTrainedModel) -> dict[str, Any]:
    """How many processes trained, and how much of the weights and of the optimizer's state the main one held."""
    engine = "DDP"
    if trainer.is_deepspeed_enabled:
        engine = f"ZeRO-{trainer.accelerator.state.deepspeed_plugin.zero_stage}"
    elif is_sharded(model):
        engine = "FSDP2"
    optimizer: Any = trainer.optimizer
    while hasattr(optimizer, "optimizer"):  # accelerate's, DeepSpeed's, torch's
        optimizer = optimizer.optimizer
    states = [value for state in optimizer.state.values() for value in state.values()]
    of_optimizer = sum(local(value).numel() for value in states if isinstance(value, torch.Tensor) and value.dim())
    weights, held = counted(model)
    return {"number": trainer.args.world_size, "engine": engine, "weights": weights, "weights_held": held,
            "optimizer_held": of_optimizer}  # fmt: skip


def gathered(model: PeftModel | PreTrainedModel, settings: ModelConfig, keep: bool) -> dict[str, torch.Tensor]:
    """The weights that are saved of a sharded model. Every process calls this.

    Args:
        model: The model in training.
        settings: The type of its weights; engines keep them in float32 where they compute in another.
        keep: Whether this process saves them.

    Returns:
        Of an adapter its own weights, else all; by the names that they have in the model.
    """
    adapter = isinstance(model, PeftModel)
    own_parts(model)
    saved = {
        name: weight for name, weight in model.state_dict(keep_vars=True).items()
        if not adapter or ".default." in f"{name}."
    }  # fmt: skip
    state = whole_state(saved, keep)
    if adapter:
        return state
    kind = getattr(torch, settings.dtype)
    return {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


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


def _probe(model: PeftModel | PreTrainedModel, ready: Ready, precision: str) -> dict[str, Any]:
    """The probe of a model; `precision` is accelerate's word for the type that a sharded model computes in."""
    processor, dtype = ready.start.processor, {"bf16": "bfloat16", "fp16": "float16"}.get(precision)
    if isinstance(processor, PreTrainedTokenizerBase):
        return probe.make(model, _probe_sequences(ready.data), dtype=dtype)
    image = pixel_values(processor, model.config, ready.data.train[0]["image"]).shape
    return probe.make(model, [], image, dtype)


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
