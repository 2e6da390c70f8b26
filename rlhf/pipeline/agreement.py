"""Whether all processes of a launch run a stage alike: each of several nodes is given a YAML, data and packages itself.

Nothing else would tell: gradients are averaged whatever learning rate a process then takes, and weights drift apart.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from typing import Any

from rlhf import processes
from rlhf.artifacts.manifest import versions
from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError

_LAUNCH = ("ACCELERATE_", "FSDP_")
"""How the variables begin in which accelerate hands its config to processes."""
_LONG = 40
"""Characters of a value that a line shows whole."""


def check_alike(project: ProjectConfig, name: str, decides: dict[str, Any]) -> None:
    """Check that every process has the main one's settings, data, packages and accelerate config. All of them call it.

    Args:
        project: The project.
        name: The stage.
        decides: Its identity.

    Raises:
        UserError: One has others; the message names the first that differs.
    """
    if processes.count() == 1:
        return
    own = settings(project, name, decides)
    differs = difference(processes.broadcast(own), own)
    where = f" on node {processes.node()} ({socket.gethostname()})" if processes.nodes() > 1 else ""
    line = f"process {processes.rank()} of {processes.count()}{where}: {differs}"
    for other in filter(None, processes.gathered(line if differs else None)):
        raise UserError(f"{other}; all processes need one YAML, the same data and packages, and one accelerate config")


def settings(project: ProjectConfig, name: str, decides: dict[str, Any]) -> dict[str, str]:
    """All that the processes of a stage must have alike, by dotted key: values as JSON, those of the YAML first.

    Args:
        project: The project.
        name: The stage.
        decides: Its identity.
    """
    own: dict[str, Any] = {}
    if project.has_stage(name):
        own = dataclasses.asdict(project.stage(name))
        del own["model"]  # whose contents the identity has, wherever it lies
        own |= own.pop("trainer")
    launch = {key: os.environ[key] for key in sorted(os.environ) if key.startswith(_LAUNCH)}
    rest = {"round": project.round, **decides, "versions": versions(), "environment": launch}
    return _flat({"stages": {name: own}, **rest})


def difference(main: dict[str, str], own: dict[str, str]) -> str | None:
    """The first setting in which a process differs from the main one, with both values; None where all are alike.

    Args:
        main: Settings of the main process.
        own: Settings of the process.
    """
    for key in [*main, *(key for key in own if key not in main)]:
        if main.get(key) != own.get(key):
            return f"{key} is {_shown(own.get(key))}, and {_shown(main.get(key))} on the main process"
    return None


def _flat(value: Any, key: str = "") -> dict[str, str]:
    if not isinstance(value, dict):
        return {key: json.dumps(value, default=str)}
    flat: dict[str, str] = {}
    for name, each in value.items():
        flat |= _flat(each, f"{key}.{name}" if key else str(name))
    return flat


def _shown(value: str | None) -> str:
    if value is None:
        return "not set"
    return value if len(value) <= _LONG else f"{value[:_LONG]}…"
