"""`rlhf arena`: a run of tiny models and a server beside them, and everything that is refused."""

import socket
import subprocess
import sys
import threading
import time

import pytest

from rlhf.arena.choices import Wishes
from rlhf.arena.lock import only_arena
from rlhf.arena.start import _servers
from rlhf.artifacts.manifest import read_manifest
from rlhf.data.votes import read_votes
from rlhf.errors import UserError
from rlhf.pipeline.folder import own_folder
from rlhf.serving.listen import TOKEN
from tests.support.arena import Annotator, started
from tests.support.projects import chats, make_project
from tests.support.runs import add_stage
from tests.support.served import FakeReplier, served


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_llama):
    project = make_project(tmp_path_factory.mktemp("arena"), tiny_llama, chats(80))
    own_folder(project)
    add_stage(project.run_dir, "sft", tiny_llama)
    add_stage(project.run_dir, "reward", tiny_llama, "sft", labels=1)
    add_stage(project.run_dir, "dpo", tiny_llama, "sft")
    return project


def run(*arguments):
    command = [sys.executable, "-m", "rlhf.cli", "arena", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_policies_of_a_run_and_a_server_are_judged_and_exported(project, tmp_path):
    fake = FakeReplier(lambda prompt, sampling: "Hello from far away.")
    met = set()
    with served(fake, "far") as far, started(project.run_dir, "--against", f"{far.url}/v1") as url:
        ann = Annotator(url, "Ann")
        for _ in range(9):
            while (shown := ann.next())["ballot"] is None:
                assert shown["preparing"]
                time.sleep(0.05)
            answer = ann.vote(shown["ballot"], "b").json()
            met |= {answer["a"]["policy"], answer["b"]["policy"]}
        page = ann.post("/prompts", {"text": "Hello there"}).json()["page"]
        assert "event: ready" in ann.client.get(f"{page}/replies").text
    assert met == {"sft", "dpo", f"{far.url}/v1 far"}
    votes = read_votes(project.run_dir)
    assert len(votes) == 9
    for vote in votes:
        for reply in vote.ballot.comparison.replies:
            assert set(reply.scores) == {"reward", "long"}
            stage = project.run_dir / reply.policy
            recorded = read_manifest(stage)["artifact"] if stage.is_dir() else None
            assert reply.artifact == recorded
    done = run(project.run_dir, "--export", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "preferences.jsonl").read_text(encoding="utf-8").count("\n") == 9


def test_what_is_refused_is_one_line_before_anything_is_loaded(project, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, words in (
            (["--policies", "dop,sft"], "did you mean 'dpo'?"),
            (["--policies", "dpo"], "only dpo"),
            (["--judges", "rewrad"], "did you mean 'reward'?"),
            (["--port", port], f"port {port}"),
            (["--export", tmp_path / "out"], "no votes yet"),
        ):
            run_dir = project.run_dir if "--export" not in arguments else project.run_dir.parent / "none"
            if "--export" in arguments:
                run_dir.mkdir()
                (run_dir / "project.json").write_text('{"config": "../../project.yaml"}', encoding="utf-8")
            done = run(run_dir, *arguments)
            assert done.returncode == 2, done.stderr
            assert "Traceback" not in done.stderr
            (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert words in line


def test_a_second_arena_of_the_run_is_refused_before_anything_is_loaded(project):
    with only_arena(project.run_dir):
        done = run(project.run_dir, "--port", "0")
    assert done.returncode == 2
    assert "open already" in done.stderr
    assert "loading" not in done.stdout


@pytest.mark.parametrize(("raised", "status"), [("", 0), ("raise ValueError", 1)])
def test_a_thread_that_hangs_keeps_no_process(raised, status):
    code = f"""
import threading
from rlhf.arena.start import end_within
threading.Thread(target=threading.Event().wait).start()
try:
    {raised or "pass"}
finally:
    end_within(0.1)
"""
    assert (
        subprocess.run([sys.executable, "-c", code], timeout=60, stderr=subprocess.PIPE, check=False).returncode
        == status
    )


def test_a_server_that_hangs_keeps_no_arena(project):
    asked, over = threading.Event(), threading.Event()

    def hangs(prompt, sampling):
        if sampling.max_new_tokens > 1:  # the first question, whether it is there, has one
            asked.set()
            over.wait(60)
        return "Hello."

    with served(FakeReplier(hangs), "far") as far:
        with started(project.run_dir, "--policies", "sft", "--against", f"{far.url}/v1"):
            assert asked.wait(60)
            begun = time.monotonic()
        took = time.monotonic() - begun
        over.set()
    assert took < 30  # one second on a free machine; the server hangs for sixty


def test_a_server_that_is_not_there():
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/v1: "):
        _servers(Wishes(against=["http://127.0.0.1:9/v1"]))
    with pytest.raises(UserError):
        _servers(Wishes(against=["file:///etc/passwd#m"]))
