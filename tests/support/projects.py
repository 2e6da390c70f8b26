"""Small projects on disk for tests that run stages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from rlhf.config.load import load_project
from rlhf.config.project import ProjectConfig

NAMES = ["Ada", "Ben", "Cleo", "Dov", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon"]
THINGS = ["lamp", "kettle", "chair", "radio"]


def pairs(count: int = 40) -> list[dict[str, str]]:
    """Plain preference pairs: the good reply names the thing and the person, the bad one does not."""
    rows = []
    for number in range(count):
        name, thing = NAMES[number % 10], THINGS[number % 4]
        rows.append({
            "prompt": f"{name} asks about {thing} {number}.",
            "chosen": f" Hello {name}, your {thing} {number} is on its way.",
            "rejected": f" No idea {'at all ' * (number % 3)}.",
        })  # fmt: skip
    return rows


def chats(count: int = 40) -> list[dict[str, Any]]:
    """The same pairs as conversations."""
    return [
        {"prompt": [{"role": "user", "content": row["prompt"]}],
         "chosen": [{"role": "assistant", "content": row["chosen"].strip()}],
         "rejected": [{"role": "assistant", "content": row["rejected"].strip()}]}
        for row in pairs(count)
    ]  # fmt: skip


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """Write a JSONL file, and its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_project(folder: Path, base: Path, rows: list[dict[str, Any]] | None = None, **sections: Any) -> Path:
    """A project's YAML in a folder, on pairs in that folder; `stages` and others as given."""
    data = write_rows(folder / "pairs.jsonl", rows if rows is not None else pairs())
    (folder / "judge.py").write_text(
        "def score(prompts, completions, **columns):\n"
        "    def text(c): return c if isinstance(c, str) else c[-1]['content']\n"
        "    return [float(len(text(c))) if text(c) else None for c in completions]\n",
        encoding="utf-8",
    )
    tree = {
        "name": "tiny",
        "output_dir": str(folder / "runs"),
        "model": {"name_or_path": str(base), "adapter": {"r": 4}},
        "data": {"demonstrations": {"source": str(data)}, "preferences": {"source": str(data), "holdout": 0.3}},
        "rewards": {"long": {"function": str(folder / "judge.py") + ":score"}},
        "stages": {name: {"max_steps": 3, "learning_rate": 1e-2} for name in ("sft", "reward", "dpo")},
        "evaluate": {"prompts": 6, "samples": 2, "max_new_tokens": 8},
        **sections,
    }
    path = folder / "project.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


def make_project(folder: Path, base: Path, rows: list[dict[str, Any]] | None = None, **sections: Any) -> ProjectConfig:
    """The same, loaded."""
    return load_project(write_project(folder, base, rows, **sections))
