"""Distributed launches on CPUs: the shipped accelerate files, and the environment that lets FSDP2 shard there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "recipes/accelerate"
ZERO = Path(sys.prefix) / "zero"
"""Where `make zero` puts DeepSpeed. accelerate imports it wherever it is installed, and it writes to stderr then."""


def on_cpus(name: str, folder: Path, processes: int = 2) -> Path:
    """A copy of a shipped accelerate file for CPU processes: in float32, and with this many of them.

    Args:
        name: Name of the file without its ending: `fsdp2`.
        folder: Where the copy is written.
        processes: Their number.
    """
    settings = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"))
    settings |= {"mixed_precision": "no", "num_processes": processes}
    path = folder / f"{name}-{processes}.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


def environment(**more: str) -> dict[str, str]:
    """The environment of a launch on CPUs, in which accelerate shards with FSDP2 and DeepSpeed takes the CPU.

    Args:
        more: Variables that are added or replaced.
    """
    paths = [str(ROOT), str(ROOT / "tests/support/cpu_fsdp"), str(ZERO), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        **more,
    }


def on_two_processes(
    words: Sequence[str], own: Sequence[Sequence[str]] = ((), ()), **more: str
) -> tuple[list[int], str]:
    """Run a Python command as a launch of two processes, without a launcher.

    Args:
        words: What follows the interpreter.
        own: Words of each process behind these.
        more: Variables that are added or replaced.

    Returns:
        Their exit codes, and what they write to stderr, one after the other.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **more}
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, words), *map(str, of_rank)],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **launch), stderr=subprocess.PIPE, text=True,
        )
        for rank, of_rank in enumerate(own)
    ]  # fmt: skip
    said = "".join(process.communicate(timeout=200)[1] for process in started)
    return [process.returncode for process in started], said


def leave_together() -> None:
    """End this process once all others have come as far: one that leaves while another talks to it can abort.

    It ends without the interpreter's tear-down, in which threads of torch's backends aborted now and then ("terminate
    called without an active exception").
    """
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
