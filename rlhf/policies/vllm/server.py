"""A vLLM server that a stage starts, and that ends with it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from rlhf.errors import SamplerFailed
from rlhf.policies.vllm import run_server
from rlhf.policies.vllm.client import KEY, SOCKET, Client

NAME = "policy"
"""By which the server knows the model that it was started with."""
_START = 1800.0
"""Seconds in which a server has to be ready; a large model takes minutes."""
_PATIENCE = 10.0
"""Seconds that it has to end."""
_FIXED = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # has it take new weights; nobody else reaches its socket
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",  # all that it reads is written by the stage
}
_DEFAULTS = {
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # of memory that it shares with the training
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""For whoever has not set them; those with CPU in their name mean nothing on a GPU."""
_PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_\w+|TZ|TMPDIR|CC|CXX|HF_HOME|XDG_CACHE_HOME|(LD_)?LIBRARY_PATH|CPATH|"
    r"(CUDA|NVIDIA|NCCL|GLOO|HIP|ROCR|ROCM|OMP|KMP|MKL|TORCH|TORCHINDUCTOR|TRITON|VLLM)_\w+"
)
"""Variables that a server gets from the stage: where programs, libraries and caches are, and how GPUs, threads and vLLM
are set. All others stay behind, those that hold secrets or tell a process that it is part of a launch among them."""


class Server:
    """A server of this process, which listens on a socket that no other user can reach.

    Args:
        python: Interpreter of an environment with vLLM.
        model: Folder of the model that it serves.
        log: File that its output is appended to.
        options: More of vLLM's own options.
    """

    def __init__(self, python: str, model: Path, log: Path, options: Sequence[str] = ()) -> None:
        self.log = log
        self._folder = tempfile.TemporaryDirectory(prefix="rlhf-")  # 0700; the path of a socket has to be short
        socket = Path(self._folder.name) / "socket"
        command = [
            python, "-I", run_server.__file__, "--model", str(model), "--served-model-name", NAME, "--uds", str(socket),
            "--load-format", "safetensors", "--skip-tokenizer-init", "--generation-config", "vllm",
            "--logprobs-mode", "processed_logprobs", "--disable-uvicorn-access-log", "--seed", "0", *options,
        ]  # fmt: skip
        self._since = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, cwd=self._folder.name,
                env=_environment(), start_new_session=True,
            )  # fmt: skip
        self.client = Client(f"{SOCKET}{socket}", self._ended)
        self.close = weakref.finalize(self, _end, self.process)

    def wait(self) -> None:
        """Return when it answers.

        Raises:
            SamplerFailed: It has ended, or does not answer in half an hour.
        """
        over = time.monotonic() + _START
        socket = Path(self._folder.name) / "socket"
        while not (socket.exists() and self._healthy()):
            if (ended := self._ended()) is not None:
                raise SamplerFailed(ended)
            if time.monotonic() > over:
                raise SamplerFailed(f"sampler: vLLM is not ready after {_START:g} seconds; its log is {self.log}")
            time.sleep(0.2)

    def _healthy(self) -> bool:
        try:
            self.client.call("GET", "/health", timeout=5.0)
        except SamplerFailed:
            return False
        return True

    def _ended(self) -> str | None:
        """Why it is gone, if it is."""
        code = self.process.poll()
        if code is None:
            return None
        how = f"ended with exit code {code}" if code >= 0 else f"was ended by signal {-code}"
        return f"sampler: vLLM {how}: {first_error(self.log, self._since)} (its log is {self.log})"


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name) and name != KEY}
    return {**_DEFAULTS, **kept, **_FIXED}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and all that it started."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()  # see `run_server`
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # it, or what it has left behind
    process.wait()


def first_error(log: Path, since: int = 0) -> str:
    """What a log says went wrong: its first error, since others follow from it; else its last line.

    Args:
        log: The file.
        since: Bytes at its beginning that are not looked at.
    """
    with log.open("rb") as file:
        file.seek(since)
        lines = file.read().decode(errors="replace").splitlines()
    matches = [match for line in lines if (match := _LINE.match(line)) is not None and match["text"].strip()]
    texts = [(match["level"], match["text"].strip()) for match in matches]
    errors = (text for level, text in texts if level in (None, "ERROR") and _ERROR.match(text))
    return next(errors, texts[-1][1] if texts else "no output")[:300]


_LINE = re.compile(r"(\(\w[^)]*\) )?((?P<level>[A-Z]+) \d\d-\d\d [\d:]+ \[[^]]*\] ?)?(?P<text>.*)")
_ERROR = re.compile(r"[\w.]*(Error|Exception)\b.*: ")
