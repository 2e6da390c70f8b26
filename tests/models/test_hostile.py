"""Models made to run code or to reach beyond their folder: each is refused in a line, and nothing runs."""

import json
import os
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf.artifacts.open import open_model
from rlhf.config.project import ModelConfig
from rlhf.errors import UserError


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """A file that is there once code of `evil_module`, or of a pickle, has run."""
    (tmp_path / "evil_module.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "ran"


class Payload:
    """What runs a command when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def edit(folder, file, **fields):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def own_code(folder, ran):
    shutil.copy(ran.parent / "evil_module.py", folder)
    names = {"AutoConfig": "evil_module.C", "AutoModelForCausalLM": "evil_module.M"}
    edit(folder, "config.json", model_type="mine", auto_map=names)


def own_tokenizer(folder, ran):
    shutil.copy(ran.parent / "evil_module.py", folder)
    tokenizers = ["evil_module.T", "evil_module.T"]
    edit(folder, "tokenizer_config.json", tokenizer_class="T", auto_map={"AutoTokenizer": tokenizers})


def kernel(folder, ran):
    edit(folder, "config.json", _attn_implementation="evil/kernel")


def pickle_alone(folder, ran):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Payload(ran)}, folder / "pytorch_model.bin")


def pytorch_file(folder, ran):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Payload(ran)}, folder / "model.pt")


def index_elsewhere(folder, ran):
    (folder / "model.safetensors").rename(ran.parent / "theirs.safetensors")
    names = load_file(ran.parent / "theirs.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../theirs.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def huge_header(folder, ran):
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def deep_header(folder, ran):
    (folder / "model.safetensors").write_bytes((10**7).to_bytes(8, "little") + b"[" * 10**7)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (own_code, "contains custom code"),
        (own_tokenizer, "contains custom code"),
        (kernel, "code from the hub, which is not run"),
        (pickle_alone, "pickled weights are not loaded"),
        (pytorch_file, "no file named model.safetensors"),
        (index_elsewhere, r"names weights elsewhere \(\.\./theirs"),
        (huge_header, "is no safetensors file"),
        (deep_header, "is no safetensors file"),
    ],
)
def test_a_model_runs_no_code_and_reads_no_file_but_its_own(tiny_llama, tmp_path, ran, attack, message):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    attack(folder, ran)
    refused(folder, ran, message)


def refused(folder, ran, message):
    def use():
        opened = open_model(ModelConfig(name_or_path=str(folder), adapter=None))
        _ = opened.processor
        opened.policy()

    with pytest.raises(UserError, match=message) as caught:
        use()
    assert "\n" not in str(caught.value)
    assert not ran.exists()


def module_by_name(folder, ran):
    edit(folder, "adapter_config.json", megatron_core="evil_module", megatron_config={"a": 1})


def base_that_is_a_file(folder, ran):
    edit(folder, "adapter_config.json", base_model_name_or_path="../../../../../../../../../etc/passwd")


def base_that_is_no_name(folder, ran):
    edit(folder, "adapter_config.json", base_model_name_or_path=["a"])


def pickled_adapter(folder, ran):
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"weight": Payload(ran)}, folder / "adapter_model.bin")


def pickled_adapter_beside_a_decoy(folder, ran):
    shutil.copy(folder / "adapter_model.safetensors", folder / "decoy.safetensors")
    pickled_adapter(folder, ran)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (module_by_name, "megatron_core"),
        (base_that_is_a_file, "etc/passwd: cannot load the model"),
        (base_that_is_no_name, "does not name the adapter's base model"),
        (pickled_adapter, "pickled weights are not loaded"),
        (pickled_adapter_beside_a_decoy, r"has no adapter_model\.safetensors"),
    ],
)
def test_an_adapter_runs_no_code_and_is_no_pickle(tiny_llama, tmp_path, ran, attack, message):
    folder = shutil.copytree(
        tiny_llama, tmp_path / "adapter", ignore=shutil.ignore_patterns("*.safetensors", "config*")
    )
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), lora).save_pretrained(folder)
    attack(folder, ran)
    refused(folder, ran, message)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{% include '/etc/passwd' %}",
        "{% set _ = messages.append({'role': 'system'}) %}{{ messages }}",
        "{% for i in range(1000000000) %}{% endfor %}",
    ],
)
def test_a_chat_template_reaches_nothing_but_its_messages(tiny_tokenizer, template):
    messages = [{"role": "user", "content": "x"}]
    try:
        written = tiny_tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    except Exception as error:
        written = f"refused: {type(error).__name__}"
    assert written.startswith("refused: ") or not written.strip()
    assert messages == [{"role": "user", "content": "x"}]
