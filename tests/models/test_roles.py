import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from rlhf.models.roles import CRITIC, POLICY, REWARD, Roles, disable_dropout, merged
from rlhf.prefix_sharing.layout import lay_out
from tests.support.models import strong

FOLDED = lay_out([[5, 9, 30], [8, 12]], [[[31, 32, 33], [40]], [[60], [61, 62]]], 1)
IDS = torch.tensor([[5, 9, 30, 31, 60, 7]])


def with_adapters(folder, *names):
    """One base with random adapters."""
    config = LoraConfig(r=4, target_modules="all-linear", task_type=TaskType.CAUSAL_LM)
    policy = get_peft_model(strong(folder, factor=4.0), config)
    for name in names:
        policy.add_adapter(name, config)
    torch.manual_seed(3)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return policy.eval()


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def roles(request):
    policy = with_adapters(request.getfixturevalue(request.param), CRITIC, REWARD)
    return Roles(policy, value_head=nn.Linear(32, 1), reward_head=nn.Linear(32, 1))


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_gpt2"])
@torch.no_grad()
def test_merging_is_the_adapter_and_leaves_nothing_behind(request, fixture):
    model = with_adapters(request.getfixturevalue(fixture))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = model(IDS).logits
    with model.disable_adapter():
        bare = model(IDS).logits
    with merged(model):
        inside = model.get_base_model()(IDS).logits
    torch.testing.assert_close(inside, adapted, atol=1e-5, rtol=1e-5)
    assert (inside - bare).abs().max() > 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(IDS).logits, adapted)
    with pytest.raises(RuntimeError, match="on the way"), merged(model):
        raise RuntimeError("on the way")
    assert torch.equal(model(IDS).logits, adapted)


def test_switching_roles_keeps_what_is_trained(roles):
    def trained():
        return {name for name, parameter in roles.named_parameters() if parameter.requires_grad}

    expected = {name for name, _ in roles.named_parameters() if f".{POLICY}." in name or f".{CRITIC}." in name}
    expected |= {"value_head.weight", "value_head.bias"}
    assert any(POLICY in name for name in expected)
    assert any(CRITIC in name for name in expected)
    assert trained() == expected
    for call in (
        lambda: roles("policy", FOLDED),
        lambda: roles("critic", FOLDED),
        lambda: roles.values(FOLDED),
        lambda: roles.policy_log_probs(FOLDED, 1.0),
        lambda: roles.reference_log_probs(FOLDED, 1.0),
        lambda: roles.scores(FOLDED),
    ):
        call()
        assert trained() == expected
    with roles.sampling_model() as model:
        model(IDS)
    assert trained() == expected
    critic = {id(parameter) for parameter in roles.critic_parameters()}
    assert critic == {id(p) for name, p in roles.named_parameters() if name in expected and f".{POLICY}." not in name}


def test_each_role_has_its_own_adapter(roles):
    """A change of one adapter changes that role alone; gradients reach policy and critic, and nothing else."""

    @torch.no_grad()
    def all_roles():
        return {
            POLICY: roles.policy_log_probs(FOLDED, 1.0),
            CRITIC: roles.values(FOLDED),
            REWARD: roles.scores(FOLDED),
            "reference": roles.reference_log_probs(FOLDED, 1.0),
        }

    before = all_roles()
    for adapter in (POLICY, CRITIC, REWARD):
        with torch.no_grad():
            for name, parameter in roles.named_parameters():
                if f".{adapter}." in name:
                    parameter.add_(0.05)
        after = all_roles()
        assert [name for name in after if not torch.equal(before[name], after[name])] == [adapter]
        before = after
    for role in ("policy", "critic"):
        roles(role, FOLDED)[0].sum().backward()
    for name, parameter in roles.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert moved == (f".{POLICY}." in name or f".{CRITIC}." in name or name.startswith("value_head")), name


def test_values_stand_before_each_token_and_after_the_last(roles):
    with torch.no_grad():
        values = roles.values(FOLDED)
        assert values.shape == (4, 4)
        torch.testing.assert_close(values[1, 1:], values[1, 1].expand(3))
        torch.testing.assert_close(roles("critic", FOLDED)[0], values[:, :-1])
        roles.scale_values(2.0, -3.0)
        torch.testing.assert_close(roles.values(FOLDED), 2 * values - 3)


@pytest.mark.parametrize("kind", ["modules", "attributes"])
def test_dropout_is_off(kind, tiny_gpt2, tiny_llama):
    """GPT-2 has dropout layers, as peft has; Llama's attention reads a number."""
    if kind == "modules":
        model = AutoModelForCausalLM.from_pretrained(tiny_gpt2, attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5)).train()
    else:
        model = AutoModelForCausalLM.from_pretrained(tiny_llama, attention_dropout=0.5).train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    disable_dropout(model)
    assert torch.equal(model(IDS).logits, model(IDS).logits)
