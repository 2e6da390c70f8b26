"""Lets accelerate shard with FSDP2 on CPU processes, wherever PYTHONPATH names this folder.

accelerate turns FSDP on only where the type of its launch is in a list of accelerators, and MULTI_CPU is not in it.
Here such a launch calls itself MULTI_GPU. Launcher, YAML, `fully_shard`, gloo and the CPU as device are the real ones.

A process that never imports accelerate imports nothing here either.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_STATE = "accelerate.state"


class _StateFinder(MetaPathFinder):
    """Finds accelerate's state as the others do, and has it renamed once it is loaded."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _STATE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_rename(module: ModuleType) -> None:
            load(module)
            _rename(module)

        spec.loader.exec_module = load_and_rename  # type: ignore[method-assign]
        return spec


def _rename(state: Any) -> None:
    """Have a launch of several CPU processes under FSDP call itself MULTI_GPU."""
    kinds, initialise = state.DistributedType, state.PartialState.__init__

    def renamed(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        if self.distributed_type == kinds.MULTI_CPU:
            self.distributed_type = kinds.MULTI_GPU

    state.PartialState.__init__ = renamed


if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
    sys.meta_path.insert(0, _StateFinder())
