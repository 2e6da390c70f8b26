"""The environment as lines of text, for the terminal and for a bug report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlhf.environment.facts import PACKAGE, Environment, Library

_WIDTH = 16
_GB = 1e9


def lines(found: Environment) -> list[str]:
    """A line a fact, and below them a line for each thing that is missing or not as tested."""
    told = [f"{name.ljust(_WIDTH)}{text}" for name, text in _facts(found)]
    remarks = list(_remarks(found))
    return [*told, *([""] if remarks else []), *remarks]


def _facts(found: Environment) -> Iterator[tuple[str, str]]:
    own, cpu = found["rlhf"], found["cpu"]
    commit = f", commit {own['commit'][:12]}" if own["commit"] else ""
    checkout = f", a checkout at {own['checkout']}" if own["checkout"] else ""
    yield PACKAGE, f"{own['version']}{commit}{checkout}"
    yield "python", found["python"]
    yield "system", found["system"]
    yield "cpu", f"{cpu['name']}, {cpu['cores']} cores, bf16 in hardware: {_known(cpu['bf16'])}"
    available = found["memory"]["available"]
    yield "memory", _gb(found["memory"]["total"]) + (f", {_gb(available)} available" if available else "")
    for device in found["devices"]:
        free = f", {_gb(device['free_bytes'])} free" if device["free_bytes"] else ""
        yield "device", f"{device['name']}, {_gb(device['memory_bytes'])}{free}, bf16: {_known(device['bf16'])}"
    if not found["devices"] and found["torch"]:
        yield "device", f"none, torch computes on the CPU with {found['torch']['threads']} threads"
    for name, library in found["packages"].items():
        built = ""
        if name == "torch":
            built = "".join(f", {kind} {found['torch'][kind]}" for kind in ("cuda", "hip") if found["torch"].get(kind))
        yield name, f"{library['version'] or 'not installed'}{built}"
    config = found["accelerate_config"]
    yield "launch config", f"{config['path']}{'' if config['there'] else ': not there; accelerate config writes it'}"
    for name, path in found["caches"].items():
        yield f"{name} cache", path
    for name, value in found["variables"].items():
        yield "variable", f"{name}={value}"


def _remarks(found: Environment) -> Iterator[str]:
    for name, library in found["packages"].items():
        yield from _remark(name, library)
    for extra, missing in found["extras"].items():
        if missing:
            yield f"not installed: {', '.join(missing)}: pip install '{PACKAGE}[{extra}]'"


def _remark(name: str, library: Library) -> Iterator[str]:
    if library["problem"]:
        yield f"{name} {library['version'] or ''}".rstrip() + f" cannot be imported: {library['problem']}"
    elif library["version"] is None:
        pin = f"=={library['tested']}" if library["tested"] else ""
        yield f"{name} is not installed: pip install {name}{pin}"
    elif library["tested"]:
        yield f"{name} {library['version']} was not tested, {library['tested']} was"


def _known(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "not known"}[value]


def _gb(value: Any) -> str:
    return "memory not known" if value is None else f"{value / _GB:.1f} GB"
