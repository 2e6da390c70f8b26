"""Rank as a stage: what it keeps is what dpo, kto and rft train on; an interrupted one leaves the same; the gate."""

import json
import shutil

import pytest

from rlhf.artifacts.manifest import read_manifest
from rlhf.config.load import load_project
from rlhf.data.ledger import Ledger
from rlhf.errors import GateClosed, UserError
from rlhf.evaluation import replies
from rlhf.pipeline import gatekeeper, identity
from rlhf.pipeline.execute import prepare_stage, run_stage
from rlhf.pipeline.folder import own_folder
from rlhf.pipeline.plan import plan
from rlhf.pipeline.runs import pick_stage
from rlhf.publish import hub
from rlhf.report.build import write_report
from rlhf.workflow import gated_models, gates_of, guarded_by, parents_of, planned, policies_of, rows_from
from tests.support.projects import pairs, write_project, write_rows

FEW = {"max_steps": 2, "learning_rate": 1e-2}
RANK = {"samples": 4, "max_new_tokens": 8, "sampling_batch_size": 4, "rewards": {"long": 1.0}}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def make(folder, base, stages, overrides=(), **sections):
    return load_project(write_project(folder, base, stages=stages, **sections), overrides)


@pytest.fixture(scope="module")
def ranked(tmp_path_factory, tiny_llama):
    """A project whose sft, rank and dpo have run."""
    folder = tmp_path_factory.mktemp("ranked")
    project = make(folder, tiny_llama, {"sft": FEW, "rank": RANK, "dpo": FEW})
    for name in ("sft", "rank", "dpo"):
        run_stage(project, name)
    return project


def test_best_and_worst_are_kept_and_every_prompt_is_accounted_for(ranked):
    folder = ranked.run_dir / "rank"
    kept, sampled, ledger = lines(folder / "pairs.jsonl"), lines(folder / "samples.jsonl"), Ledger.load(folder)
    ledger.check()
    assert ledger.read == 40
    assert ledger.trained == len(kept) > 0
    assert len(sampled) == 40 - ledger.evaluated
    assert all(len(line["replies"]) == 4 for line in sampled)
    scores = {line["prompt"]: [reply["scores"]["long"] for reply in line["replies"]] for line in sampled}
    for row in kept:
        assert (row["score_chosen"], row["score_rejected"]) == (len(row["chosen"]), len(row["rejected"]))
        assert row["score_rejected"] == min(score for score in scores[row["prompt"]] if score is not None)
    told = read_manifest(folder)["metrics"]["ranked"]
    assert (told["prompts"], told["kept"], told["replies"]) == (len(sampled), len(kept), 4 * len(sampled))


def test_dpo_trains_on_the_pairs_and_on_nothing_else(ranked):
    record = read_manifest(ranked.run_dir / "dpo")
    kept = lines(ranked.run_dir / "rank" / "pairs.jsonl")
    assert record["metrics"]["train_rows"] == len(kept)
    assert record["parents"].keys() == {"sft", "rank"}
    assert record["parents"]["rank"] == read_manifest(ranked.run_dir / "rank")["artifact"]
    assert record["data"] == {"preferences": {"sources": [{"stage": "rank"}]}}


def test_what_is_done_stays_done_until_the_ranking_changes(ranked):
    assert [entry.stage for entry in plan(ranked, ["sft", "rank", "dpo"]) if entry.reason] == []
    other = load_project(ranked.path, ["stages.rank.samples=5"])
    assert [entry.stage for entry in plan(other, ["sft", "rank", "dpo"]) if entry.reason] == ["rank", "dpo"]


def test_rows_are_no_model_and_no_policy(ranked):
    with pytest.raises(UserError, match="rank leaves no model"):
        pick_stage(ranked.run_dir, "rank", policies_only=False)
    assert pick_stage(ranked.run_dir).name == "dpo"
    assert policies_of(ranked) == ["sft", "dpo"]
    assert "rank" not in parents_of(ranked, "evaluate")


def test_report_and_card_name_the_rows(ranked):
    assert "best and worst kept of" in write_report(ranked.run_dir).read_text()
    published = hub.publish(ranked.run_dir, "dpo", None, dry_run=True)
    assert "what rank left" in (published.folder / "README.md").read_text()


@pytest.mark.parametrize("torn", [0, 1, 60])
def test_a_killed_stage_goes_on_and_leaves_the_same(ranked, tmp_path, monkeypatch, torn):
    """As many bytes of the last line are lost as a kill may lose."""
    whole = read_manifest(ranked.run_dir / "rank")["artifact"]
    project = load_project(ranked.path, [f"output_dir={tmp_path}"])
    own_folder(project)
    shutil.copytree(ranked.run_dir / "sft", project.run_dir / "sft")
    own, asked = replies.score, []

    def killed(groups, prompts, judges):
        asked.append(len(prompts))
        if len(asked) == 3:
            raise KeyboardInterrupt
        own(groups, prompts, judges)

    monkeypatch.setattr(replies, "score", killed)
    with pytest.raises(KeyboardInterrupt):
        run_stage(project, "rank")
    file = project.run_dir / ".rank.partial" / "samples.jsonl"
    assert len(lines(file)) == sum(asked[:2])
    file.write_bytes(file.read_bytes()[: len(file.read_bytes()) - torn])
    asked[:] = [0] * 4
    run_stage(project, "rank")
    assert sum(asked) == len(lines(project.run_dir / "rank" / "samples.jsonl")) - (8 if not torn else 4)
    assert read_manifest(project.run_dir / "rank")["artifact"] == whole


def test_rft_imitates_the_best_and_others_start_from_it(tmp_path, tiny_llama):
    stages = {"sft": FEW, "rank": {**RANK, "keep": "best"}, "rft": FEW, "dpo": FEW}
    project = make(tmp_path, tiny_llama, stages)
    assert planned(project) == ["sft", "rank", "rft", "dpo", "evaluate"]
    assert [rows_from(project, name) for name in ("rft", "dpo")] == ["rank", None]
    assert parents_of(project, "dpo") == ["rft"]
    for name in ("sft", "rank", "rft"):
        run_stage(project, name)
    kept = lines(project.run_dir / "rank" / "demonstrations.jsonl")
    assert all(row["score"] == len(row["completion"]) for row in kept)
    assert read_manifest(project.run_dir / "rft")["metrics"]["train_rows"] == len(kept)


def test_kto_takes_the_two_sides_of_the_pairs(ranked, tmp_path):
    text = ranked.path.read_text().replace("  dpo:", "  kto:")
    path = ranked.path.with_name("kto.yaml")
    path.write_text(text)
    project = load_project(path, [f"output_dir={tmp_path}"])
    for name in ("sft", "rank"):
        shutil.copytree(ranked.run_dir / name, project.run_dir / name)
    prepare_stage(project, "kto")
    prepared = Ledger.load(project.run_dir / ".kto.partial" / "data")
    assert prepared.trained == len(lines(ranked.run_dir / "rank" / "pairs.jsonl"))


def test_data_is_checked_before_there_are_rows(tmp_path, tiny_llama):
    """Without a set of its own dpo is left alone until then; its settings are not."""
    rows = write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in pairs()])
    data = {"demonstrations": {"source": str(tmp_path / "pairs.jsonl")}, "rollouts": {"source": str(rows)}}
    project = make(tmp_path, tiny_llama, {"rank": RANK, "dpo": FEW}, data=data)
    prepare_stage(project, "dpo")
    assert not (project.run_dir / ".dpo.partial").exists()
    with pytest.raises(Exception, match="eval_strategy"):
        prepare_stage(load_project(project.path, ["stages.dpo.eval_strategy=stepz"]), "dpo")


# the gate


def gated(folder, base, stages, **sections):
    return make(folder, base, {"sft": FEW, "reward": FEW, **stages}, **sections)


def test_a_gate_stands_before_all_that_it_guards(tmp_path, tiny_llama):
    ranking = {name: value for name, value in RANK.items() if name != "rewards"}
    project = gated(tmp_path, tiny_llama, {"rank": ranking, "dpo": FEW, "ppo": {"parent": "dpo"}})
    assert planned(project) == ["sft", "reward", "gate", "rank", "dpo", "ppo", "evaluate"]
    assert guarded_by(project, "gate") == ["rank", "ppo"]
    assert gates_of(project, "rank") == gates_of(project, "ppo") == ["gate"]
    assert gates_of(project, "dpo") == []
    assert parents_of(project, "gate") == ["sft", "reward"]
    assert gated_models(project, "gate") == ["reward"]


def test_a_gate_of_ppo_alone_stays_where_it_was(tmp_path, tiny_llama):
    project = gated(tmp_path, tiny_llama, {"rank": RANK, "dpo": FEW, "ppo": {"parent": "dpo"}})
    assert planned(project) == ["sft", "reward", "rank", "dpo", "gate", "ppo", "evaluate"]
    assert parents_of(project, "gate") == ["dpo", "reward"]


@pytest.mark.parametrize(("failing", "stopped"), [("reward", True), ("other", False)])
def test_a_stage_waits_for_the_models_that_it_maximises(tmp_path, tiny_llama, monkeypatch, failing, stopped):
    project = gated(tmp_path, tiny_llama, {"rank": {**RANK, "rewards": {"reward": 1.0}}, "dpo": FEW})
    said = {"passed": False, "reasons": ["as bad as chance"], "advice": []}
    record = {"metrics": {"passed": False, "models": {failing: said}}}
    monkeypatch.setattr(gatekeeper, "read_manifest", lambda folder: record)
    monkeypatch.setattr(identity, "is_current", lambda *_: True)
    if stopped:
        with pytest.raises(GateClosed, match="rank would maximise"):
            gatekeeper.require_passed(project, "rank")
    else:
        gatekeeper.require_passed(project, "rank")


# what is refused


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({"rank": RANK}, "add dpo or kto"),
        ({"rank": {**RANK, "keep": "best"}}, "add rft"),
        ({"rank": {**RANK, "keep": "best"}, "dpo": {}}, "add rft"),
        ({"rank": RANK, "dpo": {}, "rft": {}}, "stages.rft: .* add rank"),
        ({"rft": {}}, "stages.rft: .* add rank"),
        ({"rank": {**RANK, "samples": 1}, "dpo": {}}, r"stages.rank.samples: must be .* 2"),
        ({"rank": {**RANK, "keep": "worst"}, "dpo": {}}, "stages.rank.keep: .*best"),
        ({"rank": {**RANK, "sample": 4}, "dpo": {}}, "did you mean 'samples'"),
        ({"rank": {**RANK, "seeds": 2}, "dpo": {}}, "stages.rank.seeds: .*trains nothing"),
        ({"rank": {**RANK, "adapter": {"r": 2}}, "dpo": {}}, "stages.rank.adapter: .*trains nothing"),
        ({"rank": {**RANK, "parent": "reward"}, "reward": {}, "dpo": {}}, "writes no replies"),
        ({"rank": RANK, "dpo": {"parent": "rank"}}, "stages.dpo.parent: .*leaves no model"),
        ({"rank": {**RANK, "checkpoint_judge": "long"}, "dpo": {}}, "checkpoint_judge"),
    ],
)  # fmt: skip
def test_a_project_that_cannot_work_is_refused_in_a_line(tmp_path, tiny_llama, stages, said):
    with pytest.raises(UserError, match=said):
        make(tmp_path, tiny_llama, stages)
