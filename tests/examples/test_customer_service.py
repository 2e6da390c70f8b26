"""Customer service on a few made-up customers; what is learned there says nothing, how it is learned does."""

import csv
import gzip
import re

import numpy as np
import pytest

from examples.customer_service import train
from examples.customer_service.train import (
    ASK,
    COSTS,
    HAND_OVER,
    at_once,
    by_confidence,
    by_cost,
    customers,
    dialogue,
    main,
    play,
    table,
    unseen_probabilities,
)
from rlhf.rewards.cost_matrix import read_cost_matrix

CLASSES = sorted(read_cost_matrix(COSTS).classes)
HAS, LOST = CLASSES.index("card_arrival"), CLASSES.index("lost_or_stolen_card")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twenty customers for each intent, who name it last, and six to test."""
    folder = tmp_path_factory.mktemp("banking")
    rng = np.random.default_rng(0)

    def write(file, count):
        rows = csv.writer(file)
        rows.writerow(["text", "category"])
        for name in [*CLASSES, "age_limit"]:
            for _ in range(count):
                greeting = " ".join(rng.choice(["please", "hello", "I", "want", "to", "ask"], 5))
                rows.writerow([f"{greeting}, about my {name.replace('_', ' ')}", name])

    with gzip.open(folder / "train.csv.gz", "wt", encoding="utf-8", newline="") as file:
        write(file, 20)
    with (folder / "test.csv").open("w", encoding="utf-8", newline="") as file:
        write(file, 6)
    return folder


def certain(known, label="card_arrival"):
    """One customer, whose class becomes certain at the last stage: `known` probability before."""
    stages = np.full((1, 3, len(CLASSES)), (1 - known) / (len(CLASSES) - 1))
    stages[0, :, CLASSES.index(label)] = [known, known, 1.0]
    stages[0, 2] = np.eye(len(CLASSES))[CLASSES.index(label)]
    return dialogue([{"prompt": "a b c", "label": label}], stages, CLASSES)


def test_everybody_plays_the_same_held_out_customers(data, capsys, tmp_path):
    played = main(["--data", str(data), "--budget", "small", "--logs", str(tmp_path)])
    learned, kept = customers(data, CLASSES)
    assert not {row["prompt"] for row in learned} & {row["prompt"] for row in kept}
    assert {name: len(seeds) for name, seeds in played.items()} == {
        "answer at once": 1, "tuned rule": 1, "cost rule": 1, "Q-learning": 3, "SARSA": 3, "DQN": 3,
    }  # fmt: skip
    for results in (result for seeds in played.values() for result in seeds):
        assert results.returns_N.shape == (len(kept),)
        assert (results.returns_N <= 0).all()
        assert (results.right_N + results.handed_N <= 1).all()
    assert played["tuned rule"][0].returns_N.mean() > played["answer at once"][0].returns_N.mean()
    assert len(re.findall(r"\[[+-]\d", capsys.readouterr().out)) == 3 * 6 - 3
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_a_customer_is_seen_by_a_classifier_that_was_not_fitted_to_them(data, monkeypatch):
    fitted, asked = [], []
    classifier, probabilities = train.classifier, train.probabilities
    monkeypatch.setattr(train, "classifier", lambda rows: fitted.append(rows) or classifier(rows))
    monkeypatch.setattr(train, "probabilities", lambda model, rows: asked.append(rows) or probabilities(model, rows))
    learned, _ = customers(data, CLASSES)
    result_NRC = unseen_probabilities(learned)
    assert np.allclose(result_NRC.sum(2), 1)
    for seen, unseen in zip(fitted, asked, strict=True):
        assert not {id(row) for row in seen} & {id(row) for row in unseen}
    assert sum(map(len, asked)) == len(learned)


def test_rules_by_hand():
    env = certain(0.4)
    (returned,), (asked,), (handed,), (right,) = play(env, lambda seen: by_confidence(env, 0.9, 0.0, seen))
    assert (asked, handed, right) == (2, 0, 1)
    assert returned == pytest.approx(-2 * ASK)
    assert play(env, lambda seen: by_confidence(env, 0.3, 0.0, seen)).returns_N == 0
    unclear = dialogue([{"prompt": "a", "label": "card_arrival"}], np.full((1, 3, 10), 0.1), CLASSES)
    assert play(unclear, lambda seen: by_confidence(unclear, 0.9, 0.2, seen)).returns_N == pytest.approx(
        -2 * ASK - HAND_OVER
    )
    assert at_once(env, env.reset()[0]) == HAS


def test_the_cost_rule_fears_the_dear_mistake():
    """At 0.8 for an arrival and 0.2 for a lost card, the first costs 1.0 in the mean and the second 0.8: hand over."""
    matrix = read_cost_matrix(COSTS)
    costs_CC = np.array([[matrix.cost(right, answer) for answer in CLASSES] for right in CLASSES])
    env = certain(0.4)
    seen = np.zeros(len(CLASSES) + 1, dtype=np.float32)
    seen[HAS], seen[LOST], seen[-1] = 0.8, 0.2, 2 / 3
    assert by_cost(env, costs_CC, 0.0, seen) == env.hand_over
    assert by_cost(env, costs_CC, 0.9, seen) == env.hand_over
    seen[HAS], seen[LOST] = 0.3, 0.7
    assert by_cost(env, costs_CC, 0.0, seen) == LOST
    seen[-1] = 0
    assert by_cost(env, costs_CC, 0.0, seen) == env.ask


@pytest.mark.parametrize("name", ["Q-learning", "SARSA"])
def test_a_table_learns_to_ask_where_it_pays(name):
    """Certainty costs two questions, 0.2; handing over 0.5; either answer before is wrong half of the time."""
    halves = np.zeros((2, 3, len(CLASSES)))
    halves[:, :2, HAS], halves[:, :2, CLASSES.index("cancel_transfer")] = 0.5, 0.5
    halves[0, 2, HAS] = halves[1, 2, CLASSES.index("cancel_transfer")] = 1
    rows = [{"prompt": "a", "label": "card_arrival"}, {"prompt": "a", "label": "cancel_transfer"}]
    env = dialogue(rows, halves, CLASSES)
    result = play(env, table(env, name, 3000, 0))
    assert result.asked_N.tolist() == [2, 2]
    assert result.right_N.tolist() == [1, 1]


def test_data_that_is_not_there_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--data", str(tmp_path)])
    assert caught.value.code == 2
    assert "train.csv.gz" in capsys.readouterr().err.splitlines()[-1]
