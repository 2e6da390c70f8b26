"""What a stage starts from: the model, tokenizer and adapter of its parent, or a base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from rlhf.artifacts.open import OpenedModel, open_model, open_stage
from rlhf.config.project import ModelConfig, ProjectConfig
from rlhf.errors import UserError
from rlhf.models.adapters import attach, check_attachable, check_joinable, lora_config, whole_modules
from rlhf.models.device import reads_weights
from rlhf.models.freeze import freeze_parameters
from rlhf.models.load import Source, check_weights, context_length, model_config
from rlhf.models.quantization import check_keepable, check_quantization
from rlhf.models.settings import stage_settings
from rlhf.models.tasks import CAUSAL_LM, LABEL, SEQ2SEQ, Task, is_encoder
from rlhf.models.tokenizer import Processor, check_settings
from rlhf.models.weights import check_numbers
from rlhf.policies.sampling_check import check_architecture, check_can_sample
from rlhf.workflow import StageContext, ancestors_of, parent_of


@dataclass(frozen=True)
class StartingPoint:
    """What a stage starts from."""

    opened: OpenedModel
    """Its parent, or a base model: nothing of it is loaded but the tokenizer."""
    task: Task
    """What the stage trains it to do."""
    encoder: bool
    context_length: int | None
    freeze: tuple[str, ...] = ()
    """Patterns of the parameters that the stage does not train."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of this stage and of its parent."""
        return self.opened.tokenizer

    @property
    def processor(self) -> Processor:
        """What makes the inputs of this stage and of its parent: a tokenizer or an image processor."""
        return self.opened.processor

    @property
    def config(self) -> ModelConfig:
        """The model settings of this stage."""
        return self.opened.settings

    @property
    def source(self) -> Source:
        """Where the weights come from."""
        return self.opened.source


def starting_point(context: StageContext) -> StartingPoint:
    """Find the model a stage starts from: its parent's, or one of its own.

    Raises:
        UserError: Tokenizer, template or base are not those that the parent was trained with, or differ from the
            settings.
    """
    config = stage_settings(context.project, context.name)
    settings = _tokenizer_settings(context.project, context.name)
    if context.parent is None and settings is not None:  # while data is prepared: the base model its parents go back to
        config = replace(settings, adapter=config.adapter)
    opened = open_model(config) if context.parent is None else open_stage(context.parent, config)
    source, processor = opened.source, opened.processor
    architecture = model_config(source)
    if context.parent is not None and settings is not None and isinstance(processor, PreTrainedTokenizerBase):
        check_settings(processor, settings, context.parent)
    task = LABEL if context.stage.leaves == "scorer" else opened.task
    if task is CAUSAL_LM:
        check_architecture(context.project, architecture)
    check_quantization(config, architecture, source.base)
    model = check_weights(source, config, task)
    if parent_of(context.project, context.name) is None:  # each base once: its weights are read for it
        check_numbers(source.base)
    if config.adapter is not None:  # refused here, before anything trains
        adapter = lora_config(config.adapter, task.peft, joined=_parent_has_adapter(context))
        check_attachable(model, adapter, config.quantization)
        if config.quantization is not None:
            check_keepable(adapter)
        if source.adapter is not None:
            check_joinable(source.adapter)
    freeze = tuple(context.settings.freeze)
    freeze_parameters(model, freeze, f"stages.{context.name}.freeze")
    return StartingPoint(opened, task, is_encoder(architecture), context_length(architecture), freeze)


def _tokenizer_settings(project: ProjectConfig, stage: str) -> ModelConfig | None:
    """The settings that a stage's tokenizer was made with: those of the stage that its parents go back to.

    None where that is the `base` stage, whose tokenizer is made from `scratch:`.
    """
    first = [stage, *ancestors_of(project, stage)][-1]
    return stage_settings(project, first) if project.has_stage(first) else None


def _parent_has_adapter(context: StageContext) -> bool:
    """Whether this stage's adapter will be joined with its parent's, which need not exist yet."""
    project, parent = context.project, parent_of(context.project, context.name)
    return parent is not None and project.has_stage(parent) and project.stage_model(parent).adapter is not None


def adapted(model: PreTrainedModel, start: StartingPoint, args: TrainingArguments, whole: Sequence[str] = ()) -> Any:
    """The model with a fresh adapter, drawn from the seed, or the model itself where all weights are trained.

    What the stage freezes is not trained, in either.

    Args:
        model: What is adapted.
        start: Its adapter settings.
        args: Their seed.
        whole: New modules, which are trained and saved whole: no base model has their weights.
    """
    result: Any = model
    if start.config.adapter is None:
        model.requires_grad_(True)  # merging a parent's adapter leaves its base frozen
    else:
        set_seed(args.seed)
        config = lora_config(start.config.adapter, start.task.peft, joined=start.source.adapter is not None)
        if whole := [*whole, *whole_modules(start.source.adapter)]:
            config.modules_to_save = sorted({*(config.modules_to_save or ()), *whole})
        result = attach(model, config, start.source)
    freeze_parameters(result, start.freeze)
    return result


def check_writes(start: StartingPoint, stage: str) -> None:
    """Check that what a stage starts from is a causal language model.

    Raises:
        UserError: It is another kind of policy.
    """
    if start.task is not CAUSAL_LM:
        raise UserError(
            f"stages.{stage}: {start.source.base} is a {start.task.policy} policy, and this stage trains causal "
            "language models; the ppo stage trains every kind"
        )


def starting_policy(context: StageContext, start: StartingPoint, to_shard: bool = False) -> PreTrainedModel:
    """The policy a stage starts from, checked with its parent's probe.

    Args:
        context: The stage.
        start: What it starts from.
        to_shard: Whether a trainer will shard its weights over the processes; see `load.load_model`.

    Raises:
        UserError: It cannot be loaded, is not the model that its parent left, or cannot be sampled later in the run.
    """
    model = start.opened.policy(placed=False, to_shard=to_shard)
    if start.task in (CAUSAL_LM, SEQ2SEQ) and (reads_weights() or not to_shard):
        check_can_sample(context.project, model)
    return model
