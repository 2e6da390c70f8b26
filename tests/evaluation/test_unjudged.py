"""What is measured without a judge: by hand, and of models."""

import json
import math

import pytest
import torch

from rlhf.artifacts.manifest import read_manifest
from rlhf.artifacts.open import open_model
from rlhf.config.load import load_project
from rlhf.config.project import ModelConfig
from rlhf.evaluation.held_out import held_out_sets
from rlhf.evaluation.unjudged import CHOSEN, DEMONSTRATIONS, REJECTED, measure_without_judge
from rlhf.pipeline import identity
from rlhf.pipeline.execute import run_stage
from rlhf.pipeline.folder import own_folder
from rlhf.report.build import build_report
from rlhf.stages.evaluate import prepare
from rlhf.workflow import StageContext
from tests.support.projects import pairs, write_project, write_rows
from tests.support.reports import reply
from tests.support.runs import add_stage


def likelihood(name, prompt, **values):
    return {"set": name, "origin": f"rows.jsonl:{prompt}", "prompt": prompt, "values": values}


def measures(rows, held_out, policies=("sft", "dpo"), parents=None):
    entries = measure_without_judge(rows, held_out, policies, parents or {"dpo": "sft"})
    return {(entry["policy"], entry["baseline"], entry["measure"]): entry for entry in entries}


def test_the_margin_of_a_pair_is_chosen_less_rejected_and_its_share_is_dpos_accuracy():
    chosen = {"sft": [-10.0, -20.0, -30.0], "dpo": [-9.0, -25.0, -28.0]}
    rejected = {"sft": [-12.0, -18.0, -30.0], "dpo": [-14.0, -20.0, -36.0]}
    held_out = [
        likelihood(name, place, **{policy: values[place] for policy, values in sides.items()})
        for name, sides in ((CHOSEN, chosen), (REJECTED, rejected))
        for place in range(3)
    ]
    measured = measures([], held_out)
    margin = measured["dpo", "sft", "margin"]  # of SFT 2, -2, 0; of DPO 5, -5, 8
    assert (margin["baseline_mean"], margin["policy_mean"]) == pytest.approx((0.0, 8 / 3))
    assert (margin["mean_difference"], margin["n"]) == (pytest.approx(8 / 3), 3)
    assert margin["higher"] == pytest.approx(2 / 3), "the implicit reward ranks two of three pairs right"
    assert measured["dpo", "sft", "chosen"]["mean_difference"] == pytest.approx((1 - 5 + 2) / 3)
    assert ("dpo", "sft", "loss") not in measured, "there are no demonstrations"


def test_rows_of_one_prompt_count_as_one_and_a_row_that_one_side_lacks_for_neither():
    values = [(0, -1.0, -3.0), (0, -1.0, -3.0), (0, -1.0, -3.0), (1, -2.0, -1.0), (2, -5.0, None), (3, None, -5.0)]
    held_out = [likelihood(DEMONSTRATIONS, prompt, dpo=ours, sft=theirs) for prompt, ours, theirs in values]
    loss = measures([], held_out)["dpo", "sft", "loss"]
    assert (loss["n"], loss["policy_mean"], loss["baseline_mean"]) == (2, 1.5, 2.0)
    assert (loss["mean_difference"], loss["higher"]) == (-0.5, 0.5)


def test_replies_are_compared_prompt_by_prompt():
    rows = [
        {"index": n, "prompt": f"p{n}", "columns": {}, "replies": {
            "sft": [reply("a b", tokens=2 + n), reply("a b", tokens=4 + n)],
            "dpo": [reply("a a a", tokens=5 + n, finished=n > 0), reply("c d e", tokens=7 + n)]}}
        for n in range(4)
    ]  # fmt: skip
    measured = measures(rows, [])
    length = measured["dpo", "sft", "length"]
    assert (length["mean_difference"], length["difference_ci"], length["n"]) == (3.0, [3.0, 3.0], 4)
    assert measured["dpo", "sft", "finished"]["mean_difference"] == pytest.approx(-1 / 8)
    assert measured["dpo", "sft", "distinct_1"]["mean_difference"] == pytest.approx(4 / 6 - 2 / 4)
    assert measured["dpo", "sft", "distinct_1"]["higher"] == 1.0


def test_policies_stand_beside_their_parent_and_the_base():
    held_out = [likelihood(DEMONSTRATIONS, n, base=-3.0, sft=-2.0, dpo=-1.0) for n in range(3)]
    measured = measures([], held_out, ("base", "sft", "dpo"), {"sft": "base", "dpo": "sft"})
    assert [key[:2] for key in measured] == [("sft", "base"), ("dpo", "sft"), ("dpo", "base")]


@pytest.fixture
def project(tmp_path, tiny_llama):
    """SFT and DPO, and nothing that judges."""
    write_rows(tmp_path / "demonstrations.jsonl", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in pairs()])
    path = write_project(
        tmp_path, tiny_llama, rewards={}, stages={"sft": {"max_steps": 1}, "dpo": {"max_steps": 1}},
        data={"demonstrations": {"source": str(tmp_path / "demonstrations.jsonl"), "holdout": 0.3},
              "preferences": {"source": str(tmp_path / "pairs.jsonl")}},
    )  # fmt: skip
    return load_project(path)


def test_a_project_without_a_judge_is_evaluated(project, tiny_llama, capsys):
    own_folder(project)
    for name in ("sft", "dpo"):
        add_stage(project.run_dir, name, tiny_llama)
    prepare(StageContext(project, "evaluate", project.run_dir / "work", {}))
    assert "nothing judges replies" in capsys.readouterr().err
    run_stage(project, "evaluate")
    folder = project.run_dir / "evaluate"
    assert read_manifest(folder)["metrics"]["judges"] == []
    lines = [json.loads(line) for line in (folder / "likelihoods.jsonl").read_text().splitlines()]
    assert {line["set"] for line in lines} == {DEMONSTRATIONS, CHOSEN, REJECTED}
    assert all(set(line["values"]) == {"base", "sft", "dpo"} for line in lines)

    demonstrations, chosen, _ = held_out_sets(project)
    opened = open_model(ModelConfig(name_or_path=str(folder.parent / "sft")))
    model = opened.policy(placed=False)
    for each, record in ((demonstrations, demonstrations.records[0]), (chosen, chosen.records[0])):
        ids = opened.tokenizer(record.prompt + record.completion)["input_ids"] + [opened.tokenizer.eos_token_id]
        start = len(opened.tokenizer(record.prompt)["input_ids"])
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        of_reply = [float(log_probs[place - 1, ids[place]]) for place in range(start, len(ids))]
        expected = sum(of_reply) if each.whole else sum(of_reply) / len(of_reply)
        (line,) = [line for line in lines if line["set"] == each.name and line["origin"] == record.origin]
        assert line["values"]["sft"] == pytest.approx(expected, rel=1e-4)

    report = build_report(project.run_dir)
    assert report["comparisons"] == []
    measured = {(row["policy"], row["baseline"], row["measure"]): row for row in report["measured"]}
    assert measured["dpo", "sft", "margin"]["n"] == len(chosen.records)
    assert math.isfinite(measured["sft", "base", "loss"]["mean_difference"])


def test_what_is_held_out_decides_the_stage_only_where_nothing_judges(project, tmp_path):
    before = identity.identity(project, "evaluate")
    judged = load_project(project.path, ["rewards.length.function=rlhf.rewards.length:length"])
    assert "held_out" in before
    assert "held_out" not in identity.identity(judged, "evaluate")
    write_rows(
        tmp_path / "demonstrations.jsonl", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in pairs(39)]
    )
    changed = identity.changes(before, identity.identity(project, "evaluate"))
    assert any(key.startswith("held_out.demonstrations") for key in changed)


def test_no_row_that_is_trained_on_is_measured_on(project):
    from rlhf.data.prepare import iter_records

    trained = {record.prompt for record, side in iter_records(project, "preferences") if side == "train"}
    sets = held_out_sets(project)
    assert trained
    assert not trained & {record.prompt for each in sets for record in each.records}
    assert [len(each.records) for each in sets] == [6, 6, 6], "as many as evaluate.prompts"
