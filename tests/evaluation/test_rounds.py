"""Rounds beside each other: by hand, and what may not be compared."""

import dataclasses

import pytest

from rlhf.evaluation.rounds import Left, compare_rounds

SETTINGS = {"samples": 1, "temperature": 1.0, "max_new_tokens": 8, "prompts": 12}


def left(number, mean, policy="dpo", judges=("gold",), prompts=12, **more):
    """A round whose policy scores `mean` on even prompts and a tenth more on odd ones."""
    rows = [
        {
            "index": n, "prompt": f"p{n}", "columns": {},
            "replies": {
                policy: [{"text": "t", "tokens": 5, "finished": True, "kl": 1.0,
                          "scores": dict.fromkeys(judges, mean + n % 2 / 10 + number * n / 1000)}],
                "base": [],
            },
        }
        for n in range(prompts)
    ]  # fmt: skip
    known = {judge: {"code": judge} for judge in judges}
    return Left(f"round {number}", policy, rows, SETTINGS, known, number, policy.upper(), 100 * (number - 1), **more)


def test_each_round_beside_the_one_before_and_the_first():
    made = compare_rounds([left(1, 0.3, "ppo"), left(2, 0.5), left(3, 0.4)])
    assert made["problem"] is None
    pairs = {(row["policy"], row["baseline"]): row for row in made["comparisons"]}
    assert set(pairs) == {("round 2", "round 1"), ("round 3", "round 2"), ("round 3", "round 1")}
    assert pairs["round 2", "round 1"]["mean_difference"] == pytest.approx(0.2055)
    assert pairs["round 3", "round 2"]["mean_difference"] == pytest.approx(-0.0945)
    assert pairs["round 3", "round 1"]["mean_difference"] == pytest.approx(0.111)
    assert [pairs[key]["verdict"] for key in pairs] == ["better", "worse", "better"]
    assert {row["n_comparisons"] for row in made["comparisons"]} == {3}
    assert [(each["policy"], each["votes"]) for each in made["rounds"]] == [("ppo", 0), ("dpo", 100), ("dpo", 200)]
    assert made["rounds"][0]["scores"]["gold"]["mean"] == pytest.approx(0.3555)


def test_only_judges_that_all_rounds_share():
    first, second = left(1, 0.3, judges=("gold", "long")), left(2, 0.5, judges=("gold", "long"))
    assert compare_rounds([first, second])["judges"] == ["gold", "long"]
    changed = dataclasses.replace(second, judges={**second.judges, "long": {"code": "another"}})
    assert compare_rounds([first, changed])["judges"] == ["gold"]
    none = dataclasses.replace(second, judges={})
    assert compare_rounds([first, none])["problem"].startswith("they share no judge")


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (left(2, 0.5, prompts=11), "other prompts"),
        (dataclasses.replace(left(2, 0.5), settings={**SETTINGS, "temperature": 0.5}), "another evaluate.temperature"),
        (dataclasses.replace(left(2, 0.5), rows=[]), "round 2 has not been compared"),
        (dataclasses.replace(left(2, 0.5), policy="ppo"), "round 2 has not been compared"),
    ],
)
def test_what_is_not_alike_is_not_compared(second, said):
    made = compare_rounds([left(1, 0.3), second])
    assert said in made["problem"]
    assert (made["comparisons"], made["judges"], made["rounds"][1]["scores"]) == ([], [], {})
