"""The HH recipe on real pairs and a small trained Llama, a few steps a stage: every row is accounted for."""

import json

import pytest

from rlhf.config.load import load_project
from rlhf.pipeline import runner
from rlhf.report.build import read_report, write_report


@pytest.mark.slow
def test_the_hh_recipe_runs_to_its_report(real, root, tmp_path):
    source = real / "hh/helpful-online.jsonl.gz"
    overrides = [f"output_dir={tmp_path}", f"model.name_or_path={real / 'models/stories260K'}"]
    overrides += [f"data.{role}.source={source}" for role in ("demonstrations", "preferences")]
    overrides += [f"stages.{stage}.max_steps=2" for stage in ("sft", "reward", "dpo")]
    overrides += ["evaluate.prompts=8", "evaluate.max_new_tokens=16"]
    project = load_project(root / "recipes/hh.yaml", overrides)
    runner.run(project, say=lambda line: None)
    for stage in ("sft", "reward", "dpo"):
        counts = next(iter(json.loads((project.run_dir / stage / "ledger.json").read_text())["sets"].values()))
        assert counts["read"] == 920 == counts["trained"] + counts["evaluated"] + sum(counts["dropped"].values())
        assert counts["dropped"]["ends without a reply"] == 2
        if stage != "sft":  # a demonstration is the chosen side alone
            assert counts["dropped"]["empty side"] == 2
        dropped = (project.run_dir / stage / "dropped.jsonl").read_text().splitlines()
        assert len(dropped) == sum(counts["dropped"].values()) == len(counts["rows"])
        assert all("helpful-online.jsonl.gz:" in row["origin"] for row in counts["rows"])
    write_report(project.run_dir)
    report = read_report(project.run_dir)
    assert {(row["policy"], row["baseline"]) for row in report["comparisons"]} >= {("dpo", "sft"), ("sft", "base")}
    assert 0 <= report["stages"]["reward"]["accuracy"] <= 1
