import os
import shutil

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlhf.config.project import ModelConfig
from rlhf.data.tokenize import PLAIN_TEMPLATE
from rlhf.errors import UserError
from rlhf.models.tokenizer import ADDED_PAD, load_tokenizer, settle_special_tokens, tokenizer_record


@pytest.fixture
def bare(tiny_tokenizer) -> PreTrainedTokenizerFast:
    """The tiny vocabulary with no special tokens named."""
    return PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)


def settled(tokenizer, **settings):
    settle_special_tokens(tokenizer, ModelConfig(name_or_path="x", **settings))
    return tokenizer


def test_pad_is_never_eos(bare):
    bare.eos_token, bare.pad_token = "<|end|>", "<|end|>"
    assert settled(bare).pad_token == ADDED_PAD
    assert bare.pad_token_id != bare.eos_token_id


def test_unk_serves_as_pad(real):
    tokenizer = AutoTokenizer.from_pretrained(real / "models/stories260K", pad_token="</s>")
    assert settled(tokenizer).pad_token == "<unk>"


def test_a_pad_is_added_only_where_none_is_spare():
    from tokenizers import Tokenizer, models

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1, "<e>": 2}, [])), eos_token="<e>"
    )
    assert settled(tokenizer).pad_token_id == 3
    assert len(tokenizer) == 4


def test_named_tokens_must_exist_and_differ(bare):
    assert settled(bare, eos_token="<|end|>").eos_token == "<|end|>"
    with pytest.raises(UserError, match=r"model\.eos_token: '<\|ent\|>' is not in the vocabulary"):
        settled(bare, eos_token="<|ent|>")
    with pytest.raises(UserError, match="is also EOS; the model would never learn to stop"):
        settled(bare, eos_token="<|end|>", pad_token="<|end|>")


def test_a_template_is_kept_replaced_or_given(bare, tmp_path):
    assert settled(bare, eos_token="<|end|>").chat_template == PLAIN_TEMPLATE
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    assert settled(bare, chat_template=str(tmp_path / "mine.jinja")).chat_template == "{{ messages }}"
    assert settled(bare).chat_template == "{{ messages }}"
    with pytest.raises(UserError, match=r"none\.jinja"):
        settled(bare, chat_template=str(tmp_path / "none.jinja"))
    os.mkfifo(tmp_path / "pipe.jinja")
    with pytest.raises(UserError, match=r"pipe\.jinja: a pipe"):
        settled(bare, chat_template=str(tmp_path / "pipe.jinja"))


def test_the_record_sees_what_matters_and_nothing_else(tiny_llama):
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(tiny_llama)))
    before = tokenizer_record(tokenizer)
    tokenizer(["short", "much longer text"], padding=True, truncation=True, max_length=2)
    assert tokenizer_record(tokenizer) == before
    tokenizer.chat_template += " "
    assert tokenizer_record(tokenizer)["template_hash"] != before["template_hash"]
    tokenizer.add_tokens(["new"])
    assert tokenizer_record(tokenizer)["hash"] != before["hash"]


def test_a_missing_tokenizer_is_one_line(tmp_path):
    with pytest.raises(UserError) as error:
        load_tokenizer(ModelConfig(name_or_path=str(tmp_path)))
    assert "no tokenizer can be loaded" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{% if %}", "not valid Jinja"),
        (b"{{ messages | no_such_filter }}", "not valid Jinja"),
        (b"{{ messages[0]['content'] + 1 }}", "fails at a question"),
        (b"{{ messages[9]['content'] + 'x' }}", "fails at a question"),
        (b"{{ bos_token }}", "'question' is lost"),
        ("é {{ messages }}".encode("latin-1"), "UTF-8"),
    ],
)
def test_a_template_that_writes_no_conversation_is_refused(bare, tmp_path, content, said):
    path = tmp_path / "mine.jinja"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"model\.chat_template: .*mine\.jinja.*{said}") as error:
        settled(bare, eos_token="<|end|>", chat_template=str(path))
    assert "\n" not in str(error.value)


def test_a_template_may_refuse_some_conversations(bare, tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ raise_exception('a system message comes first') }}")
    assert settled(bare, eos_token="<|end|>", chat_template=str(tmp_path / "mine.jinja")).chat_template


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n", r"tokenizer\.json.*git lfs pull"),
        ("tokenizer.json", b"", r"tokenizer\.json.*empty"),
        ("tokenizer.json", b"[]", "no tokenizer can be loaded"),
        ("tokenizer_config.json", b"[1]", "no tokenizer can be loaded"),
        ("tokenizer_config.json", b"{", "tokenizer_config.json:1:2: not valid JSON: expecting property name"),
        ("chat_template.jinja", b"\xe9", "no tokenizer can be loaded"),
    ],
)
def test_damaged_files_are_one_line(tiny_llama, tmp_path, name, content, said):
    folder = shutil.copytree(tiny_llama, tmp_path / "base")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        load_tokenizer(ModelConfig(name_or_path=str(folder)))
    assert "\n" not in str(error.value)
