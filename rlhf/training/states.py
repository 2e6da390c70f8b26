"""States of optimizers, schedules and random generators as files: tensors in safetensors, the rest in JSON.

Nothing is pickled, so that reading a checkpoint runs nobody's code.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file

_KIND = "is"
"""Key of a JSON object that stands for what JSON lacks: a tensor, a tuple, or a dictionary with keys of other types."""


def save_state(folder: Path, name: str, state: Any) -> None:
    """Write NAME.json, and NAME.safetensors if there are tensors.

    Args:
        folder: Where to.
        name: Of the files.
        state: Dictionaries, lists, tuples, tensors, numbers, text and None, nested in any way.

    Raises:
        TypeError: Something else is in it.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _flatten(state, "", tensors, set())
    if tensors:
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(tree), encoding="utf-8")


def load_state(folder: Path, name: str) -> Any:
    """What `save_state` wrote, with its tensors on the CPU."""
    path = folder / f"{name}.safetensors"
    tensors = load_file(path) if path.is_file() else {}
    return _unflatten(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), tensors)


def _flatten(value: Any, place: str, tensors: dict[str, torch.Tensor], seen: set[int]) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        name, tensor = str(len(tensors)), value.detach().cpu().contiguous()
        memory = tensor.untyped_storage()
        if memory.nbytes() != tensor.nbytes or memory.data_ptr() in seen:  # safetensors refuses memory that is shared
            tensor = tensor.clone()
        seen.add(memory.data_ptr())
        tensors[name] = tensor
        return {_KIND: "tensor", "value": name}
    if isinstance(value, tuple | list):
        items = [_flatten(item, f"{place}.{number}", tensors, seen) for number, item in enumerate(value)]
        return items if isinstance(value, list) else {_KIND: "tuple", "value": items}
    if isinstance(value, Mapping):
        pairs = [[key, _flatten(item, f"{place}.{key}", tensors, seen)] for key, item in value.items()]
        if all(isinstance(key, str) and key != _KIND for key in value):
            return dict(pairs)
        return {_KIND: "dict", "value": pairs}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{place or 'the state'} is a {type(value).__name__}, which has no form in a checkpoint")


def _unflatten(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unflatten(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value.get(_KIND):
        case None:
            return {key: _unflatten(item, tensors) for key, item in value.items()}
        case "tensor":
            return tensors[value["value"]]
        case "tuple":
            return tuple(_unflatten(item, tensors) for item in value["value"])
        case _:
            return {key: _unflatten(item, tensors) for key, item in value["value"]}


def random_state() -> dict[str, Any]:
    """The state of every random generator that a training draws from: Python's, NumPy's, PyTorch's on each device."""
    kind, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
    state = {"python": random.getstate(), "numpy": (kind, keys.tolist(), *rest), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Bring the generators into a state that `random_state` gave."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
