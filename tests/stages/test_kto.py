"""KTO as a stage: TRL's own numbers on the same rows, in batches whose pairs share their prompts."""

import json

import pytest
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import KTOConfig

from rlhf.artifacts.manifest import read_manifest
from rlhf.data.records import Feedback, Preference, Unusable
from rlhf.data.splits import half_for
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError
from rlhf.pipeline import runner
from rlhf.pipeline.execute import prepare_stage, run_stage
from rlhf.prefix_sharing import fold
from rlhf.prefix_sharing.cost_model import Cost
from rlhf.publish import build
from rlhf.report.build import write_report
from rlhf.stages.kto import encode, in_batches, trainer_class, unbalanced
from rlhf.trl_trainers.library_names import all_names
from rlhf.trl_trainers.speedups import NO_SPEEDUPS, Speedups
from rlhf.workflow import parents_of, planned
from tests.support.projects import chats, make_project, pairs, write_rows

FEW = {"max_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


def models(tokenizer):
    """Policy and reference."""
    return [AutoModelForCausalLM.from_pretrained(tokenizer.name_or_path) for _ in range(2)]


def judged(count=12) -> list[dict]:
    """Unpaired rows: the good side of some pairs, the bad side of others."""
    return [
        {"prompt": row["prompt"], "completion": row["chosen" if number % 3 else "rejected"], "label": number % 3 > 0}
        for number, row in enumerate(pairs(count))
    ]


def encoded(tokenizer, records, size) -> Dataset:
    rows = [row.columns for record in records for row in encode(Codec(tokenizer), record)]
    return in_batches(Dataset.from_list(rows), size, seed=0)


def preferences(count=12) -> list[Preference]:
    return [
        Preference(row["prompt"], row["chosen"], f"{row['rejected']} {number}")
        for number, row in enumerate(pairs(count))
    ]


def feedback(count=12) -> list[Feedback]:
    return [Feedback(row["prompt"], row["completion"], row["label"]) for row in judged(count)]


class Tokenised(trl.KTOTrainer):
    """TRL's own trainer on rows that are tokens already."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


def logged(kind, folder, tokenizer, rows, **fields):
    own = {"speedups": fields.pop("speedups")} if "speedups" in fields else {}
    config = KTOConfig(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=5, learning_rate=1e-3, use_cpu=True,
        bf16=False, report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True, seed=3,
        gradient_checkpointing=False, dataloader_pin_memory=False, **fields,
    )  # fmt: skip
    trainer = kind(*models(tokenizer), args=config, train_dataset=rows, processing_class=tokenizer, **own)
    trainer.train()
    names = {
        "loss",
        "grad_norm",
        "kl",
        "rewards/chosen",
        "rewards/rejected",
        "logps/chosen",
        "logps/rejected",
        "entropy",
    }
    return [{name: row.get(name) for name in names} for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("speedups", [Speedups(), NO_SPEEDUPS], ids=["fast", "plain"])
@pytest.mark.parametrize("records", [preferences, feedback])
def test_losses_and_gradients_are_trls(tmp_path, tokenizer, records, speedups):
    rows = encoded(tokenizer, records(), 4)
    ours = logged(trainer_class(), tmp_path, tokenizer, rows, speedups=speedups)
    theirs = logged(Tokenised, tmp_path, tokenizer, rows)
    assert len(ours) == 5
    tolerance = 0 if speedups is NO_SPEEDUPS else 2e-5
    for row, other in zip(ours, theirs, strict=True):
        assert row == {name: pytest.approx(value, rel=tolerance, abs=tolerance) for name, value in other.items()}
    assert any(row["kl"] > 0 for row in ours)
    assert all(row["grad_norm"] > 0 for row in ours)


@pytest.mark.parametrize("fields", [{"loss_type": "apo_zero_unpaired"}, {"precompute_ref_log_probs": True}])
def test_other_settings_are_trls(tmp_path, tokenizer, fields):
    rows = encoded(tokenizer, preferences(), 4)
    ours = logged(trainer_class(), tmp_path / "ours", tokenizer, rows, **fields)
    theirs = logged(Tokenised, tmp_path / "theirs", tokenizer, rows, **fields)
    for row, other in zip(ours, theirs, strict=True):
        assert row == {name: pytest.approx(value, rel=2e-5, abs=2e-5) for name, value in other.items()}


def test_both_passes_of_a_batch_of_pairs_share_prompts(tmp_path, tokenizer, monkeypatch):
    """The batch itself, and the one in which each prompt has another row's completion."""
    shared = []
    plain = fold.lay_out

    def spy(prompts, completions, *args, **kwargs):
        if len(prompts[0]) > 1:
            shared.append([len(group) for group in completions])
        return plain(prompts, completions, *args, **kwargs)

    monkeypatch.setattr(fold, "lay_out", spy)
    monkeypatch.setattr(Cost, "rows", lambda self, number, length, shared: number * length)  # tokens alone count
    logged(trainer_class(), tmp_path, tokenizer, encoded(tokenizer, preferences(), 4), speedups=Speedups(buckets=False))
    assert shared
    assert all(group == 2 for groups in shared for group in groups)
    assert len(shared) == 5 * 4, "policy and reference, each on the batch and on the mismatched one"


def test_rows_are_those_that_trl_makes_of_the_same_text(tmp_path, tokenizer):
    """Tokens, labels and mismatched completions of unpaired rows, in the same order."""
    rows = encoded(tokenizer, feedback(), 4)
    text = {tuple(row.columns["prompt_ids"] + row.columns["completion_ids"]): source
            for source, record in zip(judged(), feedback(), strict=True)
            for row in encode(Codec(tokenizer), record)}  # fmt: skip
    ordered = [text[tuple(row["prompt_ids"] + row["completion_ids"])] for row in rows]
    theirs = trl.KTOTrainer(
        *models(tokenizer), train_dataset=Dataset.from_list(ordered), processing_class=tokenizer,
        args=KTOConfig(str(tmp_path), per_device_train_batch_size=4, use_cpu=True, bf16=False, report_to="none"),
    ).train_dataset  # fmt: skip
    for name in ("prompt_ids", "completion_ids", "KL_completion_ids", "label"):
        assert rows[name][:] == theirs[name][:]


def test_no_prompt_meets_a_completion_of_its_own_pair(tokenizer):
    rows = encoded(tokenizer, preferences(10), 4)
    own = {}
    for row in rows:
        own.setdefault(tuple(row["prompt_ids"]), []).append(row["completion_ids"])
    assert all(len(sides) == 2 for sides in own.values())
    for row in rows:
        assert row["KL_completion_ids"] not in own[tuple(row["prompt_ids"])]
    assert [row["label"] for row in rows] == [True, True, False, False] * 5
    prompts = [row["prompt_ids"] for row in rows]
    assert prompts[:2] == prompts[2:4]
    unshuffled = [encode(Codec(tokenizer), record)[0].columns["prompt_ids"] for record in preferences(2)]
    assert prompts[:2] != unshuffled


def test_a_prompt_that_leaves_no_room_is_refused(tokenizer):
    codec = Codec(tokenizer, max_length=4)
    with pytest.raises(Unusable, match="prompt longer"):
        encode(codec, Feedback("a very long prompt, longer than four tokens", " yes", True))
    (row,) = encode(Codec(tokenizer, max_length=12), Feedback("hi", " yes" * 20, False))
    assert len(row.columns["prompt_ids"]) + len(row.columns["completion_ids"]) == 12
    assert row.truncated
    assert row.eos_lost


@pytest.mark.parametrize(
    ("good", "bad", "weights", "said"),
    [
        (5, 5, (1, 1), None),
        (4, 3, (1, 1), None),
        (8, 2, (1, 1), "0.25"),
        (8, 2, (0.3, 1), None),
        (3, 0, (1, 1), "every row"),
    ],
)
def test_weights_of_both_kinds_are_about_the_same(good, bad, weights, said):
    caveat = unbalanced([True] * good + [False] * bad, *weights)
    assert caveat is None if said is None else said in caveat


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_llama):
    """A run whose kto starts from sft, on pairs taken apart, with a judge of its checkpoints."""
    kto = {**FEW, "checkpoint_judge": "long", "select": "best", "save_steps": 1}
    project = make_project(
        tmp_path_factory.mktemp("kto"), tiny_llama, chats(), stages={"sft": {**FEW, "max_steps": 1}, "kto": kto}
    )
    runner.run(project, say=lambda line: None)
    return project


def test_it_runs_from_its_parent_and_is_compared_like_any_policy(finished):
    assert planned(finished) == ["sft", "kto", "evaluate"]
    assert parents_of(finished, "kto") == ["sft"]
    manifest = read_manifest(finished.run_dir / "kto")
    metrics = manifest["metrics"]
    assert metrics["steps"] == 2
    ledger = json.loads((finished.run_dir / "kto/ledger.json").read_text())["sets"]["feedback"]
    assert metrics["train_rows"] == 2 * ledger["trained"]
    assert {"loss_before", "loss", "margin", "kl", "selected_step"} <= metrics.keys()
    write_report(finished.run_dir)
    report = json.loads((finished.run_dir / "report.json").read_text())
    compared = {(row["policy"], row["baseline"]) for row in report["comparisons"]}
    assert ("kto", "sft") in compared
    assert "KTO" in (finished.run_dir / "report.md").read_text()


def test_it_is_done_a_second_time(finished):
    assert [plan.reason for plan in runner.plan(finished)] == [None, None, None]


def test_unpaired_rows_are_read_and_run(tmp_path, tiny_llama):
    data = {"feedback": {"source": str(write_rows(tmp_path / "judged.jsonl", judged(30))), "holdout": 0.3}}
    project = make_project(tmp_path, tiny_llama, data=data, stages={"kto": {**FEW, "adapter": None}}, evaluate=False)
    run_stage(project, "kto")
    metrics = read_manifest(project.run_dir / "kto")["metrics"]
    ledger = json.loads((project.run_dir / "kto/ledger.json").read_text())["sets"]["feedback"]
    assert metrics["train_rows"] == ledger["trained"]
    assert metrics["eval_rows"] == ledger["evaluated"] > 0


def test_a_batch_of_one_is_refused_before_training(tmp_path, tiny_llama):
    project = make_project(tmp_path, tiny_llama, stages={"kto": {**FEW, "per_device_train_batch_size": 1}})
    with pytest.raises((UserError, ValueError), match="batch size must be > 1"):
        prepare_stage(project, "kto")


def test_the_half_of_the_checkpoint_judge_is_not_trained_on(tmp_path, tiny_llama):
    project = make_project(tmp_path, tiny_llama, stages={"gold_reward": FEW, "kto": FEW, "dpo": FEW})
    assert [half_for(project, name) for name in ("gold_reward", "kto", "dpo")] == [1, 0, 0]


def test_its_trainers_names_are_checked():
    paths = {name.path for name in all_names()}
    assert {
        "trl:KTOTrainer._prepare_dataset",
        "trl:KTOTrainer.compute_loss",
        "trl.trainer.kto_config:KTOConfig",
    } <= paths


def test_it_is_one_file(root):
    """Nothing else names it, but for the format of the same name, which votes have too, and what writes YAMLs."""
    files = [path.relative_to(root / "rlhf") for path in sorted((root / "rlhf").rglob("*.py"))]
    named = [path.as_posix() for path in files if "kto" in (root / "rlhf" / path).read_text().lower()]
    named = [path for path in named if not path.startswith(("init/", "cli/starting.py"))]
    assert named == ["data/formats/kto.py", "data/vote_source.py", "stages/kto.py"]


def test_it_is_published_as_what_it_is(finished, tmp_path):
    published = build.build_folder(finished.run_dir, "kto", tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "Kahneman-Tversky optimisation" in card
    assert published is not None
