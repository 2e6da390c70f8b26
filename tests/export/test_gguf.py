"""A GGUF file is the model and its tokenizer: names, order of rows, rounding within the blocks' bounds, ids."""

import gzip
import json

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    set_seed,
)

from rlhf.errors import UserError
from rlhf.export.gguf import architectures, files, tokenizer
from rlhf.export.gguf.architectures import permuted, unfit
from rlhf.export.run import settings_of
from tests.export.test_run import exported, of_stage, outputs

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15}  # fmt: skip
IDS = [5, 9, 30, 31, 60, 7, 44, 12]


def config(kind, tokens, tied=True):
    special = {"vocab_size": tokens, "tie_word_embeddings": tied, "bos_token_id": None, "eos_token_id": 1}
    return {
        "llama": lambda: LlamaConfig(**SIZES, **special),
        "mistral": lambda: MistralConfig(**SIZES, **special, sliding_window=None),
        "qwen2": lambda: Qwen2Config(**SIZES, **special),
        "qwen3": lambda: Qwen3Config(**SIZES, **special, head_dim=128),
        "gpt2": lambda: GPT2Config(
            n_embd=64, n_layer=2, n_head=4, vocab_size=tokens, initializer_range=0.15, bos_token_id=None, eos_token_id=1
        ),
    }[kind]()


def made(kind, tiny_tokenizer, tied=True):
    set_seed(0)
    return AutoModelForCausalLM.from_config(config(kind, len(tiny_tokenizer), tied)).eval()


def written(path, model, own, kind):
    given = tokenizer.vocabulary(own, model.get_input_embeddings().weight.shape[0])
    return given, files.write(path / "model.gguf", model, given, kind, "x")


@torch.no_grad()
def logits(model):
    return model(torch.tensor([IDS])).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gpt2"])
def test_transformers_reads_the_model_back(tmp_path, tiny_tokenizer, kind, tied):
    """In float32, as no rounding hides a row that is out of order. GPT-2 is always tied."""
    model = made(kind, tiny_tokenizer, tied or kind == "gpt2")
    assert unfit(model.config) is None
    written(tmp_path, model, tiny_tokenizer, "F16")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype="float32").eval()
    assert logits(read) == pytest.approx(logits(model), abs=0.03)
    assert logits(model).std() > 0.1
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert ("output.weight" in names) == (not tied and kind != "gpt2")


def test_rows_of_a_query_by_hand():
    """One head of four: transformers rotates rows 0 and 2, 1 and 3; llama.cpp 0 and 1, 2 and 3."""
    rows = np.arange(8.0)[:, None]
    assert permuted(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(("kind", "levels"), [("Q8_0", 127), ("Q4_0", 8)])
def test_rounding_stays_within_its_blocks(tmp_path, tiny_tokenizer, kind, levels):
    """A block of 32 with largest size m has a scale of m / levels, in float16, whose own rounding is 2^-11 of it.

    Q8_0 rounds to the nearest, half a scale away at most. Q4_0 has levels -8 to 7, so that what lies opposite the
    largest can be a whole scale away.
    """
    model = made("llama", tiny_tokenizer)
    written(tmp_path, model, tiny_tokenizer, kind)
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    for name, was in files.tensors(model).items():
        tensor = reader[name]
        now = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(was.shape)
        if was.ndim == 1:
            assert tensor.tensor_type.name == "F32"
            np.testing.assert_array_equal(now, was)
            continue
        used = 127 if name == "token_embd.weight" else levels
        assert tensor.tensor_type.name == ("Q8_0" if name == "token_embd.weight" else kind)
        largest = np.abs(was.reshape(-1, 32)).max(1, keepdims=True)
        away = np.abs(now - was).reshape(-1, 32)
        steps = 0.5 if used == 127 else 1.0
        assert (away <= largest / used * steps + largest * 2**-10 + 1e-7).all()
        assert away.max() > 0
        zero = np.abs(was) == 0
        assert (now[zero] == 0).all()


def test_rows_that_blocks_do_not_fit_stay_float16(tmp_path, tiny_tokenizer):
    set_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**SIZES, "intermediate_size": 88}, vocab_size=400)).eval()
    _, odd = written(tmp_path, model, tiny_tokenizer, "Q4_0")
    assert odd == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, "rope_type: llama3"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("mistral", {"sliding_window": 64}, "sliding_window"),
        ("qwen3", {"head_dim": 64}, "head_dim"),
        ("gpt2", {"n_positions": 256}, "n_positions"),
        ("llama", {"model_type": "olmo"}, "gpt2, llama, mistral, qwen2, qwen3 can"),
    ],
)
def test_what_a_file_could_not_say_is_refused(kind, change, said):
    given = config(kind, 400)
    for name, value in change.items():
        if name == "model_type":
            type(given).model_type, given = given.model_type, type("Other", (), {"model_type": value})()
        else:
            setattr(given, name, value)
    assert said in unfit(given)


def texts(real):
    rows = [tokenizer.TRICKY]
    with gzip.open(real / "gsm8k" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        rows += [json.loads(line)["question"] + json.loads(line)["answer"] for line in list(file)[:200]]
    with gzip.open(real / "hh" / "helpful-base.jsonl.gz", "rt", encoding="utf-8") as file:
        rows += [json.loads(line)["chosen"] for line in list(file)[:200]]
    return rows


def test_the_tokenizer_in_the_file_makes_the_same_ids(tmp_path, root, real):
    own = AutoTokenizer.from_pretrained(root / "data/base")
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, vocab_size=len(own)))
    given, _ = written(tmp_path, model, own, "F16")
    assert given.split == "smollm"  # digits one by one, then as GPT-2
    read = files.read_vocabulary(tmp_path / "model.gguf")
    assert read == given
    tokenizer.check_round_trip(read, own, texts(real))
    messages = [{"role": "user", "content": "Hello  12 34"}, {"role": "assistant", "content": "Hi."}]
    whole = own.apply_chat_template(messages, tokenize=False)
    own.chat_template = read.template
    assert "generation %" not in read.template
    assert own.apply_chat_template(messages, tokenize=False) == whole
    with pytest.raises(UserError, match="would make other ids"):
        tokenizer.check_round_trip(read._replace(merges=read.merges[::-1]), own, [])


def test_every_way_to_split_is_told_from_the_others():
    pieces = {name: str(tokenizer._splitter(name).pre_tokenize_str(tokenizer.TRICKY)) for name in tokenizer.SPLITS}
    assert len(set(pieces.values())) == len(pieces)


def test_a_tokenizer_of_another_kind_is_refused(tiny_bert):
    assert "no byte-level BPE" in tokenizer.unfit(AutoTokenizer.from_pretrained(tiny_bert))


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_an_export_is_compared_through_what_transformers_reads(run_dir, tmp_path, kind):
    result = exported(run_dir, "dpo", tmp_path / "out", settings_of(f"gguf-{kind}", None, None, True))
    assert result["files"].keys() == {"model.gguf"}
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype="float32")
    assert outputs(read) == pytest.approx(result["probe"]["exported"], abs=1e-3)
    assert result["probe"]["written"] == pytest.approx(of_stage(run_dir, "dpo"))
    assert result["kl_per_token"] > 0
    assert result["rate"] is None
    assert 'gguf_file="model.gguf"' in (tmp_path / "out" / "README.md").read_text()


def test_a_reward_model_is_no_gguf(run_dir, tmp_path):
    with pytest.raises(UserError, match="takes a causal language model"):
        exported(run_dir, "reward", tmp_path / "out", settings_of("gguf-f16", None, None, False))
    assert not (tmp_path / "out").exists()
    assert set(architectures.ARCHITECTURES) == {"llama", "mistral", "qwen2", "qwen3", "gpt2"}
