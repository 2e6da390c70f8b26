"""The accelerate config that a run is launched with: which file it is, and how many nodes and processes it has."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rlhf.config.yaml_loader import NotYaml, read
from rlhf.errors import UserError, reason

_KEYS = {"compute_environment", "distributed_type", "num_processes"}
"""Keys that tell an accelerate config from another YAML file; it has at least one of them."""
_KINDS = ("NO", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU", "FSDP", "DEEPSPEED")
"""Values of `distributed_type` that stages run under; several CPU processes of one machine are MULTI_GPU as well."""
OWN = ""
"""Stands for the machine's own config, which `accelerate config` writes."""


def with_own(words: list[str]) -> list[str]:
    """A command line in which `OWN` follows an `--accelerate` that has no file.

    Args:
        words: As typed. The word after `--accelerate` is its file, unless it is an option or `key=value`.

    Raises:
        UserError: That file is the only one: no project is named.
    """
    if words[:1] in (["run"], ["check"]) and "--accelerate" in words and (file := _only_file(words[1:])):
        raise UserError(f"--accelerate {file}: no project is named: rlhf {words[0]} CONFIG --accelerate [FILE]")
    completed: list[str] = []
    for word, behind in itertools.zip_longest(words, words[1:], fillvalue=""):
        bare = word == "--accelerate" and (behind.startswith("-") or not behind or "=" in behind)
        completed += [word, OWN] if bare else [word]
    return completed


def _only_file(words: list[str]) -> str | None:
    """The file of `--accelerate`, if every other word is an option, an option's value or `key=value`."""
    left, file = iter(words), None
    for word in left:
        if not word.startswith("-"):
            if "=" not in word or Path(word).is_file():
                return None
        elif "=" not in word:
            value = next(left, None)
            file = value if word == "--accelerate" else file
    return file


class Launch(NamedTuple):
    """How stages are started on many processes."""

    file: Path
    nodes: int = 1
    """Number of machines."""
    node: int = 0
    """Number of this machine; 0 leads."""
    processes: int = 1
    """Number of processes on all machines together."""

    variables: Mapping[str, str] = MappingProxyType({})
    """What the file asks of an engine, by the variables in which accelerate passes it on to the processes."""

    def line(self) -> str:
        """A line that describes the launch."""
        where = f" on {self.nodes} nodes, of which this is node {self.node}" if self.nodes > 1 else ""
        return f"{self.file}: {self.processes} process{'es'[: 2 * (self.processes > 1)]}{where}"

    def command(self, module: str, *words: str) -> list[str]:
        """The words behind `accelerate launch` that run a module.

        Args:
            module: Its name.
            words: Its own arguments.
        """
        which = ["--machine_rank", str(self.node)] if self.nodes > 1 else []
        return ["--quiet", "--config_file", str(self.file), *which, "-m", module, *words]


def find_launch(given: str, node: int | None = None) -> Launch:
    """The launch that a file describes.

    Args:
        given: The file; `OWN` for the machine's own.
        node: Number of this node; None takes the file's.

    Raises:
        UserError: There is no such file, or its settings for nodes contradict each other.
    """
    file = Path(given) if given != OWN else _own_file()
    if not file.is_file():
        hint = "; run `accelerate config` on this machine, or name a file, as recipes/accelerate has them"
        raise UserError(f"{file}: no such file{hint if given == OWN else ''}")
    try:
        settings = read(file.read_text(encoding="utf-8"))
    except (NotYaml, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid YAML: {error}") from None
    if not isinstance(settings, dict) or not _KEYS & settings.keys():
        raise UserError(f"{file}: no accelerate config: expected keys such as num_processes")
    _check(settings, file)
    nodes, processes = (_number(settings, key, file) for key in ("num_machines", "num_processes"))
    if node is None:
        node = _number(settings, "machine_rank", file, least=0)
    if node >= nodes:
        raise UserError(f"--node {node}: {file} has {nodes} node{'s'[: nodes > 1]} (num_machines), counted from 0")
    if nodes > 1:
        if processes % nodes:
            raise UserError(f"{file}: num_processes: those of all {nodes} nodes, as many on each; not {processes}")
        for key in ("main_process_ip", "main_process_port"):
            if settings.get(key) is None:
                raise UserError(f"{file}: {key}: missing; the {nodes} nodes meet at an address of node 0")
    return Launch(file, nodes, node, processes, _variables(settings))


def _variables(settings: dict[str, Any]) -> dict[str, str]:
    kind = settings.get("distributed_type")
    asked = {f"ACCELERATE_USE_{engine}": kind == engine for engine in ("DEEPSPEED", "FSDP")}
    if kind == "FSDP":
        asked |= {key.upper(): value for key, value in (settings.get("fsdp_config") or {}).items()}
    return {name: str(value).lower() for name, value in asked.items()}


def _check(settings: dict[str, Any], file: Path) -> None:
    """Check that accelerate takes a config, and that it starts as many processes as the config says.

    Raises:
        UserError: It does not.
    """
    from accelerate.commands.config.config_args import load_config_from_file

    kind, processes = settings.get("distributed_type"), settings.get("num_processes")
    where = settings.get("compute_environment", "LOCAL_MACHINE")
    if where != "LOCAL_MACHINE":
        raise UserError(f"{file}: compute_environment: stages are started on LOCAL_MACHINE, not on {where!r}")
    if kind not in _KINDS:
        given = "it is missing" if kind is None else f"not {kind!r}"
        raise UserError(f"{file}: distributed_type: expected one of {', '.join(_KINDS)}; {given}")
    if processes is None and kind != "NO":
        raise UserError(f"{file}: num_processes: missing; it counts the processes of all nodes")
    if kind == "NO" and processes not in (None, 1):
        raise UserError(f"{file}: distributed_type: 'NO' starts one process; for {processes!r}, take MULTI_GPU")
    try:
        load_config_from_file(str(file))
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file}: accelerate refuses it: {reason(error)}") from None


def _own_file() -> Path:
    """Where `accelerate config` writes."""
    from accelerate.commands.config.config_args import default_config_file

    return Path(default_config_file)


def _number(settings: dict[str, Any], key: str, file: Path, least: int = 1) -> int:
    value = settings.get(key)
    if value is None:
        return least
    if not isinstance(value, int) or value < least:
        raise UserError(f"{file}: {key}: expected a number from {least} on, not {value!r}")
    return value
