"""What a run shows: lines now and then, or a terminal that is redrawn and left in order."""

import io
import json
import subprocess
import sys
import time

import pytest
from rich.console import Console

from rlhf.pipeline import live, view
from rlhf.pipeline.live import LiveView, view_for
from rlhf.pipeline.plan import Plan
from rlhf.pipeline.view import Quiet, View

PLANS = [Plan("sft", None), Plan("dpo", "not done yet"), Plan("evaluate", "not done yet")]


def snapshot(done=20, left=80.0, more=(), **numbers):
    outer = {"what": "training", "unit": "steps", "done": done, "total": 100, "left": left}
    return {"at": time.time(), "phases": [outer, *more], "numbers": numbers, "tokens_per_second": 3100.0,
            "memory_mb": 2150.0}  # fmt: skip


def tell(shown, told):
    shown.watch().progress.write_text(json.dumps(told))


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(view.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_first_after_a_while_and_then_now_and_then(clock):
    said = []
    with View(said.append) as shown:
        shown.planned(PLANS)
        shown.begins("dpo")
        tell(shown, snapshot(loss=0.41237))
        for _ in range(100):
            shown.look()
            clock[0] += 1
        shown.ended("dpo")
    assert said[:3] == ["sft: done", "dpo: not done yet", "evaluate: not done yet"]
    assert said[3] == "running dpo"
    assert said[4] == "dpo: training 20/100 steps, loss 0.4124, 3,100 tokens/s, 2.1 GB, 0:01:20 left"
    assert said[-1] == "dpo done in 100 s"
    assert len(said) == 3 + 1 + 3 + 1, "after 10, 40 and 70 seconds"


def test_time_left_is_not_said_before_it_is_known():
    inner = {"what": "sampling", "unit": "prompts", "done": 4, "total": 64, "left": None}
    assert view.line("ppo", snapshot(left=None, more=[inner])) == (
        "ppo: training 20/100 steps, 3,100 tokens/s, 2.1 GB, sampling 4/64 prompts"
    )


def test_what_an_earlier_stage_told_is_forgotten(clock):
    said = []
    with View(said.append) as shown:
        shown.begins("sft")
        tell(shown, snapshot())
        shown.ended("sft")
        shown.begins("dpo")
        shown.watch()
        clock[0] += 100
        shown.look()
    assert said == ["running sft", "sft done in 0 s", "running dpo"]


def test_quiet_says_nothing(capsys):
    with Quiet() as shown:
        shown.planned(PLANS)
        shown.begins("dpo")
        shown.ended("dpo")
    assert capsys.readouterr() == ("", "")


def live_view():
    out = io.StringIO()
    return LiveView(Console(file=out, force_terminal=True, width=100, height=30, color_system=None)), out


def frame(shown):
    """The view as it stands, as text."""
    console = Console(file=io.StringIO(), width=100)
    console.print(shown.render())
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_terminal_shows_each_stage_and_the_numbers_of_the_one_at_work():
    shown, _ = live_view()
    with shown:
        shown.planned(PLANS)
        shown.begins("dpo")
        tell(shown, snapshot(loss=0.41237))
        shown.look()
        first, second, third, last = frame(shown)
        assert first.endswith("done before")
        assert second.startswith("dpo ")
        assert "training 20/100 steps" in second
        assert second.endswith("0:01:20 left")
        assert third.strip() == "loss 0.4124 · 3,100 tokens/s · 2.1 GB"
        assert last.endswith("waiting")
        shown.ended("dpo")
        assert "done" in frame(shown)[1]


def test_what_a_stage_prints_stands_above_whole_lines_of_it():
    shown, out = live_view()
    with shown:
        shown.planned(PLANS)
        shown.begins("dpo")
        watch = shown.watch()
        with watch.open() as file:
            file.write(b"dpo: a warning\nbar 1%\rbar 2%\nthe first ")
            file.flush()
            shown.look()
            assert "the first" not in out.getvalue()
            file.write(b"half\nlast words")
        shown.look()
    text = out.getvalue()
    assert [text.count(words) for words in ("dpo: a warning", "the first half", "last words", "bar")] == [1, 1, 1, 0]


@pytest.mark.parametrize(("error", "state"), [(ValueError, "failed, see above"), (KeyboardInterrupt, "stopped")])
def test_an_end_leaves_the_terminal_in_order(error, state):
    shown, out = live_view()

    def run():
        with shown:
            shown.planned(PLANS)
            shown.begins("dpo")
            tell(shown, snapshot())
            shown.look()
            with shown.watch().open() as file:
                file.write(b"error: out of memory\n")
            raise error

    with pytest.raises(error):
        run()
    text = out.getvalue()
    assert "error: out of memory" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown"
    assert text.removesuffix("\x1b[?25h").endswith("\n")
    assert state in text


def test_a_stage_that_is_ended_while_its_data_is_read_is_the_one_that_failed():
    shown, _ = live_view()

    def run():
        with shown:
            shown.planned(PLANS)
            shown.checks()
            shown.checks("dpo")
            shown.checks("evaluate")
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        run()
    assert [row.state for row in shown.rows.values()] == ["done before", "waiting", "failed, see above"]


@pytest.mark.parametrize(
    ("terminal", "term", "kind"),
    [(True, "xterm-256color", LiveView), (True, "dumb", type(None)), (False, "xterm-256color", type(None))],
)
def test_only_a_terminal_that_can_be_redrawn_is_redrawn(monkeypatch, terminal, term, kind):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(live.os, "isatty", lambda stream: terminal)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert type(view_for(quiet=False)) is kind
    assert type(view_for(quiet=True)) is Quiet


def test_a_process_that_gives_its_output_away_prints_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from rlhf.pipeline.view import Watch\n"
        "print('before')\n"
        "Watch(Path(sys.argv[1]), Path(sys.argv[2])).take_output()\n"
        "print('out'); print('err', file=sys.stderr)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "progress"), str(tmp_path / "output")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("before\n", "")
    assert sorted((tmp_path / "output").read_text().split()) == ["err", "out"]


def test_what_a_process_that_goes_on_prints_does_not_tear_the_view(capfd):
    shown, out = live_view()
    with shown:
        shown.planned(PLANS)
        with shown.starting():
            subprocess.run([sys.executable, "-c", "import sys; print('noise', file=sys.stderr)"], check=True)
        shown.look()
        subprocess.run([sys.executable, "-c", "print('own')"], check=True)
    assert out.getvalue().count("noise") == 1
    assert capfd.readouterr() == ("own\n", "")
