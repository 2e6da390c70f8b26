import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.objectives.kl import token_kl
from rlhf.policies.completion import Completion
from rlhf.policies.kl import sequence_kl
from rlhf.policies.sample import sample

PROMPTS = [[5, 9, 30], [8, 12, 44, 45, 46, 60, 61], [7]]
SETTINGS = {"samples": 3, "max_new_tokens": 6, "temperature": 1.0, "batch_size": 6, "seed": 1}


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def policy(request):
    folder = request.getfixturevalue(request.param)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def written(completions):
    """Without log-probabilities, which round with the batch."""
    return [[(completion.ids, completion.text, completion.finished) for completion in row] for row in completions]


def test_completions_come_back_in_the_order_of_the_prompts(policy):
    """Greedy completions of a padded batch are those of each prompt alone, so positions and masks are right."""
    model, tokenizer = policy
    greedy = {**SETTINGS, "temperature": 0.0}
    together = sample(model, tokenizer, PROMPTS, **greedy)
    alone = [sample(model, tokenizer, [prompt], **greedy)[0] for prompt in PROMPTS]
    assert written(together) == written(alone)
    assert all(len(row) == 1 for row in together)
    assert all(text == tokenizer.decode(ids) != "" for row in written(together) for ids, text, _ in row)


def test_sampling_is_seeded_and_leaves_the_random_state_alone(policy):
    model, tokenizer = policy
    before = torch.random.get_rng_state()
    first = sample(model, tokenizer, PROMPTS, **SETTINGS)
    assert torch.equal(before, torch.random.get_rng_state())
    assert sample(model, tokenizer, PROMPTS, **SETTINGS) == first
    assert sample(model, tokenizer, PROMPTS, **{**SETTINGS, "seed": 2}) != first
    assert [len(row) for row in first] == [3, 3, 3]


def test_a_completion_ends_with_its_end_token(policy):
    model, tokenizer = policy
    with torch.no_grad():  # a model that always ends
        model.get_output_embeddings().weight.zero_()
        bias = torch.zeros(len(tokenizer))
        bias[tokenizer.eos_token_id] = 50.0
        model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: output + bias)
    completions = sample(model, tokenizer, PROMPTS, **SETTINGS)
    assert written(completions)[0][0] == ([tokenizer.eos_token_id], "", True)


def test_padding_behind_a_short_completion_adds_no_kl(policy):
    model, _ = policy
    torch.manual_seed(5)
    other = AutoModelForCausalLM.from_config(model.config).eval()
    short, long = Completion([30, 31], True), Completion([30, 31, 44, 45, 46, 60], False)
    together = sequence_kl(model, other, [PROMPTS[0]], [[short, long]])[0]
    alone = sequence_kl(model, other, [PROMPTS[0]], [[short]])[0]
    assert together[0] == pytest.approx(alone[0], rel=1e-4)
    assert together[1] > together[0]


def test_kl_is_zero_to_itself_and_counts_the_completion_alone(policy):
    model, tokenizer = policy
    completions = sample(model, tokenizer, PROMPTS, **SETTINGS)
    assert sequence_kl(model, model, PROMPTS, completions)[0] == pytest.approx([0.0] * 3, abs=1e-5)
    torch.manual_seed(5)
    other = AutoModelForCausalLM.from_config(model.config).eval()
    result = sequence_kl(model, other, PROMPTS, completions)
    ids = torch.tensor([[*PROMPTS[1], *completions[1][2].ids]])
    with torch.no_grad():
        by_hand = token_kl(model(ids).logits, other(ids).logits)[0, len(PROMPTS[1]) - 1 : -1].sum().item()
    assert result[1][2] == pytest.approx(by_hand, rel=1e-4)
