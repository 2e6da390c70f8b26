"""A folded model gives the states and gradients of the same model unfolded."""

import os
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, Phi3Config

from rlhf.prefix_sharing.cost_model import Cost
from rlhf.prefix_sharing.fold import common_prefix, fold
from tests.support.architectures import built
from tests.support.families import FAMILIES, SMALL, VOCABULARY, causal, scorer
from tests.support.models import strengthened

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
        seen = Seen(model)
        alone = model(**batch([[*PROMPT, 3], [*PROMPT, 4]]), use_cache=False).logits
        among = model(**batch([[*PROMPT, 3], [9] * 40, [*PROMPT, 4], [9] * 30]), use_cache=False).logits
    assert seen.shapes[0] == (1, 9)
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
            bare = model(**inputs, use_cache=False).logits
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


def learned_positions(count):
    """A GPT-2 that has so many, large enough that sharing pays."""
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=1, n_head=4, n_inner=512, n_positions=count,
                        bos_token_id=None, eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
    return strengthened(AutoModelForCausalLM.from_config(config), 4.0)


MIXED = [[*[5] * 24, *[6] * 32], [7, 8], [*[5] * 24, *[9] * 32], [7, 8]]
"""A pair whose row is longer than any sequence, and one without tails to part."""


def test_padding_does_not_reach_beyond_the_positions_there_are():
    model = learned_positions(58)
    expected = outcome(model, batch(MIXED))
    with fold(model, by_length=False):
        seen = Seen(model)
        assert_same(outcome(model, batch(MIXED)), expected, 1e-5)
    assert seen.shapes[-1] == (2, 24 + 32 + 32)


def test_padding_does_not_change_a_rotation_that_depends_on_length():
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "rope_theta": 1e4}
    config = Phi3Config(
        **{**SMALL, "hidden_size": 64, "intermediate_size": 256}, rope_parameters=factors,
        original_max_position_embeddings=58,
    )  # fmt: skip
    model = strengthened(AutoModelForCausalLM.from_config(config), 4.0)
    expected = outcome(model, batch(MIXED))
    with fold(model, by_length=False) as folded:
        assert_same(outcome(model, batch(MIXED)), expected, 1e-5)
        assert not folded.said
        late = {**batch(MIXED), "position_ids": torch.arange(58)[None] + 20}
        moved = outcome(model, late)
        assert "rotary embedding of type longrope" in folded.said.pop()
    assert_same(moved, outcome(model, late), 0)


@pytest.mark.parametrize("group_size", [1, 2])
def test_columns_given_as_positions(group_size):
    """Padded on the left, a short row begins late: what pads it on the right must not count on."""
    model = learned_positions(60)
    inputs = batch([[*[5] * 54, 3, 4, 5, 6], [7, 8, 9]], "left")
    inputs["position_ids"] = torch.arange(60)[None]
    expected = outcome(model, inputs)
    with fold(model, group_size, by_length=False):
        assert_same(outcome(model, inputs), expected, 1e-5)


def test_no_rows_at_all():
    backbone = causal("llama").base_model
    empty = torch.zeros(0, 3, dtype=torch.long)
    with fold(backbone), pytest.raises(RuntimeError, match="0 elements"):  # transformers' own
        backbone(empty)


def test_refusals():
    model = causal("llama")
    with pytest.raises(ValueError, match="at least 1"):
        fold(model, group_size=0)
    with fold(model), pytest.raises(ValueError, match="folded already"):
        fold(model)
    fold(model).remove()


def test_a_window_shorter_than_a_row(capsys):
    model = causal("mistral")
    long = batch([[*[5] * 80, 3], [*[5] * 80, 4]])
    expected = outcome(model, long)
    with fold(model):
        assert_same(outcome(model, long), expected, 0)
        assert "attention over at most 64 tokens (sliding_window)" in capsys.readouterr().err


@pytest.mark.parametrize("length", [20, 12])
def test_a_model_that_counts_columns(length, capsys):
    """GPT-Neo: sequences within its window and its positions, of which a row of two is beyond them, run apart."""
    model = strengthened(built("gpt_neo", window_size=16, max_position_embeddings=24, vocab_size=VOCABULARY), 4.0)
    pairs = batch([[*range(10), *[reply] * (length - 10)] for reply in (20, 30)])
    expected = outcome(model, pairs)
    with fold(model):
        assert_same(outcome(model, pairs), expected, 1e-5)
        assert ("(window_size)" in capsys.readouterr().err) == (length > 16)
    wide = batch([[*range(10), *[reply] * 6] for reply in (20, 30)])
    expected = outcome(model, wide)
    with fold(model) as folded:
        assert folded.reason is None
        assert_same(outcome(model, wide), expected, 1e-5)


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


def test_weights_sharded_over_processes(root):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(root / "tests/support/sharded.py")], capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal") == 2
