"""Which models DDP need not search for weights without a gradient."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, MixtralConfig, TrainingArguments

from rlhf.training.reached import reaches_every_weight, search_if_needed


@pytest.fixture
def model(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama)


def test_a_decoder_reaches_all_of_its_weights_whole_or_adapted(model, tiny_llama):
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    assert reaches_every_weight(model)
    assert all(torch.equal(weight, before[name]) and weight.grad is None for name, weight in model.named_parameters())
    assert reaches_every_weight(AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1))
    assert reaches_every_weight(get_peft_model(model, LoraConfig(r=2)))


def test_a_weight_that_is_not_reached_counts_if_it_is_trained(model):
    model.spare = torch.nn.Linear(2, 2)
    assert not reaches_every_weight(model)
    model.spare.requires_grad_(False)
    assert reaches_every_weight(model)


def test_a_router_may_reach_others_with_the_next_text():
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(**small, vocab_size=32, num_key_value_heads=2, num_local_experts=2)
    assert not reaches_every_weight(AutoModelForCausalLM.from_config(config))


def test_what_takes_no_text_is_searched():
    assert not reaches_every_weight(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("given", [None, True, False])
def test_what_the_user_sets_stays(model, tmp_path, given):
    args = TrainingArguments(str(tmp_path), ddp_find_unused_parameters=given, use_cpu=True)
    search_if_needed(args, model)
    assert args.ddp_find_unused_parameters is (False if given is None else given)
