"""Nothing is sent to anybody: no library's telemetry, whatever the environment says, and no look-up of a name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.projects import write_project

WATCHED = Path(__file__).parent / "support/watched"
SWITCHES = ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_OFFLINE", "CI")
STEPS = {"max_steps": 2, "learning_rate": 1e-3}


@pytest.fixture
def connections(tmp_path) -> Path:
    """What the processes below note of where they connect to."""
    return tmp_path / "connections"


def run(root, connections, *command, **variables) -> subprocess.CompletedProcess:
    """Run Python with nothing that would switch telemetry off, as at a user's."""
    environment = {key: value for key, value in os.environ.items() if key not in SWITCHES}
    paths = {"PYTHONPATH": f"{WATCHED}{os.pathsep}{root}", "CONNECTIONS": str(connections), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, input="Hello\n",
        env={**environment, **paths, **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:2000]
    return done


PING = "import {first}, {second}\nfrom huggingface_hub.utils import send_telemetry\nsend_telemetry('trl/SFTTrainer')\n"
WAIT = "from huggingface_hub.utils._telemetry import _TELEMETRY_THREAD as t\nimport time\ntime.sleep(1 if t else 0)\n"


@pytest.mark.parametrize("modules", [("rlhf", "huggingface_hub"), ("huggingface_hub.constants", "rlhf")])
@pytest.mark.parametrize("given", [{}, {"HF_HUB_DISABLE_TELEMETRY": "0"}])
def test_a_library_that_asks_to_send_sends_nothing(root, connections, modules, given):
    """The library may have been imported before this package, as in a notebook."""
    first, second = modules
    run(root, connections, "-c", PING.format(first=first, second=second) + WAIT, **given)
    assert not connections.exists(), connections.read_text()


def test_the_watch_sees_what_is_sent(root, connections):
    """Without this package the same call connects, so that the tests here can fail."""
    run(root, connections, "-c", PING.format(first="sys", second="os") + WAIT)
    assert "huggingface.co" in connections.read_text()


@pytest.mark.slow
def test_a_run_connects_to_nobody(root, connections, tmp_path, tiny_llama):
    """Training, sampling, judging, the report, publishing without a push, a chat, and a recipe under a launcher."""
    path = write_project(
        tmp_path, tiny_llama, stages={name: dict(STEPS) for name in ("sft", "reward", "dpo")},
        gate="warn",
    )  # fmt: skip
    run(root, connections, "-m", "rlhf.cli", "run", path)
    assert (tmp_path / "runs/tiny/evaluate/stage.json").is_file()
    run(root, connections, "-m", "rlhf.cli", "publish", f"{tmp_path}/runs/tiny:sft", "--dry-run", "--merge")
    run(root, connections, "-m", "rlhf.cli", "chat", tmp_path / "runs/tiny")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", root / "recipes/accelerate/cpu.yaml")
    run(root, connections, *launcher, root / "recipes/dpo.py", "--config", path, "--beta", "0.3")
    assert not connections.exists(), connections.read_text()
