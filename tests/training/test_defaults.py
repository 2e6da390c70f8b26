import dataclasses

import pytest
import trl

from rlhf.config import trainer_fields
from rlhf.ppo.config import PPOConfig
from rlhf.training.defaults import DEFAULTS, non_default_fields
from rlhf.trl_trainers.sft import SFTSettings
from rlhf.workflow import stage_of

KINDS = {"sft": SFTSettings, "reward": trl.RewardConfig, "dpo": trl.DPOConfig, "ppo": PPOConfig}


@pytest.mark.parametrize("stage", KINDS)
def test_defaults_read_from_source_are_those_of_the_class(stage):
    found = trainer_fields.class_defaults(stage)
    fields = {field.name: field.default for field in dataclasses.fields(KINDS[stage])}
    assert len(found) > 90
    for name, value in found.items():
        assert getattr(fields[name], "value", fields[name]) == value, name


@pytest.mark.parametrize(
    ("stage", "trainer", "left"),
    [
        ("dpo", {"beta": 0.1, "num_train_epochs": 1, "learning_rate": 0.5}, {"learning_rate": 0.5}),
        ("sft", {"num_train_epochs": 3.0}, {"num_train_epochs": 3.0}),  # the class's default, not ours
        ("ppo", {"lr_scheduler_type": "linear"}, {}),
        ("dpo", {"lr_scheduler_type": "linear"}, {"lr_scheduler_type": "linear"}),
        ("sft", {"bf16": False}, {"bf16": False}),  # silence follows the hardware
    ],
)
def test_a_default_written_out_says_nothing(stage, trainer, left):
    assert non_default_fields(stage, trainer) == left
    assert stage_of("ppo").defaults["lr_scheduler_type"] != DEFAULTS["lr_scheduler_type"]
