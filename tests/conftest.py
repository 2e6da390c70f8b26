"""Shared fixtures: real data where it lies beside the repository, and tiny models made on the spot."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest

from tests.support.schedule import BySharedFixtures, place

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as of what nohup starts: children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that the workers end together."""
    items.sort(key=lambda item: place(item.nodeid))


def pytest_collection_finish():
    """Keep the garbage collector off what the libraries leave: it would go through 800,000 objects each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out files, and folders whose files share an expensive fixture, whole."""
    return BySharedFixtures(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real() -> Path:
    """Folder of real data and models, which is no part of the repository; tests that want it are skipped without."""
    folder = ROOT.parent / "shared" / "real"
    if not folder.is_dir():
        pytest.skip("no real data beside the repository")
    return folder


TEXTS = [
    "Hello Ada, I am sorry about your lamp.",
    "Please send order 48213 back to us today.",
    "The kettle arrives on Monday; thank you for waiting.",
    "system user assistant Human: Assistant: 0123456789",
]


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE with distinct end and pad tokens and the plain template."""
    from rlhf.models.scratch import train_tokenizer

    return train_tokenizer(iter(TEXTS), 400)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory, tiny_tokenizer) -> Path:
    """A random Llama of two layers with its tokenizer, saved."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        pad_token_id=tiny_tokenizer.pad_token_id, eos_token_id=tiny_tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    return _saved(LlamaForCausalLM(config), tiny_tokenizer, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory, tiny_tokenizer) -> Path:
    """A random GPT-2 of two layers with its tokenizer, saved."""
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    set_seed(0)
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=256,
        pad_token_id=tiny_tokenizer.pad_token_id, eos_token_id=tiny_tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    return _saved(GPT2LMHeadModel(config), tiny_tokenizer, tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A random BERT of two layers with a WordPiece tokenizer of its own, saved."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, set_seed

    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip
    set_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128,
    )  # fmt: skip
    return _saved(BertForMaskedLM(config), tokenizer, tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory, tiny_tokenizer) -> Path:
    """A random T5 of two layers and two with its tokenizer, saved."""
    from transformers import T5Config, T5ForConditionalGeneration, set_seed

    set_seed(0)
    config = T5Config(
        vocab_size=len(tiny_tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        decoder_start_token_id=tiny_tokenizer.pad_token_id, **_special(tiny_tokenizer),
    )  # fmt: skip
    return _saved(T5ForConditionalGeneration(config), tiny_tokenizer, tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="session")
def tiny_bart(tmp_path_factory, tiny_tokenizer) -> Path:
    """A random BART of two layers and three that starts with EOS and a forced token, with its tokenizer, saved."""
    from transformers import BartConfig, BartForConditionalGeneration, set_seed

    set_seed(0)
    config = BartConfig(
        vocab_size=len(tiny_tokenizer), d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
        decoder_start_token_id=tiny_tokenizer.eos_token_id, forced_eos_token_id=tiny_tokenizer.eos_token_id,
        **_special(tiny_tokenizer),
    )  # fmt: skip
    model = BartForConditionalGeneration(config)
    model.generation_config.forced_bos_token_id = 5
    return _saved(model, tiny_tokenizer, tmp_path_factory.mktemp("bart"))


def _special(tokenizer) -> dict[str, int | None]:
    return {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}


def _saved(model, tokenizer, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
