from pathlib import Path

import pytest
import torch
from peft import PeftModel, TaskType
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.config import ModelConfig
from rlhf.errors import UserError
from rlhf.models.adapters import attach, join_adapters, lora_config
from rlhf.models.load import load_policy, load_scorer, source_of
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
    with pytest.raises(UserError, match="a regular expression in target_modules"):
        lora_config({"r": 4, "target_modules": ".*(q|v)_proj"}, TaskType.CAUSAL_LM, joined=True)
    with pytest.raises(UserError, match="changes the base model's weights"):
        lora_config({"r": 4, "init_lora_weights": "pissa"}, TaskType.CAUSAL_LM, joined=False)
    with pytest.raises(UserError, match="r must be a whole number of at least 1, not 0"):
        lora_config({"r": 0}, TaskType.CAUSAL_LM, joined=False)
    with pytest.raises(UserError, match="unexpected keyword argument 'rank'"):
        lora_config({"rank": 4}, TaskType.CAUSAL_LM, joined=False)
