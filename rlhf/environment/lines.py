"""The environment as lines of text, for the terminal and for a bug report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlhf.environment.facts import PACKAGE, Environment, Library

_WIDTH = 16
_GB = 1e9


def lines(environment: Environment) -> list[str]:
    """A line a fact, and below them a line for each thing that is missing or not as tested."""
    facts = [f"{name.ljust(_WIDTH)}{text}" for name, text in _facts(environment)]
    remarks = list(_remarks(environment))
    return [*facts, *([""] if remarks else []), *remarks]


def _facts(environment: Environment) -> Iterator[tuple[str, str]]:
    own, cpu = environment["rlhf"], environment["cpu"]
    commit = f", commit {own['commit'][:12]}" if own["commit"] else ""
    checkout = f", a checkout at {own['checkout']}" if own["checkout"] else ""
    yield PACKAGE, f"{own['version']}{commit}{checkout}"
    yield "python", environment["python"]
    yield "system", environment["system"]
    yield "cpu", f"{cpu['name']}, {cpu['cores']} cores, bf16 in hardware: {_known(cpu['bf16'])}"
    available = environment["memory"]["available"]
    yield "memory", _gb(environment["memory"]["total"]) + (f", {_gb(available)} available" if available else "")
    for device in environment["devices"]:
        free = f", {_gb(device['free_bytes'])} free" if device["free_bytes"] else ""
        yield "device", f"{device['name']}, {_gb(device['memory_bytes'])}{free}, bf16: {_known(device['bf16'])}"
    if not environment["devices"] and environment["torch"]:
        yield "device", f"none, torch computes on the CPU with {environment['torch']['threads']} threads"
    for name, library in environment["packages"].items():
        built = ""
        if name == "torch":
            built = "".join(
                f", {kind} {environment['torch'][kind]}" for kind in ("cuda", "hip") if environment["torch"].get(kind)
            )
        yield name, f"{library['version'] or 'not installed'}{built}"
    config = environment["accelerate_config"]
    yield "launch config", f"{config['path']}{'' if config['there'] else ': not there; accelerate config writes it'}"
    for name, path in environment["caches"].items():
        yield f"{name} cache", path
    for name, value in environment["variables"].items():
        yield "variable", f"{name}={value}"


def _remarks(environment: Environment) -> Iterator[str]:
    for name, library in environment["packages"].items():
        yield from _remark(name, library)
    for extra, missing in environment["extras"].items():
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
