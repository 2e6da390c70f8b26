import csv
import subprocess
import sys

import numpy as np

from examples.banking77.costs import HAND_OVER, PERSON, TEAMS, URGENT, write
from rlhf.rewards.cost_matrix import load_cost_matrix

QUESTIONS = {
    "card_arrival": "where is my new card {}", "age_limit": "how old must my child be {}",
    "lost_or_stolen_card": "my card was stolen {}", "top_up_failed": "my top up did not work {}",
}  # fmt: skip


def test_the_matrix_prices_teams_urgency_and_a_person(tmp_path):
    write(tmp_path / "costs.csv")
    matrix = load_cost_matrix(tmp_path / "costs.csv")
    assert len(matrix.classes) == 77
    assert {intent for intents in TEAMS.values() for intent in intents.split()} == set(matrix.classes) > URGENT
    assert matrix.cost("card_arrival", "card_arrival") == 0
    assert matrix.cost("card_arrival", "card_linking") == 0.5
    assert matrix.cost("card_arrival", "age_limit") == 4
    assert matrix.cost("lost_or_stolen_card", "age_limit") == 15
    assert matrix.cost("lost_or_stolen_card", HAND_OVER) == PERSON


def test_it_runs_from_questions_to_a_table(tmp_path, root):
    for name, count in (("train", 60), ("test", 10)):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "category"])
            rows.writerows([text.format(n), intent] for n in range(count) for intent, text in QUESTIONS.items())
    script = root / "examples/banking77/train.py"
    done = subprocess.run(
        [sys.executable, script, "--data", tmp_path, "--budget", "small", "--seeds", "0", "--work", tmp_path / "work"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = (line.split() for line in done.stdout.splitlines() if line.startswith("seed 0"))
    supervised, best, _ = map(float, row[2:5])
    assert best <= supervised
    assert np.isfinite(supervised)
