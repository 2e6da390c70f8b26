import json
from datetime import timedelta

import accelerate
from transformers import TrainerState

from rlhf import progress
from rlhf.pipeline import execute, peers
from rlhf.pipeline.stage import guarded
from rlhf.training import logs


def test_a_line_that_was_cut_short_goes_with_what_comes_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 4)]
    path.write_text("".join(rows) + '{"step": 4, "lo')
    logs.keep_through(path, 3)
    assert path.read_text() == "".join(rows[:3])
    logs.keep_through(path, 0)
    assert path.read_text() == ""
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_summary_and_what_follows_it_are_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 3, "loss": 1.0, "train_runtime": 8.0}, {"step": 4, "loss": 0.5}]
    rows += [{"step": 4, "train_runtime": 9.0, "train_loss": 0.75}, {"step": 4}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    logs.keep_through(path, 4)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows[:2]


def test_progress_is_said_first_last_and_now_and_then(monkeypatch, capsys):
    clock = iter([100.0, 110.0, 111.0, 141.0, 142.0, 143.0, 144.0])
    monkeypatch.setattr(logs.time, "monotonic", lambda: next(clock))
    lines = logs.ProgressLines("sft")
    state = TrainerState(global_step=10, max_steps=14, is_world_process_zero=True)
    lines.on_train_begin(None, state, None)
    for step, loss in ((11, 2.0), (12, 1.5), (13, 1.0), (14, 0.5)):
        state.global_step = step
        lines.on_log(None, state, None, {"loss": loss})
    lines.on_log(None, state, None, {"train_runtime": 1.0, "train_loss": 1.0})
    lines.on_log(None, state, None, {"eval_loss": 1.0})
    assert capsys.readouterr().err.splitlines() == [
        "sft: step 11/14, loss 2.0000, 0:00:30 left",
        "sft: step 13/14, loss 1.0000, 0:00:14 left",
        "sft: step 14/14, loss 0.5000, 0:00:00 left",
    ]


def test_processes_wait_for_each_other_as_long_as_the_stage_says(monkeypatch):
    given = []

    class FakeState:
        def __init__(self, **options):
            given.append(options.get("timeout"))

        def wait_for_everyone(self):
            pass

    monkeypatch.setattr(accelerate, "PartialState", FakeState)
    monkeypatch.setenv("WORLD_SIZE", "2")
    execute._wait()
    monkeypatch.setattr(peers, "patience", 7200.0)
    execute._wait()
    assert given == [timedelta(minutes=30), timedelta(hours=2)]


def test_an_interrupt_is_one_line(capfd):
    def interrupted():
        raise KeyboardInterrupt

    assert guarded(interrupted) == 130
    assert capfd.readouterr().err == "interrupted; the same command continues from the last checkpoint\n"


def test_the_process_that_watches_is_told_of_steps_numbers_and_tokens(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    state = TrainerState(global_step=0, max_steps=4, is_world_process_zero=True)
    path = tmp_path / "progress.json"
    with progress.watching(path):
        callback = logs.progress_callback("dpo", {"loss": "loss", "rewards/accuracies": "accuracy"}, disable_tqdm=True)
        callback.on_train_begin(None, state, None)
        callback.on_prediction_step(None, state, None, eval_dataloader=[1, 2, 3])
        assert [(part["what"], part["total"]) for part in progress.read(path)["phases"]] == [
            ("training", 4), ("held-out rows", 3)
        ]  # fmt: skip
        callback.on_evaluate(None, state, None)
        callback.on_log(None, state, None, {"loss": 9.0})
        for step in (1, 2, 3, 4):
            clock[0] += 2
            state.global_step = step
            callback.on_step_end(None, state, None)
            callback.on_log(
                None, state, None, {"rewards/accuracies": 0.5, "loss": 2.0 / step, "num_tokens": 600 * step}
            )
        told = progress.read(path)
        callback.on_train_end(None, state, None)
    assert [(part["what"], part["done"], part["left"]) for part in told["phases"]] == [("training", 4, 0.0)]
    assert list(told["numbers"].items()) == [("loss", 0.5), ("accuracy", 0.5)]
    assert told["tokens_per_second"] == 300


def test_where_nobody_watches_it_says_so_itself():
    assert isinstance(logs.progress_callback("dpo", {}, disable_tqdm=True), logs.ProgressLines)
    assert isinstance(logs.progress_callback("dpo", {}, disable_tqdm=False), logs.ProgressBar)
