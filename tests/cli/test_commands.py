"""Commands that need no training, as they are typed: what they print, and one line with exit code 2 for bad input."""

import json
import signal

import pytest

from rlhf.cli import main
from tests.support.reports import fake_run


@pytest.fixture
def typed(monkeypatch, capsys, tmp_path):
    """Run a command line in a folder of its own; its exit code, what it printed and what it said on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)

    def run(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["rlhf", *line.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("runs nowhere", "nowhere: no such folder"),
        ("runs file", "file: is a file; name a folder of runs"),
        ("runs", "runs: no such folder"),
        ("runs empty", "empty: no run is in it"),
        ("diff one nowhere", "nowhere: no such run"),
        ("diff file one", "file: no such run"),
        ("diff one damaged", "damaged/sft/stage.json: not valid JSON"),
        ("diff one:sft one", "one:sft: names a stage"),
        ("quickstart file", "file: is a file; name a folder"),
        ("quickstart file/inner", "not a directory"),
        (f"quickstart {'x' * 300}", "file name too long"),
        ("quickstart other --no-run", "other/quickstart.yaml: is there already and differs"),
        ("quickstart stages.sft.max_steps=1", "is no folder; write rlhf quickstart FOLDER KEY=VALUE"),
    ],
)
def test_bad_input_is_a_line(typed, tmp_path, line, message):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/quickstart.yaml").write_text("name: other\n")
    for name in ("one", "damaged"):
        fake_run(tmp_path / name, ("sft",))
    (tmp_path / "damaged/sft/stage.json").write_text("{")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, out, err = typed(line)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_they_print(typed, tmp_path):
    for name in ("one", "two"):
        fake_run(tmp_path / "runs" / name, ("sft", "dpo"))
    (tmp_path / "runs/two/dpo/stage.json").write_text("{")
    code, out, _ = typed("runs --json")
    assert code == 0
    assert [bool(run["problem"]) for run in sorted(json.loads(out), key=lambda run: run["name"])] == [False, True]
    assert "damaged" in typed("runs")[1]
    code, out, _ = typed("diff one one --json")
    assert code == 0
    assert json.loads(out)["settings"] == []
    assert "no difference in settings, data, packages" in typed("diff one one")[1]


@pytest.mark.parametrize(("terminal", "first"), [(True, "looking at rows.jsonl\n"), (False, "")])
def test_a_terminal_is_told_what_it_waits_for(typed, monkeypatch, terminal, first):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    code, _, error = typed("init rows.jsonl --model nowhere")
    assert code == 2
    assert error.startswith(f"{first}error: rows.jsonl")
