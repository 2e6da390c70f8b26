"""A base in 4 bits: what is quantized, that its gradients are right, and that a parent's adapter stays exact on it."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    set_seed,
)

from rlhf.artifacts.open import open_model
from rlhf.config.project import ModelConfig
from rlhf.errors import UserError
from rlhf.models import probe
from rlhf.models.adapters import attach, lora_config
from rlhf.models.load import load_policy, load_scorer, source_of
from rlhf.models.quantization import (
    check_keepable,
    check_quantization,
    dense_weight,
    nf4_bytes,
    quantized_layers,
    read_blocks_on_cpus,
    unquantized_parts,
    weight_bytes,
)
from rlhf.models.roles import Roles
from rlhf.models.tasks import CAUSAL_LM, IMAGE_LABEL, LABEL, SEQ2SEQ, SPAN
from rlhf.models.tokenizer import load_tokenizer
from rlhf.policies.vllm.weights import model_weights, write_model
from tests.support.runs import SEQUENCES, perturb

bitsandbytes = pytest.importorskip("bitsandbytes")
IDS = torch.tensor([[5, 9, 30, 31, 60, 7, 44, 45]])


def quantized(folder, load=load_policy, **options):
    config = ModelConfig(name_or_path=str(folder), quantization="nf4")
    return load(source_of(config), config, load_tokenizer(config), **options)


def dense(model, folder):
    """The same model in full precision: its weights are the values that the 4 bits stand for."""
    plain = AutoModelForCausalLM.from_pretrained(folder)
    for name, layer in quantized_layers(model):
        plain.get_submodule(name).weight.data = dense_weight(layer)
    return plain


@pytest.fixture(scope="module")
def adapter(tiny_llama, tmp_path_factory):
    """An adapter that says something, trained by nobody."""
    config = ModelConfig(name_or_path=str(tiny_llama))
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model = attach(base, lora_config({"r": 3}, CAUSAL_LM.peft, False), source_of(config))
    perturb(model, 1)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(str(folder), save_embedding_layers=False)
    load_tokenizer(config).save_pretrained(folder)
    return folder


def test_memory_is_what_the_formula_says(tiny_llama):
    assert nf4_bytes(64 * 256 * 2) == 32768 // 2 + 512 + 4 * 2
    assert nf4_bytes(65) == 33 + 2 + 4
    model, plain = quantized(tiny_llama), AutoModelForCausalLM.from_pretrained(tiny_llama)
    states = [layer.weight.quant_state for _, layer in quantized_layers(model)]
    held = sum(weight.nbytes for weight in model.parameters())
    held += sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states)
    assert weight_bytes(plain, "nf4") == held
    assert weight_bytes(plain, None) == 4 * plain.num_parameters()


def test_weights_are_a_quarter_of_16_bits(tiny_llama):
    model = quantized(tiny_llama)
    names = [name for name, _ in quantized_layers(model)]
    assert len(names) == 14, "seven linear layers in each of two"
    assert model.get_output_embeddings().weight.dtype == model.dtype == torch.float32
    whole = sum(layer.in_features * layer.out_features for _, layer in quantized_layers(model)) * 2
    assert sum(layer.weight.nbytes for _, layer in quantized_layers(model)) == whole / 4


def gradient(model) -> torch.Tensor:
    states = model.get_input_embeddings()(IDS).detach().requires_grad_(True)
    model(inputs_embeds=states, labels=IDS).loss.backward()
    return states.grad


def test_gradients_are_those_of_the_dense_model_after_an_evaluation(tmp_path, tiny_tokenizer):
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, pad_token_id=tiny_tokenizer.pad_token_id,
    )  # fmt: skip
    set_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    model = quantized(tmp_path).eval()
    wanted = gradient(dense(model, tmp_path))
    with torch.no_grad():
        model(input_ids=IDS)
    torch.testing.assert_close(gradient(model.train()), wanted, rtol=1e-5, atol=1e-9)
    if not bitsandbytes.functional.has_avx512bf16():
        return
    for _, layer in quantized_layers(model):  # what bitsandbytes would do on this CPU
        layer.support_avx512bf16_for_cpu = True
    with torch.no_grad():
        model.eval()(input_ids=IDS)
    assert (gradient(model.train()) - wanted).norm() > 0.1 * wanted.norm()


def test_blocks_that_run_on_from_row_to_row_by_hand():
    """Rows of 96: each value is the code nearest to its weight times the scale of its 64, whatever the row."""
    from bitsandbytes import functional

    read_blocks_on_cpus()
    torch.manual_seed(0)
    weight = torch.randn(8, 96)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    codes = functional.get_4bit_type("nf4", device="cpu")
    blocks = weight.view(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / scales)[..., None] - codes).abs().argmin(-1)
    expected = (codes[nearest] * scales).view(8, 96)
    torch.testing.assert_close(functional.dequantize_4bit(packed, state), expected)


def test_quantization_is_the_same_each_time(tiny_llama):
    first, second = (quantized(tiny_llama).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("fixture", "task", "parts"),
    [
        ("tiny_llama", CAUSAL_LM, {"lm_head"}),
        ("tiny_llama", LABEL, {"score"}),
        ("tiny_gpt2", CAUSAL_LM, {"lm_head"}),
        ("tiny_bert", LABEL, {"classifier", "dropout", "bert.pooler"}),
        ("tiny_bert", SPAN, {"qa_outputs"}),
        ("tiny_t5", SEQ2SEQ, {"lm_head"}),
    ],
)
def test_heads_keep_their_type(fixture, task, parts, request):
    folder = request.getfixturevalue(fixture)
    assert set(unquantized_parts(task.model_class, AutoConfig.from_pretrained(folder))) == parts


def test_a_new_head_is_no_quantized_layer(tiny_bert):
    loaded = quantized(tiny_bert, load_scorer, new_head=True)
    names = [name for name, _ in quantized_layers(loaded.model)]
    assert names
    assert not [name for name in names if not name.startswith("bert.encoder.")]


def test_a_parents_adapter_is_exact(tiny_llama, adapter):
    """W x + B A x with the W that 4 bits stand for: as peft computes it, and as the dense sum of both."""
    base, model = quantized(tiny_llama), quantized(adapter)
    with torch.no_grad():
        alone = base(input_ids=IDS).logits
        beside = PeftModel.from_pretrained(base, str(adapter))(input_ids=IDS).logits
        kept, summed = model(input_ids=IDS).logits, dense(model, tiny_llama)(input_ids=IDS).logits
    torch.testing.assert_close(kept, beside, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kept, summed, rtol=1e-5, atol=1e-5)
    assert (kept - alone).abs().max() > 0.1
    unmerged, merged = (dict(quantized_layers(one)) for one in (base.base_model, model))
    assert all(torch.equal(layer.weight, merged[name].weight) for name, layer in unmerged.items() if name in merged)


@pytest.mark.parametrize(("fixture", "task"), [("tiny_gpt2", CAUSAL_LM), ("tiny_t5", SEQ2SEQ), ("tiny_bart", SEQ2SEQ)])
def test_an_adapter_of_any_architecture_is_loaded_as_it_was_trained(fixture, task, request, tmp_path):
    """Also where a layer keeps its weight transposed, as in GPT-2."""
    base = request.getfixturevalue(fixture)
    config = ModelConfig(name_or_path=str(base), quantization="nf4")
    model = attach(quantized(base, task=task), lora_config({"r": 3}, task.peft, False), source_of(config))
    perturb(model, 4)
    wanted = probe.outputs(model, SEQUENCES)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    load_tokenizer(config).save_pretrained(tmp_path)
    assert probe.outputs(quantized(tmp_path, task=task), SEQUENCES) == pytest.approx(wanted, rel=1e-5)
    plain = load_policy(
        source_of(replace(config, quantization=None), tmp_path), ModelConfig(), load_tokenizer(config), task
    )
    assert probe.outputs(plain, SEQUENCES) == pytest.approx(wanted, rel=0.05), "up to the error of 4 bits"


def roles_on(folder) -> Roles:
    config = ModelConfig(name_or_path=str(folder), quantization="nf4")
    policy = attach(quantized(folder), lora_config({"r": 2}, CAUSAL_LM.peft, True), source_of(config))
    return Roles(policy)


def test_the_reference_is_the_parent_and_so_is_the_policy_before_its_first_step(adapter):
    roles = roles_on(adapter)
    with torch.no_grad():
        parent = quantized(adapter)(input_ids=IDS).logits
        with roles.reference() as model:
            assert torch.equal(model(input_ids=IDS).logits, parent)
        with roles.policy_model() as model:
            assert torch.equal(model(input_ids=IDS).logits, parent)
        perturb(roles.policy, 2)
        with roles.reference() as model:
            assert torch.equal(model(input_ids=IDS).logits, parent)
        with roles.policy_model() as model:
            assert (model(input_ids=IDS).logits - parent).abs().max() > 0.1
    trained = [name for name, parameter in roles.policy.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".default." in name for name in trained)


def test_the_policy_samples_from_what_it_is_trained_as(adapter):
    roles = roles_on(adapter)
    perturb(roles.policy, 2)
    before = {name: tensor.clone() for name, tensor in roles.base.state_dict().items()}
    with torch.no_grad():
        with roles.policy_model() as model:
            wanted = model(input_ids=IDS).logits
        with roles.sampling_model() as model:
            torch.testing.assert_close(model(input_ids=IDS).logits, wanted, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in roles.base.state_dict().items())


def test_adapters_train_in_float32(tiny_llama):
    """TRL casts those of a quantized model to bfloat16, and asks the model whether it is one."""
    policy = roles_on(tiny_llama).policy
    assert not policy.is_loaded_in_4bit
    assert {parameter.dtype for parameter in policy.parameters() if parameter.requires_grad} == {torch.float32}


def test_a_server_is_handed_the_weights_that_4_bits_stand_for(tiny_llama, adapter, tmp_path):
    roles = roles_on(adapter)
    perturb(roles.policy, 3)
    write_model(roles, model_weights(roles, keep=True), tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(tiny_llama / "model.safetensors").keys()
    with torch.no_grad(), roles.reference() as model:
        served = AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=IDS).logits
        torch.testing.assert_close(served, model(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)
    assert roles.base.config.quantization_config.load_in_4bit


def test_a_probe_tells_4_bits_from_32(tiny_llama):
    plain = ModelConfig(name_or_path=str(tiny_llama))
    models = [open_model(settings).policy() for settings in (plain, replace(plain, quantization="nf4"))]
    probes = [probe.make(model, SEQUENCES) for model in models]
    assert [made["dtype"] for made in probes] == ["float32", "nf4, float32"]
    for model, made in zip(models, probes, strict=True):
        probe.check(model, made, "it")
    with pytest.raises(UserError, match="nf4, float32 and are float32"):
        probe.check(models[0], probes[1], "it")


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_what_cannot_be_kept_is_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        check_keepable(lora_config({"r": 2, **settings}, CAUSAL_LM.peft, False))


def test_what_cannot_be_loaded_is_one_line(tiny_llama, monkeypatch):
    settings, config = ModelConfig(quantization="nf4"), AutoConfig.from_pretrained(tiny_llama)
    check_quantization(settings, config, "it")
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"pip install 'rlhf-pipeline\[quantization\]'"):
            check_quantization(settings, config, "it")
    for engine in ("FSDP", "DEEPSPEED"):
        with monkeypatch.context() as patched:
            patched.setenv(f"ACCELERATE_USE_{engine}", "true")
            with pytest.raises(UserError, match=r"ddp\.yaml"):
                check_quantization(settings, config, "it")
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    for chosen in (settings, ModelConfig()):
        with pytest.raises(UserError, match="gptq"):
            check_quantization(chosen, config, "it")


def test_bitsandbytes_runs_no_code_from_the_hub(tmp_path):
    """On CPUs with AVX512-BF16 it fetches a kernel where the package for that is installed, and warns where not."""
    (tmp_path / "kernels.py").write_text("def get_kernel(*args, **options):\n    raise SystemExit(7)\n")
    code = "import rlhf, peft, sys; assert 'bitsandbytes' in sys.modules"
    places = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": places}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "kernels" not in done.stderr


def test_a_model_without_linear_layers_is_refused(tmp_path, tiny_llama):
    ResNetForImageClassification(ResNetConfig(embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1])).save_pretrained(
        tmp_path
    )
    config = ModelConfig(name_or_path=str(tmp_path), quantization="nf4")
    with pytest.raises(UserError, match="no linear layers"):
        load_policy(source_of(config), config, None, IMAGE_LABEL, 2)
