"""What holds for every kind of policy: nothing depends on the batch, and the whole loop runs as for language models."""

import pytest
import torch

from tests.support.kinds import KINDS, make_trainer
from tests.support.ppo import rollout_rows

SHORT = {"save_strategy": "steps", "save_steps": 2}


@pytest.fixture(params=KINDS)
def make(request, tmp_path):
    """Makes a trainer of the kind in a folder of its own."""
    base = request.getfixturevalue(KINDS[request.param].fixture)
    return lambda folder="out", **fields: make_trainer(request.param, tmp_path / folder, base, **fields)


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.policy.roles.named_parameters()}


def groups(trainer, samples=2):
    inputs = trainer.prompts
    return inputs, trainer.policy.sample(inputs, [[10 * row + s for s in range(samples)] for row in range(len(inputs))])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampling_gives_the_log_probabilities_of_a_forward_pass(make, temperature):
    trainer = make(stir=True, temperature=temperature)
    inputs, completions = groups(trainer)
    packed = trainer.policy.pack(inputs, completions)
    with torch.no_grad():
        log_probs_BT, entropies_BT = trainer.policy.log_probs(packed, entropies=True)
        values_BU = trainer.policy.values(packed)
    assert values_BU.shape == (16, log_probs_BT.shape[1] + 1)
    for row, completion in enumerate(each for group in completions for each in group):
        size = len(completion.ids)
        assert log_probs_BT[row, :size].tolist() == pytest.approx(completion.log_probs, abs=1e-4)
        assert entropies_BT[row, :size].tolist() == pytest.approx(completion.entropies, abs=1e-4)
        assert packed.mask_BT[row].tolist() == [place < size for place in range(log_probs_BT.shape[1])]
        assert (values_BU[row, size:] == values_BU[row, size]).all()
    assert any(log_probs < -1e-3 for group in completions for each in group for log_probs in each.log_probs)


def test_an_input_alone_is_what_it_is_in_a_batch(make):
    trainer = make(stir=True)
    policy = trainer.policy
    inputs, completions = groups(trainer)
    packed = policy.pack(inputs, completions)
    with torch.no_grad():
        whole = policy.log_probs(packed)[0], policy.reference_log_probs(packed), policy.values(packed)
        for row, (one, group) in enumerate(zip(inputs, completions, strict=True)):
            again = policy.sample([one], [[10 * row, 10 * row + 1]])[0]
            assert [each.ids for each in again] == [each.ids for each in group]
            alone = policy.pack([one], [group])
            parts = policy.log_probs(alone)[0], policy.reference_log_probs(alone), policy.values(alone)
            for of_all, of_one in zip(whole, parts, strict=True):
                for sample, completion in enumerate(group):
                    size = len(completion.ids)
                    torch.testing.assert_close(
                        of_one[sample, :size], of_all[2 * row + sample, :size], atol=1e-5, rtol=1e-4
                    )


@pytest.mark.parametrize("adapter", [True, False])
def test_the_first_ratio_is_one(make, adapter):
    trainer = make(adapter=adapter, stir=True, samples_per_prompt=2)
    rollout = trainer.collect_rollout(1)
    batch = rollout.micro_batch(range(4), 1.0, trainer.policy)
    with torch.no_grad():
        now_BT = trainer.model("policy", batch.packed).log_probs_BT
    ratio = (now_BT - batch.log_probs_BT).exp()[batch.mask_BT]
    assert ratio == pytest.approx(torch.ones_like(ratio), abs=1e-5)
    assert (abs(trainer._metrics["objective/kl"][0]) > 1e-3) == adapter


@pytest.mark.parametrize("options", [{}, {"samples_per_prompt": 2}])
def test_eight_micro_batches_of_one_are_one_of_eight(make, options):
    results: list = []
    for size in (1, 8):
        fields = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, **options}
        if size == 1 and "samples_per_prompt" in options:
            fields["per_device_eval_batch_size"] = 1
        trainer = make(optim="sgd", learning_rate=0.1, max_grad_norm=0.0, **fields)
        trainer.train()
        results.append((rollout_rows(trainer), weights(trainer)))
    (rows, after), (same_rows, same) = results
    for row, other in zip(rows, same_rows, strict=True):
        kept = [name for name in row if "runtime" not in name and "second" not in name]
        assert {n: row[n] for n in kept} == pytest.approx({n: other[n] for n in kept}, abs=1e-4, rel=1e-3)
    for name, weight in after.items():
        torch.testing.assert_close(weight, same[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_a_resumed_run_is_the_run_bit_for_bit(make, critic):
    whole = make(**SHORT, critic=critic)
    whole.train()
    resumed = make(**SHORT, critic=critic)
    resumed.train(resume_from_checkpoint=str(whole.args.output_dir) + "/checkpoint-2")
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(resumed)[name]), name


@pytest.mark.parametrize(
    ("advantage", "adapter"), [("gae", True), ("gae", False), ("rloo", True), ("grpo", False), ("reinforce", True)]
)
def test_every_estimator_moves_what_is_trained_and_nothing_else(make, adapter, advantage):
    trainer = make(adapter=adapter, advantage=advantage, samples_per_prompt=4, max_steps=2)
    before = weights(trainer)
    trainer.train()
    after, trained = weights(trainer), trainer.policy.trained()
    moved = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert moved <= trained.keys()
    assert any(name.startswith("policy.") for name in moved)
    assert any("value_head" in name for name in moved) == (advantage == "gae")
