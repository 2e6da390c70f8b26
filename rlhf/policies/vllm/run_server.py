"""Runs vLLM's server until the process that started it has ended, however it ended.

This file is run by the interpreter of vLLM's environment, which has nothing of this package. Its standard input is a
pipe that whoever started it holds open and never writes to.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading

SERVER = "vllm.entrypoints.openai.api_server"


def end_with_owner() -> None:
    """Wait until nobody holds the pipe any more, then end this process and all that it has started."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)  # the owner made it the leader of a group


if __name__ == "__main__":
    threading.Thread(target=end_with_owner, daemon=True).start()
    runpy.run_module(SERVER, run_name="__main__", alter_sys=True)
