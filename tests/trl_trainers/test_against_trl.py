"""The first step of each stage equals plain TRL's on the same batch: our data layer changes nothing."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from rlhf.objectives.losses import bradley_terry_loss
from rlhf.pipeline.execute import run_stage
from tests.support.projects import chats, make_project, pairs

ROWS = 8
COMMON = {
    "per_device_train_batch_size": ROWS, "max_steps": 1, "learning_rate": 1e-3, "use_cpu": True, "bf16": False,
    "report_to": "none", "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
    "gradient_checkpointing": False,
}  # fmt: skip


def first_logged(project, stage) -> dict:
    run_stage(project, stage)
    lines = (project.run_dir / stage / "metrics.jsonl").read_text().splitlines()
    return next(row for row in map(json.loads, lines) if "loss" in row)


def trl_logged(trainer) -> dict:
    trainer.train()
    return next(row for row in trainer.state.log_history if "loss" in row)


@pytest.fixture(params=["plain", "chat"])
def rows(request):
    return (pairs if request.param == "plain" else chats)(ROWS)


def project_for(stage, tmp_path, model, rows, **fields):
    data = {"demonstrations": {"source": str(tmp_path / "pairs.jsonl")},
            "preferences": {"source": str(tmp_path / "pairs.jsonl"), "holdout": 0.0}}  # fmt: skip
    options = {"per_device_train_batch_size": ROWS, "max_steps": 1, "learning_rate": 1e-3, "save_strategy": "no"}
    return make_project(tmp_path, model, rows, data=data, stages={stage: {**options, **fields}})


@pytest.mark.parametrize("adapter", [None, {"r": 4}])
def test_sft(tmp_path, tiny_llama, rows, adapter):
    ours = first_logged(project_for("sft", tmp_path, tiny_llama, rows, adapter=adapter), "sft")
    demonstrations = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    theirs = trl_logged(
        SFTTrainer(
            AutoModelForCausalLM.from_pretrained(tiny_llama),
            SFTConfig(str(tmp_path / "trl"), **COMMON),
            train_dataset=Dataset.from_list(demonstrations),
            processing_class=AutoTokenizer.from_pretrained(tiny_llama),
        )
    )
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    assert ours["num_tokens"] == theirs["num_tokens"]


def test_reward(tmp_path, tiny_llama, rows):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    torch.manual_seed(3)
    scorer = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1)
    torch.nn.init.normal_(scorer.score.weight)
    scorer.save_pretrained(tmp_path / "scorer")
    tokenizer.save_pretrained(tmp_path / "scorer")
    ours = first_logged(project_for("reward", tmp_path, tmp_path / "scorer", rows), "reward")
    theirs = trl_logged(
        RewardTrainer(
            AutoModelForSequenceClassification.from_pretrained(tmp_path / "scorer"),
            RewardConfig(str(tmp_path / "trl"), **COMMON),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
    )
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    assert ours["margin"] == pytest.approx(theirs["margin"], abs=1e-5)
    assert ours["num_tokens"] == theirs["num_tokens"]


def test_the_bradley_terry_loss_is_the_reward_trainers(tmp_path, tiny_llama):
    torch.manual_seed(3)
    scorer = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1)
    torch.nn.init.normal_(scorer.score.weight)
    trainer = RewardTrainer(
        scorer,
        RewardConfig(str(tmp_path), **COMMON),
        train_dataset=Dataset.from_list(pairs(ROWS)),
        processing_class=AutoTokenizer.from_pretrained(tiny_llama),
    )
    loss, outputs = trainer.compute_loss(scorer, next(iter(trainer.get_train_dataloader())), return_outputs=True)
    chosen_B, rejected_B = outputs.logits.squeeze(-1).chunk(2)
    assert chosen_B.shape == (ROWS,)
    assert (chosen_B - rejected_B).abs().max() > 0.01
    torch.testing.assert_close(bradley_terry_loss(chosen_B, rejected_B), loss)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_dpo(tmp_path, tiny_llama, rows, loss_type):
    ours = first_logged(project_for("dpo", tmp_path, tiny_llama, rows, loss_type=loss_type), "dpo")
    theirs = trl_logged(
        DPOTrainer(
            AutoModelForCausalLM.from_pretrained(tiny_llama),
            args=DPOConfig(str(tmp_path / "trl"), loss_type=[loss_type], **COMMON),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(tiny_llama),
        )
    )
    for key in ("loss", "logps/chosen", "logps/rejected"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5, abs=1e-5)
    assert ours["num_tokens"] == theirs["num_tokens"]
