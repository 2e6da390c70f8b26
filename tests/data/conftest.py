"""A project over hand-made files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.project import ModelConfig, ProjectConfig
from rlhf.config.sets import DataConfig, DatasetConfig, SourceConfig


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of text, bytes, or rows as JSON lines; gzipped if its name says so."""

    def write_file(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write_file


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., ProjectConfig]:
    """Makes a project; each set is a path, a dict of source fields, or a list of these."""

    def make(holdout: float | None = None, seed: int = 0, **sets: Any) -> ProjectConfig:
        def dataset(value: Any) -> DatasetConfig:
            values = value if isinstance(value, list) else [value]
            fields = [value if isinstance(value, dict) else {"source": str(value)} for value in values]
            return DatasetConfig(tuple(SourceConfig(**value) for value in fields), holdout)

        data = DataConfig(**{role: dataset(value) for role, value in sets.items()})
        return ProjectConfig("test", ModelConfig("model"), seed=seed, data=data, path=tmp_path / "project.yaml")

    return make
