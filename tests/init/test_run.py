"""From files as they come to a report: init, check, run, as somebody types it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


def typed(folder: Path, *words: str) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "rlhf.cli", *words], cwd=folder, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "stage", "judge"), [("hh/helpful-base.jsonl.gz", "dpo", None), ("gsm8k/train.jsonl.gz", "sft", "right")]
)
def test_real_files(real, tmp_path, file, stage, judge):
    source = tmp_path / "rows.jsonl.gz"
    source.write_bytes((real / file).read_bytes())
    model = str(real / "models/stories260K")
    typed(tmp_path, "init", source.name, "--model", model, "--to", stage, "--limit", "40")
    tree = yaml.safe_load((tmp_path / "rows.yaml").read_text())
    assert list(tree.get("rewards", {None: 0})) == [judge]
    assert "to train on" in typed(tmp_path, "check", "rows.yaml")
    short = (f"stages.{stage}.max_steps=2", "evaluate.prompts=4", "evaluate.max_new_tokens=8", "evaluate.samples=1")
    assert "report: " in typed(tmp_path, "run", "rows.yaml", *short)
    assert (tmp_path / f"runs/rows/{stage}/stage.json").is_file()
