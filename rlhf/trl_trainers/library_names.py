"""Every library name that is used without being documented, or that is overridden, in one table.

Such a name may move in any release, and nothing but a broken training would say so. `check_library_names` compares the
table with the installed versions in milliseconds, before anything trains. A test reads the source of the package and
fails where a name is used that is not in the table.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

from rlhf.config.trainer_fields import trainer_fields
from rlhf.config.versions import library_moved
from rlhf.workflow import stages


@dataclass(frozen=True)
class LibraryName:
    """A name and what is relied on."""

    path: str
    """`module:name` or `module:Class.name`."""
    why: str
    """What breaks without it."""
    takes: str | None = None
    """The parameters of a function, in order, `*` for a variadic one; None where they do not matter."""
    instance: bool = False
    """Whether objects have it, set by the methods of their class, and not the class itself."""

    @property
    def library(self) -> str:
        """The package it belongs to."""
        return self.path.partition(":")[0].partition(".")[0]

    def problem(self) -> str | None:
        """What has moved, or None where the name is as expected."""
        try:
            return self._moved()
        except (ImportError, RuntimeError) as error:  # the latter of a library that imports its modules when asked
            return f"{self.path.replace(':', '.')} cannot be imported: {error.__cause__ or error}"

    def _moved(self) -> str | None:
        module, _, name = self.path.partition(":")
        try:
            owner: Any = importlib.import_module(module)
        except ModuleNotFoundError:
            return f"there is no module {module}"
        *outer, last = name.split(".")
        for part in outer:
            if not hasattr(owner, part):
                return f"there is no {module}.{part}"
            owner = getattr(owner, part)
        if self.instance:
            return None if last in _names_in(owner) else f"objects of {outer[-1]} have no {last}"
        if not hasattr(owner, last):
            return f"there is no {'.'.join([module, *outer, last])}"
        if self.takes is None:
            return None
        parameters = _parameters(getattr(owner, last))
        return None if parameters == self.takes else f"{name} takes ({parameters}) and not ({self.takes})"


def _parameters(function: Callable[..., Any]) -> str:
    """The names of a function's parameters, `*` before a variadic one."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return " ".join("*" * (parameter.kind in variadic) + parameter.name for parameter in parameters)


@functools.cache
def _names_in(owner: type) -> frozenset[str]:
    """Every name that the methods and properties of a class and of its bases mention."""
    return frozenset(name for kind in owner.__mro__ for code in _codes(vars(kind).values()) for name in code.co_names)


def _codes(members: Iterable[Any]) -> Iterator[CodeType]:
    """The code of functions, static methods, class methods and properties."""
    for member in members:
        function = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
        if isinstance(code := getattr(inspect.unwrap(function), "__code__", None), CodeType):
            yield code


_OVERRIDDEN = "overridden"
_LOSS = "self model inputs return_outputs num_items_in_batch"
_METRICS = "the means it logs are weighted by rows or tokens"
_CACHE = "caches of prompts are joined layer by layer"
_FIELDS = "the settings of a stage are its fields, read from its source"
_CHECKPOINT = "checkpoints are whole, without pickles, and hold every role that PPO trains"
_FINITE = "no step is taken on numbers that are not finite"
_GATHERED = "what is gathered between two logs is part of a checkpoint"
_SHARDED = "weights that are sharded over processes are left where they are, without DDP around them"
_MERGED = "a merged adapter must not be added once more"

NAMES = (
    # trl: rlhf/trl_trainers, besides what `of_trainers` adds
    LibraryName("trl:DPOTrainer.loss_types", "losses of a whole batch are not cut into buckets", instance=True),
    LibraryName("trl:DPOTrainer.ld_alpha", "part of the key of the stored reference", instance=True),
    LibraryName("trl.trainer.utils:add_fused_lm_head", "the head it adds is given only labelled positions",
                "model temperature cast_lm_head_to_fp32 outputs"),
    LibraryName("trl.kernels.chunked_logprob:TOKEN_CHUNK_SIZE", "positions that the fused head projects at once"),
    # transformers: rlhf/ppo, rlhf/training, rlhf/models, rlhf/policies, rlhf/prefix_sharing, rlhf/serving,
    # rlhf/config
    LibraryName("transformers:Trainer.train", _OVERRIDDEN, "self resume_from_checkpoint trial ignore_keys_for_eval"),
    LibraryName("transformers:Trainer.training_step", _OVERRIDDEN, "self model inputs num_items_in_batch"),
    LibraryName("transformers:Trainer.compute_loss", _OVERRIDDEN, _LOSS),
    LibraryName("transformers:Trainer.create_optimizer", _OVERRIDDEN, "self model"),
    LibraryName("transformers:Trainer.get_train_dataloader", _OVERRIDDEN, "self"),
    LibraryName("transformers:Trainer.get_batch_samples", _OVERRIDDEN, "self epoch_iterator num_batches device"),
    LibraryName("transformers:Trainer.log", _OVERRIDDEN, "self logs start_time"),
    LibraryName("transformers:Trainer._run_epoch", "a training that was killed behind its last step takes no other"),
    LibraryName("transformers:Trainer._prepare_inputs", "a micro-batch moves to the device", "self inputs"),
    LibraryName("transformers:Trainer._move_model_to_device", _SHARDED, "self model device"),
    LibraryName("transformers:Trainer._sync_replicated_trainable_parameters", _SHARDED, "self model"),
    LibraryName("transformers:Trainer.is_distributed_loading_by_transformers", _SHARDED, instance=True),
    LibraryName("transformers:PreTrainedModel._no_split_modules", "its layers are gathered one by one"),
    LibraryName("transformers:Trainer._load_best_model", _CHECKPOINT, "self"),
    LibraryName("transformers:Trainer._prepare_for_training", _CHECKPOINT,
                "self max_steps train_dataloader resume_from_checkpoint"),
    LibraryName("transformers:Trainer.create_accelerator_and_postprocess", "a reference is sharded over processes",
                "self"),
    LibraryName("transformers.integrations:is_deepspeed_zero3_enabled", "the main process reads what is sharded later",
                ""),
    LibraryName("transformers:Trainer._save_checkpoint", _CHECKPOINT, "self model trial"),
    *(LibraryName(f"transformers:Trainer._save_{name}", _CHECKPOINT, "self output_dir")
      for name in ("optimizer_and_scheduler", "scaler", "rng_state")),
    *(LibraryName(f"transformers:Trainer._load_{name}", _CHECKPOINT, "self checkpoint")
      for name in ("optimizer_and_scheduler", "scaler", "rng_state")),
    LibraryName("transformers.trainer_callback:ExportableState", _CHECKPOINT),
    LibraryName("transformers:Trainer._clip_grad_norm", _FINITE, "self model"),
    LibraryName("transformers:Trainer._get_grad_norm", _FINITE, "self model grad_norm"),
    LibraryName("transformers:Trainer._get_learning_rate", "an incident names it", "self"),
    *(LibraryName(f"transformers:Trainer.{name}", _GATHERED, instance=True)
      for name in ("_tr_loss", "_globalstep_last_logged")),
    LibraryName("transformers:Trainer._load_from_checkpoint", _CHECKPOINT, "self resume_from_checkpoint model"),
    LibraryName("transformers:Trainer.loss_is_scaled_for_ga", "PPO's means have the whole step's denominator"),
    LibraryName("transformers:TrainingArguments._n_gpu", "one process uses one GPU", instance=True),
    LibraryName("transformers.trainer_pt_utils:BatchRebalanceSampler.__init__", "its Trainer takes batches of unequal "
                "size from this class alone",
                "self lengths effective_batch_size dp_size grad_accum shuffle seed rank drop_last"),
    *(LibraryName(f"transformers.trainer_pt_utils:BatchRebalanceSampler.{name}", "steps are cut into buckets",
                  instance=True)
      for name in ("lengths", "effective_batch_size", "dp_size", "grad_accum", "seed", "epoch", "rank", "drop_last",
                   "num_full_batches", "remainder")),
    LibraryName("transformers.integrations.liger:apply_liger_kernel", "a dry run applies what training will apply",
                "model kernel_config"),
    LibraryName("transformers.integrations.deepspeed:_hf_deepspeed_config_weak_ref", "a model is loaded whole under "
                "ZeRO-3, too"),
    LibraryName("transformers.models.auto.modeling_auto:MODEL_FOR_MASKED_LM_MAPPING_NAMES", "tells an encoder"),
    LibraryName("transformers.models.auto.modeling_auto:MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
                "tells what reads images"),
    LibraryName("transformers.models.auto.configuration_auto:CONFIG_MAPPING_NAMES", "architectures by name"),
    LibraryName("transformers.trainer_pt_utils:LabelSmoother.__call__", "an encoder-decoder's loss",
                "self model_output labels shift_labels num_items_in_batch"),
    LibraryName("transformers.trainer_pt_utils:LabelSmoother", "an encoder-decoder's loss"),
    LibraryName("transformers:PretrainedConfig._attn_implementation", "decides the form of a mask"),
    LibraryName("transformers:GenerationMixin._supports_default_dynamic_cache", "tells a cache of the model's own",
                ""),
    *(LibraryName(f"transformers.cache_utils:{name}", _CACHE)
      for name in ("DynamicIndexedLayer", "DynamicLayer", "DynamicSlidingWindowLayer",
                   "LinearAttentionCacheLayerMixin")),
    LibraryName("transformers.cache_utils:DynamicLayer.update", _OVERRIDDEN,
                "self key_states value_states *args *kwargs"),
    LibraryName("transformers.cache_utils:DynamicLayer.lazy_initialization", _CACHE, "self key_states value_states"),
    LibraryName("transformers.cache_utils:DynamicLayer.reorder_cache", _CACHE, "self beam_idx"),
    LibraryName("transformers.pytorch_utils:Conv1D", "layers of GPT-2 hold their weights the other way round"),
    LibraryName("transformers.generation.streamers:BaseStreamer.put", _OVERRIDDEN, "self value"),
    LibraryName("transformers.generation.streamers:BaseStreamer.end", _OVERRIDDEN, "self"),
    LibraryName("transformers.masking_utils:find_packed_sequence_indices", "a fake row is traced as one sequence",
                "position_ids"),
    LibraryName("transformers.training_args:OptimizerNames", _FIELDS),
    *(LibraryName(f"transformers.trainer_utils:{name}", _FIELDS)
      for name in ("IntervalStrategy", "SaveStrategy", "SchedulerType")),
    LibraryName("transformers.integrations.integration_utils:INTEGRATION_TO_CALLBACK", "the words of report_to"),
    # peft: rlhf/models
    LibraryName("peft.tuners.tuners_utils:BaseTunerLayer._disable_adapters", _MERGED),
    LibraryName("peft.tuners.lora:Linear.get_delta_weight", _MERGED, "self adapter"),
    LibraryName("peft.utils.constants:SAFETENSORS_WEIGHTS_NAME", "the file of an adapter's weights"),
    # torch: rlhf/processes.py
    LibraryName("torch.distributed.distributed_c10d:_get_default_store", "processes wait for the main one for hours",
                ""),
    LibraryName("torch:UntypedStorage._cdata", "tells storages apart that have no data"),
    # accelerate and Python itself: rlhf/models, rlhf/pipeline
    LibraryName("accelerate.commands.launch:main", "stages are launched without a traceback of the launcher's own"),
    LibraryName("accelerate.commands.config.config_args:default_config_file", "the machine's own accelerate config"),
    LibraryName(
        "accelerate.commands.config.config_args:load_config_from_file", "a config is read as by the launcher",
        takes="config_file",
    ),
    LibraryName("torch.nn:Module._non_persistent_buffers_set", "tells buffers that no file has", instance=True),
    LibraryName("sys:_current_frames", "where a process is while another waits for it"),
    LibraryName("accelerate:Accelerator._original_forward", "a probe is computed without training's autocast",
                instance=True),
)  # fmt: skip


def of_trainers() -> Iterator[LibraryName]:
    """What is relied on in the trainers of TRL's that stages declare, by the fields that their configs have."""
    for stage in stages().values():
        library = [spec for spec in stage.trainer if not spec.startswith("rlhf.")]
        yield from (LibraryName(spec, _FIELDS) for spec in library)
        if not library or not library[-1].startswith("trl."):
            continue
        trainer = f"trl:{library[-1].rpartition(':')[2].removesuffix('Config')}Trainer"
        yield LibraryName(f"{trainer}._metrics", _METRICS, instance=True)
        yield LibraryName(f"{trainer}.compute_loss", _OVERRIDDEN, _LOSS)
        yield LibraryName(f"{trainer}.log", _OVERRIDDEN, "self logs start_time")
        yield LibraryName(f"{trainer}._get_train_sampler", _OVERRIDDEN, "self train_dataset")
        yield LibraryName(f"{trainer}.get_batch_samples", _OVERRIDDEN, "self epoch_iterator num_batches device")
        fields = trainer_fields(stage.name)
        if "router_aux_loss_coef" in fields:
            yield LibraryName(f"{trainer}.aux_loss_enabled", "a router's loss is not cut into buckets", instance=True)
        if "precompute_ref_log_probs" in fields:
            yield LibraryName(f"{trainer}._prepare_dataset", "rows are tokenised already; its tokenisation is skipped",
                              "self dataset processing_class args dataset_name")  # fmt: skip
            yield LibraryName(f"{trainer}._precompute_ref_logps", "its cache gets a key of all that decides the "
                              "numbers", "self dataset name batch_size")  # fmt: skip
            yield LibraryName(f"{trainer}._precompute_model_hash", "the key of that cache", instance=True)


def all_names() -> list[LibraryName]:
    """The table, with what the declared trainers add; each name once."""
    return list({name.path: name for name in (*NAMES, *of_trainers())}.values())


def check_library_names(names: Iterable[LibraryName] | None = None) -> None:
    """Check that every name of the table is what the package expects.

    Imports the libraries, so it belongs where they are needed anyway.

    Raises:
        UserError: A name has moved: the library, its version, the name, and the version that works.
    """
    problems = [
        (name, problem) for name in (all_names() if names is None else names) if (problem := name.problem()) is not None
    ]
    if problems:
        name, problem = problems[0]
        others = f", and {len(problems) - 1} more names have moved" if len(problems) > 1 else ""
        raise library_moved(name.library, f"{problem} ({name.why}{others})")
