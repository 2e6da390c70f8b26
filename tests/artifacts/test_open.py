"""A finished stage is opened in one way, whatever it is opened for."""

import json
import re
import shutil

import pytest
import torch
from peft import TaskType

from rlhf.artifacts.manifest import verify
from rlhf.artifacts.open import check_saved, open_model, open_stage
from rlhf.config.project import ModelConfig
from rlhf.errors import UserError
from rlhf.models import probe
from rlhf.models.adapters import attach, lora_config
from rlhf.models.load import load_policy, load_scorer, source_of
from rlhf.models.tokenizer import load_tokenizer, tokenizer_record
from rlhf.pipeline.execute import run_stage
from tests.support.damage import edit_json
from tests.support.projects import make_project
from tests.support.runs import SEQUENCES, add_stage, perturb


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_llama, tiny_bert):
    """Stages of every kind, and what their models gave in memory."""
    run_dir = tmp_path_factory.mktemp("made")
    outputs = {
        "sft": add_stage(run_dir, "sft", tiny_llama),
        "whole": add_stage(run_dir, "whole", tiny_llama, adapter=False),
        "reward": add_stage(run_dir, "reward", tiny_llama, "sft", labels=1),
        "classes": add_stage(run_dir, "classes", tiny_bert, labels=3, adapter=False),
    }
    return run_dir, outputs


@pytest.mark.parametrize(
    ("name", "kind"), [("sft", "policy"), ("whole", "policy"), ("reward", "reward"), ("classes", "classifier")]
)
def test_a_stage_is_what_was_in_memory(made, name, kind):
    run_dir, outputs = made
    stage = open_stage(run_dir / name)
    assert (stage.kind, stage.is_stage, stage.manifest["stage"]) == (kind, True, name)
    model = stage.policy() if kind == "policy" else stage.scorer()
    assert probe.outputs(model, SEQUENCES) == pytest.approx(outputs[name], abs=1e-5, rel=1e-5)
    assert len(stage.label_names) == {"reward": 1, "classifier": 3}.get(kind, 1)


def test_a_model_that_no_stage_made_has_no_manifest(tiny_llama):
    opened = open_model(ModelConfig(name_or_path=str(tiny_llama)))
    assert not opened.is_stage
    assert opened.kind == "policy"
    assert opened.policy().can_generate()
    with pytest.raises(ValueError, match="has no manifest"):
        _ = opened.manifest


def test_a_folder_that_is_no_finished_stage_is_refused(tiny_llama):
    with pytest.raises(UserError, match="no finished stage is there"):
        open_stage(tiny_llama)


def test_the_type_of_the_weights_is_the_recorded_one_or_the_one_asked_for(made, tmp_path):
    run_dir, _ = made
    folder = shutil.copytree(run_dir / "whole", tmp_path / "whole")
    recorded = json.loads((folder / "stage.json").read_text())["config"]["model"]
    edit_json(folder / "stage.json", config={"model": {**recorded, "dtype": "bfloat16"}}, probe=None)
    assert open_stage(folder).policy().dtype == torch.bfloat16
    assert open_stage(folder, ModelConfig(name_or_path=str(folder))).policy().dtype == torch.float32


def test_what_changed_since_is_refused(made, tmp_path):
    run_dir, _ = made
    folder = shutil.copytree(run_dir / "whole", tmp_path / "whole")
    stored = json.loads((folder / "stage.json").read_text())["probe"]
    edit_json(folder / "stage.json", probe={**stored, "outputs": [value + 1 for value in stored["outputs"]]})
    with pytest.raises(UserError, match="the model scores its probe sequence"):
        open_stage(folder).policy()
    edit_json(folder / "stage.json", probe=None)
    open_stage(folder).policy()
    with (folder / "generation_config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(UserError, match="files changed since the stage finished"):
        verify(folder)
    edit_json(folder / "stage.json", probe=None)  # a manifest written anew is verified anew
    with pytest.raises(UserError, match="files changed since the stage finished"):
        open_stage(folder).policy()


def test_nothing_else_loads_a_model(root):
    """So that no model is used that was not checked; `publish.load_whole` loads as a user of the hub does."""
    files = [path for path in (root / "rlhf").rglob("*.py") if path.parent.name not in ("artifacts", "models")]
    assert len(files) > 100
    assert not [path for path in files if re.search(r"\bload_(policy|scorer)\b", path.read_text(encoding="utf-8"))]


def test_a_stage_trained_in_bf16_is_the_same_when_loaded(tmp_path, tiny_llama):
    stages = {"sft": {"max_steps": 2, "bf16": True, "learning_rate": 1e-2, "save_strategy": "no"}}
    project = make_project(tmp_path, tiny_llama, stages=stages)
    run_stage(project, "sft")
    open_stage(project.run_dir / "sft").policy()


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("labels", [0, 1, 3])
def test_what_was_saved_is_loaded_and_compared(tiny_llama, tmp_path, adapter, labels):
    config = ModelConfig(name_or_path=str(tiny_llama))
    tokenizer, source = load_tokenizer(config), source_of(config)
    if labels:
        model = load_scorer(source, config, tokenizer, labels=labels, new_head=True).model
    else:
        model = load_policy(source, config, tokenizer)
    if adapter:
        task = TaskType.SEQ_CLS if labels else TaskType.CAUSAL_LM
        model = attach(model, lora_config({"r": 4}, task, joined=False), source)
    perturb(model, 1)
    model.save_pretrained(tmp_path, **({"save_embedding_layers": False} if adapter else {}))
    tokenizer.save_pretrained(tmp_path)
    made = probe.make(model, SEQUENCES)
    record = tokenizer_record(tokenizer)
    check_saved(model, made, tmp_path, config, record)
    perturb(model, 2)
    with pytest.raises(UserError, match="what was written is not the model that was trained"):
        check_saved(model, probe.make(model, SEQUENCES), tmp_path, config, record)
    with pytest.raises(UserError, match=r"the tokenizer's size was 7 when the stage ran and is \d+ now"):
        check_saved(model, made, tmp_path, config, {**record, "size": 7})
