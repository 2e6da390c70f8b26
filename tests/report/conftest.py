from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.reports import fake_run


@pytest.fixture
def run_maker(tmp_path: Path) -> Callable[..., Path]:
    """`fake_run` in a folder of its own."""
    return lambda **options: fake_run(tmp_path / "runs" / "quickstart", **options)
