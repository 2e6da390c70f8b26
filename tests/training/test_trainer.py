"""Steps on numbers that are not finite are not taken; a signal leaves a checkpoint behind its step; both to the bit."""

import json
import math
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from rlhf import interrupts
from rlhf.artifacts.manifest import artifact_hash
from rlhf.data.prepare import load_prepared
from rlhf.errors import Incident
from rlhf.interrupts import Interrupted
from rlhf.pipeline.execute import run_stage
from rlhf.training.trainer import WEIGHTS
from tests.support.damage import record_of
from tests.support.projects import make_project

OPTIONS = {
    "max_steps": 8, "save_steps": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2, "logging_steps": 2,
}  # fmt: skip


def metrics(project, stage):
    rows = [json.loads(line) for line in (project.run_dir / stage / "metrics.jsonl").read_text().splitlines()]
    timing = ("runtime", "per_second", "total_flos")
    return [{key: value for key, value in row.items() if not any(part in key for part in timing)} for row in rows]


def kill(monkeypatch, project, step):
    """Train until behind this step, and no further."""
    original = Trainer.training_step

    def training_step(trainer, *args, **kwargs):
        if trainer.state.global_step == step:
            raise KeyboardInterrupt
        return original(trainer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", training_step)
        with pytest.raises(KeyboardInterrupt):
            run_stage(project, "sft")


@pytest.fixture
def spoiled(monkeypatch):
    """The gradient or the loss of a step is not a number; returns what went into that step."""
    batches, original = [], Trainer.training_step

    def spoil(step, what="loss"):
        def training_step(trainer, model, inputs, *args, **kwargs):
            if trainer.state.global_step + 1 != step:
                return original(trainer, model, inputs, *args, **kwargs)
            batches.append(inputs["input_ids"])
            loss = original(trainer, model, inputs, *args, **kwargs)
            if what == "loss":
                return loss * math.nan
            next(weight for weight in model.parameters() if weight.requires_grad).grad[0, 0] = math.inf
            return loss

        monkeypatch.setattr(Trainer, "training_step", training_step)
        return batches

    return spoil


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_not_taken_and_is_described(tmp_path, tiny_llama, spoiled, what):
    project = make_project(tmp_path, tiny_llama, stages={"sft": {**OPTIONS, "save_steps": 1}})
    batches = spoiled(5, what)
    with pytest.raises(Incident, match=rf"the {what} of step 5 is not finite, and the step was not taken"):
        run_stage(project, "sft")
    partial = project.run_dir / ".sft.partial"
    assert sorted(path.name for path in (partial / "checkpoints").iterdir()) == ["checkpoint-3", "checkpoint-4"]
    (incident,) = json.loads((partial / "incident.json").read_text())["incidents"]
    assert (incident["step"], incident["what"], incident["action"]) == (5, what, "stop")
    assert incident["gradient_norm"] == ("inf" if what == "gradient" else pytest.approx(incident["gradient_norm"]))
    wrong = [name for name, norm in incident["gradient_norms"].items() if isinstance(norm, str)]
    assert len(wrong) == (what == "gradient"), "the norms are those of before clipping"
    (process,) = incident["processes"]
    prepared = load_prepared(partial / "data")
    rows = [prepared.train["input_ids"][row["row"]] for row in process["rows"]]
    seen = [ids.tolist() for batch in batches for ids in batch]
    assert len(rows) == len(seen) == 4
    assert all(ids[: len(row)] == row for ids, row in zip(seen, rows, strict=True)), "these were the step's rows"
    places = [prepared.origins[row["row"]] for row in process["rows"]]
    assert [row["origin"] for row in process["rows"]] == places
    assert all(":" in place for place in places)


def test_what_stopped_is_gone_on_with_by_skipping(tmp_path, tiny_llama, spoiled, capsys):
    project = make_project(tmp_path, tiny_llama, stages={"sft": OPTIONS})
    spoiled(5)
    with pytest.raises(Incident):
        run_stage(project, "sft")
    run_stage(make_project(tmp_path, tiny_llama, stages={"sft": {**OPTIONS, "on_nonfinite": "skip"}}), "sft")
    assert "sft: continues from checkpoint-3" in capsys.readouterr().err
    incidents = json.loads((project.run_dir / "sft/incident.json").read_text())["incidents"]
    assert [(incident["step"], incident["action"]) for incident in incidents] == [(5, "skip")]


def test_a_step_that_is_skipped_leaves_the_weights_alone_and_is_counted(tmp_path, tiny_llama, spoiled, monkeypatch):
    options = {**OPTIONS, "max_steps": 2, "on_nonfinite": "skip", "save_steps": 1}
    project = make_project(tmp_path, tiny_llama, stages={"sft": options})
    spoiled(2)
    run_stage(project, "sft")
    first, second = (project.run_dir / f"sft/checkpoints/checkpoint-{step}" for step in (1, 2))
    for name in (WEIGHTS, "optimizer.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert [row["skipped_steps"] for row in metrics(project, "sft") if "skipped_steps" in row] == [0, 1]
    whole = make_project(tmp_path, tiny_llama, name="whole", stages={"sft": {**options, "max_steps": 1}})
    monkeypatch.undo()
    run_stage(whole, "sft")
    assert record_of(project.run_dir / "sft")["metrics"]["train_loss"] == pytest.approx(
        record_of(whole.run_dir / "sft")["metrics"]["train_loss"]
    ), "the mean of the step that was taken"
    assert record_of(project.run_dir / "sft")["metrics"]["skipped_steps"] == 1


@pytest.mark.parametrize("stage", ["sft", "reward"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_behind_its_step_and_changes_nothing(
    tmp_path, tiny_llama, monkeypatch, stage, number
):
    """Behind a step that neither logs nor saves: what was gathered since the last log goes on too."""
    options = {**OPTIONS, "num_train_epochs": 3, "adapter": {"r": 4, "lora_dropout": 0.2}}
    whole, stopped = (
        make_project(tmp_path, tiny_llama, name=name, stages={stage: options}) for name in ("whole", "stopped")
    )
    run_stage(whole, stage)
    original = Trainer.training_step

    def training_step(trainer, *args, **kwargs):
        if trainer.state.global_step == 4 and interrupts.asked() is None:
            os.kill(os.getpid(), number)
        return original(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", training_step)

    with interrupts.listening(), pytest.raises(Interrupted) as raised:
        run_stage(stopped, stage)
    assert raised.value.number == number
    folder = stopped.run_dir / f".{stage}.partial/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-3", "checkpoint-5"]
    monkeypatch.undo()
    run_stage(stopped, stage)
    assert artifact_hash(whole.run_dir / stage) == artifact_hash(stopped.run_dir / stage)
    assert metrics(whole, stage) == metrics(stopped, stage)
    last = [project.run_dir / stage / "checkpoints/checkpoint-8" for project in (whole, stopped)]
    for name in ("optimizer.safetensors", "optimizer.json", "scheduler.json", "process-0.safetensors"):
        assert len({(folder / name).read_bytes() for folder in last}) == 1, name
    assert torch.isfinite(torch.tensor(record_of(stopped.run_dir / stage)["metrics"]["train_loss"]))


@pytest.mark.parametrize("damaged", [False, True])
def test_the_best_checkpoint_is_checked_too(tmp_path, tiny_llama, monkeypatch, capsys, damaged):
    """`greater_is_better` of a loss that falls makes the first checkpoint the best one."""
    options = {**OPTIONS, "eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True,
               "metric_for_best_model": "loss", "greater_is_better": True}  # fmt: skip
    project = make_project(tmp_path, tiny_llama, stages={"sft": options})
    kill(monkeypatch, project, 7)
    checkpoints = project.run_dir / ".sft.partial/checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-3", "checkpoint-6"]
    if damaged:
        os.truncate(checkpoints / "checkpoint-3" / WEIGHTS, 100)
    kept = load_file(checkpoints / f"checkpoint-{6 if damaged else 3}" / WEIGHTS)
    run_stage(project, "sft")
    assert ("the best eval_loss is lost" in capsys.readouterr().err) is damaged
    saved = load_file(project.run_dir / "sft/adapter_model.safetensors")
    assert all(torch.equal(saved[name.replace(".default", "")], weight) for name, weight in kept.items())


def test_rows_grouped_by_length_come_in_the_same_order_after_a_resume(tmp_path, tiny_llama, monkeypatch):
    options = {**OPTIONS, "train_sampling_strategy": "group_by_length", "num_train_epochs": 3, "max_steps": 14}
    whole, stopped = (
        make_project(tmp_path, tiny_llama, name=name, stages={"sft": options}) for name in ("whole", "stopped")
    )
    run_stage(whole, "sft")
    kill(monkeypatch, stopped, 10)
    torch.manual_seed(99)
    run_stage(stopped, "sft")
    assert artifact_hash(whole.run_dir / "sft") == artifact_hash(stopped.run_dir / "sft")
