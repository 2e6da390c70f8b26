"""Which calls of a folded model are folded, what takes a fold off, and what becomes of it in a copy."""

import copy
import inspect
import io

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, FalconConfig, GPT2Config, LlamaConfig, OPTConfig

from rlhf.prefix_sharing.fold import fold, is_folded, unfold
from tests.prefix_sharing.test_fold import PROMPT, Seen, assert_same, batch, outcome
from tests.support.families import SMALL, VOCABULARY, causal, scorer


def decoded(model, steps=4):
    """Greedy tokens of a loop by hand that relies on the config's cache."""
    ids, past, found = torch.tensor([PROMPT, [9, *PROMPT[1:]]]), None, []
    for _ in range(steps):
        output = model(input_ids=ids, past_key_values=past)
        past, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
        found.append(ids)
    return torch.cat(found, 1)


def test_a_cache_that_the_config_promises():
    model = causal("llama").eval()
    expected = decoded(model)
    inputs = batch([[*PROMPT, 3], [*PROMPT, 4]])
    with fold(model):
        assert torch.equal(decoded(model), expected)
        with torch.no_grad():
            assert torch.equal(decoded(model.train()), expected)
        seen = Seen(model)
        model(**inputs)  # with gradients, in training: nobody decodes
        model.eval()(**inputs, use_cache=False)
        model.config.use_cache = False
        model(**inputs)
        assert seen.shapes == [(1, 9)] * 3
    judge = scorer("llama").eval()
    with torch.no_grad(), fold(judge):  # nobody decodes with a classifier
        seen = Seen(judge)
        judge(**inputs)
    assert seen.shapes == [(1, 9)]


def test_outputs_that_the_config_asks_for():
    inputs = batch([[*PROMPT, 3], [*PROMPT, 4]])
    for name, kept in (("output_hidden_states", "hidden_states"), ("output_attentions", "attentions")):
        model = causal("llama", attention="eager")
        setattr(model.config, name, True)
        expected = getattr(model(**inputs), kept)
        with fold(model):
            found = getattr(model(**inputs), kept)
        assert len(found) == len(expected) > 0
        assert all(map(torch.equal, found, expected))
    backbone = causal("llama").base_model
    with fold(backbone):
        backbone.config.return_dict = False
        assert isinstance(backbone(**inputs), tuple)


def test_generation_and_other_outputs_are_as_they_were():
    model = causal("llama").eval()
    ids = torch.tensor([PROMPT, PROMPT])
    expected = model.generate(ids, max_new_tokens=5, do_sample=False)
    hidden = model(ids, output_hidden_states=True).hidden_states
    with fold(model):
        assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), expected)
        assert len(model(ids, output_hidden_states=True).hidden_states) == len(hidden)
        assert model(ids, use_cache=True).past_key_values is not None
        assert model(ids[:1]).logits.shape == (1, 7, VOCABULARY)  # no pair: as it is


def test_the_signature_stays():
    """Generation asks it whether a model takes positions."""
    model = causal("llama")
    signature = inspect.signature(model.base_model.forward)
    with fold(model):
        assert inspect.signature(model.base_model.forward) == signature


def test_a_copy_is_folded_by_itself():
    """A copy computes with its own weights: a replaced method must not be bound to the original."""
    model = causal("llama")
    inputs = batch([[*PROMPT, 3], [*PROMPT, 4]])
    with fold(model):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()
        assert outcome(twin, inputs)[1].abs().max() > 1
        assert twin.base_model._fold is not model.base_model._fold


def test_a_copy_is_unfolded_by_itself():
    model = causal("llama")
    inputs = batch([[*PROMPT, 3], [*PROMPT, 4]])
    expected = outcome(model, inputs)
    fold(model)
    twin = copy.deepcopy(model)
    unfold(twin)
    unfold(twin)
    assert not is_folded(twin)
    assert "forward" not in vars(twin.base_model)
    assert is_folded(model)
    assert_same(outcome(twin, inputs), expected, 0)


def test_a_folded_model_is_pickled_and_loaded():
    model = causal("llama")
    inputs = batch([[*PROMPT, 3], [*PROMPT, 4]])
    expected = outcome(model, inputs)
    fold(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    seen = Seen(loaded)
    assert_same(outcome(loaded, inputs), expected, 1e-5)
    assert seen.shapes == [(1, 9)]
    assert inspect.signature(loaded.base_model.forward) == inspect.signature(causal("llama").base_model.forward)
    unfold(loaded)
    assert_same(outcome(loaded, inputs), expected, 0)


def test_what_was_wrapped_before_is_put_back():
    model = causal("llama")
    calls = []
    plain = model.base_model.forward

    def counted(*args, **kwargs):
        calls.append(1)
        return plain(*args, **kwargs)

    model.base_model.forward = counted
    with fold(model):
        outcome(model, batch([[*PROMPT, 3], [*PROMPT, 4]]))
    assert calls
    assert model.base_model.forward is counted


def test_a_reason_is_said_once_and_the_model_runs_on(capsys):
    config = LlamaConfig(**SMALL, attention_dropout=0.5)
    model = AutoModelForCausalLM.from_config(config).train()
    inputs = batch([[*PROMPT, 3], [*PROMPT, 4]])
    with fold(model):
        outcome(model, inputs)
        outcome(model, inputs)
        assert capsys.readouterr().err.count("runs unfolded: dropout") == 1
        seen = Seen(model)
        model.eval()
        outcome(model, inputs)
        assert seen.shapes[0][0] == 1  # without dropout it shares


def alike(model):
    """Whether two equal rows get the same states in training: they do if they are computed once."""
    ids = torch.tensor([PROMPT, PROMPT])
    one, other = model.train()(ids, use_cache=False).logits
    return torch.equal(one, other)


def test_dropout_that_comes_and_goes(capsys):
    """Trainers switch it off after a model is folded, and adapters bring their own."""
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config)
    fold(model)
    seen = Seen(model)
    assert not alike(model)
    assert seen.shapes == [(2, 7)]
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    state = torch.get_rng_state()
    assert alike(model)  # though the config still names it
    assert seen.shapes[-1] == (1, 7)
    assert torch.equal(torch.get_rng_state(), state)
    adapted = get_peft_model(
        model, LoraConfig(lora_dropout=0.5, init_lora_weights=False, task_type="CAUSAL_LM", fan_in_fan_out=True)
    )
    assert not alike(adapted)
    assert seen.shapes[-1] == (2, 7)
    assert capsys.readouterr().err.count("runs unfolded: dropout") == 1


def test_dropout_in_functions_and_in_the_config():
    falcon = FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                          attention_dropout=0.0, hidden_dropout=0.1, bos_token_id=None, eos_token_id=2)  # fmt: skip
    model = AutoModelForCausalLM.from_config(falcon)
    for module in model.modules():
        if hasattr(module, "hidden_dropout"):
            module.hidden_dropout = 0.0
    fold(model)
    assert not alike(model)
    opt = OPTConfig(vocab_size=VOCABULARY, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2,
                    num_attention_heads=4, dropout=0.1, pad_token_id=1, bos_token_id=0, eos_token_id=2)  # fmt: skip
    backbone = AutoModelForCausalLM.from_config(opt).base_model.train()
    fold(backbone)
    one, other = backbone(torch.tensor([PROMPT, PROMPT]), use_cache=False).last_hidden_state
    assert not torch.equal(one, other)
