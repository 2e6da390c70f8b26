"""Models that cannot share prompts are recognised, each by its reason."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BioGptConfig,
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Starcoder2Config,
)
from transformers.integrations.neftune import activate_neftune

from rlhf.prefix_sharing.support import dropout, folding_check, is_noisy, noise_settings, packing_check, why_not, widest
from tests.support.architectures import built
from tests.support.families import FAMILIES, causal
from tests.support.models import strengthened, strong

SMALL = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LIKE_LLAMA = {**SMALL, "intermediate_size": 16, "num_key_value_heads": 1}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (LlamaConfig(**LIKE_LLAMA), None),
        (GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2), None),
        (MistralConfig(**LIKE_LLAMA, sliding_window=None), None),
        (MistralConfig(**LIKE_LLAMA, sliding_window=8), "attention over at most 8 tokens (sliding_window)"),
        (Qwen2Config(**LIKE_LLAMA), None),
        (
            Qwen2Config(**LIKE_LLAMA, use_sliding_window=True, sliding_window=8, max_window_layers=1),
            "attention over at most 8 tokens (sliding_window)",
        ),
        (
            Gemma3TextConfig(
                **LIKE_LLAMA, head_dim=8, layer_types=["sliding_attention", "full_attention"], sliding_window=8
            ),
            "attention over at most 8 tokens (sliding_window)",
        ),
        (BloomConfig(vocab_size=20, hidden_size=16, n_layer=2, n_head=2), "bloom"),
        (MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, state_size=4), "of type linear_attention"),
        (
            LlamaConfig(**LIKE_LLAMA, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
            "type dynamic",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "model_type", None),
)
def test_who_cannot_share(config, reason):
    found = why_not(AutoModelForCausalLM.from_config(config))
    assert found is None if reason is None else reason in found


def test_a_window_that_is_named_and_not_used():
    model = AutoModelForCausalLM.from_config(Qwen2Config(**LIKE_LLAMA))
    model.config.sliding_window, model.config.use_sliding_window = 8, False
    assert why_not(model) is None


def test_attention_that_takes_no_mask_of_pairs(tiny_llama):
    model = strong(tiny_llama)
    assert why_not(model) is None
    model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in why_not(model)


def test_a_window_hides_nothing_from_shorter_rows():
    model = AutoModelForCausalLM.from_config(MistralConfig(**LIKE_LLAMA, sliding_window=8))
    assert why_not(model, longest=8) is None
    assert "at most 8 tokens" in why_not(model, longest=9)


@pytest.mark.parametrize(("name", "setting"), [
    ("gpt_neo", "window_size"), ("doge", "keep_window_size"), ("mistral", "sliding_window"),
])  # fmt: skip
def test_a_window_of_any_name(name, setting):
    model = built(name, **{setting: 16})
    assert f"at most 16 tokens ({setting})" in why_not(model)
    assert why_not(model, longest=16) is None
    assert f"({setting})" in why_not(model, longest=17)
    assert folding_check(model.base_model) is None  # within the window all is well
    assert widest(model) == (None if name == "mistral" else 16)


def test_a_window_in_a_config_within():
    config = LlamaConfig(**LIKE_LLAMA)
    config.attn_config = {"heads": 2, "local": {"window_size": 16}}
    assert "at most 16 tokens (window_size)" in why_not(AutoModelForCausalLM.from_config(config))


def test_a_table_of_columns_bounds_a_row():
    assert widest(built("gpt_neo", window_size=64, max_position_embeddings=32)) == 32
    assert widest(built("bert", max_position_embeddings=32)) == 32  # token types, by column
    assert widest(built("gpt2", n_positions=32)) is None


def test_a_trial_finds_a_window_without_a_name():
    model = strengthened(built("gpt_neo", window_size=24), 4.0)
    model.config.window_size = 0
    assert why_not(model) is None
    assert "states change by" in folding_check(model.base_model)


def test_a_rotation_that_depends_on_length_is_plain_up_to_its_limit():
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4}
    config = Phi3Config(
        **LIKE_LLAMA, rope_parameters=factors, original_max_position_embeddings=16, max_position_embeddings=64,
        pad_token_id=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    assert why_not(model, longest=16) is None
    assert "type longrope" in why_not(model, longest=17)


def test_an_encoder_is_not_causal():
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert why_not(BertForSequenceClassification(BertConfig(**sizes, intermediate_size=16))) == (
        "attention that is not causal"
    )


GPT2 = {"vocab_size": 20, "n_embd": 16, "n_layer": 2, "n_head": 2}
FALCON = {**SMALL, "attention_dropout": 0.0}
OPT = {**SMALL, "word_embed_proj_dim": 16, "ffn_dim": 16, "attention_dropout": 0.0}
STARCODER = {**LIKE_LLAMA, "sliding_window": None, "embedding_dropout": 0.0}
BIOGPT = {**SMALL, "intermediate_size": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
NOISE = {
    "attention": (LlamaConfig(**LIKE_LLAMA), LlamaConfig(**LIKE_LLAMA, attention_dropout=0.1)),
    "modules": (
        GPT2Config(**GPT2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, summary_first_dropout=0.0),
        GPT2Config(**GPT2),
    ),
    "functions": (OPTConfig(**OPT, dropout=0.0), OPTConfig(**OPT, dropout=0.1)),
    "layers": (OPTConfig(**OPT, dropout=0.0), OPTConfig(**OPT, dropout=0.0, layerdrop=0.1)),
    "residual": (Starcoder2Config(**STARCODER), Starcoder2Config(**STARCODER, residual_dropout=0.1)),
    "activations": (BioGptConfig(**BIOGPT), BioGptConfig(**BIOGPT, activation_dropout=0.1)),
    "router": (
        MixtralConfig(**LIKE_LLAMA, num_local_experts=2),
        MixtralConfig(**LIKE_LLAMA, num_local_experts=2, router_jitter_noise=0.1),
    ),
}


@pytest.mark.parametrize("kind", NOISE)
def test_noise_of_any_kind(kind):
    """In layers as modules, or as probabilities that their functions read."""
    still, noisy = (AutoModelForCausalLM.from_config(config).base_model for config in NOISE[kind])
    assert dropout(still) is None
    assert noise_settings(still.config) == ()
    assert "dropout" in dropout(noisy)


def test_noise_of_embeddings(tiny_llama):
    """NEFTune's, whose scale depends on the length of the row besides."""
    model = strong(tiny_llama)
    activate_neftune(model, 5.0)
    assert "noise" in dropout(model.base_model)


def test_noise_that_only_the_config_names():
    """Falcon's layers read the config when they run, whatever was switched off in them; GPT-2's do not."""
    falcon = AutoModelForCausalLM.from_config(FalconConfig(**FALCON, hidden_dropout=0.1)).base_model.train()
    assert "dropout" in dropout(falcon)
    for module in falcon.modules():
        if hasattr(module, "hidden_dropout"):
            module.hidden_dropout = 0.0
    assert dropout(falcon) is None
    assert noise_settings(falcon.config) == (("hidden_dropout", 0.1),)
    state = torch.get_rng_state()
    assert is_noisy(falcon, falcon.forward)
    assert torch.equal(torch.get_rng_state(), state)  # what is drawn in training is what it would have been
    assert not is_noisy(falcon.eval(), falcon.forward)
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(**GPT2)).base_model.train()
    assert is_noisy(gpt2, gpt2.forward)
    for module in gpt2.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert dropout(gpt2) is None
    assert noise_settings(gpt2.config)
    assert not is_noisy(gpt2, gpt2.forward)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trial_passes_whom_settings_pass(family):
    backbone = causal(family).base_model
    assert folding_check(backbone) is None
    assert packing_check(backbone) is None
    assert backbone.training


def test_a_trial_finds_positions_of_the_models_own(tiny_gpt2):
    """Whatever positions it is given, this one counts columns."""
    backbone = strong(tiny_gpt2).base_model
    plain = backbone.forward
    backbone.forward = lambda *args, position_ids=None, **kwargs: plain(*args, **kwargs)
    assert "states change by" in folding_check(backbone)
    assert "states change by" in packing_check(backbone)


def test_states_that_run_through_a_row_cannot_be_packed():
    config = MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, state_size=4)
    model = strengthened(AutoModelForCausalLM.from_config(config))
    assert packing_check(model.base_model) is not None


def test_a_trial_finds_what_raises():
    backbone = AutoModelForCausalLM.from_config(
        BloomConfig(vocab_size=20, hidden_size=16, n_layer=1, n_head=2)
    ).base_model
    reason = folding_check(backbone)
    assert "does not take several sequences in a row" in reason or "states change" in reason
