"""`make endurance`, cut short: stages that are killed again and again end as if they had been left alone."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("mode", "stages"), [("kill", "sft,dpo,ppo"), ("term", "sft")])
def test_what_is_ended_again_and_again_ends_the_same(tmp_path, root, mode, stages):
    out = tmp_path / "rows.json"
    command = [sys.executable, "-m", "tests.support.endurance", "--mode", mode, "--times", "3", "--stages", stages]
    done = subprocess.run(
        [*command, "--processes", "1", "--out", out], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert [row["stage"] for row in rows] == stages.split(",")
    assert all(row["times"] == 3 and row["identical"] == row["runs"] > 0 for row in rows)
    assert mode != "kill" or sum(row["resumed"] for row in rows) > 0
    assert mode != "term" or {"143", "-15"} >= rows[0]["codes"].keys()
