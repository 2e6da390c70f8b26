"""The head of a LoRA reward model: lost, zero or another, it is noticed after saving, on loading, and in publishing."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from rlhf.config.project import ModelConfig
from rlhf.errors import UserError
from rlhf.models import probe
from rlhf.models.load import load_scorer, source_of
from rlhf.models.tokenizer import load_tokenizer
from rlhf.pipeline.execute import run_stage
from rlhf.publish import build
from rlhf.rewards.model import RewardModel
from rlhf.workflow import stage_of
from tests.support.damage import copied, edit_tensors, other_head, record_of, without_head, zero_head

ADAPTER = "adapter_model.safetensors"
SPOILT = {
    "lost": (without_head, r"the head of the model is not in it, so scores would be random|lack .*score.weight"),
    "zero": (zero_head, r"score.weight is all zero, so that every sequence scores the same"),
    "other": (other_head, r"loaded, the model scores its probe sequence -?\d+\.\d+; saved, it scored -?\d+\.\d+"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_after_saving(trained, tmp_path, tiny_llama, what, monkeypatch):
    """A head that does not get to the disk stops the stage before it is recorded as done."""
    spoil, message = SPOILT[what]
    save = PeftModel.save_pretrained

    def forgetful(self, folder, **options):
        save(self, folder, **options)
        edit_tensors(Path(folder) / ADAPTER, spoil)

    monkeypatch.setattr(PeftModel, "save_pretrained", forgetful)
    project = copied(trained, tmp_path, tiny_llama, "sft")
    with pytest.raises(UserError, match=message):
        run_stage(project, "reward")
    assert not (project.run_dir / "reward").exists()


def test_a_policy_that_was_not_written_as_trained(trained, tmp_path, tiny_llama, monkeypatch):
    save = PeftModel.save_pretrained

    def halved(self, folder, **options):
        save(self, folder, **options)
        edit_tensors(Path(folder) / ADAPTER, lambda name, tensor: tensor / 2)

    monkeypatch.setattr(PeftModel, "save_pretrained", halved)
    project = copied(trained, tmp_path, tiny_llama, "sft")
    with pytest.raises(UserError, match=r"scored .*: what was written is not the model that was trained"):
        run_stage(project, "dpo")
    assert not (project.run_dir / "dpo").exists()


def test_weights_that_lost_their_head_after_saving(tmp_path, tiny_llama, trained, monkeypatch):
    """All weights trained: transformers would draw a new head, and go on."""
    from transformers import PreTrainedModel

    save = PreTrainedModel.save_pretrained

    def forgetful(self, folder, **options):
        save(self, folder, **options)
        edit_tensors(Path(folder) / "model.safetensors", without_head)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", forgetful)
    model = {"name_or_path": str(tiny_llama), "adapter": None}
    project = copied(trained, tmp_path, tiny_llama, "sft", model=model)
    with pytest.raises(UserError, match="has no reward head with 1 output"):
        run_stage(project, "reward")


@pytest.mark.parametrize("what", SPOILT)
def test_on_loading(trained, tmp_path, tiny_llama, what):
    spoil, message = SPOILT[what]
    project = copied(trained, tmp_path, tiny_llama, "sft", "reward")
    folder = project.run_dir / "reward"
    assert RewardModel(folder)(["Hello "], ["Ada"])
    edit_tensors(Path(folder) / ADAPTER, spoil)
    with pytest.raises(UserError, match=message):
        RewardModel(folder)
    with pytest.raises(UserError, match=r"reward: the model's files changed since the stage finished"):
        run_stage(project, "evaluate")


def test_without_a_record_a_lost_head_is_still_noticed(trained, tmp_path, tiny_llama):
    """A published adapter has no stage.json; nor does one that was trained with something else."""
    project = copied(trained, tmp_path, tiny_llama, "reward")
    folder = project.run_dir / "reward"
    (folder / "stage.json").unlink()
    assert RewardModel(folder)(["Hello "], ["Ada"])
    edit_tensors(folder / ADAPTER, without_head)
    with pytest.raises(UserError, match=SPOILT["lost"][1]):
        RewardModel(folder)


def test_merged_in_memory_the_scores_are_those_of_training(trained):
    """Merging is what the next stage does on loading; the adapter left as it is gives the same."""
    folder = trained.run_dir / "reward"
    stored = record_of(folder)["probe"]
    config = ModelConfig(name_or_path=str(folder))
    tokenizer = load_tokenizer(config)
    merged = load_scorer(source_of(config), config, tokenizer).model
    assert not isinstance(merged, PeftModel)
    base = AutoModelForSequenceClassification.from_pretrained(source_of(config).base, num_labels=1)
    base.config.pad_token_id = tokenizer.pad_token_id
    for model in (merged, PeftModel.from_pretrained(base, folder)):
        assert probe.outputs(model, stored["ids"]) == pytest.approx(stored["outputs"], abs=1e-5)
    assert torch.tensor(stored["outputs"]).std() > 1e-3, "scores that differ, so that a wrong head would show"


@pytest.mark.parametrize("what", SPOILT)
def test_in_the_published_adapter(trained, tmp_path, tiny_llama, what, monkeypatch):
    spoil, message = SPOILT[what]
    project = copied(trained, tmp_path, tiny_llama, "sft", "reward")
    assert build.build_folder(project.run_dir, "reward", tmp_path / "good").verified
    card = ModelCard.load(tmp_path / "good" / "README.md")
    assert card.data.tags == ["rlhf", "trl", "reward-model", "lora"]
    assert f"{stage_of('reward').method}: " in card.text
    copy = build._copy_adapter

    def spoiling(source, folder):
        copy(source, folder)
        edit_tensors(Path(folder) / ADAPTER, spoil)

    monkeypatch.setattr(build, "_copy_adapter", spoiling)
    with pytest.raises(UserError, match=message):
        build.build_folder(project.run_dir, "reward", tmp_path / "bad")
    record = {**record_of(project.run_dir / "reward"), "probe": None}  # as where the weights were sharded
    (project.run_dir / "reward/stage.json").write_text(json.dumps(record))
    if what != "other":  # which only a probe can tell
        with pytest.raises(UserError, match=message):
            build.build_folder(project.run_dir, "reward", tmp_path / "unprobed")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_head, "lost the weights score.weight; build it again from the stage"),
        (zero_head, r"scores its probe sequence 0\.0000; saved, .* what was written is not the model of the stage"),
    ],
)
def test_in_published_weights(trained, tmp_path, tiny_llama, spoil, message, monkeypatch):
    project = copied(trained, tmp_path, tiny_llama, "sft", "reward")
    merge = build._save_merged

    def spoiling(opened, folder):
        expected = merge(opened, folder)
        edit_tensors(folder / "model.safetensors", spoil)
        return expected

    monkeypatch.setattr(build, "_save_merged", spoiling)
    with pytest.raises(UserError, match=message):
        build.build_folder(project.run_dir, "reward", tmp_path / "bad", merge=True)
