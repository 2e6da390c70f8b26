"""A whole run on a random two-layer model: what it leaves behind, what makes a stage stale, what is refused."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf.artifacts.manifest import artifact_hash, verify
from rlhf.config.load import load_project
from rlhf.errors import UserError
from rlhf.models import probe
from rlhf.pipeline import folder, identity, runner, start
from rlhf.pipeline.view import View
from tests.support.projects import make_project, pairs, write_project, write_rows

SILENT = {"say": lambda line: None}


def reasons(project, **options) -> dict[str, str | None]:
    return {one.stage: one.reason for one in runner.plan(project, **options)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_llama) -> Path:
    """The YAML of a project whose run is done."""
    path = write_project(tmp_path_factory.mktemp("finished"), tiny_llama)
    runner.run(load_project(path), **SILENT)
    return path


def test_a_process_that_ends_with_0_in_the_middle_of_a_stage_has_not_done_it(tmp_path, tiny_llama, monkeypatch):
    """`os._exit(0)`, in a reward say, ends a process before anybody can hear of it."""
    project = make_project(tmp_path, tiny_llama)
    monkeypatch.setattr(runner, "start", lambda server, function, project, name, key, view: None)
    folder.partial_dir(project, "sft").mkdir(parents=True)
    said = []
    with View(said.append) as shown, pytest.raises(UserError, match=r"^sft: its process ended before the stage was"):
        runner._run(project, [runner.Plan("sft", "not done yet")], "key", None, None, shown)
    assert said == ["running sft"]


def test_every_stage_leaves_its_contract(finished):
    run_dir = load_project(finished).run_dir
    for stage in ("sft", "reward", "dpo"):
        folder = run_dir / stage
        record = json.loads((folder / "stage.json").read_text())
        assert record["stage"] == stage
        assert record["artifact"] == artifact_hash(folder)
        assert record["versions"]["trl"].startswith("1.16")
        assert record["tokenizer"]["pad"] != record["tokenizer"]["eos"]
        assert len(record["probe"]["outputs"]) == probe.SIZE
        assert record["metrics"]["steps"] == 3
        assert (folder / "metrics.jsonl").read_text().count("\n") >= 2
        ledger = json.loads((folder / "ledger.json").read_text())["sets"]
        counts = next(iter(ledger.values()))
        assert counts["read"] == 40 == counts["trained"] + counts["evaluated"] + sum(counts["dropped"].values())
        assert not (folder / "data").exists()
        assert not list(folder.glob("*.bin")) + list(folder.glob("*.pt")), "a pickle beside the model"
    assert json.loads((run_dir / "dpo/stage.json").read_text())["parents"] == {"sft": artifact_hash(run_dir / "sft")}


def test_each_policy_loads_with_plain_peft_on_the_original_base(finished, tiny_llama):
    run_dir = load_project(finished).run_dir
    for stage in ("sft", "dpo"):
        record = json.loads((run_dir / stage / "stage.json").read_text())
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), run_dir / stage)
        assert probe.outputs(model, record["probe"]["ids"]) == pytest.approx(record["probe"]["outputs"], abs=1e-3)
        assert AutoTokenizer.from_pretrained(run_dir / stage).chat_template


def test_the_reward_model_reloads_to_the_same_scores(finished, tiny_llama):
    folder = load_project(finished).run_dir / "reward"
    record = json.loads((folder / "stage.json").read_text())
    base = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1)
    base.config.pad_token_id = AutoTokenizer.from_pretrained(folder).pad_token_id
    model = PeftModel.from_pretrained(base, folder)
    assert probe.outputs(model, record["probe"]["ids"]) == pytest.approx(record["probe"]["outputs"], abs=1e-5)
    for key in ("accuracy", "accuracy_ci", "length_baseline", "n"):
        assert key in record["metrics"]


def test_the_samples_hold_every_policy_and_judge(finished):
    lines = (load_project(finished).run_dir / "evaluate/samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 6
    for row in rows:
        assert set(row["replies"]) == {"base", "sft", "dpo"}
        for name, replies in row["replies"].items():
            assert len(replies) == 2
            for reply in replies:
                assert set(reply["scores"]) == {"reward", "long"}
                assert reply["tokens"] <= 8
                assert (reply["kl"] is None) == (name == "base")
                assert reply["kl"] is None or reply["kl"] >= -1e-6
                empty = not reply["text"]
                assert (reply["scores"]["long"] is None) == empty


def test_a_finished_run_does_nothing_and_imports_nothing_heavy(finished):
    assert set(reasons(load_project(finished)).values()) == {None}
    command = [sys.executable, "-X", "importtime", "-m", "rlhf.cli", "run", str(finished)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "rlhf.cli" in {name.rpartition(".")[0] for name in imported}
    assert not imported & {"torch", "transformers", "trl", "datasets"}
    assert "sft: done" in done.stdout
    assert "report.html" in done.stdout


@pytest.mark.parametrize(
    ("override", "stale"),
    [
        ("stages.dpo.beta=0.5", {"dpo", "evaluate"}),
        ("stages.reward.learning_rate=0.5", {"reward", "evaluate"}),
        ("stages.sft.learning_rate=0.5", {"sft", "reward", "dpo", "evaluate"}),
        ("evaluate.samples=3", {"evaluate"}),
        ("stages.sft.logging_steps=1", set()),
        ("stages.dpo.save_total_limit=1", set()),
        ("stages.dpo.beta=0.1", set()),
        ("stages.reward.per_device_eval_batch_size=2", set()),
        ("seed=1", {"sft", "reward", "dpo", "evaluate"}),
    ],
)
def test_a_change_makes_stale_what_depends_on_it_and_nothing_else(finished, override, stale):
    found = reasons(load_project(finished, [override]))
    assert {stage for stage, reason in found.items() if reason} == stale
    if stale:
        first = next(reason for reason in found.values() if reason)
        assert "changed: " in first
        assert override.split("=")[0].split(".")[-1] in first


def test_changed_data_and_judges_make_stale(tmp_path, finished, tiny_llama):
    project = make_project(tmp_path, tiny_llama)
    runner.run(project, only=["sft"], **SILENT)
    assert reasons(project, only=["sft"]) == {"sft": None}
    write_rows(tmp_path / "pairs.jsonl", pairs(41))
    assert reasons(project, only=["sft"]) == {"sft": "changed: data.demonstrations.sources"}


def test_force_runs_a_stage_and_its_children(finished):
    assert reasons(load_project(finished), force=["reward"]) == {
        "sft": None, "reward": "forced", "dpo": None, "evaluate": "reward runs again",
    }  # fmt: skip


def test_a_stage_needs_its_parents(tmp_path, tiny_llama):
    project = make_project(tmp_path, tiny_llama)
    with pytest.raises(UserError, match="dpo needs sft, not done yet"):
        runner.plan(project, only=["dpo"])
    with pytest.raises(UserError, match="no stage 'rewrd'; did you mean 'reward'"):
        runner.plan(project, only=["rewrd"])


def test_a_run_folder_belongs_to_one_config(tmp_path, finished, tiny_llama):
    other = write_project(tmp_path, tiny_llama, output_dir=str(load_project(finished).output_dir))
    with pytest.raises(UserError, match=r"belongs to .*; give .* another name: or output_dir:"):
        folder.own_folder(load_project(other))
    strange = make_project(tmp_path, tiny_llama, name="strange")
    strange.run_dir.mkdir(parents=True)
    (strange.run_dir / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds something that is not a run"):
        folder.own_folder(strange)


def test_a_parent_whose_files_changed_is_refused(tmp_path, tiny_llama):
    project = make_project(tmp_path, tiny_llama)
    runner.run(project, only=["sft"], **SILENT)
    config = project.run_dir / "sft/adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 80'))
    with pytest.raises(UserError, match="the model's files changed since the stage finished"):
        verify(project.run_dir / "sft")


def test_bad_data_for_a_later_stage_stops_the_run_before_anything_trains(tmp_path, tiny_llama):
    project = make_project(tmp_path, tiny_llama)
    bad = write_rows(tmp_path / "bad.jsonl", pairs(3))
    bad.write_text(bad.read_text() + '{"prompt": "x", "chosen": "y"\n')
    project = load_project(project.path, [f"data.preferences.source={bad}"])
    with pytest.raises(start.StageFailed) as failed:
        runner.run(project, **SILENT)
    assert failed.value.code == 2
    assert not (project.run_dir / "sft").exists()


def test_an_interrupted_stage_goes_on_to_the_same_weights(tmp_path, tiny_llama, monkeypatch):
    from transformers import Trainer

    from rlhf.pipeline.execute import run_stage

    options = {
        "max_steps": 6,
        "save_steps": 3,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
    }
    whole = make_project(tmp_path, tiny_llama, name="whole", stages={"sft": options})
    run_stage(whole, "sft")
    broken = make_project(tmp_path, tiny_llama, name="broken", stages={"sft": options})
    step, original = 0, Trainer.training_step

    def stop(self, *args, **kwargs):
        nonlocal step
        step += 1
        if step == 5:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", stop)
    with pytest.raises(KeyboardInterrupt):
        run_stage(broken, "sft")
    assert not (broken.run_dir / "sft").exists()
    run_stage(broken, "sft")
    assert step == 5 + 3, "went on from step 3"
    first, second = (artifact_hash(project.run_dir / "sft") for project in (whole, broken))
    assert first == second
    steps = [json.loads(line)["step"] for line in (broken.run_dir / "sft/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_full_fine_tuning_has_the_sft_model_as_reference(tmp_path, tiny_llama):
    project = make_project(tmp_path, tiny_llama, model={"name_or_path": str(tiny_llama), "adapter": None})
    runner.run(project, only=["sft", "dpo"], **SILENT)
    rows = [json.loads(line) for line in (project.run_dir / "dpo/metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if "loss" in row)
    assert first["loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-5)
    assert (project.run_dir / "dpo/model.safetensors").is_file()


def test_dpo_starts_at_its_reference(finished):
    rows = [
        json.loads(line) for line in (load_project(finished).run_dir / "dpo/metrics.jsonl").read_text().splitlines()
    ]
    before = next(row for row in rows if "eval_loss" in row)
    assert before["eval_loss"] == pytest.approx(0.693147, abs=1e-5)


def test_from_scratch(tmp_path):
    scratch = {"architecture": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 128,
               "tokenizer": {"vocab_size": 300}}  # fmt: skip
    stages = {name: {"max_steps": 2} for name in ("sft", "dpo")}
    model = {"scratch": scratch, "adapter": {"r": 2}}
    project = make_project(tmp_path, tmp_path, model=model, stages=stages, evaluate=False)
    assert runner.check(project).keys() == {"sft", "dpo"}
    runner.run(project, **SILENT)
    assert (project.run_dir / "base/model.safetensors").is_file()
    for stage, parent in (("sft", "base"), ("dpo", "sft")):
        assert json.loads((project.run_dir / stage / "stage.json").read_text())["parents"].keys() == {parent}


def test_an_edited_template_makes_stale(tmp_path, tiny_llama):
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    model = {"name_or_path": str(tiny_llama), "chat_template": str(template)}
    project = make_project(tmp_path, tiny_llama, model=model)
    before = identity.identity(project, "sft")
    template.write_text("{% for m in messages %}> {{ m['content'] }}{% endfor %}")
    assert identity.changes(before, identity.identity(project, "sft")) == ["chat_template"]


def test_an_edited_reward_makes_stale_and_is_named(tmp_path, tiny_llama):
    project = make_project(tmp_path, tiny_llama)
    before = identity.identity(project, "evaluate")
    judge = tmp_path / "judge.py"
    judge.write_text(judge.read_text().replace("float(len", "-float(len"))
    assert identity.changes(before, identity.identity(project, "evaluate")) == ["rewards.long.files.judge.py"]


def test_two_runs_do_not_share_a_folder(tmp_path, tiny_llama):
    project = make_project(tmp_path, tiny_llama)
    with folder.locked(project), pytest.raises(UserError, match="another run is at work here"):
        runner.run(project, **SILENT)


def test_check_trains_nothing(tmp_path, tiny_llama):
    project = make_project(tmp_path, tiny_llama)
    checked = runner.check(project)
    assert checked["dpo"].ledger.read == 40
    assert checked["dpo"].findings.get("length").n == 40
    assert not project.run_dir.exists()


@pytest.mark.parametrize("error", [EOFError, ConnectionRefusedError])
def test_a_fork_server_that_was_killed_is_named_and_no_abort(error):
    """Typer takes an EOFError for the end of a user's input, and ends with `Aborted.` and 1."""

    class Process:
        def start(self):
            raise error

    server = types.SimpleNamespace(Process=lambda **options: Process())
    with pytest.raises(start.StageFailed, match="stage sft was killed; was there memory enough"):
        start.start(server, None, None, "sft", "")
