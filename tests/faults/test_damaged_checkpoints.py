"""Every file of a checkpoint, damaged in every way: recognised, said in a line, kept, and the one before is used."""

import pytest

from rlhf.config.load import load_project
from rlhf.pipeline.execute import run_stage
from rlhf.training import checkpoints
from tests.support.endurance import damages
from tests.support.endurance.fingerprints import differences, fingerprints
from tests.support.projects import make_project

EPOCHS = {
    "max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
}  # fmt: skip
PPO = {
    "max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4, "num_ppo_epochs": 2, "max_new_tokens": 4,
    "normalize_samples": 4, "truncated": "score", "rewards": {"long": 1.0},
}  # fmt: skip


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_llama):
    """A project whose stages have run; call it with `adapter` or `weights`."""
    made = {}

    def run(adapter="adapter"):
        if adapter not in made:
            stages = {"sft": EPOCHS if adapter == "adapter" else {**EPOCHS, "adapter": None}, "ppo": PPO}
            made[adapter] = make_project(tmp_path_factory.mktemp("whole"), tiny_llama, stages=stages)
            run_stage(made[adapter], "sft")
        return made[adapter]

    return run


@pytest.mark.parametrize(("stage", "adapter"), [("sft", "adapter"), ("sft", "weights"), ("ppo", "adapter")])
def test_every_damage_is_recognised(whole, tmp_path, stage, adapter):
    project = whole(adapter)
    if not (project.run_dir / stage).exists():
        run_stage(project, stage)
    folder = project.run_dir / stage / "checkpoints"
    last, before = [path.name for path in damages.newest(folder)[:2]]
    found = list(damages.look(folder, tmp_path / "copy"))
    files = {path.name for path in damages.files_of(folder / last)}
    weights = {"ppo": "roles.safetensors", "weights": "weights.safetensors", "adapter": "weights.safetensors"}
    assert {weights[stage if stage == "ppo" else adapter], "optimizer.safetensors", "checkpoint.json"} <= files
    assert len(found) >= len(files) * (len(damages.OF_A_FILE) - 1)
    assert [one for one in found if one.used != before] == []
    assert [one for one in found if len(one.lines) != 1 or last not in one.lines[0]] == []
    assert [one for one in found if one.lost] == []


@pytest.mark.parametrize("all_damaged", [False, True])
def test_a_stage_goes_on_from_the_one_before_or_anew(whole, monkeypatch, capsys, all_damaged):
    """And ends as it would have; what was damaged is still there."""
    expected = fingerprints(whole().run_dir / "sft")
    project = load_project(whole().path, [f"name=again-{all_damaged}"])
    with monkeypatch.context() as patch:
        patch.setattr("rlhf.training.save.save_model", killed)
        with pytest.raises(Killed):
            run_stage(project, "sft")
    partial = project.run_dir / ".sft.partial"
    found = damages.newest(partial / "checkpoints")
    for checkpoint in found if all_damaged else found[:1]:
        damages.OF_A_FILE["cut in half"](checkpoint / "optimizer.safetensors")
    capsys.readouterr()
    run_stage(project, "sft")
    said = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(said) == (len(found) if all_damaged else 1)
    assert ("anew" in said[-1]) is all_damaged
    assert differences(expected, fingerprints(project.run_dir / "sft")) == []
    kept = [path.name for path in (project.run_dir / "sft/checkpoints").iterdir() if path.name.startswith("damaged-")]
    assert len(kept) == len(said)


def test_a_stage_drops_what_it_was_about_to_drop(whole, monkeypatch):
    project = load_project(whole().path, ["name=dropping"])
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "drop_old", lambda folder, *args: (folder / "checkpoint-6").exists() and killed())
        with pytest.raises(Killed):
            run_stage(project, "sft")
    assert len(damages.newest(project.run_dir / ".sft.partial/checkpoints")) == 3
    run_stage(project, "sft")
    assert differences(fingerprints(whole().run_dir / "sft"), fingerprints(project.run_dir / "sft")) == []


def killed(*args, **kwargs):
    raise Killed
