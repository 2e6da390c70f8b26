"""What a stage's training leaves: a mean loss over all its steps, and an adapter that reads the same every time."""

import json

import pytest
from peft import TaskType
from transformers import Trainer

from rlhf.artifacts.open import open_model
from rlhf.config.project import ModelConfig
from rlhf.models.adapters import attach, lora_config
from rlhf.pipeline.execute import run_stage
from rlhf.training.save import write_model
from rlhf.training.starting_point import StartingPoint
from rlhf.training.train_loss import mean_train_loss
from tests.support.projects import make_project


def test_each_step_counts_once():
    rows = [{"step": 1, "loss": 8.0}, {"step": 1, "eval_loss": 99.0}, {"step": 5, "loss": 4.0},
            {"step": 6, "loss": 2.0}, {"step": 6, "train_loss": 77.0}]  # fmt: skip
    assert mean_train_loss(rows) == pytest.approx((8 + 4 * 4 + 2) / 6)
    assert mean_train_loss(rows[1:2]) is None


@pytest.mark.parametrize("saved", [{"save_steps": 3}, {"save_strategy": "epoch"}])
def test_the_mean_loss_of_a_resumed_run_is_that_of_the_whole(tmp_path, tiny_llama, monkeypatch, saved):
    """Checkpoints lie between logs; 28 training rows in batches of 8 are four steps an epoch."""
    options = {"max_steps": 7, "learning_rate": 1e-2, "logging_steps": 5, "logging_first_step": False, **saved}
    losses, step, stop_at, original = [], 0, None, Trainer.training_step

    def counted(self, *args, **kwargs):
        nonlocal step
        step += 1
        if step == stop_at:
            raise KeyboardInterrupt
        loss = original(self, *args, **kwargs)
        losses.append(float(loss))
        return loss

    monkeypatch.setattr(Trainer, "training_step", counted)
    whole = make_project(tmp_path, tiny_llama, name="whole", stages={"sft": options})
    run_stage(whole, "sft")
    expected = sum(losses) / 7
    broken = make_project(tmp_path, tiny_llama, name="broken", stages={"sft": options})
    step, stop_at = 0, 6
    with pytest.raises(KeyboardInterrupt):
        run_stage(broken, "sft")
    run_stage(broken, "sft")
    found = [
        json.loads((project.run_dir / "sft/stage.json").read_text())["metrics"]["train_loss"]
        for project in (whole, broken)
    ]
    assert found == pytest.approx([expected, expected], rel=1e-5)


def test_the_modules_of_an_adapter_are_written_in_order(tiny_llama, tmp_path):
    config = ModelConfig(name_or_path=str(tiny_llama))
    opened = open_model(config)
    fields = {"r": 2, "modules_to_save": ["norm", "input_layernorm"]}
    adapter = lora_config(fields, TaskType.CAUSAL_LM, joined=False)
    model = attach(opened.policy(placed=False), adapter, opened.source)
    write_model(model, StartingPoint(opened, opened.task, False, None), tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["target_modules"] == sorted(written["target_modules"])
    assert len(written["target_modules"]) > 6, "by chance they are not in order"
    assert written["modules_to_save"] == ["input_layernorm", "norm"]
