"""What a stage starts from: the model, tokenizer and adapter of its parent, or a base model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from peft import TaskType
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from rlhf.config.project import ModelConfig
from rlhf.models import probe
from rlhf.models.adapters import attach, check_attachable, check_joinable, lora_config
from rlhf.models.load import Source, check_weights, context_length, is_encoder, load_policy, model_config, source_of
from rlhf.models.settings import stage_settings
from rlhf.models.tokenizer import check_settings, check_tokenizer, load_tokenizer, settled_by
from rlhf.models.weights import check_numbers
from rlhf.policies.trial import check_architecture, check_replies
from rlhf.workflow import StageContext, parent_of, stage_of


@dataclass(frozen=True)
class StartingPoint:
    """What a stage starts from."""

    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig
    source: Source
    encoder: bool
    context_length: int | None


def starting_point(context: StageContext) -> StartingPoint:
    """Find the model a stage starts from: its parent's, or one of its own.

    Raises:
        UserError: Tokenizer, template or base are not those that the parent was trained with, or differ from the
            settings.
    """
    config = stage_settings(context.project, context.name)
    settings = settled_by(context.project, context.name)
    if context.parent is None and settings is not None:  # while data is prepared: the base model its parents go back to
        config = replace(settings, adapter=config.adapter)
    source = source_of(config, context.parent)
    architecture = model_config(source)
    tokenizer = load_tokenizer(config, context.parent)
    if context.parent is not None:
        record = _parent_record(context)
        check_tokenizer(tokenizer, record.get("tokenizer") or {}, context.parent)
        probe.check_commit(source, record.get("lineage") or {}, str(context.parent))
        if settings is not None:
            check_settings(tokenizer, settings, context.parent)
    scorer = is_encoder(architecture) or not stage_of(context.name).policy
    if not scorer:
        check_architecture(context.project, architecture)
    model = check_weights(source, config, scorer)
    if parent_of(context.project, context.name) is None:  # each base once: its weights are read for it
        check_numbers(source.base)
    if config.adapter is not None:  # refused here, before anything trains
        task = TaskType.SEQ_CLS if scorer else TaskType.CAUSAL_LM
        adapter = lora_config(config.adapter, task, joined=_parent_has_adapter(context))
        if model is not None:
            check_attachable(model, adapter)
        if source.adapter is not None:
            check_joinable(source.adapter)
    return StartingPoint(tokenizer, config, source, is_encoder(architecture), context_length(architecture))


def _parent_has_adapter(context: StageContext) -> bool:
    """Whether this stage's adapter will be joined with its parent's, which need not exist yet."""
    project, parent = context.project, parent_of(context.project, context.name)
    return parent in project.stages and project.stage_model(str(parent)).adapter is not None


def adapted(
    model: PreTrainedModel, start: StartingPoint, task: TaskType, args: TrainingArguments, whole: Sequence[str] = ()
) -> Any:
    """The model with a fresh adapter, drawn from the seed, or the model itself where all weights are trained.

    Args:
        model: What is adapted.
        start: Its adapter settings.
        task: Language model or classifier.
        args: Their seed.
        whole: New modules, which are trained and saved whole: no base model has their weights.
    """
    if start.config.adapter is None:
        return model.requires_grad_(True)  # merging a parent's adapter leaves its base frozen
    set_seed(args.seed)
    config = lora_config(start.config.adapter, task, joined=start.source.adapter is not None)
    if whole:
        config.modules_to_save = sorted({*(config.modules_to_save or ()), *whole})
    return attach(model, config, start.source)


def starting_policy(context: StageContext, start: StartingPoint) -> PreTrainedModel:
    """The policy a stage starts from, held against its parent's probe.

    Raises:
        UserError: It cannot be loaded, is not the model that its parent left, or cannot be sampled later in the run.
    """
    model = load_policy(start.source, start.config, start.tokenizer)
    check_replies(context.project, model)
    if context.parent is not None:
        probe.check_folder(model, context.parent, start.tokenizer)
    return model


def _parent_record(context: StageContext) -> dict[str, Any]:
    path = context.parent / "stage.json" if context.parent else None
    return json.loads(path.read_text(encoding="utf-8")) if path else {}
