"""A finished run to spoil: copies of its folders, and the ways in which files get spoilt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rlhf.artifacts.manifest import Manifest, read_manifest
from rlhf.config.project import ProjectConfig
from rlhf.pipeline.folder import own_folder
from tests.support.projects import make_project, pairs

STAGES = {name: {"max_steps": 3, "learning_rate": 1e-2, "save_strategy": "no"} for name in ("sft", "reward", "dpo")}


def record_of(folder: Path) -> Manifest:
    """The manifest of a finished stage."""
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def copied(trained: ProjectConfig, folder: Path, base: Path, *stages: str, **sections: Any) -> ProjectConfig:
    """A project of its own with these stages of a finished run in it."""
    project = make_project(folder, base, pairs(), **{"stages": STAGES, **sections})
    own_folder(project)
    for stage in stages:
        shutil.copytree(trained.run_dir / stage, project.run_dir / stage)
    return project


def edit_json(path: Path, **changes: Any) -> None:
    """Replace entries of a JSON file."""
    entries = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    entries.pop("sha256", None)  # of a manifest: the change is to pass for what the stage wrote
    path.write_text(json.dumps(entries), encoding="utf-8")


def edit_tensors(path: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    """Change each tensor of a file; None leaves it out."""
    changed = {name: change(name, tensor) for name, tensor in load_file(path).items()}
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path, {"format": "pt"})


def without_head(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
    """A file that lost its reward head."""
    return None if "score" in name else tensor


def zero_head(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A file whose reward head was never trained nor drawn."""
    return torch.zeros_like(tensor) if "score" in name else tensor


def other_head(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A file with another head of the same shape."""
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) if "score" in name else tensor


def swap_tokens(folder: Path) -> None:
    """Give two tokens each other's ids: the same size, the same special tokens, another vocabulary."""
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = state["model"]["vocab"]
    first, second = list(vocabulary)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(state), encoding="utf-8")
