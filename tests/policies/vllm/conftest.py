"""The environment in which the real vLLM is, where it has been made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def vllm_python(root) -> str:
    """The interpreter of an environment with vLLM: that of `make vllm`, or what VLLM_PYTHON names."""
    python = Path(os.environ.get("VLLM_PYTHON", root / ".vllm/bin/python"))
    if not python.exists():
        pytest.skip("vLLM is not there: make vllm, or name an interpreter in VLLM_PYTHON")
    return str(python)
