"""Who may write into a run's folder, and what happens to those who may no longer."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf.config.load import load_project
from rlhf.errors import UserError
from rlhf.pipeline import folder, runner, stage
from tests.support.kill import at_every_change
from tests.support.projects import make_project

RUN = """
import subprocess, sys
from rlhf.config.load import load_project
from rlhf.pipeline import folder
with folder.locked(load_project(sys.argv[1])) as run_lock:
    stage = "import sys, time; from pathlib import Path; from rlhf.pipeline import folder\\n" \\
        "with folder.joined(Path(sys.argv[1]), sys.argv[2]): print(1, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", stage, str(run_lock.project.run_dir), run_lock.key]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE)
    worker.stdout.readline()
    print(worker.pid, flush=True)
    worker.wait()
"""
"""A run with one process of a stage, which says when that has joined."""


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path, tmp_path)


def states(pid: int) -> set[str]:
    """R, S, T (stopped) or Z of its threads; nothing where there is no such process."""
    found = set()
    for thread in Path("/proc").glob(f"{pid}/task/*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.add(thread.read_text().rpartition(")")[2].split()[0])
    return found


def wait_for(state: str, pid: int) -> None:
    end = time.monotonic() + 60
    while not states(pid) <= {state}:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_refused_run_leaves_the_first_ones_overrides(project):
    with folder.locked(load_project(project.path, ["seed=1"])) as run_lock:
        run_lock.note_overrides()
        with pytest.raises(UserError, match="another run is at work here"):
            runner.run(load_project(project.path, ["seed=2"]), say=lambda line: None)
    assert folder.project_of(project.run_dir).seed == 1


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", b"{}", b'{"config": 1}'])
def test_a_damaged_record_of_the_project_is_named(project, content):
    project.run_dir.mkdir(parents=True)
    (project.run_dir / folder.OWNER).write_bytes(content)
    for read in (lambda: folder.project_of(project.run_dir), lambda: folder.own_folder(project)):
        with pytest.raises(UserError, match=rf"{folder.OWNER}: .*delete the file"):
            read()


def test_a_run_that_never_began_leaves_an_earlier_ones_overrides(project):
    with folder.locked(load_project(project.path, ["seed=1"])) as run_lock:
        run_lock.note_overrides()
    with pytest.raises(UserError, match="no stage 'nothing'"):
        runner.run(load_project(project.path, ["seed=2"]), only=["nothing"], say=lambda line: None)
    assert folder.project_of(project.run_dir).seed == 1


@pytest.mark.parametrize("there_before", [False, True])
def test_a_run_that_never_began_leaves_no_folder_that_it_made(project, there_before):
    if there_before:
        project.run_dir.parent.mkdir()
    with pytest.raises(UserError, match="no stage 'nothing'"):
        runner.run(project, only=["nothing"], say=lambda line: None)
    assert not project.run_dir.exists()
    assert project.run_dir.parent.exists() == there_before


def test_a_recipe_that_is_refused_leaves_no_folder(project):
    with pytest.raises(UserError, match="no finished stage is there"):
        stage._run_alone(project, "dpo")
    assert not project.run_dir.parent.exists()


def test_a_folder_that_cannot_be_made_is_one_line(project, monkeypatch):
    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(UserError, match=f"^{project.run_dir}: Read-only file system; give another output_dir:$"):
        runner.run(project)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_the_processes_of_a_stage_end_with_their_run(project, ending):
    run = subprocess.Popen([sys.executable, "-c", RUN, str(project.path)], stdout=subprocess.PIPE, text=True)
    worker = int(run.stdout.readline())
    with pytest.raises(UserError, match="another run is at work here"), folder.locked(project):
        pass
    run.send_signal(ending)
    run.wait()
    with folder.locked(project):
        assert states(worker) <= {"Z"}


def test_as_long_as_a_process_of_a_stage_lives_no_run_begins(project, monkeypatch):
    monkeypatch.setattr(folder, "_LINGER", 0.2)
    run = subprocess.Popen([sys.executable, "-c", RUN, str(project.path)], stdout=subprocess.PIPE, text=True)
    worker = int(run.stdout.readline())
    os.kill(worker, signal.SIGSTOP)  # it cannot hear that its run has ended
    wait_for("T", worker)
    run.kill()
    run.wait()
    try:
        with pytest.raises(UserError, match="processes of an earlier run are still at work here"):
            folder.locked(project).__enter__()
    finally:
        os.kill(worker, signal.SIGCONT)
    wait_for("Z", worker)
    with folder.locked(project):
        pass


def test_a_process_that_comes_after_its_run_is_refused(project):
    with folder.locked(project) as run_lock:
        pass
    with (
        folder.locked(project),
        pytest.raises(UserError, match="has ended"),
        folder.joined(project.run_dir, run_lock.key),
    ):
        pass
    assert json.loads((project.run_dir / folder.OWNER).read_text())["name"] == "tiny"


def test_a_folder_that_is_withdrawn_while_its_lock_is_awaited_is_not_held(project, monkeypatch):
    take = folder._try

    def withdrawn_meanwhile(file):
        shutil.rmtree(project.run_dir, ignore_errors=True)
        return take(file)

    monkeypatch.setattr(folder, "_try", withdrawn_meanwhile)
    with pytest.raises(UserError, match="a moment ago"), folder.locked(project):
        pass
    assert not project.run_dir.exists()


def test_a_run_that_is_killed_as_it_is_made_or_withdrawn_can_be_started_again(project):
    runs = project.run_dir.parent

    def made_and_withdrawn():
        with folder.locked(project) as run_lock:
            for name in ("base", "sft", "reward", "dpo", "kto", "evaluate"):
                folder.partial_dir(project, name).mkdir()
            run_lock.withdraw()

    for where in at_every_change(runs, lambda: shutil.rmtree(runs, ignore_errors=True), made_and_withdrawn):
        with folder.locked(project) as run_lock:
            run_lock.note_overrides()
        assert [path.name for path in runs.iterdir()] == [project.name], where
        assert folder.project_of(project.run_dir).name == project.name
