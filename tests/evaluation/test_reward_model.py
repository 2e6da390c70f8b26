import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from rlhf.evaluation.reward_model import held_out_accuracy, length_baseline
from rlhf.rewards.model import score_sequences


def test_the_ruler_takes_its_direction_from_training():
    longer, shorter = np.array([3.0, 1.0, -1.0]), np.array([-3.0, -1.0, 1.0])
    held_out = np.array([2.0, -5.0, 0.0])
    assert length_baseline(longer, held_out).tolist() == [1.0, 0.0, 0.5]
    assert length_baseline(shorter, held_out).tolist() == [0.0, 1.0, 0.5]


@pytest.fixture
def scorer(tiny_llama):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1)
    return model


def test_padding_and_order_do_not_change_a_score(scorer):
    rows = [[5, 9, 30], [8, 12, 44, 45, 46, 60, 61], [7, 9]]
    alone = [score_sequences(scorer, [row])[0] for row in rows]
    assert score_sequences(scorer, rows, batch_size=2) == pytest.approx(alone, abs=1e-5)


def test_accuracy_counts_pairs_and_ties_half(scorer):
    class Trainer:
        model = scorer

        class accelerator:
            unwrap_model = staticmethod(lambda model: model)

        class args:
            per_device_eval_batch_size = 2

    one, two, same = [5, 9, 30], [8, 12, 44, 45], [7, 9]
    better, worse = (one, two) if np.diff(score_sequences(scorer, [one, two]))[0] < 0 else (two, one)
    pairs = Dataset.from_dict(
        {"chosen_ids": [better, worse, same, better], "rejected_ids": [worse, better, same, worse]}
    )
    found = held_out_accuracy(Trainer, pairs, pairs)
    assert found["accuracy"] == (1 + 0 + 0.5 + 1) / 4
    assert found["n"] == 4
    assert found["accuracy_ci"][0] < found["accuracy"] < found["accuracy_ci"][1]
