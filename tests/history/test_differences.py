"""In what two runs differ, by hand; and the interval of a difference."""

import json

import pytest
from rich.console import Console

from rlhf.errors import UserError
from rlhf.history.difference_table import difference_table
from rlhf.history.differences import difference_interval, run_difference
from rlhf.report.build import write_report
from tests.support.reports import fake_run, sample_rows


def change(run, stage, **fields):
    """Edit a stage's record; a dotted key goes into what it holds."""
    path = run / stage / "stage.json"
    record = json.loads(path.read_text())
    for key, value in fields.items():
        place = record
        *outer, last = key.split("__")
        for name in outer:
            place = place[name]
        place[last] = value
    path.write_text(json.dumps(record))


@pytest.fixture
def runs(tmp_path):
    """Two runs that are alike but for their times."""
    return [fake_run(tmp_path / name) for name in ("first", "second")]


def by_key(rows):
    return {row["key"]: (row.get("first", "absent"), row.get("second", "absent")) for row in rows}


def test_equal_runs_differ_in_nothing(runs):
    for run in runs:
        write_report(run)
    found = run_difference(*map(str, runs))
    assert [found[key] for key in ("settings", "data", "packages", "metrics", "only_first", "only_second")] == [[]] * 6
    assert {row["verdict"] for row in found["policies"]} == {"no difference"}
    assert all(row["first"] == row["second"] for row in found["comparisons"])
    assert found["notes"] == []


def test_settings_data_packages_and_metrics(runs):
    first, second = runs
    change(second, "dpo", config__trainer={"learning_rate": 1e-3, "beta": 0.5, "hub_token": "hf_other"}, seed=3)
    change(second, "dpo", versions__trl="1.17.0", metrics__loss=0.5, git_sha="f" * 40)
    sets = {"sources": [{"file": "other.jsonl", "sha256": "ab" * 32}], "seed": 0}
    for stage in ("sft", "reward", "dpo", "evaluate"):
        change(second, stage, data={"preferences": sets}, config__model={"dtype": "bfloat16"})
        change(first, stage, config__model={"dtype": "float32"})
    ledger = second / "dpo/ledger.json"
    ledger.write_text(ledger.read_text().replace('"duplicate": 41', '"duplicate": 40'))
    found = run_difference(str(first), str(second))
    assert by_key(found["settings"]) == {
        "model.dtype": ("float32", "bfloat16"), "stages.dpo.beta": (0.1, 0.5),
    }  # fmt: skip
    data = by_key(found["data"])
    assert data["data.preferences.sources"][1] == "other.jsonl abababababab"
    assert data["rows.dpo.preferences.dropped.duplicate"] == (41, 40)
    assert by_key(found["packages"])["trl"] == ("1.16.0", "1.16.0, 1.17.0")
    assert [(row["stage"], row["metric"], row["first"], row["second"]) for row in found["metrics"]] == [
        ("dpo", "loss", 0.41, 0.5)
    ]
    assert "hf_" not in json.dumps(found)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(difference_table(found))
    assert "stages.dpo.beta" in console.export_text()


def test_a_model_of_one_stage_is_named_with_the_stage(runs):
    for run, dtype in zip(runs, ("float32", "bfloat16"), strict=True):
        for stage in ("sft", "reward", "dpo", "evaluate"):
            change(run, stage, config__model={"dtype": dtype if stage == "reward" else "float32"})
    assert by_key(run_difference(*map(str, runs))["settings"]) == {"stages.reward.model.dtype": ("float32", "bfloat16")}


def test_a_field_that_one_run_writes_out_has_its_default_in_the_other(runs):
    change(runs[0], "dpo", config__trainer={"learning_rate": 1e-3, "beta": 0.1})
    change(runs[1], "dpo", config__trainer={"learning_rate": 1e-3})
    assert run_difference(*map(str, runs))["settings"] == []  # 0.1 is the default of TRL
    change(runs[1], "dpo", config__trainer={"learning_rate": 1e-3, "num_train_epochs": 2})
    assert by_key(run_difference(*map(str, runs))["settings"]) == {"stages.dpo.num_train_epochs": (1, 2)}


def test_policies_are_paired_on_the_prompts_that_both_runs_have(tmp_path):
    rows = sample_rows()
    worse = [
        {**row, "replies": {**row["replies"], "dpo": [
            {**reply, "scores": {**reply["scores"], "reward": reply["scores"]["reward"] - 0.25}}
            for reply in row["replies"]["dpo"]
        ]}}
        for row in rows
    ]  # fmt: skip
    first, second = fake_run(tmp_path / "a", rows=rows), fake_run(tmp_path / "b", rows=worse)
    found = run_difference(str(first), str(second))
    means = {(row["policy"], row["judge"]): row["mean_difference"] for row in found["policies"]}
    assert means == {("sft", "reward"): pytest.approx(0), ("dpo", "reward"): pytest.approx(-0.25)}
    verdicts = {row["policy"]: row["verdict"] for row in found["policies"]}
    assert verdicts == {"sft": "no difference", "dpo": "worse"}
    assert run_difference(str(second), str(first))["policies"][1]["verdict"] == "better"

    change(second, "evaluate", parents={"sft": "3fa0c1", "reward": "another", "dpo": "9e01dd"})
    assert "share no judge" in run_difference(str(first), str(second))["problems"]["dpo"]
    other = fake_run(tmp_path / "c", rows=sample_rows(seed=1))
    assert "other prompts" in run_difference(str(first), str(other))["problems"]["dpo"]
    unfinished = fake_run(tmp_path / "d", ("sft", "dpo"))
    found = run_difference(str(first), str(unfinished))
    assert found["only_first"] == ["reward", "evaluate"]
    assert "has not been compared" in found["problems"]["dpo"]


def test_the_interval_of_a_difference():
    assert difference_interval(0.5, [0.3, 0.6], 0.7, [0.6, 0.9]) == pytest.approx([0.05858, 0.48284], abs=1e-5)
    assert difference_interval(0.7, [0.6, 0.9], 0.5, [0.3, 0.6]) == pytest.approx([-0.48284, -0.05858], abs=1e-5)


def test_a_difference_that_the_intervals_do_not_show(runs):
    change(runs[1], "reward", metrics__accuracy=0.88, metrics__accuracy_ci=[0.84, 0.91])
    (row,) = run_difference(*map(str, runs))["metrics"]
    assert row["interval"][0] < 0 < row["interval"][1]


def test_what_cannot_be_compared_is_a_line(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    good = str(runs[0])
    for spec, message in (
        (str(tmp_path / "gone"), "no such run"),
        (str(tmp_path / "file"), "no such run"),
        (str(tmp_path / "empty"), "is a folder, but no run"),
        (f"{good}:dpo", "names a stage"),
    ):
        for pair in ((good, spec), (spec, good)):
            with pytest.raises(UserError, match=message):
                run_difference(*pair)
    (runs[1] / "report.json").write_text('{"comparisons": [{"policy": "dpo"}]}')
    with pytest.raises(UserError, match=r"report\.json: has no comparisons of this version"):
        run_difference(good, str(runs[1]))
    (runs[1] / "dpo/stage.json").write_text("{")
    with pytest.raises(UserError, match=r"dpo/stage\.json: not valid JSON"):
        run_difference(good, str(runs[1]))
