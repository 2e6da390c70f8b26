"""A base model from nothing: what may stand under `scratch:`."""

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from rlhf.errors import UserError
from rlhf.models.load import source_of
from rlhf.models.scratch import build
from rlhf.models.settings import base_settings
from rlhf.pipeline.execute import prepare_stage
from rlhf.workflow import StageContext, ancestors_of
from tests.support.projects import make_project

GPT2 = {"architecture": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 128,
        "tokenizer": {"vocab_size": 300}}  # fmt: skip


def project(folder, **fields):
    return make_project(folder, folder, model={"scratch": {**GPT2, **fields}, "adapter": None})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"architecture": None}, "scratch.architecture"),
        ({"architecture": ["gpt2"]}, "scratch.architecture"),
        ({"architecture": "t5", "n_embd": 16}, "scratch"),
        ({"n_embd": "wide"}, "n_embd"),
        ({"n_embd": -16}, "scratch.n_embd"),
        ({"n_embd": 15}, "embed_dim"),
        ({"n_embd": 10**6}, "GB of memory"),
        ({"n_layer": 0}, "scratch.n_layer"),
        ({"n_layers": 2}, "n_layer"),
        ({"activation_function": "none"}, "'none'"),
        ({"vocab_size": 10}, "scratch.vocab_size"),
        ({"tokenizer": 5}, "scratch.tokenizer"),
        ({"tokenizer": {"vocab_size": "many"}}, "tokenizer.vocab_size"),
        ({"tokenizer": {"vocab_size": -1}}, "tokenizer.vocab_size"),
    ],
)
def test_what_no_model_can_be_made_of_is_one_line(tmp_path, fields, said):
    made = project(tmp_path, **fields)
    with pytest.raises(UserError) as error:
        build(made, tmp_path / "base")
    assert "model.scratch" in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert not (tmp_path / "base").exists()


def test_a_stage_without_its_base_says_so(tmp_path):
    with pytest.raises(UserError, match=r"model\.scratch: the base stage"):
        prepare_stage(project(tmp_path), "dpo")
    with pytest.raises(UserError, match=r"model\.scratch: the base stage"):
        source_of(base_settings(project(tmp_path)))


def test_a_stage_goes_back_to_the_base(tmp_path):
    made = project(tmp_path)
    assert ancestors_of(made, "dpo") == ["sft", "base"]
    base, sft = tmp_path / "base", tmp_path / "sft"
    assert StageContext(made, "dpo", tmp_path, {"base": base}).parent == base
    assert StageContext(made, "dpo", tmp_path, {"base": base, "sft": sft}).parent == sft
    assert StageContext(made, "dpo", tmp_path, {"reward": sft}).parent is None


@pytest.mark.parametrize("fields", [
    {"architecture": "t5", "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2},
    {"architecture": "bart", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
     "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32},
])  # fmt: skip
def test_an_encoder_decoder_starts_with_the_pad_token(tmp_path, fields):
    """Whatever number its architecture starts with in a vocabulary of its own."""
    sizes = {**fields, "tokenizer": {"vocab_size": 300}}
    made = make_project(tmp_path, tmp_path, model={"scratch": sizes, "adapter": None})
    model = build(made, tmp_path / "base")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert type(loaded) is type(model)
    for settings in (loaded.config, loaded.generation_config):
        assert settings.decoder_start_token_id == settings.pad_token_id == tokenizer.pad_token_id
        assert settings.eos_token_id == tokenizer.eos_token_id
        assert getattr(settings, "forced_eos_token_id", None) in (None, tokenizer.eos_token_id)
    empty = {name: 0 if name in ("d_kv", "decoder_layers") else value for name, value in sizes.items()}
    made = make_project(tmp_path, tmp_path, model={"scratch": empty, "adapter": None})
    with pytest.raises(UserError, match=r"scratch\.d_kv|scratch\.decoder_layers"):
        build(made, tmp_path / "no")
