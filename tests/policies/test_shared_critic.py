"""A critic that is a head on the policy's states: one pass, and the gradients of two."""

import pytest
import torch

from rlhf.objectives.losses import policy_loss, value_loss
from tests.support import kinds, ppo
from tests.support.architectures import built
from tests.support.models import strengthened


@pytest.fixture(params=["causal_lm", "opt", *kinds.KINDS])
def make(request, tmp_path):
    """Makes a trainer of the kind, with fresh adapters stirred."""

    def made(adapter=True, **fields):
        fields = {"critic": "shared", "samples_per_prompt": 2, **fields}
        if request.param in kinds.KINDS:
            base = request.getfixturevalue(kinds.KINDS[request.param].fixture)
            return kinds.make_trainer(request.param, tmp_path, base, adapter, stir=True, **fields)
        base = request.getfixturevalue("tiny_llama")
        if request.param == "opt":  # its language model calls another module than its base_model
            tokenizer, base = request.getfixturevalue("tiny_tokenizer"), tmp_path
            strengthened(built("opt", vocab_size=len(tokenizer)), 4.0).save_pretrained(base)
            tokenizer.save_pretrained(base)
        roles = ppo.make_roles(base, adapter, "shared")
        torch.manual_seed(5)
        for name, parameter in roles.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return ppo.make_trainer(tmp_path, base, roles, **fields)

    return made


def gradients(trainer):
    named = trainer.policy.roles.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


@pytest.mark.parametrize("adapter", [True, False])
def test_one_pass_has_the_gradients_of_two(make, adapter):
    """The plain path: a forward pass for the log-probabilities, another one for the values, and both losses."""
    trainer = make(adapter, vf_coef=0.7)
    policy, args = trainer.policy, trainer.args
    batch = trainer.collect_rollout(1).micro_batch(range(8), 17.0, policy)
    trainer.training_step(trainer.model, {"micro_batch": batch})
    found = gradients(trainer)
    trainer.model.zero_grad()
    log_probs_BT = policy.log_probs(batch.packed)[0]
    policy.roles._passed = []  # values with gradients, and nothing to take them from
    values_BT = policy.values(batch.packed)[:, :-1]
    policy.roles._passed = None
    of_policy = policy_loss(
        log_probs_BT, batch.log_probs_BT, batch.advantages_BT, batch.mask_BT, args.cliprange, 17.0
    ).loss
    of_values = value_loss(values_BT, batch.values_BT, batch.returns_BT, batch.mask_BT, args.cliprange_value, 17.0).loss
    (of_policy + 0.7 * of_values).backward()
    wanted = gradients(trainer)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)
    assert any(name.startswith("value_head") and gradient.abs().max() > 1e-4 for name, gradient in found.items())


@pytest.mark.parametrize(("critic", "passes"), [("shared", 1), ("separate", 2)])
def test_the_states_are_computed_once(tmp_path, tiny_llama, critic, passes):
    trainer = ppo.make_trainer(tmp_path, tiny_llama, critic=critic)
    batch = trainer.collect_rollout(1).micro_batch(range(8), 17.0, trainer.policy)
    calls: list[int] = []
    trainer.policy.roles.base.base_model.register_forward_hook(lambda *_: calls.append(1))
    trainer.training_step(trainer.model, {"micro_batch": batch})
    assert len(calls) == passes


def test_alone_only_the_head_learns(make):
    trainer = make()
    batch = trainer.collect_rollout(1).micro_batch(range(8), 17.0, trainer.policy)
    trainer.model("critic", batch.packed).values_BT.sum().backward()
    assert set(gradients(trainer)) == {"value_head.weight", "value_head.bias"}
