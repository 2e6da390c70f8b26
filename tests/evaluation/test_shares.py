"""Gate, rank and evaluate on two processes: the same report as on one, and nobody is asked twice."""

import json
import math
import shutil
from collections import Counter

import pytest

from rlhf.artifacts.manifest import read_manifest
from rlhf.config.load import load_project
from rlhf.evaluation.shares import share
from rlhf.pipeline.folder import own_folder
from tests.support.evaluated import run
from tests.support.judge_server import JudgeServer, prefer_longer
from tests.support.launches import on_two_processes
from tests.support.models import save_classifier
from tests.support.projects import pairs, write_project, write_rows
from tests.support.runs import add_stage

RUNS = ("one", "two", "onwards", "back")
JUDGE = """
import json, os
def score(name, completions):
    with open({asked!r}, "a") as file:
        file.write(json.dumps([name, os.environ.get("RANK", "0"), len(completions)]) + "\\n")
    return [float(len(text)) for text in completions]

def long(prompts, completions, **columns):
    return score("long", completions)

def rows(prompts, completions, **columns):
    return score("rows", completions)
rows.rowwise = True
"""


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8])
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_shares_are_neighbours_in_order_and_alike(count, parts):
    shares = [share(count, parts, part) for part in range(parts)]
    assert [place for each in shares for place in each] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture
def server():
    with JudgeServer(prefer_longer) as running:
        yield running


@pytest.fixture
def path(tmp_path, tiny_llama, server):
    """A project whose policies and reward model are there in every run, and whose other stages are to run."""
    (tmp_path / "judges.py").write_text(JUDGE.format(asked=str(tmp_path / "asked.jsonl")))
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in pairs(17)])
    scorer = save_classifier(tiny_llama, tmp_path / "scorer", ("score",))
    texts = write_rows(tmp_path / "keep.jsonl", [{"text": row["prompt"]} for row in pairs(5)])
    rank = {"samples": 3, "max_new_tokens": 6, "sampling_batch_size": 2, "rewards": {"reward": 1.0, "long": 0.1}}
    path = write_project(
        tmp_path, tiny_llama,
        stages={"sft": {"max_steps": 2}, "reward": {"max_steps": 2}, "rank": rank, "dpo": {"max_steps": 2}},
        data={
            "demonstrations": {"source": str(tmp_path / "pairs.jsonl")},
            "preferences": {"source": str(tmp_path / "pairs.jsonl"), "holdout": 0.4},
            "prompts": {"source": str(prompts)},
        },
        rewards={
            "long": {"function": f"{tmp_path / 'judges.py'}:long"},
            "rows": {"function": f"{tmp_path / 'judges.py'}:rows"},
            "helpful": {"model": str(scorer)},
            "judge": {"endpoint": server.url, "judge_model": "test"},
        },
        evaluate={
            "prompts": 13, "samples": 2, "max_new_tokens": 6, "batch_size": 2, "perturb": ["case"], "attributions": 3,
            "retain": {
                "known": {"source": str(texts), "format": "text"},
                "solved": {"source": str(prompts), "judge": "long", "limit": 5},
            },
        },
    )  # fmt: skip
    for name in RUNS:
        project = load_project(path, [f"name={name}"])
        own_folder(project)
        for stage in ("sft", "reward", "dpo"):
            if name == RUNS[0]:
                add_stage(project.run_dir, stage, tiny_llama, labels=int(stage == "reward"))
            else:
                shutil.copytree(project.run_dir.parent / RUNS[0] / stage, project.run_dir / stage)
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def launched(*arguments, **more):
    """Run what `tests.support.evaluated` is given on two processes."""
    codes, said = on_two_processes(["-m", "tests.support.evaluated", *arguments], **more)
    assert codes == [0, 0], said[-3000:]


def same(ours, theirs, where=""):
    """Equal, numbers to 1e-5: batches of two processes are cut elsewhere, and round differently."""
    if isinstance(ours, float) and isinstance(theirs, float):
        assert math.isclose(ours, theirs, abs_tol=1e-5, rel_tol=1e-5) or ours == theirs, (where, ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            same(one, other, f"{where}[{number}]")
    else:
        assert ours == theirs, where


def told(path, name, stage):
    """What a stage says, and each file that it left."""
    folder = load_project(path, [f"name={name}"]).run_dir / stage
    metrics = read_manifest(folder)["metrics"]
    return {"metrics": metrics, **{file.name: lines(file) for file in folder.glob("*.jsonl")}}


def asked(tmp_path):
    """How many completions each function was asked about, and by which processes."""
    counts, ranks = Counter(), {}
    for name, rank, count in lines(tmp_path / "asked.jsonl"):
        counts[name] += count
        ranks.setdefault(name, set()).add(rank)
    (tmp_path / "asked.jsonl").unlink()
    return counts, ranks


def test_two_processes_give_the_report_of_one_and_ask_nobody_twice(path, tmp_path, server):
    for what in ("one:gate", "one:evaluate"):
        run(path, what)
    counts, _ = asked(tmp_path)
    questions = len(server.seen)
    launched(path, "two:gate", "two:evaluate")
    whole = told(path, "one", "evaluate")
    assert {"samples.jsonl", "perturbed.jsonl", "retained.jsonl", "attributions.jsonl"} < whole.keys()
    for stage in ("gate", "evaluate"):
        same(told(path, "two", stage), told(path, "one", stage))
    assert asked(tmp_path) == (counts, {"long": {"0"}, "rows": {"0", "1"}})
    assert len(server.seen) == 2 * questions


@pytest.mark.slow
def test_what_ends_on_two_processes_goes_on_on_one_and_the_other_way_round(path):
    run(path, "one:evaluate")
    run(path, "one:rank")
    run(path, "back:evaluate:9")
    run(path, "back:rank:3")
    launched(
        path, "back:evaluate", "back:rank", "onwards:evaluate:9", "onwards:rank:2", "two:evaluate:9",
        "two:evaluate", "two:rank:2", "two:rank",
    )  # fmt: skip
    run(path, "onwards:evaluate")
    run(path, "onwards:rank")
    for name in ("two", "onwards", "back"):
        for stage in ("evaluate", "rank"):
            same(told(path, name, stage), told(path, "one", stage))


@pytest.mark.scale
def test_an_evaluation_loads_models_whole_where_training_shards_them(path):
    """As fsdp2.yaml has it: transformers would load weights on the first process only."""
    run(path, "one:evaluate")
    launched(path, "two:evaluate", ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_CPU_RAM_EFFICIENT_LOADING="true")
    same(told(path, "two", "evaluate"), told(path, "one", "evaluate"))
