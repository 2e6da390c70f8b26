import math

import pytest
import torch

from rlhf.config.project import ModelConfig
from rlhf.errors import UserError
from rlhf.models.labels import classes_of
from rlhf.models.load import source_of
from rlhf.rewards.labels import label_number, log_odds
from tests.support.models import save_classifier
from tests.support.runs import add_stage

NAMES = ["negative", "neutral", "positive"]


def test_log_odds_by_hand():
    """Probabilities 1/8, 2/8, 5/8: odds 1 to 7, 2 to 6, 5 to 3."""
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log() + 3
    for label, odds in enumerate((1 / 7, 2 / 6, 5 / 3)):
        assert log_odds(logits, label).item() == pytest.approx(math.log(odds), abs=1e-6)
    assert log_odds(torch.tensor([[-1.0, 2.5]]), 1).item() == 3.5


def test_log_odds_stay_finite_where_the_probability_is_1():
    assert log_odds(torch.tensor([[200.0, -200.0]]), 0).item() == 400


def test_labels_that_do_not_exclude_one_another():
    assert log_odds(torch.tensor([[0.5, 2.0, 7.0]]), 1, multi_label=True).tolist() == [2.0]


def test_a_label_by_name_or_number():
    assert label_number("positive", NAMES, "m") == 2
    assert label_number(0, NAMES, "m") == 0
    assert label_number(None, ["LABEL_0"], "m") is None


@pytest.mark.parametrize(
    ("label", "names", "message"),
    [
        ("postive", NAMES, "m: has no label 'postive'; did you mean 'positive'?"),
        (3, NAMES, r"m: has no label 3; known: 0 \(negative\), 1 \(neutral\), 2 \(positive\)"),
        (-1, NAMES, "m: has no label -1"),
        (None, NAMES, r"m: has 3 labels; say which is wanted with label: 0 \(negative\)"),
        (0, ["LABEL_0"], "m: has one label, so that there is none to choose"),
    ],
)
def test_what_is_wrong_is_said(label, names, message):
    with pytest.raises(UserError, match=message):
        label_number(label, names, "m")


def test_names_come_from_the_config_and_the_number_from_an_adapters_head(tiny_llama, tiny_bert, tmp_path):
    def names(folder):
        return classes_of(source_of(ModelConfig(name_or_path=str(folder)))).names

    assert names(save_classifier(tiny_bert, tmp_path / "whole", ("bad", "good"))) == ["bad", "good"]
    assert len(names(tiny_llama)) == 1, "no head at all: left to whoever loads it to refuse"
    add_stage(tmp_path, "three", tiny_bert, labels=3)
    assert names(tmp_path / "three") == ["LABEL_0", "LABEL_1", "LABEL_2"]
    add_stage(tmp_path, "one", tiny_llama, labels=1)
    assert len(names(tmp_path / "one")) == 1
