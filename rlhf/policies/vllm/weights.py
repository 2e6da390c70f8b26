"""What a vLLM server is handed: the policy's model, or its adapter alone, as files that it reads."""

from __future__ import annotations

import copy
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf.errors import UserError
from rlhf.models.quantization import as_unquantized, dense_weight, quantized_layers
from rlhf.models.roles import POLICY, Roles
from rlhf.models.shards import whole_state

Weights = dict[str, torch.Tensor]


def model_weights(roles: Roles, keep: bool) -> Weights:
    """Weights of the policy's language model as if no adapter had ever been put on it, on the CPU.

    Of quantized weights these are the values that they stand for, so that the server samples from the same policy.

    Every process must call in step, since weights that are sharded are gathered, one after the other.

    Args:
        roles: The models.
        keep: Whether this process wants them; where not, it only takes part.

    Returns:
        Each weight by its name in the plain model, a tied one once; nothing where they are not kept.
    """
    quantized = {f"{name}.": layer for name, layer in quantized_layers(roles.base)}
    apart = tuple(f"{name}{part}" for name in quantized for part in ("weight", "parent_A", "parent_B"))
    weights = {
        _plain(name): tensor
        for name, tensor in _persistent(roles.base)
        if ".lora_" not in name and not name.startswith(apart)
    }
    dense = {_plain(f"{name}weight"): dense_weight(layer).cpu() for name, layer in quantized.items() if keep}
    return {**whole_state(weights, keep), **dense}


def _plain(name: str) -> str:
    """A weight's name in a model without adapters."""
    return name.replace(".base_layer.", ".")


def adapter_weights(roles: Roles, keep: bool) -> Weights:
    """Weights of the policy's adapter, by their names in the peft model; every process must call in step.

    Args:
        roles: The models, with adapters.
        keep: As of `model_weights`.
    """
    named = roles.policy.named_parameters()
    return whole_state({name: tensor for name, tensor in named if f".{POLICY}." in f"{name}."}, keep)


def _persistent(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, and the buffers that a checkpoint holds.

    Not by `state_dict`, whose hooks would shard a model again that is gathered for the length of a rollout.
    """
    yield from model.named_parameters()
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer


def write_model(roles: Roles, weights: Weights, folder: Path) -> None:
    """Write the policy's language model as a checkpoint of transformers; what stands there is replaced.

    Where all weights are trained, a head that is tied to the embeddings is written as one of its own: vLLM on a CPU
    repacks it once, and would keep computing with the first.
    """
    shutil.rmtree(folder, ignore_errors=True)
    tied = None if roles.shared else _tied_head(roles.base)
    if tied is not None:
        head, embeddings = tied
        weights = {**weights, head: weights[embeddings].clone()}
    with as_unquantized(roles.base):
        roles.base.save_pretrained(folder, state_dict=weights)
    if tied is not None:
        config = copy.deepcopy(roles.base.config)
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        config.save_pretrained(folder)


def _tied_head(model: Any) -> tuple[str, str] | None:
    """Names of the head's weight and of the embeddings that it is tied to; None where it is not."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return None
    names = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    return names[id(head)], names[id(embeddings)]


def write_adapter(roles: Roles, weights: Weights, folder: Path) -> None:
    """Write the policy's adapter as peft does."""
    roles.policy.save_pretrained(
        str(folder), selected_adapters=[POLICY], save_embedding_layers=False, state_dict=weights
    )


def private_folder(folder: Path) -> Path:
    """An empty folder that this user alone can read; what an earlier run left there is deleted.

    Raises:
        UserError: It is a link, or belongs to someone else.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(f"{folder}: is a link or belongs to another user, and weights are to be written there")
    folder.chmod(0o700)
    for child in folder.iterdir():
        shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
    return folder
