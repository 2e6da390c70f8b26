"""LoRA adapters: attach a new one, and join it with its parent's into one exact adapter on the original base.

A stage trains on its parent's model with the parent's adapter merged. What it leaves behind must load on the *original*
base with plain peft, so the two low-rank updates are concatenated:

    W + s₁B₁A₁ + s₂B₂A₂ = W + [s₁B₁ s₂B₂] · [A₁; A₂]

Joining reads and writes files only: it needs no base model in memory, and gathers no sharded parameters. (peft's
`add_weighted_adapter(combination_type="cat")` computes the same sum, but both adapters must be loaded on a model.)
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any, cast, get_type_hints

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils.constants import SAFETENSORS_WEIGHTS_NAME as WEIGHTS
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from rlhf.errors import UserError, reason, unknown_name
from rlhf.models.device import check_memory
from rlhf.models.load import ADAPTER_CONFIG, Source, adapter_config
from rlhf.models.quantization import weight_bytes
from rlhf.models.tasks import adapter_task

_INEXACT = ("use_dora", "trainable_token_indices", "layer_replication", "rank_pattern", "alpha_pattern",
            "layers_to_transform", "target_parameters", "lora_bias")  # fmt: skip
"""LoRA settings under which the concatenation of two adapters is not the sum of their updates."""

_PLAIN_INIT = (True, "gaussian", "orthogonal")
"""Initialisations under which a fresh adapter changes nothing; the others (pissa, olora, corda, …) change the base."""

_FIXED = ("task_type", "peft_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping",
            "peft_version", "runtime_config")  # fmt: skip
"""Fields that the stage sets itself: a value given for one would be overwritten."""

_NARROWER: dict[str, Any] = {"lora_alpha": float, "rank_pattern": dict[str, int], "alpha_pattern": dict[str, float]}
"""Types of fields that peft uses with another type than it declares."""


def lora_config(fields: dict[str, Any], task: TaskType | None, joined: bool) -> LoraConfig:
    """A `peft.LoraConfig` from the `adapter:` section.

    Defaults of ours: every linear layer, α = 2r, no dropout. The head of a span policy is trained whole, as peft does
    without being told; told, it does not adapt that layer, too.

    Args:
        fields: Fields of LoraConfig.
        task: What the model's head computes, in peft's words.
        joined: Whether the adapter will be joined with a parent's.

    Raises:
        UserError: A field is unknown, or cannot be joined exactly.
    """
    _check_fields(fields)
    defaults = {"target_modules": "all-linear", "lora_alpha": 2 * fields.get("r", 8), "lora_dropout": 0.0}
    try:
        config = LoraConfig(**{**defaults, **fields}, task_type=task)
    except Exception as error:  # peft's own checks raise many kinds of exception
        raise UserError(f"model.adapter: {reason(error)}") from None
    if task is TaskType.QUESTION_ANS:
        config.modules_to_save = sorted({*(config.modules_to_save or ()), "qa_outputs"})
    if config.init_lora_weights is False:
        raise UserError(
            "model.adapter: init_lora_weights: false starts the adapter at random weights, so that the model would not "
            "start as its parent and its reference would be another; leave it out"
        )
    if config.init_lora_weights not in _PLAIN_INIT:
        raise UserError(
            f"model.adapter: init_lora_weights {config.init_lora_weights!r} changes the base model's weights, so that "
            "the adapter would not load on the original base"
        )
    if joined:
        _refuse_inexact(config.to_dict(), "model.adapter")
    return config


def _check_fields(fields: dict[str, Any]) -> None:
    """Check names, types and ranges of the fields under `adapter:`, which peft mostly does not.

    Raises:
        UserError: A field is unknown or out of range.
    """
    kinds = {**get_type_hints(LoraConfig), **_NARROWER}
    for key, value in fields.items():
        if key in _FIXED:
            raise UserError(f"model.adapter: {key} is the stage's to set")
        if key not in kinds:
            raise UserError(f"model.adapter: unknown key {key!r}; {unknown_name(str(key), kinds)}")
        try:
            TypeAdapter(kinds[key]).validate_python(value, strict=not isinstance(value, list))
        except ValidationError as error:
            expected = dict.fromkeys(problem["msg"].lower() for problem in error.errors())
            raise UserError(f"model.adapter.{key}: {' or '.join(expected)}, not {value!r}") from None
    ranges = {
        "r": ("a whole number of at least 1", lambda rank: rank >= 1),
        "lora_alpha": ("finite and above 0", lambda alpha: 0 < alpha < math.inf),
        "lora_dropout": ("at least 0 and below 1", lambda share: 0 <= share < 1),
    }
    for key, (wanted, fits) in ranges.items():
        if key in fields and not fits(fields[key]):
            raise UserError(f"model.adapter.{key} must be {wanted}, not {fields[key]!r}")


def check_attachable(model: PreTrainedModel, config: LoraConfig, quantization: str | None = None) -> None:
    """Check that a model has the modules that its adapter is for, and that both fit into memory.

    Args:
        model: The model on the meta device, which takes no memory; the adapter is attached to it.
        config: The adapter.
        quantization: How the model will be held.

    Raises:
        UserError: The model lacks a module, or peft refuses this adapter for it.
    """
    parts = [name for name, _ in (*model.named_modules(), *model.named_parameters()) if name]
    leaves = {name.rpartition(".")[2] for name in parts}
    lists = ("target_modules", "modules_to_save", "target_parameters")
    named = {key: getattr(config, key) for key in lists}  # before peft adds its own
    base, base_bytes = model.num_parameters(), weight_bytes(model, quantization)
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            adapted = get_peft_model(model, config)
    except Exception as error:  # each kind of layer has its own checks, and its own exceptions
        raise UserError(f"model.adapter: {reason(error)}") from None
    for key, wanted in named.items():
        for name in sorted(wanted or ()) if not isinstance(wanted, str) else ():
            if not any(f".{part}".endswith(f".{name}") for part in parts):
                raise UserError(f"model.adapter.{key}: the model has no {name!r}; {unknown_name(name, leaves)}")
    weights = adapted.num_parameters()
    check_memory("model.adapter", weights, base_bytes + 4 * (weights - base))


def check_joinable(folder: Path) -> None:
    """Check that a finished adapter can be joined exactly with another.

    Raises:
        UserError: One of its settings prevents that.
    """
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    _refuse_inexact(config, str(folder))
    if config.get("modules_to_save") and not adapter_task(config).new_head:
        raise UserError(f"{folder}: its adapter has modules_to_save, which no later adapter can be joined with")


def whole_modules(folder: Path | None) -> list[str]:
    """The modules that an adapter holds whole, such as a new head, which a later adapter must hold, too.

    Args:
        folder: The adapter's; None for no adapter.
    """
    return [] if folder is None else adapter_config(folder).get("modules_to_save") or []


def _refuse_inexact(config: dict[str, Any], where: str) -> None:
    preventing = [name for name in _INEXACT if config.get(name)]
    preventing += ["bias"] if config["bias"] != "none" else []
    preventing += ["a regular expression in target_modules"] if _is_pattern(config["target_modules"]) else []
    preventing += ["embed_tokens in target_modules"] if "embed_tokens" in (config["target_modules"] or ()) else []
    if preventing:
        raise UserError(
            f"{where}: {', '.join(preventing)} cannot be joined exactly with the adapter of another stage; "
            "leave it out, or train the earlier stage with `adapter: null`"
        )


def _is_pattern(targets: Any) -> bool:
    return isinstance(targets, str) and targets != "all-linear"


def attach(model: PreTrainedModel, config: LoraConfig, source: Source) -> PeftModel:
    """Put a fresh adapter on a model; its config names the place of the original weights as its base.

    On a base in 4 bits TRL would train the adapter in bfloat16, where small updates are rounded away; it stays float32.
    """
    peft_model = get_peft_model(model, config)
    base: Any = model
    base.is_loaded_in_4bit = False  # from here on only TRL asks
    active = peft_model.peft_config["default"]
    active.base_model_name_or_path, active.revision = source.base, source.revision
    return peft_model


def join_adapters(parent: Path, child: Path, out: Path) -> None:
    """Write the adapter whose update is the sum of a parent's and that of a child trained on the merged parent.

    Args:
        parent: Adapter on the original base.
        child: Adapter on the base with `parent` merged; its head, if it has one, is kept.
        out: Folder for the joined adapter, whose rank is the sum of the two ranks; may be `child`.

    Raises:
        ValueError: The shapes of a layer differ between the two.
    """
    configs = [json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")) for folder in (parent, child)]
    states = [load_file(folder / WEIGHTS) for folder in (parent, child)]
    rank = sum(config["r"] for config in configs)
    joined: dict[str, torch.Tensor] = {
        name: tensor for name, tensor in states[1].items() if ".lora_A." not in name and ".lora_B." not in name
    }
    if any("lora_embedding" in name for state in states for name in state):
        raise ValueError("adapters of embeddings cannot be joined")
    layers = dict.fromkeys(name for state in states for name in state if ".lora_A." in name)
    for name_a in layers:
        name_b = name_a.replace(".lora_A.", ".lora_B.")
        joined[name_a], joined[name_b] = _join_layer(name_a, name_b, states, configs)
    targets = sorted({module for config in configs for module in config["target_modules"]})
    out.mkdir(parents=True, exist_ok=True)
    save_file(joined, out / WEIGHTS, metadata={"format": "pt"})
    result = {**configs[1], "r": rank, "lora_alpha": rank, "use_rslora": False, "target_modules": targets}
    result["base_model_name_or_path"] = configs[0]["base_model_name_or_path"]
    result["revision"] = configs[0].get("revision")
    (out / ADAPTER_CONFIG).write_text(json.dumps(result, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def sort_modules(folder: Path) -> None:
    """Sort the lists of modules in a saved adapter's config.

    peft keeps them as sets, whose order differs between processes, so that the same adapter would get another hash.
    """
    path = folder / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def own_part(child: Path, parent: Path | None) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """The part of a joined adapter that the stage itself trained: the inverse of `join_adapters`.

    Args:
        child: A finished stage's adapter.
        parent: The adapter that it started from; None where it started from the plain base.

    Returns:
        Config and weights of the child's own update, which belongs on the base with `parent` merged.

    Raises:
        ValueError: The child was not joined with this parent.
    """
    config = json.loads((child / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    state = load_file(child / WEIGHTS)
    if parent is None:
        return LoraConfig.from_pretrained(str(child)), state
    first = load_file(parent / WEIGHTS)
    skip = json.loads((parent / ADAPTER_CONFIG).read_text(encoding="utf-8"))["r"]
    for name in [name for name in state if ".lora_A." in name]:
        if name in first and not torch.equal(first[name].float(), state[name][:skip]):
            raise ValueError(f"{child}: was not joined with the adapter of {parent}")
        up = name.replace(".lora_A.", ".lora_B.")
        state[name], state[up] = state[name][skip:].contiguous(), state[up][:, skip:].contiguous()
    rank = config["r"] - skip
    result = LoraConfig.from_pretrained(str(child))
    result.r, result.lora_alpha = rank, rank  # a joined adapter has its scaling in B
    return result, state


def _join_layer(
    name_a: str, name_b: str, states: list[dict[str, torch.Tensor]], configs: list[dict[str, Any]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """[A₁; A₂] and [s₁B₁ s₂B₂] of a layer, with zeros for an adapter that does not change the layer."""
    like = next(state for state in states if name_a in state)
    downs, ups = [], []
    for state, config in zip(states, configs, strict=True):
        if name_a in state:
            downs.append(state[name_a].float())
            ups.append(state[name_b].float() * _scaling(config))
        else:
            downs.append(torch.zeros(config["r"], like[name_a].shape[1]))
            ups.append(torch.zeros(like[name_b].shape[0], config["r"]))
    if len({down.shape[1] for down in downs}) > 1 or len({up.shape[0] for up in ups}) > 1:
        raise ValueError(f"{name_a}: the two adapters are for layers of different sizes")
    return torch.cat(downs).contiguous(), torch.cat(ups, dim=1).contiguous()


def _scaling(config: dict[str, Any]) -> float:
    rank = config["r"]
    return config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)


def without_peft(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model itself; adapters stay in its layers."""
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model
