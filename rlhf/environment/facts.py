"""Gathers what `rlhf env` prints. No library is imported in this process."""

from __future__ import annotations

import contextlib
import getpass
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import rlhf
from rlhf.artifacts.manifest import git_sha
from rlhf.config.versions import TESTED
from rlhf.secrets import masked
from rlhf.shipped import origin

PACKAGE = "rlhf-pipeline"
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
"""What is imported to see whether it can be."""
_DEVELOPERS = "dev"
"""The extra of those who work on this package."""
_VARIABLES = (
    "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "CUDA_VISIBLE_DEVICES",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "PYTHONPATH",
    "NCCL_DEBUG", "NCCL_P2P_DISABLE", "NCCL_SOCKET_IFNAME",
)  # fmt: skip
"""Variables that change how the libraries behave; none holds a secret."""
_TIMEOUT = 300.0
"""Seconds that the imports may take together."""


class Library(TypedDict):
    """A library that this package rests on."""

    version: str | None
    """None where it is not installed."""
    tested: str | None
    """The version that this package was tested with, where the installed one is another."""
    problem: str | None
    """Why it cannot be imported."""


class Environment(TypedDict):
    """What `rlhf env --json` prints. Paths below the home folder begin with `~`."""

    rlhf: dict[str, str | None]
    """`version`; `commit` and `checkout` where it runs from one."""
    python: str
    """Its version."""
    system: str
    """Operating system, its release and the kind of machine."""
    cpu: dict[str, Any]
    """`name`, `cores` that this process may use, and `bf16`: whether it multiplies in bf16."""
    memory: dict[str, int | None]
    """Of the machine, in bytes: `total` and `available`."""
    devices: list[dict[str, Any]]
    """The accelerators (`rlhf.environment.probe.devices`)."""
    torch: dict[str, Any]
    """What it was built for."""
    packages: dict[str, Library]
    """The libraries that this package rests on, by name."""
    extras: dict[str, list[str]]
    """Of each extra, the packages that are not installed."""
    accelerate_config: dict[str, str | bool]
    """`path` of this machine's, and whether it is `there`."""
    caches: dict[str, str]
    """Where the hub's and the data sets' caches lie, by name."""
    variables: dict[str, str]
    """Those that are set and change how the libraries behave."""


def gather(libraries: Sequence[str] = LIBRARIES) -> Environment:
    """Find out what there is; what cannot be found out is None or says why.

    Args:
        libraries: What is imported, in a process of its own.
    """
    probed = _probed(libraries)
    torch = probed.get("torch", {})
    hub = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))
    caches = {
        "hub": os.environ.get("HF_HUB_CACHE") or hub / "hub",
        "datasets": os.environ.get("HF_DATASETS_CACHE") or hub / "datasets",
    }
    config = hub / "accelerate/default_config.yaml"
    return {
        "rlhf": _own(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "memory": _memory(),
        "devices": torch.get("devices", []),
        "torch": torch.get("built", {}),
        "packages": {name: _library(name, probed.get(name, {}).get("problem")) for name in libraries},
        "extras": missing_extras(),
        "accelerate_config": {"path": shown(config), "there": config.expanduser().is_file()},
        "caches": {name: shown(path) for name, path in caches.items()},
        "variables": {name: shown(os.environ[name]) for name in _VARIABLES if os.environ.get(name)},
    }


def shown(text: str | Path) -> str:
    """A path or a text without the user's home folder, the user's name as a folder, and secrets."""
    text, home = masked(str(text)), str(Path.home())
    if home != "/":
        text = re.sub(rf"{re.escape(home)}(?=/|:|$)", "~", text)
    with contextlib.suppress(OSError, KeyError, ImportError):  # a container's user may have no name
        text = re.sub(rf"(?<=/){re.escape(getpass.getuser())}(?=/|:|$)", "USER", text)
    return text


def _own() -> dict[str, str | None]:
    """Which rlhf this is: a commit where it runs from a checkout, which an installed package does not."""
    checkout = origin()
    own = checkout == Path(rlhf.__file__).resolve().parent.parent and (checkout / "pyproject.toml").is_file()
    commit = git_sha(checkout) if own else None
    return {"version": rlhf.__version__, "commit": commit, "checkout": shown(checkout) if own else None}


def _cpu() -> dict[str, Any]:
    """The processor, where the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    fields: dict[str, str] = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE))
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "name": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "bf16": bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags)) if flags else None,
    }


def _memory() -> dict[str, int | None]:
    """The machine's memory in bytes, where the system tells."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        kilobytes = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
        return {"total": 1024 * kilobytes["MemTotal"], "available": 1024 * kilobytes["MemAvailable"]}
    except (OSError, KeyError):
        pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in os.sysconf_names else None
        return {"total": pages and pages * os.sysconf("SC_PAGE_SIZE"), "available": None}


def _library(name: str, problem: str | None) -> Library:
    """A library's version beside the one that was tested."""
    version, tested = _version(name), TESTED.get(name)
    return {"version": version, "tested": tested if tested != version else None, "problem": problem}


def _version(name: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing_extras() -> dict[str, list[str]]:
    """The extras of this package, each with what it would install; empty where all is there or nothing is known."""
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    extras: dict[str, list[str]] = {}
    for line in lines:
        requirement, _, marker = line.partition(";")
        match = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        if match is None or match[1] == _DEVELOPERS:
            continue
        name = re.split(r"[\s\[<>=!~(]", requirement.strip())[0]
        extras.setdefault(match[1], []).extend([] if _version(name) else [name])
    return extras


def _probed(libraries: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What importing each library says; where one ends the process, the rest is imported in another process."""
    probed: dict[str, dict[str, Any]] = {}
    remaining = [name for name in libraries if importlib.util.find_spec(name) is not None]
    while remaining:
        lines, problem = _import(remaining)
        for line in lines:
            probed[line["package"]] = {**line, "problem": line["problem"] and shown(line["problem"])}
        remaining = [name for name in remaining if name not in probed]
        if remaining:
            probed[remaining.pop(0)] = {"problem": problem}
    return probed


def _import(libraries: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """What the process that imports libraries printed, and how it ended."""
    command = [sys.executable, "-m", "rlhf.environment.probe", *libraries]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as late:
        text = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        return _objects(text), f"the import took longer than {_TIMEOUT:.0f} s"
    if done.returncode < 0:
        return _objects(done.stdout), f"the import ended the process ({signal.Signals(-done.returncode).name})"
    return _objects(done.stdout), f"the import ended the process (exit code {done.returncode})"


def _objects(text: str) -> list[dict[str, Any]]:
    """The lines of a probe; libraries may print others."""
    objects = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            objects += [value] if isinstance(value, dict) and {"package", "problem"} <= value.keys() else []
    return objects
