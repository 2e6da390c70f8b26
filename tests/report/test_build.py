from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from rlhf.artifacts.manifest import write_manifest
from rlhf.errors import UserError
from rlhf.report import build as reports
from rlhf.report.build import build_report, write_report
from rlhf.report.caveats import caveats
from rlhf.report.sentences import statements
from tests.support import manifests
from tests.support.damage import record_of
from tests.support.projects import write_rows
from tests.support.reports import FINDINGS, STAGES, fake_full_run, make_row, sample_rows, write_json

COMPARISON_KEYS = {"policy", "baseline", "judge", "mean_difference", "difference_ci", "win_rate", "win_rate_ci", "kl",
                   "mean_length", "n", "verdict", "policy_mean", "baseline_mean"}  # fmt: skip


def test_report_json_holds_the_contract(run_maker):
    run = run_maker()
    page = write_report(run)
    assert page == run / "report.html"
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report["stages"]["sft"]["loss"] == 0.742
    assert report["stages"]["sft"]["loss_before"] == 2.215
    assert {"accuracy", "accuracy_ci", "length_baseline", "n"} <= set(report["stages"]["reward"])
    assert list(report["stages"]) == ["sft", "reward", "dpo"]
    assert len(report["comparisons"]) == 6
    for row in report["comparisons"]:
        assert set(row) >= COMPARISON_KEYS
        assert row["difference_ci"][0] <= row["mean_difference"] <= row["difference_ci"][1]
        assert row["win_rate_ci"][0] <= row["win_rate"] <= row["win_rate_ci"][1]
    verdict = {(row["policy"], row["baseline"], row["judge"]): row["verdict"] for row in report["comparisons"]}
    assert verdict["dpo", "sft", "gold"] == "better"
    assert report["stages"]["dpo"]["rows"]["preferences"]["read"] == 3000
    assert report["evaluation"]["samples"] == 4
    assert not list(run.glob(".*partial"))


@pytest.mark.parametrize("stages", [["sft"], ["sft", "reward"], ["reward"], list(STAGES)])
def test_a_run_that_is_not_finished_gives_a_report(run_maker, stages):
    run = run_maker(stages=stages)
    write_report(run)
    report = build_report(run)
    assert list(report["stages"]) == stages
    assert (report["comparisons"], report["evaluation"], report["samples"]) == ([], None, [])
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "have not been compared yet" in text
    assert ("The reward model is better" in text) == ("reward" in stages)


def test_stages_unknown_here_come_after_the_known_ones(run_maker):
    run = run_maker(stages=["sft"])
    manifests.finish(run / "aaa")
    assert list(build_report(run)["stages"]) == ["sft", "aaa"]
    write_report(run)


def test_what_is_missing_or_broken_is_named(tmp_path, run_maker):
    with pytest.raises(UserError, match="nowhere: no such run"):
        build_report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no finished stage"):
        build_report(tmp_path / "empty")
    run = run_maker()
    samples = run / "evaluate" / "samples.jsonl"
    samples.write_text('{"index": ' + "9" * 5000 + "}", encoding="utf-8")
    with pytest.raises(UserError, match=r"samples\.jsonl:1: not valid JSON: Exceeds"):
        build_report(run)
    samples.write_text('{"index": 0}\n\n{"index":\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"samples\.jsonl:3: not valid JSON"):
        build_report(run)
    samples.unlink()
    with pytest.raises(UserError, match=r"samples\.jsonl: no such file"):
        build_report(run)
    (run / "sft" / "stage.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match=r"stage\.json: holds no JSON object"):
        build_report(run)


def test_samples_that_were_changed_are_not_reported(run_maker):
    run = run_maker()
    rows = run / "evaluate" / "samples.jsonl"
    write_manifest(run / "evaluate", record_of(run / "evaluate"))
    build_report(run)
    rows.write_text(rows.read_text(encoding="utf-8").replace("0", "1", 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"samples\.jsonl: changed since the stage finished"):
        build_report(run)


@pytest.mark.parametrize(
    ("stage", "metrics"),
    [("gate", {"passed": True, "models": {}}), ("ppo", {"tracked": [{"step": 1, "gold": 0.5, "gold_ci": [0.4, 0.6]}]})],
)
def test_a_stage_of_an_earlier_version_is_not_reported_without_its_warnings(run_maker, stage, metrics):
    run = run_maker()
    manifests.finish(run / stage, metrics=metrics)
    with pytest.raises(UserError, match=f"{stage}: an earlier version of rlhf .* --force {stage}"):
        build_report(run)


def test_a_report_is_written_whole_or_not_at_all(run_maker, monkeypatch):
    run = run_maker()
    write_report(run)
    before = (run / "report.json").read_bytes()
    monkeypatch.setattr(reports.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(run)
    assert (run / "report.json").read_bytes() == before
    assert not list(run.glob(".*partial"))


def test_numbers_that_json_lacks_become_null(run_maker):
    rows = [make_row(i, base=[0.0], sft=[math.nan], dpo=[1.0]) for i in range(8)]
    run = run_maker(rows=rows)
    manifests.finish(run / "dpo", metrics={"loss": math.nan, "accuracy": 0.5})
    write_report(run)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    report = json.loads((run / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert report["stages"]["dpo"]["loss"] is None
    by_pair = {(row["policy"], row["baseline"], row["judge"]): row for row in report["comparisons"]}
    assert by_pair["sft", "base", "gold"]["mean_difference"] is None
    assert by_pair["sft", "base", "gold"]["left_out"] == 8
    assert by_pair["dpo", "base", "gold"]["verdict"] == "better"


def test_a_hub_token_in_the_config_does_not_get_out(run_maker):
    run = run_maker()
    write_report(run)
    for name in ("report.json", "report.html", "report.md"):
        assert "hf_private" not in (run / name).read_text(encoding="utf-8")


def test_long_curves_are_thinned_without_losing_their_mean(run_maker):
    run = run_maker(stages=["sft"])
    rows = [
        {"step": step, "epoch": 0.1, "loss": float(step), "note": "text", "bad": math.nan} for step in range(1, 2001)
    ]
    write_rows(run / "sft" / "metrics.jsonl", rows)
    curves = build_report(run)["curves"]["sft"]
    assert list(curves) == ["loss"]
    assert 200 < len(curves["loss"]) <= 300
    assert curves["loss"][0] == [4.0, 4.0]


def test_shown_replies_are_the_first_ones(run_maker):
    report = build_report(run_maker(rows=sample_rows(prompts=100, samples=3)))
    assert [row["index"] for row in report["samples"]] == list(range(60))
    assert len(report["samples"][11]["replies"]["dpo"]) == 3
    assert len(report["samples"][12]["replies"]["dpo"]) == 1


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    run = fake_full_run(tmp_path_factory.mktemp("runs") / "full", prompts=24, samples=2)
    write_report(run)
    return run


def test_report_json_holds_what_the_stages_found(full):
    report = json.loads((full / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert list(report["stages"]) == ["sft", "reward", "dpo", "dpo@1", "dpo@2", "gate", "ppo"]
    gate = report["stages"]["gate"]
    assert gate["passed"] is False
    assert {"accuracy", "ece", "calibration", "by_length", "invariance", "scores", "reasons", "advice"} <= set(
        gate["models"]["reward"]
    )
    findings = report["stages"]["reward"]["findings"]
    assert findings["findings"][0]["kind"] == "contradictory"
    assert findings["lines"][1].startswith("1,797 of 3,000 (59.9% [58.1%, 61.6%]) pairs prefer")
    assert (report["stages"]["ppo"]["selected_step"], len(report["stages"]["ppo"]["tracked"])) == (60, 6)
    assert report["comparing"]["claude <judge>"]["position_bias"] == 0.24


def test_groups_leave_out_further_seeds(full):
    groups = json.loads((full / "report.json").read_text(encoding="utf-8"))["groups"]
    assert {row["group"] for row in groups} == {"delivery", "refund", "account"}
    assert {row["policy"] for row in groups} == {"sft", "dpo", "ppo"}
    assert {row["n"] for row in groups if row["judge"] == "gold"} == {8}


def test_what_must_not_get_worse_is_compared(full):
    retained = json.loads((full / "report.json").read_text(encoding="utf-8"))["retained"]
    verdict = {(row["judge"], row["policy"], row["baseline"]): row["verdict"] for row in retained}
    assert verdict["general", "sft", "base"] == "worse"
    assert verdict["sums", "sft", "base"] == "no difference"


def test_a_broken_file_of_findings_is_named(run_maker):
    run = run_maker(stages=["sft"])
    write_json(run / "sft" / "findings.json", {**FINDINGS, "findings": [{"kind": "length"}]})
    with pytest.raises(UserError, match=r"findings\.json: not a file of findings"):
        build_report(run)


def test_markdown_has_every_section_with_content(full, run_maker):
    headings = ["## Comparisons", "### Over several seeds", "### By topic", "## Policies", "## The gate",
                "## Over-optimisation: PPO", "## Regressions", "## Training", "## Data"]  # fmt: skip
    text = (full / "report.md").read_text(encoding="utf-8")
    assert re.findall(r"^##.*$", text, re.MULTILINE) == headings
    report = build_report(full)
    for sentence in [*statements(report), *caveats(report)]:
        assert text.count(sentence.text) == 1
    assert not re.search(r"\n{3,}", text)
    run = run_maker()
    write_report(run)
    plain = (run / "report.md").read_text(encoding="utf-8")
    assert re.findall(r"^##.*$", plain, re.MULTILINE) == ["## Comparisons", "## Policies", "## Training", "## Data"]


def test_markdown_has_verdicts_first_and_the_tables(run_maker):
    run = run_maker()
    write_report(run)
    text = (run / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# quickstart\n")
    assert text.index("- DPO is better than SFT on gold") < text.index("## Comparisons") < text.index("## Data")
    assert not re.search(r"\n{3,}", text)
