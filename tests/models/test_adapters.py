from pathlib import Path

import pytest
import torch
from peft import PeftModel, TaskType
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.config.project import ModelConfig
from rlhf.errors import UserError
from rlhf.models.adapters import attach, check_attachable, join_adapters, lora_config
from rlhf.models.load import check_weights, load_policy, load_scorer, source_of
from rlhf.models.tasks import CAUSAL_LM, LABEL
from rlhf.models.tokenizer import load_tokenizer

IDS = torch.tensor([[5, 9, 30, 31, 60, 7], [8, 12, 44, 45, 46, 1]])


def trained(
    config: ModelConfig, parent: Path | None, out: Path, seed: int, task=TaskType.CAUSAL_LM, **fields
) -> torch.Tensor:
    """Attach an adapter with random weights to the (merged) parent, save it joined, return the live model's logits."""
    tokenizer = load_tokenizer(config)
    source = source_of(config, parent)
    if task == TaskType.CAUSAL_LM:
        model = load_policy(source, config, tokenizer)
    else:
        model = load_scorer(source, config, tokenizer, new_head=True).model
    peft_model = attach(model, lora_config({"r": 4, **fields}, task, joined=source.adapter is not None), source)
    torch.manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    peft_model.eval()
    peft_model.save_pretrained(out, save_embedding_layers=False)
    if source.adapter is not None:
        join_adapters(source.adapter, out, out)
    with torch.no_grad():
        return peft_model(IDS).logits


@pytest.mark.parametrize("base", ["tiny_llama", "tiny_gpt2"])
def test_a_joined_adapter_on_the_original_base_is_the_stage_exactly(base, request, tmp_path):
    config = ModelConfig(name_or_path=str(request.getfixturevalue(base)))
    first = trained(config, None, tmp_path / "one", 1)
    second = trained(config, tmp_path / "one", tmp_path / "two", 2, lora_alpha=3)
    third = trained(config, tmp_path / "two", tmp_path / "three", 3, r=2, use_rslora=True)
    for logits, folder, rank in ((first, "one", 4), (second, "two", 8), (third, "three", 10)):
        plain = AutoModelForCausalLM.from_pretrained(config.name_or_path)
        model = PeftModel.from_pretrained(plain, tmp_path / folder).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(IDS).logits, logits, atol=1e-5, rtol=1e-5)
        assert model.peft_config["default"].r == rank
        assert model.peft_config["default"].base_model_name_or_path == config.name_or_path
    assert not torch.allclose(first, second, atol=1e-3)


def test_join_agrees_with_peft(tiny_llama, tmp_path):
    config = ModelConfig(name_or_path=str(tiny_llama))
    for name, seed in (("a", 1), ("b", 2)):
        trained(config, None, tmp_path / name, seed)
    join_adapters(tmp_path / "a", tmp_path / "b", tmp_path / "ours")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "a", "a")
    model.load_adapter(tmp_path / "b", "b")
    model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "both", combination_type="cat")
    model.set_adapter("both")
    ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "ours")
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-5)


def test_layers_that_only_one_side_adapts_are_kept(tiny_llama, tmp_path):
    config = ModelConfig(name_or_path=str(tiny_llama))
    trained(config, None, tmp_path / "one", 1, target_modules=["q_proj"])
    logits = trained(config, tmp_path / "one", tmp_path / "two", 2, target_modules=["v_proj", "down_proj"])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "two").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, logits, atol=1e-5, rtol=1e-5)


def test_a_reward_adapter_on_a_policys_keeps_its_head(tiny_llama, tmp_path):
    config = ModelConfig(name_or_path=str(tiny_llama))
    trained(config, None, tmp_path / "sft", 1)
    scores = trained(config, tmp_path / "sft", tmp_path / "reward", 2, TaskType.SEQ_CLS)
    reloaded = load_scorer(
        source_of(ModelConfig(name_or_path=str(tmp_path / "reward"))), config, load_tokenizer(config)
    ).model.eval()
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1)
    plain.config.pad_token_id = reloaded.config.pad_token_id
    by_peft = PeftModel.from_pretrained(plain, tmp_path / "reward").eval()
    with torch.no_grad():
        torch.testing.assert_close(reloaded(IDS).logits, scores, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(by_peft(IDS).logits, scores, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_joined_is_refused_before_training():
    with pytest.raises(UserError, match="use_dora cannot be joined"):
        lora_config({"r": 4, "use_dora": True}, TaskType.CAUSAL_LM, joined=True)
    assert lora_config({"r": 4, "use_dora": True}, TaskType.CAUSAL_LM, joined=False).use_dora
    with pytest.raises(UserError, match="lora_bias cannot be joined"):  # what it adds stands beside the two matrices
        lora_config({"r": 4, "lora_bias": True}, TaskType.CAUSAL_LM, joined=True)
    with pytest.raises(UserError, match="a regular expression in target_modules"):
        lora_config({"r": 4, "target_modules": ".*(q|v)_proj"}, TaskType.CAUSAL_LM, joined=True)
    with pytest.raises(UserError, match="changes the base model's weights"):
        lora_config({"r": 4, "init_lora_weights": "pissa"}, TaskType.CAUSAL_LM, joined=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0), ("r", "eight"), ("r", True), ("lora_alpha", float("nan")), ("lora_alpha", 0), ("lora_dropout", 2),
        ("lora_dropout", "none"), ("lora_dropout", float("nan")), ("bias", "some"), ("target_modules", 5),
        ("target_modules", {"q_proj": 1}), ("target_modules", [1]), ("modules_to_save", "score"), ("use_rslora", "yes"),
        ("rank_pattern", 3), ("layers_to_transform", "all"), ("init_lora_weights", "zero"),
        ("init_lora_weights", False), ("init_lora_weights", None), ("rank", 4), ("task_type", "CAUSAL_LM"),
        ("inference_mode", True), ("peft_type", "IA3"), ("rank_pattern", {"q_proj": "x"}),
    ],
)  # fmt: skip
def test_a_field_of_the_wrong_kind_is_named(field, value):
    with pytest.raises(UserError, match=rf"model\.adapter.*{field}") as error:
        lora_config({field: value}, TaskType.CAUSAL_LM, joined=False)
    assert "\n" not in str(error.value)


def test_values_that_fit_are_taken():
    config = lora_config(
        {"r": 2, "lora_alpha": 0.5, "lora_dropout": 0, "target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
        TaskType.CAUSAL_LM, joined=False,
    )  # fmt: skip
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 0.5, 0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"target_modules": ["nothing"]}, "model.adapter"),
        (
            {"target_modules": ["q_proj", "k_prj"]},
            "the model has no 'k_prj'; did you mean 'k_proj'?",
        ),
        ({"target_modules": ".*nothing"}, "model.adapter"),
        ({"target_modules": "("}, "model.adapter"),
        ({"modules_to_save": ["nothing"]}, "model.adapter.modules_to_save"),
        ({"target_parameters": ["nothing"]}, "model.adapter.target_parameters"),
        ({"layers_to_transform": [9]}, "model.adapter"),
        ({"r": 10**9}, "GB of memory"),
    ],
)
def test_an_adapter_for_what_the_model_lacks_is_refused(tiny_llama, fields, said):
    config = ModelConfig(name_or_path=str(tiny_llama), adapter=fields)
    model = check_weights(source_of(config), config)
    with pytest.raises(UserError) as error:
        check_attachable(model, lora_config(fields, TaskType.CAUSAL_LM, joined=False))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fields", [{}, {"target_modules": ["self_attn.q_proj"]}, {"target_modules": ".*q_proj"}])
def test_an_adapter_for_what_the_model_has_is_attached(tiny_llama, fields):
    config = ModelConfig(name_or_path=str(tiny_llama), adapter=fields)
    for task in (TaskType.CAUSAL_LM, TaskType.SEQ_CLS):
        model = check_weights(source_of(config), config, LABEL if task == TaskType.SEQ_CLS else CAUSAL_LM)
        check_attachable(model, lora_config(fields, task, joined=False))
