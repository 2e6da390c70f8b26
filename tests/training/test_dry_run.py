"""What fails when a trainer is made is said while data is prepared, before anything trains."""

import json
import re
import shutil
import tempfile

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf.errors import UserError
from rlhf.pipeline.execute import attempt, prepare_stage
from rlhf.training import starting_point
from tests.support.projects import make_project, write_project
from tests.test_cli import refused, rlhf


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where tracebacks are written, in this process and in others."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def refusal(project, stage):
    with pytest.raises(UserError) as caught:
        attempt(prepare_stage, project, stage)
    line = str(caught.value)
    assert "\n" not in line
    assert "defect" not in line
    assert not project.run_dir.exists() or not any(project.run_dir.rglob("*.txt"))
    return line


PPO = {"advantage": "rloo", "samples_per_prompt": 2, "max_new_tokens": 8, "rewards": {"long": 1.0}}


@pytest.mark.parametrize(
    ("stage", "options", "named"),
    [
        ("sft", {"report_to": "dvclive"}, "report_to"),
        ("sft", {"optim": "lomo"}, "optim"),
        ("sft", {"use_liger_kernel": True}, "use_liger_kernel"),
        ("sft", {"save_strategy": "best"}, "save_strategy"),
        ("sft", {"padding_free": True}, "padding_free"),
        ("sft", {"load_best_model_at_end": True}, "load_best_model_at_end"),
        ("sft", {"lr_scheduler_kwargs": {"a": 1}}, "lr_scheduler_kwargs"),
        ("sft", {"optim_args": "abc"}, "optim_args"),
        ("dpo", {"sync_ref_model": True}, "sync_ref_model"),
        ("dpo", {"loss_type": "exo_pair"}, "loss_type"),
        ("dpo", {"loss_weights": [1, 2]}, "loss_weights"),
        ("dpo", {"adapter": {"r": 4, "target_modules": ["lm_head"]}}, "target_modules"),
        ("reward", {"optim": "galore_adamw"}, "optim"),
        ("ppo", {**PPO, "report_to": ["dvclive"]}, "report_to"),
        ("ppo", {**PPO, "optim": "lomo"}, "optim"),
    ],
)
def test_a_setting_that_a_library_refuses(tmp_path, tiny_llama, stage, options, named):
    line = refusal(make_project(tmp_path, tiny_llama, stages={stage: options}), stage)
    assert named in line.partition("project.yaml: ")[2].partition("the traceback")[0]


def test_held_out_rows_are_needed_where_they_are_asked_for(tmp_path, tiny_llama):
    data = {"demonstrations": {"source": str(tmp_path / "pairs.jsonl"), "holdout": 0}}
    project = make_project(tmp_path, tiny_llama, data=data, stages={"sft": {"eval_strategy": "epoch"}})
    assert "stages.sft.eval_strategy: " in refusal(project, "sft")


@pytest.mark.parametrize("adapter", [None, {"r": 4}])
def test_what_works_is_not_refused(tmp_path, tiny_llama, tiny_bert, adapter):
    options = {"adapter": adapter, "packing": True}
    stages = {"sft": options, "reward": {"adapter": adapter}, "dpo": {"adapter": adapter, "loss_type": "ipo"}}
    project = make_project(tmp_path, tiny_llama, stages={**stages, "ppo": {**PPO, "adapter": adapter}})
    for stage in project.stages:
        attempt(prepare_stage, project, stage)
    project = make_project(tmp_path, tiny_bert, name="bert", stages={"reward": {"adapter": adapter}})
    attempt(prepare_stage, project, "reward")


def meta_model(source, *_):
    """What `check_weights` gives, without files of weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source.base))


def test_a_model_too_large_for_this_machine_is_tried(tmp_path, tiny_llama, monkeypatch):
    """Seven billion parameters, of which nothing is loaded: there is no file of weights."""
    monkeypatch.setattr(starting_point, "check_weights", meta_model)
    monkeypatch.setattr(starting_point, "check_attachable", lambda *_: None)  # which looks at the memory
    monkeypatch.setattr(starting_point, "check_numbers", lambda *_: None)
    large = shutil.copytree(tiny_llama, tmp_path / "large", ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(tiny_llama)
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
             "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 128_000}  # fmt: skip
    (large / "config.json").write_text(json.dumps({**config.to_dict(), **sizes}))
    made = {"stages": {"dpo": {"max_steps": 1}}}
    attempt(prepare_stage, make_project(tmp_path, large, **made), "dpo")
    wrong = make_project(tmp_path, large, name="wrong", stages={"dpo": {"report_to": "dvclive"}})
    assert "report_to" in refusal(wrong, "dpo")


def test_the_command_says_it_before_the_first_stage_trains(tmp_path, tiny_llama):
    path = write_project(tmp_path, tiny_llama, stages={"sft": {}, "dpo": {"report_to": "dvclive"}})
    line = refused(rlhf("run", path))
    assert re.search(r"stages\.dpo\.report_to: .*dvclive", line), line
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())
