"""The way into a finished stage: its manifest, its tokenizer and its model, each checked before it is used.

    stage = open_stage(Path("runs/demo/dpo"))
    stage.manifest["metrics"], stage.tokenizer
    policy = stage.policy()

Nothing is loaded until it is asked for.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.artifacts.manifest import Manifest, is_finished, read_manifest, verify_once
from rlhf.config.project import ModelConfig
from rlhf.errors import UserError
from rlhf.models import probe
from rlhf.models.device import device, move, reads_weights
from rlhf.models.labels import Classes, classes_of
from rlhf.models.load import (
    Loaded,
    Source,
    adapter_config,
    load_model,
    load_policy,
    load_scorer,
    model_config,
    source_of,
)
from rlhf.models.processor import load_processor
from rlhf.models.shards import is_sharded
from rlhf.models.tasks import LABEL, Task, adapter_task, has_new_head, reads_images, task_of
from rlhf.models.tokenizer import Processor, check_tokenizer

Kind = Literal["policy", "reward", "classifier"]
_LOST = "what was written is not the model that was trained"


class OpenedModel:
    """A model whose parts are loaded when they are asked for; `open_stage` and `open_model` make it.

    What a stage's manifest records is checked: the hash of the model's files and the probe's outputs when weights are
    loaded, special tokens, template and vocabulary with the tokenizer, the base model's commit with the source.

    Args:
        settings: Type of the weights and attention implementation; without a folder, also where the model is.
        folder: A folder whose tokenizer is settled, such as a stage's.
        manifest: Of the stage that left the folder; None for a model that no stage made.
    """

    def __init__(self, settings: ModelConfig, folder: Path | None = None, manifest: Manifest | None = None) -> None:
        self.settings, self.folder = settings, folder
        self._manifest = manifest

    @property
    def name(self) -> str:
        """Folder or hub id."""
        return str(self.folder or self.settings.name_or_path)

    @property
    def manifest(self) -> Manifest:
        """What the stage recorded.

        Raises:
            ValueError: No stage made this model.
        """
        if self._manifest is None:
            raise ValueError(f"{self.name}: no stage made this model, so that it has no manifest")
        return self._manifest

    @property
    def is_stage(self) -> bool:
        """Whether a stage made this model, and left a manifest."""
        return self._manifest is not None

    @cached_property
    def source(self) -> Source:
        """The base weights, and the adapter on them if there is one.

        Raises:
            UserError: The model does not exist yet, its adapter is damaged, or the hub has another commit of its base.
        """
        source = source_of(self.settings, self.folder)
        if self._manifest is not None:
            probe.check_commit(source, self._manifest.get("lineage"), self.name)
        return source

    @cached_property
    def processor(self) -> Processor:
        """What makes the model's inputs: its tokenizer, or the processor of an image model.

        Raises:
            UserError: It cannot be loaded, or is not the one that the stage recorded.
        """
        processor = load_processor(self.settings, self.folder, reads_images(model_config(self.source)))
        if self._manifest is not None:
            check_tokenizer(processor, self._manifest.get("tokenizer") or {}, self.name)
        return processor

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that belongs to the model.

        Raises:
            UserError: See `processor`; or the model reads images.
        """
        if not isinstance(self.processor, PreTrainedTokenizerBase):
            raise UserError(f"{self.name}: the model reads images, and this takes one that reads text")
        return self.processor

    @cached_property
    def classes(self) -> Classes:
        """A classifier's classes; one for a reward model, and for a model without such a head."""
        return classes_of(self.source)

    @property
    def label_names(self) -> list[str]:
        """Names of a classifier's classes, by number."""
        return self.classes.names

    @cached_property
    def task(self) -> Task:
        """What it does as a policy: what its stage trained, else what the settings or the model's files say.

        Raises:
            UserError: The settings name no kind of policy.
        """
        if self.source.adapter is not None:
            return adapter_task(adapter_config(self.source.adapter))
        config = model_config(self.source)
        settled = self.folder is not None and has_new_head(config)
        return task_of(config, None if settled else self.settings.policy)

    @property
    def has_head(self) -> bool:
        """Whether the model's files have the head of its task: without, it answers nothing yet."""
        return not self.task.new_head or self.source.adapter is not None or has_new_head(model_config(self.source))

    @cached_property
    def kind(self) -> Kind:
        """What the model's files say it is: a `reward` model is a classifier with one output."""
        if not (self.has_head and self.task.policy == LABEL.policy):
            return "policy"
        return "reward" if len(self.label_names) == 1 else "classifier"

    def policy(self, placed: bool = True, to_shard: bool = False) -> PreTrainedModel:
        """The policy, its adapter merged, or kept beside weights in 4 bits.

        Args:
            placed: Whether it is moved to the accelerator, if there is one; a trainer places its model itself.
            to_shard: Whether a trainer will shard its weights over the processes; see `load_model`.

        Raises:
            UserError: It cannot be loaded, its files changed, or it is not the model that the stage left.
        """
        self._check_files()
        labels = len(self.label_names) if self.task.policy == LABEL.policy else None
        model = load_policy(self.source, self.settings, self.processor, self.task, labels, to_shard)
        if labels is not None:
            self.classes.name(model)
        return model if to_shard and not reads_weights() else self._checked(model, placed)

    def scorer(self, placed: bool = True) -> PreTrainedModel:
        """The reward model or classifier, its adapter merged.

        Args:
            placed: Whether it is moved to the accelerator, if there is one.

        Raises:
            UserError: It cannot be loaded, has no head, its files changed, or it is not the model that the stage left.
        """
        self._check_files()
        model = load_scorer(self.source, self.settings, self.processor, labels=len(self.label_names)).model
        return self._checked(model, placed)

    def with_new_head(self, labels: int | None = 1, task: Task = LABEL) -> Loaded:
        """A model to train: this one under the head of a task, which is drawn where the files have none.

        A trainer may shard its weights over the processes; see `load_model`.

        Args:
            labels: Outputs of the head, where the task leaves that open; 1 for a reward model.
            task: What the head computes.

        Raises:
            UserError: It cannot be loaded, or its files changed.
        """
        self._check_files()
        return load_model(self.source, self.settings, self.processor, task, labels, new_head=True, to_shard=True)

    def unquantized(self) -> OpenedModel:
        """The same adapter on its base as the files have it, for weights that others can use.

        Its outputs differ from the probe's by the error of the quantization, so that there is no probe to hold it to.
        """
        if self.settings.quantization is None:
            return self
        manifest: Any = {**self._manifest, "probe": None} if self._manifest is not None else None
        return OpenedModel(replace(self.settings, quantization=None), self.folder, manifest)

    def _check_files(self) -> None:
        probe.check_head(Path(self.name))
        _ = self.processor  # a changed tokenizer is the better message than a changed file
        if self._manifest is not None and self.folder is not None:
            verify_once(self.folder)

    def _checked(self, model: PreTrainedModel, placed: bool) -> PreTrainedModel:
        """The model, once it has given the outputs of the stage's probe."""
        recorded = self._manifest.get("probe") if self._manifest is not None else None
        if recorded:
            probe.check(model, recorded, self.name)
        if placed:
            move(model, device())
        return model


def open_stage(folder: Path, settings: ModelConfig | None = None) -> OpenedModel:
    """Open a finished stage.

    Args:
        folder: Its folder.
        settings: Type of the weights, quantization and attention implementation; None takes those that the stage had.

    Raises:
        UserError: No finished stage is there, or its manifest is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder}: no finished stage is there")
    if settings is None:
        recorded = manifest.get("config", {}).get("model") or {}
        settings = ModelConfig(name_or_path=str(folder), adapter=None)
        taken = {name: recorded[name] for name in ("dtype", "quantization", "policy") if recorded.get(name)}
        settings = replace(settings, **taken)
    return OpenedModel(settings, folder, manifest)


def recorded_quantization(folder: Path) -> Any:
    """How a stage held its base; None for a folder that no stage left, and for a hub id."""
    return open_stage(folder).settings.quantization if is_finished(folder) else None


def open_model(settings: ModelConfig) -> OpenedModel:
    """Open a base model, or any other that is used as its files stand: a local folder or a hub id.

    A finished stage, such as the policy that a round starts from, is opened with what its manifest records, unless the
    settings give it another tokenizer.

    Args:
        settings: Where it is, type of the weights, attention implementation, and settings of its tokenizer.
    """
    folder = Path(settings.name_or_path or ".")
    apart = (settings.tokenizer, settings.chat_template, settings.eos_token, settings.pad_token)
    if is_finished(folder) and all(value is None for value in apart):
        return open_stage(folder, settings)
    return OpenedModel(settings)


def check_saved(
    model: PreTrainedModel | PeftModel,
    made: dict[str, Any],
    folder: Path,
    settings: ModelConfig,
    recorded: dict[str, Any],
) -> None:
    """Load what was just saved as the next stage will, and compare it with the model that was trained.

    For the time of the check there are two copies of the weights. The trained one waits on the CPU, so that an
    accelerator needs no more memory than in training; one that processes share stays in place, and the saved one runs
    on the CPU. It costs one load and a few sequences.

    Args:
        model: The trained model; it is left on the CPU.
        made: Its probe (`probe.make`).
        folder: Where it was saved, with its tokenizer.
        settings: Type of the weights and attention implementation.
        recorded: What its tokenizer is (`tokenizer_record`).

    Raises:
        UserError: The two differ; both values are named.
    """
    trained_on = torch.device("cpu") if is_sharded(model) else next(model.parameters()).device
    if not is_sharded(model):
        move(model, torch.device("cpu"))
    saved = OpenedModel(settings, folder)
    check_tokenizer(saved.processor, recorded, folder)
    loaded = saved.policy(placed=False)
    move(loaded, trained_on)
    probe.check(loaded, made, str(folder), _LOST)
