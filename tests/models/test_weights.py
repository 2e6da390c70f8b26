"""What the files of a model may lack, and what else they may hold."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf.config.project import ModelConfig
from rlhf.errors import UserError
from rlhf.models.load import check_weights, load_policy, load_scorer, source_of
from rlhf.models.tasks import CAUSAL_LM, LABEL
from rlhf.models.tokenizer import load_tokenizer
from rlhf.models.weights import check_numbers
from rlhf.pipeline.execute import prepare_stage
from tests.support.families import FAMILIES, causal
from tests.support.projects import make_project

LAYER = "model.layers.1.mlp.up_proj.weight"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def settings(**fields):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return change


def tensors(edit):
    def change(folder):
        weights = load_file(folder / "model.safetensors")
        edit(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def content(edit):
    def change(folder):
        path = folder / "model.safetensors"
        path.write_bytes(edit(path.read_bytes()))

    return change


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def index(text):
    def change(folder):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(text)

    return change


def replaced(by):
    def change(folder):
        path = folder / "model.safetensors"
        path.unlink()
        by(path)

    return change


DAMAGE = {
    "a folder": (replaced(Path.mkdir), "no file to read"),
    "a pipe": (replaced(os.mkfifo), "no file to read"),
    "a link to nothing": (replaced(lambda path: path.symlink_to("gone")), "no file to read"),
    "no index": (index("{}"), "'weight_map'"),
    "a part gone": (index('{"metadata": {}, "weight_map": {"x": "model-00002-of-00002.safetensors"}}'), "model-00002"),
    "deleted": (tensors(lambda weights: weights.pop(LAYER)), f"lacks 1 of the 21 tensors .*{LAYER}"),
    "a layer more": (settings(num_hidden_layers=3), r"lacks 9 of the 30 tensors .*model\.layers\.2\."),
    "a layer fewer": (settings(num_hidden_layers=1), r"has 9 tensors .*model\.layers\.1\."),
    "another architecture": (settings(model_type="gpt2"), r"lacks 2[89] of the 29 tensors .*transformer\.h\.0\."),
    "other sizes": (settings(hidden_size=64), r"has size \[\d+, 32\], and config\.json asks for \[\d+, 64\]"),
    "another shape": (
        tensors(lambda weights: weights.update({LAYER: torch.zeros(3, 4)})),
        rf"{LAYER} has size \[3, 4\], and config.json asks for \[64, 32\]",
    ),
    "a bias more": (
        tensors(lambda weights: weights.update({LAYER.replace("weight", "bias"): torch.zeros(64)})),
        r"has 1 tensors .*up_proj\.bias",
    ),
    "a norm more": (
        tensors(lambda weights: weights.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)})),
        r"has 1 tensors .*q_norm",
    ),
    "empty": (content(lambda data: b""), "the file is empty"),
    "cut short": (content(lambda data: data[: len(data) // 2]), "is cut short"),
    "garbage": (content(lambda data: bytes(range(256)) * 9), "is no safetensors file"),
    "pointer": (content(lambda data: POINTER), "git lfs pull"),
    "pickled": (pickled, r"pytorch_model\.bin"),
    "no config": (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    "field": (settings(hidden_size="wide"), "'hidden_size'"),
}


def damaged(folder, base, change):
    shutil.copytree(base, folder / "base")
    change(folder / "base")
    return folder / "base"


@pytest.mark.parametrize("name", DAMAGE)
def test_weights_that_are_not_there_are_never_drawn_at_random(tmp_path, tiny_llama, name):
    change, said = DAMAGE[name]
    base = damaged(tmp_path, tiny_llama, change)
    config = ModelConfig(name_or_path=str(base))
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(tiny_llama)))
    for load in (
        lambda: check_weights(source_of(config), config),
        lambda: check_weights(source_of(config), config, LABEL),
        lambda: load_policy(source_of(config), config, tokenizer),
        lambda: load_scorer(source_of(config), config, tokenizer, new_head=True),
    ):
        with pytest.raises(UserError, match=said) as error:
            load()
        assert str(base) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_they_are_missed_before_anything_trains(tmp_path, tiny_llama, stage):
    project = make_project(tmp_path, damaged(tmp_path, tiny_llama, DAMAGE["deleted"][0]))
    with pytest.raises(UserError, match=LAYER):
        prepare_stage(project, stage)


def test_an_untied_model_needs_its_own_head(tmp_path, tiny_llama):
    config = ModelConfig(name_or_path=str(damaged(tmp_path, tiny_llama, settings(tie_word_embeddings=False))))
    with pytest.raises(UserError, match=r"lm_head\.weight"):
        check_weights(source_of(config), config)
    assert check_weights(source_of(config), config, LABEL) is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_are_numbers(tmp_path, tiny_llama, value):
    base = damaged(tmp_path, tiny_llama, tensors(lambda weights: weights[LAYER][3].fill_(value)))
    config = ModelConfig(name_or_path=str(base))
    said = rf"model\.safetensors: {LAYER} has (NaN|infinite) weights"
    with pytest.raises(UserError, match=said):
        load_policy(source_of(config), config, load_tokenizer(config))
    with pytest.raises(UserError, match=said):
        prepare_stage(make_project(tmp_path, base), "sft")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_saved_is_whole(tmp_path, family):
    causal(family).save_pretrained(tmp_path)
    config = ModelConfig(name_or_path=str(tmp_path))
    for task in (CAUSAL_LM, LABEL):
        assert next(check_weights(source_of(config), config, task).parameters()).device.type == "meta"


def test_what_other_tasks_and_older_versions_leave_is_let_be(tmp_path, tiny_gpt2, tiny_bert):
    def older(weights):
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name)
        for layer in range(2):
            weights[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8)
            weights[f"h.{layer}.attn.masked_bias"] = torch.tensor(-torch.inf)
            weights[f"h.{layer}.attn.rotary_emb.inv_freq"] = torch.ones(4)
        weights["score.weight"] = torch.ones(1, 32)

    config = ModelConfig(name_or_path=str(damaged(tmp_path, tiny_gpt2, tensors(older))))
    assert check_weights(source_of(config), config) is not None
    check_numbers(config.name_or_path)
    bert = ModelConfig(name_or_path=str(tiny_bert))  # a head for masked tokens, and no pooler
    assert check_weights(source_of(bert), bert, LABEL) is not None


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("tokenizer.json", '{"version": "1.0",\n"model": }', "tokenizer.json:2:10: not valid JSON: expecting value"),
        ("tokenizer_config.json", "[" * 9999, "tokenizer_config.json: not valid JSON: maximum recursion depth"),
        ("config.json", "hello", "config.json:1:1: not valid JSON: expecting value"),
    ],
)
def test_a_json_file_that_is_none_is_named(tmp_path, tiny_llama, name, text, where):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(f"{folder}/{where}")):
        prepare_stage(make_project(tmp_path, folder), "sft")
