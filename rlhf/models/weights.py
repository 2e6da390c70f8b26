"""Checks that a model's files hold all the weights that its config asks for, and that all of them are numbers.

transformers draws missing weights at random and drops weights that the config has no place for, with a line in a log.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils.constants import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from rlhf.errors import UserError, reason

_POINTER = b"version https://git-lfs"
_FILES = {".safetensors", ".json", ".model", ".jinja"}
_MASKS = ("mask", "masked_bias", "attn.bias")  # buffers of older versions, whose minus infinity is intended
_SHOWN = 3
_LAYER = re.compile(r"(?P<stack>.*?)\.?(?P<number>\d+)\.(?P<tail>.+)")


class Misfit(NamedTuple):
    """How files and config differ, as transformers reports it."""

    missing: frozenset[str]
    """Names of tensors that the model has and the files lack."""
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Tensors that both have with different sizes: that of the file, then that of the model."""
    unexpected: frozenset[str]
    """Names of tensors that the files have and the model lacks."""

    @classmethod
    def of(cls, info: dict[str, Any]) -> Misfit:
        """From what `from_pretrained(…, output_loading_info=True, ignore_mismatched_sizes=True)` gives."""
        resized = {name: (tuple(there), tuple(wanted)) for name, there, wanted in info["mismatched_keys"]}
        return cls(frozenset(info["missing_keys"]), resized, frozenset(info["unexpected_keys"]))

    @property
    def drawn(self) -> frozenset[str]:
        """Names of the tensors that are not loaded but drawn at random."""
        return self.missing | set(self.resized)


def check_files(name: str) -> None:
    """Check that the weight files of a local folder are whole; for a hub model there is nothing to check yet.

    Raises:
        UserError: A file is empty, cut short, a git-LFS pointer or no weights at all; or the index of several files
            names one elsewhere.
    """
    files = sorted(Path(name).glob("*.safetensors"))
    if not files and (pickled := sorted(Path(name).glob("*.bin"))):
        raise UserError(f"{pickled[0]}: pickled weights are not loaded, as they can run code; save them as safetensors")
    check_pointers(name)
    _check_index(Path(name) / SAFE_WEIGHTS_INDEX_NAME)
    for path in files:
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            problem = "is cut short" if "incomplete metadata" in str(error) else "is no safetensors file"
            raise UserError(f"{path}: {problem} ({reason(error)}); copy or download it again") from None


def _check_index(path: Path) -> None:
    """Check that an index of weight files, where there is one, names files beside it."""
    if not path.is_file():
        return
    with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError):  # no index at all: loading it says so
        for file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].values():
            if Path(file).name != file:
                raise UserError(f"{path}: names weights elsewhere ({file}); take index and weights from the same place")


def check_pointers(name: str) -> None:
    """Check that each file of a local folder can be read, and is neither empty nor a git-LFS pointer in its place.

    Raises:
        UserError: A file is, or cannot be.
    """
    for path in sorted(Path(name).glob("*")):
        if path.suffix not in _FILES:
            continue
        if not path.is_file():
            raise UserError(
                f"{path}: no file to read (a folder, a pipe, or a link to nothing); copy or download it again"
            )
        try:
            with path.open("rb") as file:
                start = file.read(len(_POINTER))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
        if not start:
            raise UserError(f"{path}: the file is empty; copy or download it again")
        if start == _POINTER:
            raise UserError(f"{path}: is a git-LFS pointer and not the file itself; run git lfs pull there")


def check_json(name: str) -> None:
    """Check that each JSON file of a local folder is one; a library says what is wrong with it, but not in which.

    Raises:
        UserError: A file is none; the message names its line and column.
    """
    for path in sorted(Path(name).glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg.lower()}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: not valid JSON: {reason(error)}") from None


def new_modules(model: PreTrainedModel, misfit: Misfit) -> tuple[str, ...]:
    """The modules around a classifier's backbone whose weights the files lack: its head, and BERT's pooler."""
    heads = [name for name in sorted(misfit.drawn) if _is_head(model, name)]
    return tuple(dict.fromkeys(name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0] for name in heads))


def check_complete(model: PreTrainedModel, misfit: Misfit, name: str, new_head: bool = False) -> None:
    """Check that the files have each of a model's weights, and no further weights of its layers.

    Files may also hold heads of other tasks, and buffers that older versions of a library saved.

    Args:
        model: The model as loaded.
        misfit: How the files differ from its config.
        name: Where it was loaded from.
        new_head: Whether modules around the backbone may be new.

    Raises:
        UserError: The files differ; the message names the first tensors.
    """
    own = model.state_dict().keys()
    where, remedy = _where(name), "take config.json and weights from the same place"
    missing = sorted(key for key in misfit.drawn if not (new_head and _is_head(model, key)))
    resized = [key for key in missing if key in misfit.resized]
    if resized:
        there, wanted = misfit.resized[resized[0]]
        raise UserError(
            f"{where}: {resized[0]} has size {list(there)}, and config.json asks for {list(wanted)} "
            f"({len(resized)} such tensors); {remedy}"
        )
    if missing:
        spare = sorted(misfit.unexpected)
        besides = f", and has {len(spare)} that it does not ask for ({_some(spare)})" if spare else ""
        raise UserError(
            f"{where}: lacks {len(missing)} of the {len(own)} tensors that config.json asks for "
            f"({_some(missing)}){besides}; they would be random numbers: {remedy}"
        )
    if spare := sorted(key for key in misfit.unexpected if _of_layers(key, own)):
        raise UserError(
            f"{where}: has {len(spare)} tensors that config.json has no place for ({_some(spare)}); they would be left "
            f"out: {remedy}"
        )


def check_adapter(model: PeftModel, folder: Path) -> None:
    """Check that an adapter's file has the weights of each of its modules, and the model a module for each weight.

    Raises:
        UserError: Tensors are missing or left over; the message names the first ones.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        return
    own = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    with safe_open(path, framework="pt") as file:
        saved = set(file.keys())
    if missing := sorted(own - saved):
        raise UserError(f"{path}: lacks {len(missing)} of the {len(own)} tensors of its adapter ({_some(missing)})")
    if spare := sorted(name for name in saved - own if _of_layers(name, own)):
        raise UserError(f"{path}: has {len(spare)} tensors that the base model has no place for ({_some(spare)})")


def check_finite(model: nn.Module, name: str) -> None:
    """Check that all weights of a loaded model are finite.

    Args:
        model: The model.
        name: Where it was loaded from.

    Raises:
        UserError: A weight is NaN or infinite.
    """
    for key, weight in model.named_parameters():
        _check_finite(key, weight, _where(name))


def check_numbers(name: str) -> None:
    """Check that all weights in the files of a local folder are finite, reading one tensor at a time.

    Raises:
        UserError: A weight is NaN or infinite.
    """
    for path in sorted(Path(name).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                if not key.endswith(_MASKS):
                    _check_finite(key, file.get_tensor(key), str(path))


def _check_finite(key: str, weight: torch.Tensor, where: str) -> None:
    if weight.is_floating_point() and weight.itemsize > 1 and not torch.isfinite(weight).all():
        kind = "NaN" if weight.isnan().any() else "infinite"
        dtype = str(weight.dtype).removeprefix("torch.")
        raise UserError(f"{where}: {key} has {kind} weights (as {dtype}); get the file again, or train it again")


def _is_head(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight belongs to no backbone, or to the pooler, which no masked language model has."""
    prefix = f"{model.base_model_prefix}."
    return not key.startswith(prefix) or key.startswith(f"{prefix}pooler.")


def _of_layers(key: str, own: Iterable[str]) -> bool:
    """Whether a tensor of the files is a weight of the model's stack of layers: of a further layer or a known one.

    `h.0.attn.bias` and `rotary_emb.inv_freq` are not: they are buffers that older versions saved.
    """
    if (place := _LAYER.match(key)) is None:
        return False
    matches = [_LAYER.match(name) for name in own]
    tails = {match["tail"] for match in matches if match is not None and _same(match["stack"], place["stack"])}
    module, _, leaf = place["tail"].rpartition(".")
    return bool(tails) and (
        place["tail"] in tails or leaf == "weight" or (leaf == "bias" and f"{module}.weight" in tails)
    )


def _same(first: str, second: str) -> bool:
    """Whether two stacks of layers have the same name, whether or not a prefix stands before it."""
    return f".{first}".endswith(f".{second}") or f".{second}".endswith(f".{first}")


def _where(name: str) -> str:
    files = sorted(Path(name).glob("*.safetensors"))
    return str(files[0]) if len(files) == 1 else name


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
