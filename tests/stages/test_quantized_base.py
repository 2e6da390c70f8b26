"""Every stage on a base in 4 bits: what one leaves the next starts from, resumes and publishes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from rlhf.artifacts.manifest import read_manifest
from rlhf.artifacts.open import open_stage
from rlhf.config.load import load_project
from rlhf.errors import UserError
from rlhf.pipeline import identity
from rlhf.pipeline.execute import prepare_stage, run_stage
from rlhf.pipeline.folder import own_folder
from rlhf.ppo.trainer import PPOTrainer
from rlhf.publish import build
from rlhf.rewards.model import RewardModel
from tests.support.projects import chats, make_project, write_project

pytest.importorskip("bitsandbytes")
FEW = {"max_steps": 2, "learning_rate": 1e-2}
PPO = {**FEW, "max_steps": 4, "num_ppo_epochs": 1, "max_new_tokens": 8, "normalize_samples": 8, "truncated": "score",
       "save_steps": 2}  # fmt: skip


def project_in(folder, base, name="tiny", quantization="nf4", **stages):
    model = {"name_or_path": str(base), "adapter": {"r": 4}, "quantization": quantization}
    return make_project(folder, base, chats(), name=name, model=model, stages=stages)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_llama):
    """A project with SFT, a reward model and PPO, all on one base in 4 bits."""
    project = project_in(tmp_path_factory.mktemp("nf4"), tiny_llama, sft=FEW, reward=FEW, ppo=PPO)
    own_folder(project)
    for stage in ("sft", "reward", "ppo"):
        run_stage(project, stage)
    return project


def test_each_stage_starts_from_what_its_parent_left(trained):
    for stage in ("sft", "reward", "ppo"):
        manifest = read_manifest(trained.run_dir / stage)
        assert manifest["probe"]["dtype"] == "nf4, float32"
        assert manifest["config"]["model"]["quantization"] == "nf4"
        assert manifest["lineage"]["adapter"]
    ranks = [json.loads((trained.run_dir / stage / "adapter_config.json").read_text())["r"] for stage in ("sft", "ppo")]
    assert ranks == [4, 8], "the parent's adapter and PPO's own, side by side"
    first = load_file(trained.run_dir / "sft/adapter_model.safetensors")
    for name, tensor in load_file(trained.run_dir / "ppo/adapter_model.safetensors").items():
        if ".lora_A." in name:
            assert torch.equal(tensor[:4], first[name])


def test_the_first_step_of_ppo_has_ratio_1_and_no_kl(trained):
    log = [json.loads(line) for line in (trained.run_dir / "ppo/metrics.jsonl").read_text().splitlines()]
    first = next(line for line in log if "objective/kl" in line)
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert first["step"] == 1, "a log of several steps has those of another policy in it"
    assert first["policy/ratio"] == pytest.approx(1, abs=1e-5)


def test_what_scores_a_reply_is_the_reward_model_that_was_saved(trained):
    recorded = read_manifest(trained.run_dir / "reward")["probe"]
    model = RewardModel(trained.run_dir / "reward").model
    with torch.no_grad():
        scores = [model(input_ids=torch.tensor([ids])).logits.item() for ids in recorded["ids"]]
    assert scores == pytest.approx(recorded["outputs"], abs=1e-5)


class Interrupted(Exception):
    pass


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise Interrupted


def test_a_resumed_training_leaves_the_same_bytes(trained, tmp_path, tiny_llama, monkeypatch):
    project = project_in(tmp_path, tiny_llama, sft=FEW, reward=FEW, ppo=PPO)
    own_folder(project)
    for stage in ("sft", "reward"):
        (project.run_dir / stage).symlink_to(trained.run_dir / stage)
    with monkeypatch.context() as patched:
        made = PPOTrainer.__init__

        def interrupted(self, *args, **kwargs):
            made(self, *args, **kwargs)
            self.add_callback(Interrupt())

        patched.setattr(PPOTrainer, "__init__", interrupted)
        with pytest.raises(Interrupted):
            run_stage(project, "ppo")
    run_stage(project, "ppo")
    files = [one.run_dir / "ppo/adapter_model.safetensors" for one in (trained, project)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_quantization_decides_what_a_stage_is(trained, tmp_path, tiny_llama):
    plain = project_in(tmp_path, tiny_llama, quantization=None, sft=FEW)
    ours, theirs = (identity.identity(project, "sft")["model"] for project in (trained, plain))
    assert {key for key in ours if ours[key] != theirs[key]} == {"quantization"}


@pytest.mark.parametrize("merge", [False, True])
def test_it_is_published_with_how_its_base_is_held(trained, tmp_path, merge):
    published = build.build_folder(trained.run_dir, "ppo", tmp_path, merge)
    assert published.verified
    card = (tmp_path / "README.md").read_text()
    assert ("BitsAndBytesConfig(" in card) == (not merge)
    if merge:
        assert "quantization_config" not in (tmp_path / "config.json").read_text()
        assert {str(tensor.dtype) for tensor in load_file(tmp_path / "model.safetensors").values()} == {"torch.float32"}
    else:
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        base = Path(open_stage(trained.run_dir / "ppo").source.base)
        assert config["base_model_name_or_path"] == f"./{base.name}", "the unquantized one"


def test_what_does_not_fit_is_refused_before_training(tmp_path, tiny_llama):
    def check(word, model=None, **stage):
        path = write_project(
            tmp_path, tiny_llama, chats(), stages={"sft": {**FEW, **stage}},
            model={"name_or_path": str(tiny_llama), "adapter": {"r": 4}, "quantization": "nf4", **(model or {})},
        )  # fmt: skip
        with pytest.raises(UserError, match=word):
            prepare_stage(load_project(path), "sft")

    check("stages.sft: adapter: null", {"adapter": None})
    check("stages.sft: adapter: null", adapter=None)
    check("quantization", {"quantization": "nf3"})
    check("use_dora", {"adapter": {"r": 4, "use_dora": True}})
    check("stages.sft.optim: paged_adamw_8bit", optim="paged_adamw_8bit")
