import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from rlhf.models.roles import CRITIC, POLICY, REWARD, Roles, disable_dropout, merged
from tests.support.models import strong

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


ROLES_BY_ADAPTER = {
    POLICY: "policy_model", CRITIC: "critic_backbone", REWARD: "reward_backbone", "reference": "reference",
}  # fmt: skip
ROLES = [*ROLES_BY_ADAPTER.values(), "sampling_model"]


def output(roles, role):
    """What a role makes of some tokens: logits, values or scores."""
    with getattr(roles, role)() as model:
        result = model(IDS)
    if role in ("policy_model", "reference"):
        return result.logits
    head = roles.value if role == "critic_backbone" else roles.score
    return head(result.last_hidden_state.flatten(0, 1))


def with_adapters_of(roles):
    """A model of the same class with the policy's adapter alone."""
    config = LoraConfig(r=4, target_modules="all-linear", task_type=TaskType.CAUSAL_LM)
    return get_peft_model(AutoModelForCausalLM.from_config(roles.config), config)


def test_what_is_trained_outlives_the_parameters(roles):
    """Sharding puts others in their place."""
    expected = roles.trained("policy").keys()
    for module in roles.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
    with roles.reference():
        pass
    assert len(expected) > 0
    assert roles.trained("policy").keys() == expected
    assert all(parameter.requires_grad for parameter in roles.trained("policy").values())


def test_switching_roles_keeps_what_is_trained(roles):
    def trained():
        return {name for name, parameter in roles.named_parameters() if parameter.requires_grad}

    expected = {name for name, _ in roles.named_parameters() if f".{POLICY}." in name or f".{CRITIC}." in name}
    expected |= {"value_head.weight", "value_head.bias"}
    assert any(POLICY in name for name in expected)
    assert any(CRITIC in name for name in expected)
    assert trained() == expected
    for role in ROLES:
        with getattr(roles, role)() as model:
            model(IDS)
        assert trained() == expected
    assert roles.trained().keys() == expected
    assert roles.trained("policy").keys() == {name for name in expected if f".{POLICY}." in name}
    assert roles.trained("critic").keys() == {name for name in expected if f".{POLICY}." not in name}


def test_each_role_has_its_own_adapter(roles):
    """A change of one adapter changes that role alone; gradients reach policy and critic, and nothing else."""

    @torch.no_grad()
    def all_roles():
        return {name: output(roles, role) for name, role in ROLES_BY_ADAPTER.items()}

    before = all_roles()
    for adapter in (POLICY, CRITIC, REWARD):
        with torch.no_grad():
            for name, parameter in roles.named_parameters():
                if f".{adapter}." in name:
                    parameter.add_(0.05)
        after = all_roles()
        assert [name for name in after if not torch.equal(before[name], after[name])] == [adapter]
        before = after
    for role in ("policy_model", "critic_backbone"):
        output(roles, role).sum().backward()
    for name, parameter in roles.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert moved == (f".{POLICY}." in name or f".{CRITIC}." in name or name.startswith("value_head")), name


def test_values_are_scaled(roles):
    with torch.no_grad():
        values = output(roles, "critic_backbone")
        roles.scale_values(2.0, -3.0)
        torch.testing.assert_close(output(roles, "critic_backbone"), 2 * values - 3)


def test_what_is_saved_is_what_is_trained(roles, tmp_path):
    saved = {name: parameter.detach().clone() for name, parameter in roles.trained().items()}
    roles.save(tmp_path / "roles.safetensors")
    with torch.no_grad():
        for parameter in roles.parameters():
            parameter.add_(1.0)
    frozen = {name: p.detach().clone() for name, p in roles.named_parameters() if name not in saved}
    roles.load(tmp_path / "roles.safetensors")
    for name, parameter in roles.named_parameters():
        assert torch.equal(parameter, saved[name] if name in saved else frozen[name]), name
    other = Roles(with_adapters_of(roles))
    with pytest.raises(ValueError, match="other weights than are trained now"):
        other.load(tmp_path / "roles.safetensors")


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
