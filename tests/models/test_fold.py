"""A folded model gives the states and gradients of the same model unfolded."""

import copy
import inspect
import os
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf.models.cost import Cost
from rlhf.models.fold import common_prefix, fold
from tests.families import FAMILIES, SMALL, VOCABULARY, causal, scorer

PAD = 1
PROMPT = [5, 9, 30, 31, 8, 12, 44]
PAIRS = {
    "ragged": ([[*PROMPT, 3, 4, 6], [*PROMPT[:3], 20, 21, 22, 23]], [[*PROMPT, 7], [*PROMPT[:3], 24, 25]]),
    "nothing": ([[3, 4, 5], [6, 7]], [[8, 9], [10, 11, 12, 13]]),
    "all-but-one": ([[*PROMPT, 3]], [[*PROMPT, 4]]),
    "identical": ([[*PROMPT, 3], [5, 6]], [[*PROMPT, 3], [5, 6]]),
    "a-prefix": ([[*PROMPT, 3, 4, 6], PROMPT], [PROMPT, [*PROMPT, 50, 51]]),
    "one": ([PROMPT], [[*PROMPT[:6], 50, 51]]),
    "a-token": ([[5], [7, 8]], [[6], [7]]),
}


def batch(rows, side="right"):
    width = max(map(len, rows)) + 2
    ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        span = slice(0, len(tokens)) if side == "right" else slice(width - len(tokens), width)
        ids[row, span], mask[row, span] = torch.tensor(tokens), 1
    return {"input_ids": ids, "attention_mask": mask}


def outcome(model, inputs):
    """Log-probability of each real token, a loss of them, and every gradient."""
    model.zero_grad()
    mask = inputs["attention_mask"].bool()
    logits = model(**inputs, use_cache=False).logits
    if logits.shape[-1] == VOCABULARY:
        wanted = mask[:, 1:] & mask[:, :-1]
        log_probs = logits[:, :-1].log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None]).squeeze(-1)
        values = log_probs * wanted
    else:
        values = logits
    half = len(values) // 2
    sums = values.sum(1)
    loss = -torch.nn.functional.logsigmoid(0.1 * (sums[:half] - sums[half : 2 * half])).mean() + 0.01 * sums.mean()
    loss.backward()
    return (
        loss.detach(),
        values.detach(),
        {name: one.grad for name, one in model.named_parameters() if one.requires_grad},
    )


def assert_same(found, expected, tolerance):
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other, atol=tolerance * max(1.0, float(other.abs().max())), rtol=tolerance)
    scale = max(float(grad.abs().max()) for grad in expected[2].values() if grad is not None)
    for name, grad in expected[2].items():
        if grad is None:
            assert found[2][name] is None
            continue
        torch.testing.assert_close(found[2][name], grad, atol=tolerance * scale, rtol=tolerance)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pairs(family, case, side):
    chosen, rejected = PAIRS[case]
    inputs = batch([*chosen, *rejected], side)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        model = causal(family, dtype)
        expected = outcome(model, inputs)
        if not expected[0].isfinite():  # transformers' eager mask overflows in float64 where a whole row is masked
            assert (family, side, dtype) == ("gemma2", "left", torch.float64)
            continue
        with fold(model) as folded:
            assert folded.reason is None
            assert_same(outcome(model, inputs), expected, tolerance)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gpt2", "gemma2"])
def test_reward_models(family):
    inputs = batch([one for side in PAIRS["ragged"] for one in side])
    model = scorer(family)
    expected = outcome(model, inputs)
    with fold(model) as folded:
        assert folded.reason is None
        assert_same(outcome(model, inputs), expected, 1e-5)


class Seen:
    """Shapes of the token ids that a backbone's embedding sees."""

    def __init__(self, model):
        self.shapes = []
        model.get_input_embeddings().register_forward_pre_hook(lambda _, args: self.shapes.append(tuple(args[0].shape)))


def test_what_is_shared_is_computed_once():
    model = causal("llama")
    inputs = batch([[*PROMPT, 3], [*PROMPT, 4, 6]])
    with fold(model, by_length=False):
        seen = Seen(model)
        outcome(model, inputs)
    assert seen.shapes == [(1, 7 + 1 + 2)]
    outcome(model, inputs)
    assert seen.shapes[1:] == [(2, 11)]  # as it was, two places of padding included


def test_groups_of_any_size_and_layout():
    """Rows i, i + R/G, i + 2R/G … are a group: here two groups of four."""
    others = [[40, 41, 42, 43, 44, 45]]
    rows = [row for tail in ([3], [4, 6], [7, 8, 9], []) for row in ([*PROMPT, *tail], [*others[0], *tail])]
    inputs = batch(rows)
    model = causal("llama", torch.float64)
    expected = outcome(model, inputs)
    seen = Seen(model)
    with fold(model, group_size=4, by_length=False):
        assert_same(outcome(model, inputs), expected, 1e-6)
    assert seen.shapes[-1] == (2, 7 + 1 + 2 + 3)
    with fold(model, group_size=8):
        assert_same(outcome(model, inputs), expected, 1e-6)


def test_rows_of_like_length_run_together():
    model = causal("llama")
    rows = [[5] * length for length in (3, 50, 4, 52)]
    expected = outcome(model, batch(rows))
    with fold(model, group_size=1):
        model.base_model._fold.cost = Cost(parameters=1e4, width=32, calls=2e5, gradients=0, pairs=4)
        seen = Seen(model)
        assert_same(outcome(model, batch(rows)), expected, 1e-5)
    assert sorted(seen.shapes) == [(2, 4), (2, 52)]


def test_little_in_common_is_not_worth_a_mask():
    model = causal("llama")
    with fold(model, by_length=False):
        seen = Seen(model)
        outcome(model, batch([[5, *[6] * 50], [5, *[7] * 50]]))
    assert seen.shapes == [(2, 51)]


def test_padding_and_companions_change_nothing():
    model = causal("llama").eval()
    with torch.no_grad(), fold(model):
        alone = model(**batch([[*PROMPT, 3], [*PROMPT, 4]])).logits
        among = model(**batch([[*PROMPT, 3], [9] * 40, [*PROMPT, 4], [9] * 30])).logits
    torch.testing.assert_close(among[0, :8], alone[0, :8], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(among[2, :8], alone[1, :8], atol=1e-5, rtol=1e-5)
    assert among.isfinite().all()


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    model = causal("llama")
    inputs = batch([one for side in PAIRS["ragged"] for one in side])
    expected = outcome(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    with fold(model):
        assert_same(outcome(model, inputs), expected, 1e-5)


def test_bf16_autocast():
    """The gradient differs from that of float32 by no more than the unfolded one's does."""
    model = causal("llama")
    inputs = batch([one for side in PAIRS["ragged"] for one in side])
    exact = outcome(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        plain = outcome(model, inputs)
        with fold(model):
            folded = outcome(model, inputs)
    off, own = (
        sum(float((one[2][name] - grad).norm() ** 2) for name, grad in exact[2].items()) ** 0.5
        for one in (plain, folded)
    )
    assert own < 1.5 * off


def test_an_adapter():
    model = get_peft_model(causal("llama"), LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM"))
    inputs = batch([one for side in PAIRS["ragged"] for one in side])
    expected = outcome(model, inputs)
    with fold(model):
        assert_same(outcome(model, inputs), expected, 1e-5)
        with model.disable_adapter():
            bare = model(**inputs).logits
    with model.disable_adapter():
        torch.testing.assert_close(bare[0, :10], model(**inputs).logits[0, :10], atol=1e-5, rtol=1e-5)


def test_given_positions_count():
    model = causal("gpt2", torch.float64)
    inputs = batch([[*PROMPT, 3], [*PROMPT, 4]])
    inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None] + torch.tensor([[5], [5]])
    expected = outcome(model, inputs)
    with fold(model):
        assert_same(outcome(model, inputs), expected, 1e-6)
        inputs["position_ids"][1] += 1  # the same tokens elsewhere are not the same
        moved = outcome(model, inputs)
    assert_same(moved, outcome(model, inputs), 1e-6)


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


def test_refusals():
    model = causal("llama")
    with pytest.raises(ValueError, match="at least 1"):
        fold(model, group_size=0)
    with fold(model), pytest.raises(ValueError, match="folded already"):
        fold(model)
    fold(model).remove()


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


def test_a_window_shorter_than_a_row(capsys):
    model = causal("mistral")
    long = batch([[*[5] * 80, 3], [*[5] * 80, 4]])
    expected = outcome(model, long)
    with fold(model):
        assert_same(outcome(model, long), expected, 0)
        assert "sliding-window attention over 64 tokens" in capsys.readouterr().err


def test_an_adapter_that_learns_a_prompt_is_refused(capsys):
    model = get_peft_model(causal("llama"), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    assert "learns a prompt" in fold(model).reason
    assert "learns a prompt" in capsys.readouterr().err
    assert "forward" not in vars(model.get_base_model().base_model)


def test_common_prefix():
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert common_prefix([[1, 2], [1, 2]]) == 2
    assert common_prefix([[1], [2]]) == 0
    assert common_prefix([[1, 2, 3]]) == 3


def test_weights_spread_over_processes(root):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(root / "tests/models/sharded_by_hand.py")], capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal") == 2
