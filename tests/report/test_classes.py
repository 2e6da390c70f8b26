"""Reports of classifiers: measures over all rows, flips, confusions, perturbed inputs and the tokens of a score."""

from __future__ import annotations

import base64
import json
import math

import pytest

from rlhf.report import classes, sections, tables
from rlhf.report.build import build_report, read_report, write_report
from rlhf.report.caveats import caveats
from rlhf.report.html import render_html, render_markdown, standfirst
from rlhf.report.sentences import statements
from tests.report.test_html import HOSTILE, Page
from tests.support.reports import INTENTS, fake_label_run, fake_run, label_rows


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    run = fake_label_run(tmp_path_factory.mktemp("runs") / "six")
    write_report(run)
    return read_report(run)


def ids(page: Page) -> list[str | None]:
    return [attributes["id"] for tag, attributes in page.tags if tag == "section" and "id" in attributes]


def test_the_page_has_the_sections_of_classifiers(report):
    page = Page(render_html(report))
    assert ids(page) == ["verdicts", "comparisons", "policies", "classes", "robustness", "attributions", "stages",
                         "replies", "data", "provenance"]  # fmt: skip
    for statement in statements(report):
        assert f"{statement.finding}." in page.text
    assert "95% sure" in page.text or "96% sure" in page.text
    for words in ("equal length", "token each", "Ended by itself", "tokens a reply", "1 token"):
        assert words not in page.text, words


def test_other_reports_have_none_of_these(run_maker):
    made = build_report(run_maker())
    assert (made["classification"], made["robustness"], made["attributions"]) == (None, None, [])
    assert made["evaluation"]["measures"] == []
    assert not {"classes", "robustness", "attributions"} & set(ids(Page(render_html(made))))
    assert classes.view(made) is None


def test_measures_of_all_rows_are_decided_with_the_judges(report):
    assert report["evaluation"]["measures"] == ["macro F1", "negative Brier score"]
    assert [row["judge"] for row in report["comparisons"]] == ["right", "macro F1", "negative Brier score"]
    assert {row["n_comparisons"] for row in report["comparisons"]} == {3}
    by_id = {statement.id: statement for statement in statements(report)}
    assert by_id["comparison", "ppo", "sft", "macro F1"].kind == "better"
    assert "wins" not in by_id["comparison", "ppo", "sft", "macro F1"].numbers
    forest = list(sections.forests(report))[-1]
    assert [panel.title for panel in forest.panels] == ["Macro F1", "Negative Brier score"]


def test_confusions_as_a_grid_or_as_a_list(report, tmp_path):
    view = classes.view(report)
    assert [grid.policy for grid in view.grids] == ["sft", "ppo"]
    assert view.grids[0].labels == sorted(INTENTS)
    assert sum(cell.n for cells in view.grids[0].rows for cell in cells) == 150
    assert all(cell.right == (row == column) for row, cells in enumerate(view.grids[1].rows)
               for column, cell in enumerate(cells))  # fmt: skip
    assert not view.confusions.rows
    many = classes.view(build_report(fake_label_run(tmp_path / "many", classes=30)))
    assert many.grids == []
    assert many.confusions.header == ("Class", "Taken for", "SFT", "PPO", "Rows")
    of_ppo = [int(cells[3]) for cells in many.confusions.rows]
    assert of_ppo == sorted(of_ppo, reverse=True)
    assert of_ppo[0] > 0


def test_the_class_told_worst_stands_first(report):
    (_, table), _ = classes.view(report).classes
    f1 = [float(cells[1]) for cells in table.rows]
    assert f1 == sorted(f1)
    assert len(table.rows) == len(INTENTS)


def test_flips_are_against_what_the_policy_came_from(report):
    (flips,) = classes.view(report).flips
    assert (flips.policy, flips.baseline) == ("ppo", "sft")
    (entry,) = report["classification"]["flips"]
    assert f"{entry['repaired']} rows of 150" in flips.text
    assert all(row["policy"] == row["right"] != row["baseline"] for row in entry["repaired_rows"])


def test_perturbed_inputs(report):
    (statement,) = [statement for statement in statements(report) if statement.id[0] == "robustness"]
    assert (statement.id, statement.kind) == (("robustness", "ppo", "right"), "better")
    rows = tables.robustness_table(report).rows
    assert [(cells[0], cells[2]) for cells in rows[:2]] == [("SFT", "typos"), ("PPO", "typos")]
    assert [cells[-1] for cells in rows] == ["–", "better"] * 3
    worse = {**report, "robustness": json.loads(json.dumps(report["robustness"]))}
    worse["robustness"]["comparisons"][0]["verdict"] = "worse"
    (statement,) = [statement for statement in statements(worse) if statement.id[0] == "robustness"]
    assert statement.kind == "worse", "one perturbation on which it is worse is told before those on which it is better"


def test_tokens_are_shaded_by_what_the_score_loses_without_them(report):
    view = sections.attributions(report)[0]
    assert "".join(token.text for token in view.tokens) == "[CLS] i lost my card on the train [SEP]"
    shown = {token.text: (token.tone, token.share) for token in view.tokens}
    assert shown[" lost"] == ("raises", 100)
    assert shown[" card"] == ("raises", round(100 * 1.3 / 2.1))
    assert shown[" tra"][0] == "lowers"
    assert view.strongest.index("“lost”") < view.strongest.index("“card”") < view.strongest.index("“tra”")
    assert view.table.rows[0][0] == "lost"


def test_markdown_says_the_same(report):
    text = render_markdown(report)
    for heading in ("## Right and sure", "## Perturbed inputs", "## Tokens that a score rests on"):
        assert heading in text
    assert "Tokens |" not in text
    assert "| card arrival | 13 |" in text


def test_what_was_asked_of_a_classifier_is_told_as_it_was(report):
    """`evaluate.samples` and its temperature are of policies that write text."""
    assert standfirst(report).startswith("Each policy's likeliest answer to 150 prompts")


def test_hostile_names_and_inputs_stay_text(tmp_path):
    run = fake_label_run(tmp_path / "hostile", prompts=20)
    rows = label_rows(20)
    image = "data:image/png;base64,AAAA"
    for row in rows:
        row["prompt"] = image if row["index"] % 2 else HOSTILE
        row["columns"]["label"] = f"{row['columns']['label']} {HOSTILE}"
        for samples in row["replies"].values():
            samples[0]["text"] = f"{samples[0]['text']} {HOSTILE}"
    (run / "evaluate" / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = json.loads((run / "evaluate" / "attributions.jsonl").read_text().splitlines()[0])
    line |= {"completion": HOSTILE, "tokens": [HOSTILE] * len(line["tokens"])}
    (run / "evaluate" / "attributions.jsonl").write_text(json.dumps(line) + "\n")
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert "<script" not in html
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert {attributes["src"] for attributes in images} == {image}
    assert all(set(attributes) == {"class", "src", "alt"} for attributes in images)


def test_older_samples_without_probabilities(tmp_path):
    rows = label_rows(30)
    for row in rows:
        for samples in row["replies"].values():
            del samples[0]["log_prob"]
    run = fake_label_run(tmp_path / "old", prompts=30)
    (run / "evaluate" / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "evaluate" / "perturbed.jsonl").unlink()
    write_report(run)
    made = read_report(run)
    assert made["evaluation"]["measures"] == ["macro F1"]
    assert classes.view(made).calibration == []
    assert made["robustness"] is None


def test_a_policy_that_writes_beside_one_that_chooses_has_lengths(tmp_path):
    run = fake_run(tmp_path / "mixed")
    manifest = json.loads((run / "evaluate" / "stage.json").read_text())
    manifest["metrics"]["kinds"] = {"base": "causal_lm", "sft": "causal_lm", "dpo": "label"}
    (run / "evaluate" / "stage.json").write_text(json.dumps(manifest))
    made = build_report(run)
    assert "At equal length [95%]" in tables.told_columns(made)
    assert made["classification"] is None, "no row has a right class"
    assert sections.confidence({"log_prob": math.log(0.5)}) == "50% sure"


def test_a_policy_that_is_surer_than_it_is_right_is_named(report):
    measures = {entry["policy"]: entry for entry in report["classification"]["policies"]}
    assert measures["ppo"]["confidence"] > measures["ppo"]["accuracy_ci"][1]
    assert [caveat.about for caveat in caveats(report) if caveat.id == "too sure"] == ["sft", "ppo"]
    calm = {**report, "classification": {**report["classification"], "policies": [
        {**entry, "confidence": entry["accuracy"]} for entry in report["classification"]["policies"]]}}  # fmt: skip
    assert not [caveat for caveat in caveats(calm) if caveat.id == "too sure"]


def test_images_stand_in_the_page_itself(tmp_path):
    (tmp_path / "three.png").write_bytes(b"\x89PNG\r\n small")
    (tmp_path / "key.png").write_bytes(b"BEGIN PRIVATE KEY")
    (tmp_path / "large.png").write_bytes(bytes(100_000))
    prompts = [
        str(tmp_path / "three.png"),
        str(tmp_path / "large.png"),
        str(tmp_path / "key.png"),
        str(tmp_path / "gone.png"),
        "\0.png",
    ]
    run = fake_label_run(tmp_path / "digits", prompts=30)
    rows = [{**row, "prompt": prompts[row["index"] % 5]} for row in label_rows(30)]
    (run / "evaluate" / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = build_report(run)
    shown = [row["prompt"] for row in made["samples"][:5]]
    assert shown == ["data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n small").decode(), *prompts[1:]]
    flips = made["classification"]["flips"][0]["repaired_rows"]
    assert all(flip["prompt"] == made["samples"][flip["index"]]["prompt"] for flip in flips)
    manifest = json.loads((run / "evaluate" / "stage.json").read_text())
    manifest["metrics"]["kinds"] = {}
    (run / "evaluate" / "stage.json").write_text(json.dumps(manifest))
    assert build_report(run)["samples"][0]["prompt"] == prompts[0], "a text that names a file stays a text"


def test_over_several_seeds_the_measures_are_of_the_recipe(tmp_path):
    run = fake_label_run(tmp_path / "seeds", prompts=60)
    rows = label_rows(60)
    for row in rows:
        for number in (1, 2):
            row["replies"][f"ppo@{number}"] = row["replies"]["ppo"]
    (run / "evaluate" / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = json.loads((run / "evaluate" / "stage.json").read_text())
    policies = ["sft", "ppo", "ppo@1", "ppo@2"]
    manifest["metrics"] |= {"policies": policies, "kinds": dict.fromkeys(policies, "label"),
                            "parents": dict.fromkeys(policies[1:], "sft")}  # fmt: skip
    (run / "evaluate" / "stage.json").write_text(json.dumps(manifest))
    (run / "evaluate" / "perturbed.jsonl").unlink()
    made = build_report(run)
    assert [(row["judge"], row["n_seeds"]) for row in made["seeds"]] == [
        ("right", 3), ("macro F1", 3), ("negative Brier score", 3)]  # fmt: skip
    assert {statement.id[0] for statement in statements(made)} == {"seeds"}
    assert [grid.policy for grid in classes.view(made).grids] == ["sft", "ppo"]
    assert "wins –" not in render_markdown(made)
