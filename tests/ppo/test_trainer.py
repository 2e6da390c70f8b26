"""The whole loop: what must not change anything, what must move and what must not, and that it learns."""

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, set_seed
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from rlhf.errors import UserError
from rlhf.models.roles import Roles
from rlhf.policies.causal_lm import CausalLMPolicy
from rlhf.policies.completion import Completion
from rlhf.policies.sampler import PolicySampler
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.rollout import score
from rlhf.ppo.trainer import STATE, WEIGHTS, PPOTrainer
from rlhf.prefix_sharing.layout import lay_out
from tests.support.architectures import built
from tests.support.models import strengthened
from tests.support.ppo import make_roles, make_trainer, rollout_rows, wordy


def weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.policy.roles.named_parameters()}


def gradients(trainer: PPOTrainer, batch) -> tuple[float, dict[str, torch.Tensor]]:
    trainer.model.zero_grad()
    trainer.optimizer = trainer.create_optimizer()
    loss = trainer.training_step(trainer.model, {"micro_batch": batch})
    named = trainer.policy.roles.named_parameters()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


def close(first, second, tolerance=1e-5) -> bool:
    return first.keys() == second.keys() and all(torch.allclose(first[k], second[k], atol=tolerance) for k in first)


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("base", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("options", [{}, {"samples_per_prompt": 4, "temperature": 0.7}])
def test_the_first_ratio_is_one(tmp_path, request, base, adapter, options):
    folder = request.getfixturevalue(base)
    trainer = make_trainer(tmp_path, folder, make_roles(folder, adapter), **options)
    if adapter:  # a fresh adapter does nothing: give it something to merge
        for name, parameter in trainer.policy.roles.named_parameters():
            if "lora_B.default" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    rollout = trainer.collect_rollout(1)
    batch = rollout.micro_batch(rollout.by_length(range(8 // rollout.samples), trainer.policy), 1.0, trainer.policy)
    with torch.no_grad():
        now = trainer.model("policy", batch.packed).log_probs_BT
    ratio = (now - batch.log_probs_BT).exp()[batch.mask_BT]
    assert ratio == pytest.approx(torch.ones_like(ratio), abs=1e-5)
    if adapter:
        assert trainer._metrics["objective/kl"][0] != 0


@pytest.mark.parametrize("options", [{}, {"samples_per_prompt": 2}, {"entropy_coef": 0.1}])
def test_padding_further_changes_nothing(tmp_path, tiny_llama, options):
    trainer = make_trainer(tmp_path, tiny_llama, **options)
    rollout = trainer.collect_rollout(0)
    batch = rollout.micro_batch(range(8), 17.0, trainer.policy)
    wider = lay_out([*batch_prompts(rollout), [5] * 40], [*batch_completions(rollout), [[7] * 20]], pad=3)
    junk = {}
    for name, value in vars(batch).items():
        if name.endswith("_BT") and value is not None:
            more = torch.full((9, 20), False if value.dtype == torch.bool else float("nan"), dtype=value.dtype)
            more[:8, : value.shape[1]] = value
            junk[name] = more
    padded = dataclasses.replace(batch, packed=wider, **junk)
    (loss, plain), (padded_loss, again) = gradients(trainer, batch), gradients(trainer, padded)
    assert loss == pytest.approx(padded_loss, abs=1e-6)
    assert close(plain, again)


def batch_prompts(rollout):
    return [row.ids for row in rollout.inputs]


def batch_completions(rollout):
    return [[completion.ids for completion in group] for group in rollout.completions]


@pytest.mark.parametrize("options", [{}, {"critic": "shared"}, {"samples_per_prompt": 2}, {"num_mini_batches": 2}])
def test_eight_micro_batches_of_one_are_one_of_eight(tmp_path, tiny_llama, options):
    results = []
    for size in (1, 2, 8):
        fields = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, **options}
        if size == 1 and "samples_per_prompt" in options:
            fields["per_device_eval_batch_size"] = 1
        trainer = make_trainer(tmp_path, tiny_llama, optim="sgd", learning_rate=1.0, max_grad_norm=0.0, **fields)
        trainer.train()
        logs = [{k: v for k, v in row.items() if "runtime" not in k and "second" not in k} for row in
                trainer.state.log_history]  # fmt: skip
        results.append((logs, weights(trainer)))
    for logs, after in results[1:]:
        for row, same in zip(results[0][0], logs, strict=True):
            assert row == pytest.approx(same, abs=1e-5, rel=1e-4)
        assert close(results[0][1], after)


@pytest.mark.parametrize("critic", ["separate", "shared"])
@pytest.mark.parametrize("adapter", [True, False])
def test_what_is_trained_moves_and_nothing_else(tmp_path, tiny_llama, adapter, critic):
    trainer = make_trainer(tmp_path, tiny_llama, make_roles(tiny_llama, adapter, critic))
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    for name, was in before.items():
        trained = ("lora" in name) if adapter else name.startswith(("policy", "critic"))
        trained |= name.startswith("value_head")
        assert torch.equal(was, after[name]) != trained, name


@pytest.mark.parametrize("advantage", ["rloo", "grpo", "reinforce"])
def test_without_a_critic(tmp_path, tiny_llama, advantage):
    trainer = make_trainer(tmp_path, tiny_llama, advantage=advantage, samples_per_prompt=4)
    assert not any("critic" in name or "value" in name for name in weights(trainer))
    before = weights(trainer)
    trainer.train()
    assert any(not torch.equal(weight, before[name]) for name, weight in weights(trainer).items())
    assert not any(name.startswith("value/") for row in trainer.state.log_history for name in row)


def learned(folder, base, **options) -> list[dict[str, float]]:
    """The rollouts of a run that can learn something in a few seconds: all weights, 32 replies a rollout."""
    fields = {"max_steps": 160, "kl_coef": 0.0, "num_ppo_epochs": 4, "samples_per_prompt": 4, **options}
    critic = fields.get("critic", "separate") if fields.get("advantage", "gae") == "gae" else False
    roles = make_roles(base, adapter=False, critic=critic)
    trainer = make_trainer(folder, base, roles, per_device_train_batch_size=32, **fields)
    trainer.train()
    return rollout_rows(trainer)


@pytest.mark.parametrize("options", [
    {}, {"critic": "shared"}, {"advantage": "rloo"}, {"advantage": "grpo"}, {"advantage": "reinforce", "gamma": 0.9},
])  # fmt: skip
def test_it_learns(tmp_path, tiny_llama, options):
    """To write vowels, from random weights."""
    scores = [row["objective/scores"] for row in learned(tmp_path, tiny_llama, max_steps=100, **options)]
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 0.15


def test_a_high_price_of_kl_holds_the_policy(tmp_path, tiny_llama):
    free, held = (
        learned(tmp_path, tiny_llama, max_steps=60, kl_coef=price)[-1]["objective/kl"] for price in (0.0, 1.0)
    )
    assert held < free / 2


def test_the_coefficient_adapts(tmp_path, tiny_llama):
    trainer = make_trainer(tmp_path, tiny_llama, max_steps=6, kl_coef=1.0, kl_target=1e6, kl_horizon=100.0)
    trainer.train()
    said = [row["objective/kl_coef"] for row in rollout_rows(trainer)]
    assert said == pytest.approx([1.0, 1 - 0.2 * 8 / 100, (1 - 0.2 * 8 / 100) ** 2])


def test_a_completion_without_a_score_takes_no_part(tmp_path, tiny_llama):
    def picky(prompts, completions, number, **columns):
        return [None if value in (2, 5) else 1.0 * value for value in number]

    trainer = make_trainer(tmp_path, tiny_llama, function=picky)
    rollout = trainer.collect_rollout(0)
    assert (~rollout.mask_BT.any(1)).sum() == 2
    assert (rollout.advantages_BT[~rollout.mask_BT] == 0).all()
    assert trainer._metrics["response/scored_share"] == [0.75]
    assert trainer._metrics["objective/scores"] == [pytest.approx((0 + 1 + 3 + 4 + 6 + 7) / 6)]


def test_when_nothing_can_be_scored_nothing_moves(tmp_path, tiny_llama, capsys):
    trainer = make_trainer(tmp_path, tiny_llama, function=lambda prompts, completions, **_: [None] * len(prompts))
    before = weights(trainer)
    trainer.train()
    assert close(before, weights(trainer), tolerance=0)
    assert "only 0% of the replies could be scored" in capsys.readouterr().err


@pytest.mark.parametrize(("advantage", "told"), [("grpo", True), ("rloo", True), ("gae", False)])
def test_rewards_that_are_all_alike_are_told(tmp_path, tiny_llama, capsys, advantage, told):
    def by_prompt(prompts, completions, number, **columns):
        return [float(value) for value in number]

    options = {"advantage": advantage, "samples_per_prompt": 4}
    make_trainer(tmp_path, tiny_llama, function=by_prompt, **options).train()
    assert capsys.readouterr().err.count("all replies to a prompt have the same score") == told
    trainer = make_trainer(tmp_path, tiny_llama, **options)
    trainer.collect_rollout(0)
    assert trainer._metrics["objective/alike"] == [0.0]
    assert "the same score" not in capsys.readouterr().err


def test_a_reward_scores_in_its_own_precision(tmp_path, tiny_llama):
    """Outside of the policy's autocast: in bfloat16 its scores would stand on few levels."""
    weight = torch.randn(16, 1)

    def judge(prompts, completions, number, **columns):
        return (torch.eye(16)[number] @ weight).squeeze(1).tolist()

    trainer = make_trainer(tmp_path, tiny_llama, function=judge, bf16=True)
    with trainer.accelerator.autocast():
        groups = [[Completion([5], False, [0.0], [0.0])]] * 8
        scores = score(
            policy=trainer.policy, rewards=trainer.rewards, inputs=trainer.prompts, groups=groups, batch_size=8
        )
    assert scores[:, 0].float().tolist() == weight[:8, 0].tolist()


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_a_step_with_a_wild_ratio_is_skipped(tmp_path, tiny_llama, capsys, critic):
    trainer = make_trainer(tmp_path, tiny_llama, max_ratio=1e-6, critic=critic)
    before = weights(trainer)
    trainer.train()
    assert close(before, weights(trainer), tolerance=0)
    assert "step 1 skipped: the mean probability ratio is 1.0" in capsys.readouterr().err
    assert trainer.state.global_step == 4


def test_the_rest_of_a_rollout_is_skipped_at_the_target_kl(tmp_path, tiny_llama):
    """One step a rollout is left: as if there were one pass."""
    stopped = make_trainer(tmp_path, tiny_llama, target_kl=1e-30, num_ppo_epochs=3, max_steps=6)
    single = make_trainer(tmp_path, tiny_llama, num_ppo_epochs=1, max_steps=2)
    stopped.train()
    single.train()
    # the first step's approximate KL is rounding, yet above 1e-30
    assert close(weights(stopped), weights(single))
    assert stopped.state.global_step == 6


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_the_critic_can_learn_alone_at_first(tmp_path, tiny_llama, critic):
    trainer = make_trainer(tmp_path, tiny_llama, critic_warmup_rollouts=2, critic=critic)
    before = weights(trainer)
    trainer.train()
    for name, weight in weights(trainer).items():
        moved = not torch.equal(weight, before[name])
        assert moved == ("critic" in name or name.startswith("value_head")), name


def test_the_critic_has_a_learning_rate_of_its_own(tmp_path, tiny_llama):
    trainer = make_trainer(tmp_path, tiny_llama, critic_learning_rate=0.5)
    groups = trainer.create_optimizer().param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in trainer.policy.roles.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == (0.5 if "critic" in name or name.startswith("value_head") else 1e-2)
        else:
            assert id(parameter) not in rates


@pytest.mark.parametrize("critic", ["separate", "shared"])
@pytest.mark.parametrize("adapter", [True, False])
def test_recomputed_activations_give_the_same_gradients(tmp_path, tiny_llama, adapter, critic):
    trainer = make_trainer(tmp_path, tiny_llama, make_roles(tiny_llama, adapter, critic))
    rollout = trainer.collect_rollout(0)
    batch = rollout.micro_batch(range(8), 17.0, trainer.policy)
    plain = gradients(trainer, batch)
    trainer.model.train()
    trainer.model.gradient_checkpointing_enable()
    again = gradients(trainer, batch)
    assert close(plain[1], again[1])


@pytest.mark.parametrize("adapter", [True, False])
def test_it_trains_the_same_with_recomputed_activations(tmp_path, tiny_llama, adapter):
    results = []
    for fields in ({}, {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"every_n_layers": 2}}):
        trainer = make_trainer(tmp_path, tiny_llama, make_roles(tiny_llama, adapter), max_steps=2, **fields)
        trainer.train()
        results.append(weights(trainer))
        recomputed = [
            layer.gradient_checkpointing for layer in trainer.model.modules() if isinstance(layer, LlamaDecoderLayer)
        ]
        assert any(recomputed) == bool(fields)
        assert not all(recomputed)
    assert close(*results)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_checkpoint_is_written_by_one_process(tmp_path, tiny_llama, monkeypatch, rank):
    trainer = make_trainer(tmp_path, tiny_llama)
    monkeypatch.setattr(PPOConfig, "process_index", rank)
    trainer.create_optimizer_and_scheduler(4)
    (tmp_path / ".partial/checkpoint-0").mkdir(parents=True)
    trainer._save_checkpoint(trainer.model, None)
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {WEIGHTS, STATE} <= written if rank == 0 else written == {"process-1.json", "process-1.safetensors"}


def test_another_engines_log_probabilities_are_corrected(tmp_path, tiny_llama):
    """A sampler whose log-probabilities are off: the trainer's own count, the gap is logged, the weight is capped."""
    roles = make_roles(tiny_llama)
    ours = PolicySampler(roles, [0], 1, 8)

    class Other:
        exact_log_probs = False

        def __call__(self, prompts, seeds):
            return [
                [dataclasses.replace(written, log_probs=[p - 0.5 * (n % 3) for n, p in enumerate(written.log_probs)])
                 for written in row] for row in ours(prompts, seeds)
            ]  # fmt: skip

    trainer = make_trainer(tmp_path, tiny_llama, roles, sampler=Other(), max_importance_weight=2.0)
    rollout = trainer.collect_rollout(0)
    mask = rollout.mask_BT
    wanted = torch.tensor([1.0, 1.6487, 2.0]).repeat(3)[: mask.shape[1]].expand(mask.shape)
    assert rollout.weights_BT[mask] == pytest.approx(wanted[mask], abs=1e-4)
    batch = rollout.micro_batch(range(8), 1.0, trainer.policy)
    with torch.no_grad():
        now = trainer.model("policy", batch.packed).log_probs_BT
    assert now[mask] == pytest.approx(rollout.log_probs_BT[mask], abs=1e-5)
    assert trainer._metrics["sampler/gap"][0] > 0.1


class Shifted:
    """A sampler whose log-probabilities are off."""

    exact_log_probs = True

    def __init__(self, sampler, shift):
        self.sampler, self.shift = sampler, shift

    def __call__(self, prompts, seeds):
        return [
            [dataclasses.replace(written, log_probs=[p + self.shift for p in written.log_probs]) for written in row]
            for row in self.sampler(prompts, seeds)
        ]


def test_a_policy_that_is_not_its_reference_at_the_start_is_told(tmp_path, tiny_llama, capsys):
    roles = make_roles(tiny_llama)
    ours = PolicySampler(roles, [0], 1, 8)
    with pytest.raises(UserError, match=r"0\.5 nats a token.*LlamaForCausalLM.*fold: false"):
        make_trainer(tmp_path, tiny_llama, roles, sampler=Shifted(ours, 0.5)).collect_rollout(0)
    assert "ppo: " not in capsys.readouterr().err
    make_trainer(tmp_path, tiny_llama, roles, sampler=Shifted(ours, -0.01)).collect_rollout(0)
    assert "off its reference by 0.01 nats a token" in capsys.readouterr().err
    make_trainer(tmp_path, tiny_llama, roles, sampler=Shifted(ours, 0.5)).collect_rollout(1)  # it may have moved


@pytest.mark.parametrize("options", [{}, {"num_mini_batches": 2, "per_device_train_batch_size": 4}])
def test_a_first_ratio_other_than_one_ends_the_run(tmp_path, tiny_llama, monkeypatch, options):
    trainer = make_trainer(tmp_path, tiny_llama, **options)
    forward = CausalLMPolicy.forward

    def off(self, role, *args):
        outputs = forward(self, role, *args)
        return outputs if role == "critic" else outputs._replace(log_probs_BT=outputs.log_probs_BT + 0.3)

    monkeypatch.setattr(CausalLMPolicy, "forward", off)
    before = weights(trainer)
    with pytest.raises(UserError, match=r"what it sampled with by 0\.3 nats a token"):
        trainer.train()
    assert close(before, weights(trainer), tolerance=0)


@pytest.mark.parametrize("blind", [False, True])
def test_a_model_that_cannot_share_rows(tmp_path, tiny_tokenizer, blind):
    """GPT-Neo looks back over columns. Were it not known, the first rollout would show it."""
    strengthened(built("gpt_neo", vocab_size=len(tiny_tokenizer), window_size=12), 4.0).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    roles = make_roles(tmp_path, adapter=False)
    trainer = make_trainer(tmp_path / "out", tmp_path, roles, samples_per_prompt=4, max_steps=1)
    assert "window_size" in trainer.policy.unfolded
    if blind:
        trainer.policy.unfolded = trainer.policy._widest = None
    if blind:
        with pytest.raises(UserError, match="off its reference by"):
            trainer.train()
    else:
        trainer.train()
        assert rollout_rows(trainer)[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)


def test_a_tied_head_with_an_adapter_samples_as_it_trains(tmp_path, tiny_llama):
    """Merging it would change the embeddings too: it stays as it is while the others are merged."""
    set_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    trainer = make_trainer(tmp_path, tiny_llama, Roles(policy), advantage="reinforce")
    batch = trainer.collect_rollout(1).micro_batch(range(8), 1.0, trainer.policy)
    with torch.no_grad():
        now = trainer.model("policy", batch.packed).log_probs_BT
    assert now[batch.mask_BT] == pytest.approx(batch.log_probs_BT[batch.mask_BT], abs=1e-5)


def test_below_float32_sampling_and_training_are_told_apart(tmp_path, tiny_llama):
    trainer = make_trainer(tmp_path, tiny_llama, bf16=True)
    rollout = trainer.collect_rollout(0)
    assert rollout.weights_BT is not None
    assert trainer._metrics["sampler/gap"][0] > 0
    assert make_trainer(tmp_path, tiny_llama).collect_rollout(0).weights_BT is None


def test_a_step_too_far_is_said(tmp_path, tiny_llama, capsys):
    trainer = make_trainer(tmp_path, tiny_llama, make_roles(tiny_llama, adapter=False), learning_rate=0.3)
    trainer.train()
    assert "too far to learn from; lower learning_rate" in capsys.readouterr().err


def test_numbers_of_steps_become_whole_rollouts(tmp_path, tiny_llama):
    trainer = make_trainer(tmp_path, tiny_llama, max_steps=5, save_steps=3, logging_steps=1)
    assert (trainer.args.max_steps, trainer.args.save_steps, trainer.args.logging_steps) == (6, 4, 2)
    by_episodes = make_trainer(tmp_path, tiny_llama, max_steps=-1, total_episodes=20)
    assert by_episodes.args.max_steps == 3 * 2
    by_passes = make_trainer(tmp_path, tiny_llama, max_steps=-1, num_train_epochs=2, samples_per_prompt=4)
    assert by_passes.args.max_steps == 8 * 2


def test_rewards_are_brought_to_one_scale_on_the_starting_policy(tmp_path, tiny_llama):
    trainer = make_trainer(tmp_path, tiny_llama, normalize_samples=64, function=lambda prompts, completions, **_: [
        1000 + 50 * score for score in wordy(prompts, completions)])  # fmt: skip
    trainer.train()
    first = rollout_rows(trainer)[0]
    assert abs(first["objective/scores"]) < 1.5
    assert first["reward/wordy"] > 999


def test_hacking_is_said(tmp_path, tiny_llama, capsys):
    trainer = make_trainer(tmp_path, tiny_llama)
    trainer.history = [{"scores": 0.0, "length": 10.0, "kl": 0.0}] * 5 + [
        {"scores": 2.0, "length": 30.0, "kl": 40.0}
    ] * 5
    trainer._rollout = 10
    trainer._warn({"objective/kl": 40.0, "response/eos_share": 1.0, "response/scored_share": 1.0})
    assert "signs of reward hacking: the score rose from 0.00 to 2.00" in capsys.readouterr().err
