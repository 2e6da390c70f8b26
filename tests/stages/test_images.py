"""Image classifiers through the pipeline: supervised, online, compared, and what they refuse."""

import json
import multiprocessing
import os
import signal

import pytest
from transformers import Trainer

from rlhf import interrupts
from rlhf.artifacts.manifest import artifact_hash
from rlhf.artifacts.open import open_stage
from rlhf.config.load import load_project
from rlhf.errors import UserError
from rlhf.pipeline.execute import run_stage
from rlhf.publish.build import build_folder
from tests.support.pictures import digits

NAMES = ["one", "three", "two"]
SCRATCH = {"architecture": "vit", "image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16,
           "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip
STEPS = {"learning_rate": 1e-2, "per_device_train_batch_size": 8}


@pytest.fixture
def project(tmp_path):
    """Writes a project on pictures of three classes; loads it."""

    def write(scratch=SCRATCH, ppo=None, **sft):
        def keep(name, content):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)

        digits(keep, classes=NAMES)
        tree = {
            "name": "tiny", "output_dir": str(tmp_path / "runs"),
            "model": {"policy": "label", "adapter": None, "scratch": scratch},
            "data": {"demonstrations": {"source": str(tmp_path / "digits"), "holdout": 0.3}},
            "rewards": {"right": {"function": "rlhf.rewards.right_label:right_label"}},
            "stages": {
                "sft": {"max_steps": 3, "augment": ["shift", "noise"], **STEPS, **sft},
                "ppo": {"advantage": "gae", "total_episodes": 16, **STEPS, **(ppo or {})},
            },
            "evaluate": {"prompts": 4},
        }  # fmt: skip
        file = tmp_path / "project.yaml"
        file.write_text(json.dumps(tree), encoding="utf-8")
        return load_project(file)

    return write


RESNET = {"architecture": "resnet", "image_size": 8, "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16],
          "depths": [1, 1], "layer_type": "basic"}  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_augments_as_the_uninterrupted_one(project, monkeypatch, workers):
    """With dropout between the draws, in an epoch that is under way, whoever loads the data."""
    options = {"max_steps": 4, "save_strategy": "no", "dataloader_num_workers": workers}
    tiny = project({**SCRATCH, "hidden_dropout_prob": 0.2}, per_device_train_batch_size=4, **options)
    run_stage(tiny, "base")
    run_stage(tiny, "sft")
    whole = artifact_hash(tiny.run_dir / "sft")
    original = Trainer.training_step

    def training_step(trainer, *args, **kwargs):
        if trainer.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            for worker in multiprocessing.active_children():  # as a signal to all processes of a job reaches them
                os.kill(worker.pid, signal.SIGTERM)
        return original(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    with interrupts.listening(), pytest.raises(interrupts.Interrupted):
        run_stage(tiny, "sft")
    assert [path.name for path in (tiny.run_dir / ".sft.partial/checkpoints").iterdir()] == ["checkpoint-3"]
    monkeypatch.undo()
    run_stage(tiny, "sft")
    assert artifact_hash(tiny.run_dir / "sft") == whole


@pytest.mark.parametrize(("scratch", "ppo"), [(SCRATCH, {"adapter": {"r": 2}}), (RESNET, {})])
def test_a_classifier_of_images_is_trained_online_and_compared(project, scratch, ppo):
    tiny = project(scratch, ppo)
    for stage in ("base", "sft", "ppo", "evaluate"):
        run_stage(tiny, stage)
    for stage in ("sft", "ppo"):
        opened = open_stage(tiny.run_dir / stage)
        assert (opened.task.policy, opened.task.images, opened.label_names) == ("label", True, NAMES)
        assert opened.policy().num_labels == 3  # and it gives the outputs of its probe
        with pytest.raises(UserError):
            _ = opened.tokenizer
    rows = [json.loads(line) for line in (tiny.run_dir / "evaluate" / "samples.jsonl").read_text().splitlines()]
    assert all(row["replies"].keys() == {"sft", "ppo"} for row in rows)
    published = build_folder(tiny.run_dir, "ppo", tiny.run_dir / "published", merge=True)
    assert published.verified
    assert {reply["text"] for row in rows for (reply,) in row["replies"].values()} <= set(NAMES)


def test_an_adapter_is_saved_with_its_head(project):
    tiny = project(adapter={"r": 2})
    for stage in ("base", "sft"):
        run_stage(tiny, stage)
    opened = open_stage(tiny.run_dir / "sft")
    assert (opened.task.images, opened.label_names) == (True, NAMES)
    assert opened.policy().num_labels == 3


@pytest.mark.parametrize(
    ("scratch", "sft", "word"),
    [
        (SCRATCH, {"augment": ["word_dropout"]}, "augment"),
        (SCRATCH | {"image_size": "8"}, {}, "image_size"),
        (SCRATCH | {"tokenizer": {"vocab_size": 300}}, {}, "tokenizer"),
        (SCRATCH | {"hidden_sise": 8}, {}, "hidden_sise"),
    ],
)
def test_what_does_not_fit_images_is_one_line(project, scratch, sft, word):
    tiny = project(scratch, **sft)
    with pytest.raises(UserError, match=word) as error:
        _ = run_stage(tiny, "base"), run_stage(tiny, "sft")
    assert "\n" not in str(error.value)


def test_a_damaged_image_is_one_line(project, tmp_path):
    tiny = project()
    run_stage(tiny, "base")
    (tmp_path / "digits/two/0002.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(UserError, match=r"0002\.png") as error:
        run_stage(tiny, "sft")
    assert "\n" not in str(error.value)
