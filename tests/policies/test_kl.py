"""Divergence of models that share no prompt, or whose head sits on another module than the backbone."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BartConfig, OpenAIGPTConfig, OPTConfig, RwkvConfig, set_seed

from rlhf.policies.completion import Completion
from rlhf.policies.kl import sequence_kl
from tests.support.families import causal
from tests.support.models import strengthened

PROMPT, COMPLETIONS = [5, 9, 30, 31, 8], [[31, 32, 33], [40, 41], [50, 51, 52, 53, 54]]
SMALL = {"vocab_size": 60, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
MODELS = {
    "opt": OPTConfig(
        **SMALL, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4
    ),
    "bart": BartConfig(
        **SMALL, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48, is_decoder=True,
        is_encoder_decoder=False,
    ),
    "rwkv": RwkvConfig(**SMALL, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32),
    "openai-gpt": OpenAIGPTConfig(**SMALL, n_embd=32, n_layer=2, n_head=4),
}  # fmt: skip


def drawn(family, seed):
    if family == "llama":
        return strengthened(causal(family).eval(), 1.0 + seed)
    set_seed(seed)
    return strengthened(AutoModelForCausalLM.from_config(MODELS[family]).eval(), 3.0)


@torch.no_grad()
def by_hand(policy, reference, completion):
    ids = torch.tensor([[*PROMPT, *completion]])
    ours, theirs = (model(ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1) for model in (policy, reference))
    return float((ours.exp() * (ours - theirs)).sum())


@pytest.mark.parametrize("family", ["llama", *MODELS])
def test_each_completion_by_itself(family):
    models = [drawn(family, seed) for seed in (0, 1)]
    result = sequence_kl(*models, [PROMPT], [[Completion(ids, finished=False) for ids in COMPLETIONS]])[0]
    assert result == pytest.approx([by_hand(*models, ids) for ids in COMPLETIONS], rel=1e-4)
    assert min(result) > 0.01
