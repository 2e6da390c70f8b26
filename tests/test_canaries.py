"""No secret gets into anything that is written, shown, or passed to a process: values planted for it are looked for."""

import base64
import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.judge_server import JudgeServer, Raw, prefer_longer
from tests.support.projects import pairs, write_project, write_rows

SECRETS = {
    "HF_TOKEN": "hf_canaryCanaryCanaryCanary1",
    "OPENAI_API_KEY": "sk-canary-canary-canary-2",
    "WANDB_API_KEY": "canary-of-wandb-3",
    "DATABASE_PASSWORD": "canary-of-a-database-4",
    "CAREFUL": "canary-of-a-judge-5",
}
LOGIN = "canary-in-a-url-6"
CANARIES = [*SECRETS.values(), LOGIN]
STEPS = {"max_steps": 2, "learning_rate": 1e-3, "save_steps": 1}
CAREFUL = {"judge_model": "judge", "api_key_env": "CAREFUL"}


class Watch:
    """Runs commands with the secrets in their environment; keeps what they say, and what processes start with."""

    def __init__(self, root: Path, temporary: Path) -> None:
        temporary.mkdir()
        self.environment = {
            **os.environ, **SECRETS, "PYTHONPATH": str(root), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self.said: list[str] = []
        self.seen: set[str] = set()
        self.ended = threading.Event()

    def run(self, code: int, *command: object) -> str:
        """What `rlhf` says, which has to end with this exit code."""
        process = subprocess.Popen(
            [sys.executable, "-m", "rlhf.cli", *map(str, command)], env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        said = process.communicate()[0]
        self.said.append(said)
        assert process.returncode == code, said[-2000:]
        return said

    def look(self) -> None:
        """Sample the arguments of all processes until told to end."""
        while not self.ended.wait(0.02):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    self.seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))


@pytest.fixture
def watch(root, tmp_path):
    watch = Watch(root, tmp_path / "temporary")
    thread = threading.Thread(target=watch.look)
    thread.start()
    yield watch
    watch.ended.set()
    thread.join()


def repeats_the_key(server, messages):
    """A server whose refusal repeats the key that it was sent, at some length."""
    return Raw(401, f'{{"error": {{"message": "no such key: {server.seen[-1].headers["Authorization"]}"}}}}'.encode())


RAISES = "import os\ndef score(prompts, completions, **columns):\n    raise RuntimeError(dict(os.environ))\n"


@pytest.mark.slow
def test_no_secret_is_written_shown_or_passed_on(tmp_path, tiny_llama, watch):
    project, logins = tmp_path / "project", tmp_path / "logins"
    project.mkdir()
    logins.mkdir()
    stages = {"sft": dict(STEPS)}
    with JudgeServer(prefer_longer) as judge, JudgeServer(repeats_the_key) as refuses:
        rewards = {"careful": {"endpoint": judge.url, **CAREFUL}}
        path = write_project(project, tiny_llama, stages=stages, rewards=rewards)
        run = project / "runs/tiny"
        watch.run(0, "check", path)
        watch.run(0, "run", path)
        assert {request.headers["Authorization"] for request in judge.seen} == {f"Bearer {SECRETS['CAREFUL']}"}
        watch.run(0, "report", run)
        watch.run(0, "publish", f"{run}:sft", "--merge", "--dry-run")
        watch.run(2, "arena", run, "--export", tmp_path / "votes")
        (project / "raises.py").write_text(RAISES)
        refusing = {"endpoint": refuses.url, **CAREFUL}
        for odd in ({}, {"odd": {"function": "raises.py:score"}}):  # the same run, whose comparison is stale
            write_project(project, tiny_llama, stages=stages, rewards={**odd, "careful": refusing})
            assert "…" in watch.run(2, "run", path)
        assert refuses.seen
    rows = write_rows(tmp_path / "rows.jsonl", pairs(8))
    address = f"https://ada:{LOGIN}@127.0.0.1/v1"
    for sections in (
        {"data": {"preferences": {"source": address}}},
        {"data": {"preferences": {"source": str(rows)}}, "rewards": {"careful": {"endpoint": address, **CAREFUL}}},
        {"model": {"name_or_path": address}},
        {"output_dir": f"{tmp_path}/rows.jsonl/{address}"},
    ):
        watch.run(2, "run", write_project(logins, tiny_llama, stages={"sft": dict(STEPS)}, **sections))
    written = [file for file in tmp_path.rglob("*") if file.is_file() and file != logins / "project.yaml"]
    assert any(file.name == "stage.json" for file in written)
    assert any("rlhf.cli run" in arguments for arguments in watch.seen)
    texts = {str(file): file.read_bytes() for file in written}
    texts |= {f"output {number}": text.encode() for number, text in enumerate(watch.said)}
    texts |= {f"arguments {number}": text.encode() for number, text in enumerate(watch.seen)}
    for canary in CANARIES:
        for form in (canary.encode(), base64.b64encode(canary.encode()).rstrip(b"=")[:-1]):
            assert not [name for name, text in texts.items() if form in text], canary
