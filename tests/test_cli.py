"""The command line on bad input: one line, exit code 2, no traceback, nothing half-written."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.projects import pairs, write_project, write_rows


def rlhf(*arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "rlhf.cli", *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess) -> str:
    """The one line that a user sees."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def project(tmp_path, tiny_llama):
    return write_project(tmp_path, tiny_llama)


LONG = {"prompt": "word " * 400, "chosen": " a", "rejected": " b"}
SAME = {"prompt": "Ask.", "chosen": " same", "rejected": " same"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.dpo.betta=1", "stages.dpo: unknown key 'betta'; did you mean 'beta'?"),
        ("stages.dpo.learning_rate=.nan", "project.yaml: stages.dpo.learning_rate: must be above 0, not nan"),
        ("output_dir={folder}/judge.py", "project.yaml: output_dir: "),
        ("data.preferences.source={folder}/pears.jsonl", "pears.jsonl: no such file or folder (did you mean"),
        ("data.preferences.source=no/thing", "'no/thing' is neither a file here nor a reachable hub dataset"),
        ("data.preferences.source={folder}/bad.jsonl", "bad.jsonl:2:"),
        ("data.preferences.source={folder}/column.jsonl", "column.jsonl:1: column 'rejected' is missing"),
        ("data.preferences.source={folder}/empty.jsonl", "empty.jsonl: "),
        ("data.preferences.source={folder}/long.jsonl", "every row of data.preferences was dropped: 1 × "),
        ("data.preferences.source={folder}/same.jsonl", "every row of data.preferences was dropped: 1 × identical"),
        ("model.name_or_path=nobody/no-model", "nobody/no-model: "),
        ("rewards.long.function={folder}/judge.py:scare", "has no function 'scare'; did you mean 'score'?"),
        ("rewards.rm.model={model}", "has no reward head with 1 output"),
    ],
)
def test_bad_input(project, tmp_path, tiny_llama, override, message):
    good = json.dumps(pairs(1)[0])
    (tmp_path / "bad.jsonl").write_text(good + '\n{"prompt": "x", \n')
    write_rows(tmp_path / "column.jsonl", [{"prompt": "x", "chosen": "y"}])
    (tmp_path / "empty.jsonl").touch()
    write_rows(tmp_path / "long.jsonl", [LONG])
    write_rows(tmp_path / "same.jsonl", [SAME])
    filled = override.format(folder=tmp_path, model=tiny_llama)
    assert message in refused(rlhf("run", project, filled))
    assert not (tmp_path / "runs/tiny").exists()


def test_the_commands_that_name_a_run(tmp_path, project):
    assert "no such run" in refused(rlhf("report", tmp_path / "nothing"))
    assert "no such run" in refused(rlhf("chat", "nothing:sft"))
    assert "no such file or directory" in refused(rlhf("check", tmp_path / "none.yaml"))
    assert "no such file" in refused(rlhf("run", project, "--accelerate", tmp_path / "none.yaml"))


def test_check_prints_the_ledger(project, tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [*pairs(), SAME, {**pairs(1)[0], "rejected": ""}])
    done = rlhf("check", project)
    assert done.returncode == 0, done.stderr
    assert "identical" in done.stdout
    assert "empty side" in done.stdout
    assert "peak, in" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_recipe_takes_the_trainers_fields(project, tmp_path, root):
    recipe = [sys.executable, str(root / "recipes/sft.py"), "--config", str(project)]
    bad = subprocess.run([*recipe, "--lerning_rate", "1"], capture_output=True, text=True, check=False)
    assert "unknown option --lerning_rate; did you mean 'learning_rate'?" in refused(bad)
    done = subprocess.run([*recipe, "--max_steps", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "runs/tiny/sft/stage.json").read_text())
    assert record["metrics"]["steps"] == 1


def test_the_shell_completes_commands():
    from typer.testing import CliRunner

    from rlhf.cli import app

    typed = {"_RLHF_COMPLETE": "complete_bash", "COMP_WORDS": "rlhf re", "COMP_CWORD": "1"}
    assert CliRunner().invoke(app, [], prog_name="rlhf", env=typed).output.split() == ["report"]


@pytest.mark.slow
def test_an_interrupt_while_libraries_load_is_one_line(project):
    """Ctrl-C reaches all processes of the terminal."""
    run = subprocess.Popen(
        [sys.executable, "-m", "rlhf.cli", "run", str(project)], start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    while run.stdout.readline() != "checking data\n":
        pass
    time.sleep(1)
    os.killpg(run.pid, signal.SIGINT)
    message = run.communicate()[1]
    assert run.returncode == 130
    assert message == "interrupted; the same command continues from the last checkpoint\n"
