import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn

from rlhf.errors import UserError
from rlhf.models.roles import CRITIC, REWARD, Roles
from rlhf.policies.base import like_sizes
from rlhf.policies.causal_lm import CausalLMPolicy, PromptRow, closed_completion
from rlhf.policies.completion import Completion
from rlhf.policies.settings import SamplingSettings
from rlhf.ppo.rollout import measure
from tests.support.models import strong

PROMPTS = [[5, 9, 30, 31, 32, 33], [7], [8, 12, 44]]
IDS = [[[40], [41, 42, 43]], [[50, 51, 52, 53, 54], [55, 56]], [[60, 61], [62, 0]]]
COMPLETIONS = [[Completion(ids, ids[-1] == 0, [0.0] * len(ids), [0.0] * len(ids)) for ids in row] for row in IDS]
ROWS = [PromptRow(ids, "", {}) for ids in PROMPTS]
PAIRS = [(prompt, ids) for prompt, row in zip(PROMPTS, IDS, strict=True) for ids in row]


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gpt2"])
def policy(request, tiny_tokenizer):
    config = LoraConfig(r=4, target_modules="all-linear", task_type=TaskType.CAUSAL_LM)
    model = get_peft_model(strong(request.getfixturevalue(request.param), factor=4.0), config)
    model.add_adapter(CRITIC, config)
    model.add_adapter(REWARD, config)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    roles = Roles(model.eval(), value_head=nn.Linear(32, 1), reward_head=nn.Linear(32, 1))
    return CausalLMPolicy(roles, tiny_tokenizer, SamplingSettings(temperature=0.7), Given())


class Given:
    """A sampler whose numbers are another engine's, or not."""

    exact_log_probs = False


@torch.no_grad()
def hidden(roles, adapter, ids):
    roles.policy.set_adapter(adapter)
    return roles.policy.get_base_model().base_model(torch.tensor([ids])).last_hidden_state[0]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_each_row_is_its_sequence_alone(policy, monkeypatch, batch_size):
    roles = policy.roles
    measured = measure(policy=policy, inputs=ROWS, groups=COMPLETIONS, batch_size=batch_size)
    assert measured.reference_BT.shape == measured.policy_BT.shape == (6, 5)
    for row, (prompt, ids) in enumerate(PAIRS):
        begin, end = len(prompt) - 1, len(ids)
        values = roles.value_head(hidden(roles, CRITIC, prompt + ids)).squeeze(-1)[begin:]
        torch.testing.assert_close(measured.values_BU[row, : end + 1], values, atol=1e-5, rtol=1e-5)
        assert (measured.values_BU[row, end:] == measured.values_BU[row, end]).all()
        roles.policy.set_adapter("default")
        with torch.no_grad():
            own = roles.policy(torch.tensor([prompt + ids])).logits[0, begin:-1]
            with roles.policy.disable_adapter():
                reference = roles.policy(torch.tensor([prompt + ids])).logits[0, begin:-1]
        for array, logits in ((measured.policy_BT, own), (measured.reference_BT, reference)):
            expected = (logits / 0.7).log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1)
            torch.testing.assert_close(array[row, :end], expected, atol=1e-5, rtol=1e-5)
            assert (array[row, end:] == 0).all()
    monkeypatch.setattr(Given, "exact_log_probs", True)
    assert measure(policy=policy, inputs=ROWS, groups=COMPLETIONS, batch_size=batch_size).policy_BT is None


@pytest.mark.parametrize(("limit", "kept"), [(None, 5), (6, 3), (2, 0)])
def test_a_score_is_read_behind_the_ending(policy, monkeypatch, limit, kept):
    """A completion that ended by itself loses its end token first, so that none stands twice."""
    monkeypatch.setattr("rlhf.policies.causal_lm.context_length", lambda config: limit)
    rows = [PromptRow(ids, "", {}, ending) for ids, ending in zip(PROMPTS[1:], ([0, 3], [0, 4]), strict=True)]
    scores = policy.own_scores(rows, COMPLETIONS[1:], 2)
    roles = policy.roles
    texts = [ids[:-1] if ids[-1] == 0 else ids for _, ids in PAIRS[2:]]
    for number, ((prompt, _), text) in enumerate(zip(PAIRS[2:], texts, strict=True)):
        room = None if limit is None else max(0, limit - len(prompt) - 2)
        last = hidden(roles, REWARD, [*prompt, *text[:room], 0, 3 if prompt == PROMPTS[1] else 4])[-1]
        assert scores[number] == pytest.approx(roles.reward_head(last).item(), abs=1e-5)
        if number == 0:
            assert len(text[:room]) == kept


@pytest.mark.parametrize(("ids", "finished", "closed"), [
    ([7, 8], False, [7, 8, 4, 5, 2]), ([7, 8, 2], True, [7, 8, 4, 5, 2]), ([7, 8, 4], True, [7, 8, 4, 5, 2]),
    ([7, 8, 4, 5, 2], True, [7, 8, 4, 5, 2]), ([2], True, [4, 5, 2]),
])  # fmt: skip
def test_a_completion_ends_as_in_the_reward_models_training(ids, finished, closed):
    """Whatever part of the ending 4 5 2 it wrote, and whichever token stopped it."""
    assert closed_completion(Completion(ids, finished), [4, 5, 2], None).ids == closed


def test_an_ending_that_is_not_given_is_the_end_token(policy, monkeypatch):
    seen = []
    monkeypatch.setattr(policy, "scores", lambda packed: seen.append(packed) or torch.zeros(1))
    policy.own_scores([PromptRow([5], "", {}, [7, 0])], [[Completion([40], False)]], 1)
    policy.own_scores([PromptRow([5], "", {})], [[Completion([40], False)]], 1)
    end = policy.tokenizer.eos_token_id
    assert [packed.ids_RL.tolist() for packed in seen] == [[[5, 40, 7, 0]], [[5, 40, end]]]


def test_a_reward_adapter_that_scores_otherwise_than_it_did_is_refused(policy, tmp_path):
    ids = [5, 9, 30]
    score = policy.roles.reward_head(hidden(policy.roles, REWARD, ids)[-1]).item()
    policy.check_scores(tmp_path, {"ids": [ids], "outputs": [score], "dtype": "float32"})
    policy.check_scores(tmp_path, None)
    with pytest.raises(UserError, match="the reward adapter scores"):
        policy.check_scores(tmp_path, {"ids": [ids], "outputs": [score + 0.1], "dtype": "float32"})


def test_a_role_that_is_called_is_what_its_method_says(policy):
    packed = policy.pack(ROWS, COMPLETIONS)
    log_probs, entropies, nothing = policy("policy", packed, True)
    assert torch.equal(log_probs, policy.log_probs(packed)[0])
    assert entropies.shape == log_probs.shape
    assert nothing is None
    critic = policy("critic", packed)
    assert torch.equal(critic.values_BT, policy.values(packed)[:, :-1])
    assert critic.log_probs_BT is critic.entropies_BT is None
    both = policy("both", packed)
    assert torch.equal(both.log_probs_BT, log_probs)
    assert torch.equal(both.values_BT, critic.values_BT)


def test_rewards_are_given_text_in_the_form_of_its_prompt_and_the_columns_of_its_row(policy):
    chat = [{"role": "user", "content": "Hi"}]
    rows = [PromptRow([5], "Once", {"answer": 1}), PromptRow([6], chat, {"other": 2})]
    groups = [[Completion([7], True, text=" a"), Completion([8], True, text=" b")], [Completion([9], True, text=" c")]]
    given = policy.reward_arguments(rows, groups)
    assert given.prompts == ["Once", "Once", chat]
    assert given.completions == [" a", " b", [{"role": "assistant", "content": "c"}]]
    assert given.columns == {"answer": [1, 1, None], "other": [None, None, 2]}


def test_like_sizes_stand_together():
    assert list(like_sizes([5, 1, 3, 1], 2)) == [[1, 3], [2, 0]]
