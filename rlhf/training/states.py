"""States of optimizers, schedules and random generators as files: tensors in safetensors, the rest in JSON.

Nothing is pickled, so that reading a checkpoint runs nobody's code.

Of tensors that FSDP2 has sharded, each process writes its shard, to NAME-0, NAME-1 and so on. Any number of processes
can read them again, even one: see `Shard`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

_KIND = "is"
"""Key of a JSON object that stands for what JSON lacks: a tensor, a tuple, or a dictionary with keys of other types."""


@dataclass(frozen=True)
class Shard:
    """A tensor of which each process wrote a shard; the files are read when it is placed."""

    files: tuple[Path, ...]
    """The files, in the order of the processes."""
    name: str
    """Name of the shard in each file."""
    dim: int
    """The dimension along which the shards are concatenated."""

    def placed(self, like: torch.Tensor) -> torch.Tensor:
        """The tensor, sharded like another of its size, or whole like it."""
        if isinstance(like, DTensor) and len(self.files) == like.device_mesh.size():
            part = self._part(like.device_mesh.get_rank()).to(like.device)
            return DTensor.from_local(
                part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
            )
        return placed(torch.cat([self._part(number) for number in range(len(self.files))], self.dim), like)

    def _part(self, number: int) -> torch.Tensor:
        with safe_open(self.files[number], framework="pt") as file:
            return file.get_tensor(self.name)


def placed(value: Any, like: torch.Tensor) -> torch.Tensor:
    """A tensor of a state, sharded like another of its size; every process has read the same tensor."""
    if isinstance(value, Shard):
        return value.placed(like)
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value


def optimizer_state(optimizer: Any, names: Mapping[int, str]) -> dict[str, Any]:
    """The state of an optimizer, with the `names` of its parameters in the order of their numbers.

    Args:
        optimizer: Its groups may be others when the state is read: engines group what is sharded by itself.
        names: By the `id` of a parameter.
    """
    return {**optimizer.state_dict(), "names": [names[id(parameter)] for parameter in _parameters(optimizer)]}


def placed_optimizer_state(
    state: dict[str, Any], optimizer: Any, names: Mapping[int, str]
) -> tuple[dict[str, Any], list[int]]:
    """The state of an optimizer in the groups of another, sharded like the parameters that it belongs to.

    Args:
        state: What `load_state` or `load_shards` gave of an `optimizer_state`; without names its parameters are the
            optimizer's in the same order.
        optimizer: Which will load it.
        names: By the `id` of a parameter.

    Returns:
        The state; and of each group of the optimizer the number of that group in the state which it continues.
    """
    groups, parameters = state["param_groups"], _parameters(optimizer)
    numbers = [number for group in groups for number in group["params"]]
    saved = state.get("names") or [names[id(parameter)] for parameter in parameters]
    number_of = dict(zip(saved, numbers, strict=True))
    group_of = {number: place for place, group in enumerate(groups) for number in group["params"]}
    own: dict[int, tuple[torch.Tensor, int]] = {}
    continued: list[int] = []
    own_groups: list[dict[str, Any]] = []
    for place, group in enumerate(optimizer.param_groups):
        first = len(own)
        for parameter in group["params"]:
            own[len(own)] = (parameter, number_of[names[id(parameter)]])
        empty = min(place, len(groups) - 1)
        continued.append(group_of[own[first][1]] if group["params"] else empty)
        own_groups.append({**groups[continued[-1]], "params": list(range(first, len(own)))})
    states = {
        place: {
            name: placed(value, parameter) if isinstance(value, torch.Tensor | Shard) else value
            for name, value in state["state"][number].items()
        }
        for place, (parameter, number) in own.items()
        if number in state["state"]
    }
    return {"state": states, "param_groups": own_groups}, continued


def _parameters(optimizer: Any) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def regrouped(schedule: dict[str, Any], continued: Sequence[int], groups: int) -> dict[str, Any]:
    """The state of a schedule for an optimizer's groups.

    Args:
        schedule: Its lists of as many items as there were groups have an item for each.
        continued: Of each group now, the number of the group then.
        groups: How many there were.
    """
    return {
        name: [value[number] for number in continued] if isinstance(value, list) and len(value) == groups else value
        for name, value in schedule.items()
    }


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


def save_shards(folder: Path, name: str, process: int, state: Any) -> None:
    """Write this process's shards of a state; every process calls this."""
    save_state(folder, f"{name}-{process}", state)


def load_shards(folder: Path, name: str, process: int) -> Any:
    """What this process wrote with `save_shards`, or else what the first one wrote; sharded tensors become `Shard`."""
    count = len(list(folder.glob(f"{name}-*.json")))
    files = [folder / f"{name}-{number}.safetensors" for number in range(count)]
    own = files[process if process < count else 0]
    tensors = load_file(own) if own.is_file() else {}
    return _unflatten(json.loads(own.with_suffix(".json").read_text(encoding="utf-8")), tensors, tuple(files))


def _flatten(value: Any, place: str, tensors: dict[str, torch.Tensor], seen: set[int]) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, DTensor):
        part = _flatten(value.to_local(), place, tensors, seen)
        return {_KIND: "shard", "value": part["value"], "dim": _dimension(value)}
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


def _dimension(tensor: DTensor) -> int:
    """The dimension along which a tensor is sharded."""
    (placement,) = tensor.placements
    if not placement.is_shard():
        raise TypeError(f"{placement} has no form in a checkpoint")
    return placement.dim  # type: ignore[attr-defined]


def _unflatten(value: Any, tensors: Mapping[str, torch.Tensor], files: tuple[Path, ...] = ()) -> Any:
    """What a tree stands for; `files` are those of all processes, where each wrote its part."""
    if isinstance(value, list):
        return [_unflatten(item, tensors, files) for item in value]
    if not isinstance(value, dict):
        return value
    match value.get(_KIND):
        case None:
            return {key: _unflatten(item, tensors, files) for key, item in value.items()}
        case "tensor":
            return tensors[value["value"]]
        case "shard":
            return Shard(files, value["value"], value["dim"])
        case "tuple":
            return tuple(_unflatten(item, tensors, files) for item in value["value"])
        case _:
            return {key: _unflatten(item, tensors, files) for key, item in value["value"]}


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
