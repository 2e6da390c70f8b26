import contextlib

import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, MistralConfig

from rlhf.policies.completion import row_seed
from rlhf.policies.sampler import TransformersSampler
from rlhf.prefix_sharing.head import completion_log_probs
from rlhf.prefix_sharing.layout import lay_out
from tests.support.models import strengthened, strong

PROMPTS = [[5, 9, 30], [8, 12, 44, 45, 46, 60, 61], [7], [15, 16, 17, 18, 19], [9, 9, 9]]
SEEDS = [[10 * prompt + sample for sample in range(3)] for prompt in range(5)]
PAD = 1


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gpt2"])
def model(request):
    return strong(request.getfixturevalue(request.param))


def sampler(model, **settings):
    return TransformersSampler(**{"model": model, "stop_ids": [0], "pad_id": PAD, "max_new_tokens": 8, **settings})


def ids(completions):
    return [[completion.ids for completion in row] for row in completions]


@contextlib.contextmanager
def logits(model, change):
    """Within, the head's output goes through `change`."""
    handle = model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: change(output))
    yield
    handle.remove()


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_greedy_is_generate(model, batch_size):
    results = sampler(model, temperature=0.0, batch_size=batch_size)(PROMPTS, [[0]] * 5)
    for prompt, (completion,) in zip(PROMPTS, results, strict=True):
        row = torch.tensor([prompt])
        settings = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": 0, "pad_token_id": PAD}
        expected = model.generate(row, attention_mask=torch.ones_like(row), **settings)
        assert completion.ids == expected[0, len(prompt) :].tolist()
    assert len({tuple(completion.ids) for (completion,) in results}) == 5


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_log_probs_and_entropies_are_those_of_a_full_forward_pass(model, temperature):
    completions = sampler(model, temperature=temperature, batch_size=9)(PROMPTS, SEEDS)
    folded = lay_out(PROMPTS, ids(completions), PAD)
    with torch.no_grad():
        log_probs, entropies = completion_log_probs(model, folded, temperature, entropies=True)
    flat = [completion for row in completions for completion in row]
    for row, completion in enumerate(flat):
        end = len(completion.ids)
        torch.testing.assert_close(torch.tensor(completion.log_probs), log_probs[row, :end], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.tensor(completion.entropies), entropies[row, :end], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_frequencies_follow_the_distribution(model, temperature):
    count = 4000
    prompts = [PROMPTS[0], PROMPTS[2]]  # one of them padded
    seeds = [[row_seed(temperature, prompt, number) for number in range(count)] for prompt in range(2)]
    results = sampler(model, temperature=temperature, max_new_tokens=1, batch_size=2 * count)(prompts, seeds)
    for prompt, row in zip(prompts, results, strict=True):
        with torch.no_grad():
            probs = (model(torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(-1)
        counts = torch.bincount(torch.tensor([completion.ids[0] for completion in row]), minlength=len(probs)).double()
        common = count * probs >= 5
        observed = torch.cat([counts[common], counts[~common].sum()[None]])
        expected = count * torch.cat([probs[common], probs[~common].sum()[None]])
        assert len(observed) > 10
        assert chisquare(observed.tolist(), expected.tolist()).pvalue > 0.001


def test_the_steps_of_a_completion_are_independent(model):
    """Of 352 equally likely tokens: pairs of first and second token fill a 4 × 4 table evenly."""
    with logits(model, lambda output: torch.zeros_like(output[..., :352])):
        results = sampler(model, stop_ids=[], max_new_tokens=2, batch_size=4000)([[5]], [list(range(4000))])
    pairs = torch.tensor([completion.ids for completion in results[0]]) // 88
    table = torch.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16)
    assert chisquare(table.tolist()).pvalue > 0.001


def test_a_token_that_is_ruled_out_is_never_drawn(model):
    with logits(model, lambda output: output.index_fill(-1, torch.arange(10, 350), float("-inf"))):
        results = sampler(model, stop_ids=[], batch_size=200)(PROMPTS[:1], [list(range(200))])
    assert {token for completion in results[0] for token in completion.ids} <= {*range(10), *range(350, 355)}
    assert all(torch.tensor(completion.entropies).isfinite().all() for completion in results[0])


@pytest.mark.parametrize(("noise", "drawn"), [(0.0, [1, 0]), (0.6, [3, 2]), (1 - 2**-53, [3, 2])])
def test_nor_at_the_edges_of_the_noise(noise, drawn):
    out = float("-inf")
    edges = torch.tensor([[out, 0.0, 1.0, 2.0, out], [0.3, out, 0.3, out, out]])
    tokens, log_probs, _ = sampler(None)._draw(edges, torch.full((2,), noise, dtype=torch.float64))
    assert tokens.tolist() == drawn
    assert log_probs.isfinite().all()


def test_a_completion_depends_on_its_seed_and_prompt_alone(model):
    whole = ids(sampler(model)(PROMPTS, SEEDS))
    for batch_size in (1, 4, 7):
        assert ids(sampler(model, batch_size=batch_size)(PROMPTS, SEEDS)) == whole
    order = [3, 0, 4, 2, 1]
    mixed = sampler(model, batch_size=6)([PROMPTS[i] for i in order], [SEEDS[i] for i in order])
    assert ids(mixed) == [whole[i] for i in order]
    for prompt, seeds, row in zip(PROMPTS, SEEDS, whole, strict=True):
        for seed, completion in zip(seeds, row, strict=True):
            assert ids(sampler(model)([prompt], [[seed]])) == [[completion]]
    longer = ids(sampler(model, max_new_tokens=12)(PROMPTS, SEEDS))
    assert [[tokens[:8] for tokens in row] for row in longer] == whole
    assert len({tuple(tokens) for row in whole for tokens in row}) == 15  # each seed its own completion


def test_every_stop_token_ends_a_reply(model):
    free = ids(sampler(model, stop_ids=[])(PROMPTS, SEEDS))
    assert all(len(tokens) == 8 for row in free for tokens in row)
    stops = [free[0][0][2], free[1][1][4]]
    results = sampler(model, stop_ids=stops)(PROMPTS, SEEDS)
    for row, whole in zip(results, free, strict=True):
        for completion, full in zip(row, whole, strict=True):
            ends = [place for place, token in enumerate(full) if token in stops]
            assert completion.finished == bool(ends)
            assert completion.ids == full[: ends[0] + 1 if ends else 8]
            assert len(completion.log_probs) == len(completion.entropies) == len(completion.ids)
    assert results[0][0].finished
    assert results[1][1].finished
    assert not all(completion.finished for row in results for completion in row)


def test_limits(model):
    assert all(len(tokens) == 1 for row in ids(sampler(model, max_new_tokens=1)(PROMPTS, SEEDS)) for tokens in row)
    stop = ids(sampler(model, stop_ids=[], max_new_tokens=1)(PROMPTS[:1], [[5]]))[0][0][0]
    last = sampler(model, stop_ids=[stop], max_new_tokens=1)(PROMPTS[:1], [[5]])[0][0]
    assert last.finished  # the end token at the limit is an end


@pytest.fixture
def shapes(model):
    """Shapes of what the model is called with."""
    seen: list[tuple[int, int]] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield seen
    handle.remove()


def test_finished_completions_leave_the_batch(model, shapes):
    """Half of all tokens end a completion, so most rows are gone after a few steps."""
    results = sampler(model, stop_ids=range(0, 1000, 2), max_new_tokens=32)([[5]], [list(range(64))])
    assert shapes[0] == (1, 1)  # the prompt
    steps = [rows for rows, _ in shapes[1:]]
    assert steps == sorted(steps, reverse=True)
    written = sum(len(completion.ids) for completion in results[0])
    assert steps[0] < 64
    assert sum(steps) <= 1.25 * written
    assert len(steps) == max(len(completion.ids) for completion in results[0]) - 1


def test_a_prompt_is_computed_once_for_all_its_samples(model, shapes):
    sampler(model, stop_ids=[], max_new_tokens=2)([[5, 6, 7, 8], [9, 8, 7, 6]], [list(range(8))] * 2)
    assert shapes == [(2, 4), (16, 1)]


@pytest.mark.parametrize("batch_size", [2, 64])
def test_a_model_with_a_window_writes_what_generate_writes(batch_size):
    """Its cache is transformers' own."""
    config = MistralConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = strengthened(AutoModelForCausalLM.from_config(config).eval())
    results = sampler(model, stop_ids=[299], temperature=0.0, batch_size=batch_size)(PROMPTS, [[0]] * 5)
    for prompt, (completion,) in zip(PROMPTS, results, strict=True):
        row = torch.tensor([prompt])
        settings = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": 299, "pad_token_id": PAD}
        expected = model.generate(row, attention_mask=torch.ones_like(row), **settings)
        assert completion.ids == expected[0, len(prompt) :].tolist()
    sampled = ids(sampler(model, stop_ids=range(0, 300, 9))(PROMPTS, SEEDS))
    for prompt, seeds, row in zip(PROMPTS, SEEDS, sampled, strict=True):
        assert ids(sampler(model, stop_ids=range(0, 300, 9))([prompt], [seeds])) == [row]


def test_long_prompts_are_computed_apart_and_give_the_same(model, monkeypatch):
    whole = ids(sampler(model)(PROMPTS, SEEDS))
    for tokens in (1, 6, 12):
        monkeypatch.setattr("rlhf.policies.sampler._PREFILL_TOKENS", tokens)
        assert ids(sampler(model)(PROMPTS, SEEDS)) == whole


def test_seeds_of_rows_differ():
    seeds = {row_seed(seed, rollout, row) for seed in range(5) for rollout in range(5) for row in range(5)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert row_seed(1, 2) == row_seed(1, 2) != row_seed(12)
