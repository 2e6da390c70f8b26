"""What benchmarks/sharding.py counts: parts of the weights, and what a process receives."""

import json
import runpy
import subprocess
import sys

import pytest

from tests.support.launches import environment

SIZES = {"layers": 100, "embedding": 10, "head": 20, "trained": 4}


@pytest.fixture(scope="module")
def expected(root):
    sys.path.insert(0, str(root / "benchmarks"))
    try:
        return runpy.run_path(str(root / "benchmarks/sharding.py"))["expected"]
    finally:
        sys.path.remove(str(root / "benchmarks"))


@pytest.mark.parametrize(
    ("case", "lora", "rollout", "step"),
    [("ppo", True, 130, 468), ("ppo", False, 370, 720), ("dpo", True, 0, 374), ("dpo", False, 0, 500)],
)
def test_what_the_formula_says(expected, case, lora, rollout, step):
    assert expected(case, lora, SIZES, 1) == {"rollout": 0, "step": 0}
    assert expected(case, lora, SIZES, 2) == {"rollout": rollout / 2, "step": step / 2}
    assert expected(case, lora, SIZES, 4) == {"rollout": rollout * 3 / 4, "step": step * 3 / 4}


@pytest.mark.scale
@pytest.mark.parametrize("row", ["ppo-lora", "ppo-whole", "dpo-lora", "dpo-whole"])
def test_what_is_counted_is_what_the_formula_says(tmp_path, root, row):
    command = [sys.executable, str(root / "benchmarks/sharding.py"), "--tiny", "--processes", "2", "--rows", row]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out.json")], capture_output=True, text=True, check=False,
        env=environment(), timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "out.json").read_text())["rows"][row]["2"]
    assert len(result["held"]) == 2
    for held in result["held"]:
        assert held["held"] == pytest.approx(held["base"] / 2, rel=0.01)
    for phase, size in result["expected"].items():
        assert sum(result["received"][phase].values()) == pytest.approx(size, rel=0.02), phase
