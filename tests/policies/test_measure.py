import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn

from rlhf.models.roles import CRITIC, REWARD, Roles
from rlhf.policies.completion import Completion
from rlhf.policies.measure import _closed, adapter_scores, measure
from tests.support.models import strong

PROMPTS = [[5, 9, 30, 31, 32, 33], [7], [8, 12, 44]]
IDS = [[[40], [41, 42, 43]], [[50, 51, 52, 53, 54], [55, 56]], [[60, 61], [62, 0]]]
COMPLETIONS = [[Completion(ids, ids[-1] == 0, [0.0] * len(ids), [0.0] * len(ids)) for ids in row] for row in IDS]
PAIRS = [(prompt, ids) for prompt, row in zip(PROMPTS, IDS, strict=True) for ids in row]


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gpt2"])
def roles(request):
    config = LoraConfig(r=4, target_modules="all-linear", task_type=TaskType.CAUSAL_LM)
    policy = get_peft_model(strong(request.getfixturevalue(request.param), factor=4.0), config)
    policy.add_adapter(CRITIC, config)
    policy.add_adapter(REWARD, config)
    torch.manual_seed(3)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return Roles(policy.eval(), value_head=nn.Linear(32, 1), reward_head=nn.Linear(32, 1))


@torch.no_grad()
def hidden(roles, adapter, ids):
    roles.policy.set_adapter(adapter)
    return roles.policy.get_base_model().base_model(torch.tensor([ids])).last_hidden_state[0]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_each_row_is_its_sequence_alone(roles, batch_size):
    found = measure(roles, PROMPTS, COMPLETIONS, 1, 0.7, batch_size, exact=False)
    assert found.reference_BT.shape == found.policy_BT.shape == (6, 5)
    for row, (prompt, ids) in enumerate(PAIRS):
        begin, end = len(prompt) - 1, len(ids)
        values = roles.value_head(hidden(roles, CRITIC, prompt + ids)).squeeze(-1)[begin:]
        torch.testing.assert_close(found.values_BS[row, : end + 1], values, atol=1e-5, rtol=1e-5)
        assert (found.values_BS[row, end:] == found.values_BS[row, end]).all()
        roles.policy.set_adapter("default")
        with torch.no_grad():
            policy = roles.policy(torch.tensor([prompt + ids])).logits[0, begin:-1]
            with roles.policy.disable_adapter():
                reference = roles.policy(torch.tensor([prompt + ids])).logits[0, begin:-1]
        for array, logits in ((found.policy_BT, policy), (found.reference_BT, reference)):
            expected = (logits / 0.7).log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1)
            torch.testing.assert_close(array[row, :end], expected, atol=1e-5, rtol=1e-5)
            assert (array[row, end:] == 0).all()
    assert measure(roles, PROMPTS, COMPLETIONS, 1, 0.7, batch_size).policy_BT is None


@pytest.mark.parametrize(("limit", "kept"), [(None, 5), (6, 3), (2, 0)])
def test_a_score_is_read_behind_the_ending(roles, limit, kept):
    """A reply that ended by itself loses its end token first, so that none stands twice."""
    found = adapter_scores(roles, PROMPTS[1:], COMPLETIONS[1:], 1, [[0, 3], [0, 4]], 2, limit)
    texts = [ids[:-1] if ids[-1] == 0 else ids for _, ids in PAIRS[2:]]
    for number, ((prompt, _), text) in enumerate(zip(PAIRS[2:], texts, strict=True)):
        room = None if limit is None else max(0, limit - len(prompt) - 2)
        last = hidden(roles, REWARD, [*prompt, *text[:room], 0, 3 if prompt == PROMPTS[1] else 4])[-1]
        assert found[number] == pytest.approx(roles.reward_head(last).item(), abs=1e-5)
        if number == 0:
            assert len(text[:room]) == kept


@pytest.mark.parametrize(("ids", "finished", "closed"), [
    ([7, 8], False, [7, 8, 4, 5, 2]), ([7, 8, 2], True, [7, 8, 4, 5, 2]), ([7, 8, 4], True, [7, 8, 4, 5, 2]),
    ([7, 8, 4, 5, 2], True, [7, 8, 4, 5, 2]), ([2], True, [4, 5, 2]),
])  # fmt: skip
def test_a_reply_ends_as_in_the_reward_models_training(ids, finished, closed):
    """Whatever part of the ending 4 5 2 it wrote, and whichever token stopped it."""
    assert _closed(Completion(ids, finished, [], []), [4, 5, 2], None) == closed
