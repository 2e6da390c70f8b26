"""The ppo stage: resumed exactly, joined exactly, scored by the reward model it shares a base with, refused clearly."""

import json
import os
import shutil
import signal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, TrainerCallback

from rlhf import interrupts
from rlhf.artifacts.manifest import model_files
from rlhf.data.tokenize import Codec
from rlhf.errors import Incident, UserError
from rlhf.models import probe
from rlhf.models.adapters import own_part
from rlhf.pipeline import identity
from rlhf.pipeline.execute import prepare_stage, run_stage
from rlhf.pipeline.folder import own_folder
from rlhf.policies.causal_lm import CausalLMPolicy, prompt_rows
from rlhf.ppo.rollout import score
from rlhf.ppo.trainer import PPOTrainer
from rlhf.rewards.model import RewardModel
from rlhf.stages import ppo
from rlhf.training.roles import build_roles, load_maximised, reward_part
from rlhf.training.starting_point import starting_point
from rlhf.workflow import StageContext, rewards_of
from tests.support.projects import chats, make_project

PPO = {
    "max_steps": 8, "learning_rate": 1e-2, "num_ppo_epochs": 2, "max_new_tokens": 8, "normalize_samples": 8,
    "kl_target": 1.0, "truncated": "score",
}  # fmt: skip
STAGES = {"sft": {"max_steps": 3, "learning_rate": 1e-2}, "reward": {"max_steps": 5, "learning_rate": 1e-2}, "ppo": PPO}


class Interrupted(Exception):
    pass


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise Interrupted


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_llama):
    """A project with SFT and a reward model, to copy."""
    folder = tmp_path_factory.mktemp("trained")
    project = make_project(folder, tiny_llama, chats(), stages=STAGES)
    for stage in ("sft", "reward"):
        run_stage(project, stage)
    return project


@pytest.fixture
def project(trained, tmp_path, tiny_llama):
    """The same in a folder of its own; call it with changes of the ppo stage."""

    def make(name="tiny", **changes):
        made = make_project(tmp_path, tiny_llama, chats(), name=name, stages={**STAGES, "ppo": {**PPO, **changes}})
        own_folder(made)
        for stage in ("sft", "reward"):
            shutil.copytree(trained.run_dir / stage, made.run_dir / stage)
        return made

    return make


def record_of(project, stage="ppo") -> dict:
    return json.loads((project.run_dir / stage / "stage.json").read_text())


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "options", [{}, {"adapter": None, "learning_rate": 1e-3}, {"advantage": "rloo", "samples_per_prompt": 2}]
)
def test_a_resumed_run_is_the_uninterrupted_one(project, monkeypatch, options):
    """Weights, metrics, replies: bit for bit. The checkpoint is the last one between two rollouts."""
    options = {**options, "save_steps": 2}
    whole, broken = project("whole", **options), project("broken", **options)
    run_stage(whole, "ppo")
    with monkeypatch.context() as patch:
        original = PPOTrainer.__init__

        def interrupted(self, *args, **kwargs):
            original(self, *args, callbacks=[Interrupt()], **kwargs)

        patch.setattr(PPOTrainer, "__init__", interrupted)
        with pytest.raises(Interrupted):
            run_stage(broken, "ppo")
    torch.manual_seed(99)
    run_stage(broken, "ppo")
    assert_same(whole, broken)


@pytest.mark.parametrize(("where", "step"), [("sample", 4), ("training_step", 6)])
def test_a_signal_leaves_a_checkpoint_between_two_rollouts_and_changes_nothing(project, monkeypatch, where, step):
    """While the third rollout is sampled, before the rollout; in its first step, behind its last."""
    whole, broken = project("whole", save_steps=100), project("broken", save_steps=100)
    run_stage(whole, "ppo")
    owner = CausalLMPolicy if where == "sample" else PPOTrainer
    original, calls = getattr(owner, where), []

    def signalled(self, *args, **kwargs):
        calls.append(where)
        if len(calls) == (4 if where == "sample" else 5):  # the scores of the starting policy are sampled first
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, where, signalled)
    with interrupts.listening(), pytest.raises(interrupts.Interrupted):
        run_stage(broken, "ppo")
    assert [path.name for path in (broken.run_dir / ".ppo.partial/checkpoints").iterdir()] == [f"checkpoint-{step}"]
    monkeypatch.undo()
    torch.manual_seed(99)
    run_stage(broken, "ppo")
    assert_same(whole, broken)


def assert_same(whole, broken):
    """Weights, metrics and replies, bit for bit."""
    for name in [path.name for path in model_files(whole.run_dir / "ppo") if path.suffix == ".safetensors"]:
        one, other = (load_file(made.run_dir / "ppo" / name) for made in (whole, broken))
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert lines(whole.run_dir / "ppo/rollouts.jsonl") == lines(broken.run_dir / "ppo/rollouts.jsonl")
    timing = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    rows = [
        [
            {key: value for key, value in row.items() if key not in timing}
            for row in lines(made.run_dir / "ppo/metrics.jsonl")
        ]
        for made in (whole, broken)
    ]
    assert rows[0] == rows[1]
    assert len({row["objective/kl_coef"] for row in rows[0] if "objective/kl_coef" in row}) == 4


def test_checkpoints_are_between_rollouts_and_hold_the_critic(project):
    made = project(save_steps=1, save_total_limit=10)
    run_stage(made, "ppo")
    folders = sorted((made.run_dir / "ppo/checkpoints").glob("checkpoint-*"))
    assert [int(one.name.rpartition("-")[2]) for one in folders] == [2, 4, 6, 8]
    names = load_file(folders[0] / "roles.safetensors").keys()
    assert any("critic" in name for name in names)
    assert "value_head.weight" in names
    assert not any("base_layer" in name or "reward" in name for name in names)
    assert (folders[0] / "optimizer.safetensors").is_file()


@pytest.mark.parametrize("adapter", [{"r": 4}, None])
def test_the_artefact_loads_on_the_original_base(project, tiny_llama, adapter):
    """With plain peft, SFT and PPO joined; with all weights trained, with plain transformers."""
    made = project(adapter=adapter, learning_rate=1e-2 if adapter else 1e-3)
    run_stage(made, "ppo")
    record, folder = record_of(made), made.run_dir / "ppo"
    if adapter is None:
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), folder)
        assert model.peft_config["default"].r == 8
    assert probe.outputs(model, record["probe"]["ids"]) == pytest.approx(record["probe"]["outputs"], abs=1e-4)
    sft = record_of(made, "sft")["probe"]
    assert probe.outputs(model, sft["ids"]) != pytest.approx(sft["outputs"], abs=1e-3)
    assert record["metrics"]["rollouts"] == 4
    assert record["parents"].keys() == {"sft", "reward"}


def test_the_reward_adapter_scores_like_the_reward_model(project, trained):
    """On the policy's base, from token ids, with the prompt shared: what the model by itself says of the text."""
    made = project(samples_per_prompt=2)
    parents = {name: made.run_dir / name for name in ("sft", "reward")}
    context = StageContext(made, "ppo", made.run_dir / "work", parents)
    ready = ppo.prepare(context)
    roles = build_roles(context, ready.start, ready.args, ready.args.critic_start)
    assert roles.reward_head is not None
    assert roles.critic_from_reward
    rows = prompt_rows(ready.data.train, Codec(ready.start.tokenizer))[:4]
    policy = CausalLMPolicy(roles, ready.start.tokenizer, ready.args)
    rewards = load_maximised(context, roles)
    completions = policy.sample(rows, [[n, n + 10] for n in range(4)])
    scores = score(policy=policy, rewards=rewards, inputs=rows, groups=completions, batch_size=8)[:, 0].tolist()
    judge = RewardModel(made.run_dir / "reward")
    texts = [[{"role": "assistant", "content": one.text}] for group in completions for one in group]
    wanted = judge([row.prompt for row in rows for _ in range(2)], texts)
    # a random model's bytes need not survive decoding; where they do, the scores are the same
    same = [
        number for number, (text, one) in enumerate(zip(texts, [c for g in completions for c in g], strict=True))
        if ready.start.tokenizer(" " + text[0]["content"])["input_ids"] == one.ids[: None if not one.finished else -1]
    ]  # fmt: skip
    for number in same:
        assert scores[number] == pytest.approx(wanted[number], abs=1e-4)


def test_a_reward_adapter_that_does_not_fit_is_not_forced(project, tiny_bert):
    made = project()
    start = starting_point(StageContext(made, "ppo", made.run_dir / "work", {"sft": made.run_dir / "sft"}))
    assert reward_part(made.run_dir / "reward", start) is not None
    other = made.run_dir / "other"
    shutil.copytree(made.run_dir / "sft", other)
    state = load_file(other / "adapter_model.safetensors")
    save_file({name: tensor + 1 for name, tensor in state.items()}, other / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="was not joined with the adapter"):
        own_part(made.run_dir / "reward", other)


def test_a_reward_model_of_another_kind(tmp_path, tiny_llama, tiny_bert):
    stages = {
        "reward": {"model": {"name_or_path": str(tiny_bert), "adapter": None}, "max_steps": 2},
        "ppo": {**PPO, "max_steps": 2},
    }
    made = make_project(tmp_path, tiny_llama, chats(), stages=stages)
    for stage in ("reward", "ppo", "evaluate"):
        run_stage(made, stage)
    assert record_of(made)["metrics"]["rollouts"] == 1
    assert record_of(made, "evaluate")["metrics"]["policies"] == ["base", "ppo"]


def test_several_rewards_by_name_and_weight(tmp_path, tiny_llama):
    made = make_project(
        tmp_path, tiny_llama, chats(), data={"rollouts": {"source": str(tmp_path / "pairs.jsonl"), "holdout": 0.3}},
        rewards={
            "short": {"function": "rlhf.rewards.length:length", "arguments": {"target": 3}},
            "vowels": {"function": "rlhf.rewards.regex:regex", "arguments": {"pattern": "[aeiou]"}},
            "unused": {"function": str(tmp_path / "judge.py") + ":score"},
        },
        stages={"ppo": {**PPO, "rewards": {"short": 1.0, "vowels": 0.5}}},
    )  # fmt: skip
    assert rewards_of(made, "ppo") == {"short": 1.0, "vowels": 0.5}
    run_stage(made, "ppo")
    row = lines(made.run_dir / "ppo/metrics.jsonl")[0]
    assert {"reward/short", "reward/vowels"} <= row.keys()
    assert "reward/unused" not in row
    assert identity.identity(made, "ppo")["rewards"].keys() == {"short", "vowels"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"advantage": "gea"}, "stages.ppo.advantage: unknown 'gea'; did you mean 'gae'?"),
        ({"advantage": "rloo"}, "stages.ppo.samples_per_prompt: must be at least 2 for rloo, not 1"),
        ({"samples_per_prompt": 3}, "samples_per_prompt: 3 does not divide the 8 replies of an optimizer step"),
        ({"temperature": 0}, "stages.ppo.temperature: must be above 0, not 0"),
        ({"gamma": 1.5}, "stages.ppo.gamma: must be at most 1, not 1.5"),
        ({"max_new_tokens": 256}, "256 leave no room for a prompt within 256 tokens"),
        ({"rewards": {"nobody": 1.0}}, "there is no 'nobody'"),
        ({"rewards": {"long": "much"}}, "stages.ppo.rewards.long: expected a weight, not 'much'"),
        ({"fp16": True}, "stages.ppo.*fp16"),
        ({"eval_strategy": "epoch"}, "stages.ppo.eval_strategy: there is no held-out loss online"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"kl_coef": 0}, "stages.ppo.kl_target: an adaptive kl_coef grows by factors"),
        ({"neftune_noise_alpha": 5}, "stages.ppo.neftune_noise_alpha: online training has no use for it"),
        ({"rewards": ["long"]}, "stages.ppo.rewards: expected dict, not"),
        ({"rewards": {"long": float("nan")}}, "stages.ppo.rewards: must be finite, not nan"),
        ({"sampler": "vllm"}, "stages.ppo.sampler: vllm runs in an environment of its own: make one"),
        ({"sampler": "vllm", "vllm_url": "http://far.example:8000"}, "stages.ppo.vllm_folder: a server on another"),
        ({"max_length": 20}, r"every row of data.rollouts was dropped: \d+ × prompt leaves no room for a reply"),
    ],
)
def test_wrong_settings_are_refused_before_anything_trains(project, options, message):
    with pytest.raises(UserError, match=message):
        prepare_stage(project(**options), "ppo")


def test_there_must_be_something_to_maximise(tmp_path, tiny_llama):
    made = make_project(tmp_path, tiny_llama, stages={"ppo": PPO}, rewards={})
    with pytest.raises(UserError, match="nothing to maximise"):
        prepare_stage(made, "ppo")
    made = make_project(tmp_path, tiny_llama, stages={"ppo": {**PPO, "rewards": {"reward": 1}}})
    with pytest.raises(UserError, match="there is no 'reward' stage"):
        prepare_stage(made, "ppo")


def test_a_critic_does_not_start_as_a_reward_that_is_not_maximised(project):
    made = project(rewards={"long": 1.0})
    context = StageContext(
        made, "ppo", made.run_dir / "work", {name: made.run_dir / name for name in ("sft", "reward")}
    )
    ready = ppo.prepare(context)
    roles = build_roles(context, ready.start, ready.args, ready.args.critic_start)
    assert roles.reward_head is None
    assert not roles.critic_from_reward
    assert not roles.value_head.weight.any()


@pytest.mark.parametrize("options", [{}, {"logging_steps": 100}])
def test_a_run_that_diverges_is_stopped(project, options):
    made = project(learning_rate=1e30, max_grad_norm=0, optim="sgd", max_ratio=1e30, **options)
    with pytest.raises(Incident, match=r"of step 2 is not finite, and the weights are not either"):
        run_stage(made, "ppo")
    assert not (made.run_dir / "ppo").exists()
