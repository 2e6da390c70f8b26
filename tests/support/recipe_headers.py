"""The table of memory in the header of a recipe, from `rlhf.preflight`.

`python -m tests.support.recipe_headers [RECIPE …]` writes it, of all recipes that have one by default.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from rlhf.config.load import load_project
from rlhf.config.project import ModelConfig, ProjectConfig
from rlhf.preflight import Machine, StageEstimate, estimate
from tests.support import recipe_models

ROOT = Path(__file__).parents[2]
TABLE = re.compile(r"(?P<title># Peak memory on one GPU of (?P<memory>\d+) GB, [^\n]*:\n)(?P<rows>(?:#   [^\n]*\n)+)")
_SHOWN = 3
"""Parts of the memory that a line names, the largest."""


def recipes() -> list[Path]:
    """The recipes that have such a table."""
    return [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if TABLE.search(path.read_text())]


def rows_of(text: str) -> list[str]:
    """The lines of a recipe's table, without their marks."""
    table = TABLE.search(text)
    assert table is not None
    return [line.removeprefix("#   ") for line in table["rows"].splitlines()]


def made(path: Path, models: Mapping[str, str]) -> list[str]:
    """The lines as they are made anew.

    Args:
        path: The recipe.
        models: Model on the hub -> folder with its config.
    """
    table = TABLE.search(path.read_text())
    assert table is not None
    project = located(load_project(path), models)
    return list(map(line, estimate(project, Machine.given(1, float(table["memory"])))))


def located(project: ProjectConfig, models: Mapping[str, str]) -> ProjectConfig:
    """The project with the configs of its models where they lie on this machine."""

    def found(model: ModelConfig) -> ModelConfig:
        return replace(model, name_or_path=models.get(model.name_or_path or "", model.name_or_path))

    stages = {
        name: stage if stage.model is None else replace(stage, model=found(stage.model))
        for name, stage in project.stages.items()
    }
    return replace(project, model=found(project.model), stages=stages)


def line(stage: StageEstimate) -> str:
    """`dpo        6.8 GB  in evaluation: activations 3.7, weights 1.2, logits 1.1`."""
    largest = sorted(stage.parts.items(), key=lambda part: -part[1])[:_SHOWN]
    parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in largest)
    return f"{stage.stage:<9} {stage.bytes / 1e9:>5.1f} GB  in {stage.phase}: {parts}"


def written(text: str, rows: list[str]) -> str:
    """A recipe's text with another table."""
    return TABLE.sub(lambda table: table["title"] + "".join(f"#   {row}\n" for row in rows), text, count=1)


def main(paths: list[Path], say: Callable[[str], None] = print) -> None:
    """Write the tables of recipes."""
    with tempfile.TemporaryDirectory() as folder:
        models = recipe_models.write(Path(folder))
        for path in paths:
            say(path.name)
            path.write_text(written(path.read_text(), made(path, models)))


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or recipes())
