"""What a policy got worse at: planted on a model whose weights were spoilt, and by hand."""

import json
import math

import pytest
import torch

from rlhf.artifacts.open import open_model
from rlhf.config.load import load_project
from rlhf.errors import UserError
from rlhf.evaluation.regressions import compare_retained
from rlhf.evaluation.retain import greedy_completions, judged, log_likelihoods, read_retained
from rlhf.models.settings import base_settings
from rlhf.pipeline import identity
from rlhf.pipeline.execute import run_stage
from rlhf.pipeline.folder import own_folder
from rlhf.stages.evaluate import prepare
from rlhf.workflow import StageContext
from tests.support.projects import pairs, write_project, write_rows
from tests.support.runs import add_stage


@pytest.fixture
def project(tmp_path, tiny_llama):
    """A project that must not lose a text nor a task."""
    rows = [{"text": row["prompt"] + row["chosen"]} for row in pairs(12)]
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "half a pair: \ud83d"}, *rows])
    tasks = write_rows(
        tmp_path / "tasks.jsonl", [{"prompt": row["prompt"], "answer": str(n)} for n, row in enumerate(pairs(7))]
    )
    (tmp_path / "tasks.py").write_text(
        "def solved(prompts, completions, answer=None, **columns):\n"
        "    if answer is None: return [None] * len(prompts)\n"
        "    return [float(one) if one != '3' else None for one in answer]\n"
    )
    path = write_project(
        tmp_path, tiny_llama,
        rewards={
            "long": {"function": f"{tmp_path}/judge.py:score"}, "solved": {"function": f"{tmp_path}/tasks.py:solved"},
        },
        stages={"sft": {"max_steps": 2}},
        evaluate={
            "prompts": 6, "samples": 1, "max_new_tokens": 4,
            "retain": {
                "general": {"source": str(texts), "format": "text"},
                "sums": {"source": str(tasks), "judge": "solved", "limit": 5},
            },
        },
    )  # fmt: skip
    return load_project(path)


def loaded(project):
    opened = open_model(base_settings(project))
    return opened, opened.policy(placed=False)


def test_a_text_counts_by_the_mean_log_likelihood_of_its_tokens(project):
    general, _ = read_retained(project)
    opened, model = loaded(project)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # every next token is equally likely
    values = log_likelihoods(general, opened, model, 0, 12)
    assert len(values) == 12
    assert values == pytest.approx([-math.log(model.config.vocab_size)] * 12, rel=1e-5)


def test_a_task_counts_by_its_judge_who_gets_the_rows_columns(project):
    _, sums = read_retained(project)
    opened, model = loaded(project)
    texts = greedy_completions(sums, opened, model, project.evaluate, 0, 5)
    assert texts[2:] == greedy_completions(sums, opened, model, project.evaluate, 2, 5)
    values = judged(sums, texts, lambda prompts, completions, answer: [float(text) for text in answer])
    assert values == [0.0, 1.0, 2.0, 3.0, 4.0], "the first five rows, as limited"


def rows(before, after):
    return [
        {"set": "general", "measure": "log-likelihood", "values": {"base": old, "sft": new}}
        for old, new in zip(before, after, strict=True)
    ]


def test_what_got_less_likely_is_a_regression():
    before = [-2.0 - 0.01 * n for n in range(20)]
    (worse,) = compare_retained(rows(before, [value - 0.5 for value in before]), ["base", "sft"], {"sft": "base"})
    assert (worse["policy"], worse["baseline"], worse["judge"], worse["verdict"]) == ("sft", "base", "general", "worse")
    assert worse["mean_difference"] == pytest.approx(-0.5)
    assert worse["measure"] == "log-likelihood"
    (same,) = compare_retained(rows(before, before[::-1]), ["base", "sft"], {"sft": "base"})
    assert same["verdict"] == "no difference"


def test_the_evaluate_stage_measures_it_of_every_policy(project, tiny_llama):
    own_folder(project)
    add_stage(project.run_dir, "sft", tiny_llama)  # random weights
    run_stage(project, "evaluate")
    lines = [json.loads(line) for line in (project.run_dir / "evaluate/retained.jsonl").read_text().splitlines()]
    assert [(line["set"], set(line["values"])) for line in lines] == (
        [("general", {"base", "sft"})] * 12 + [("sums", {"base", "sft"})] * 5
    )
    assert lines[15]["values"]["sft"] is None, "the judge had no score"
    before = identity.identity(project, "evaluate")
    write_rows(project.path.parent / "texts.jsonl", [{"text": "another text"}])
    assert identity.changes(before, identity.identity(project, "evaluate")) == ["retain.general.sha256"]


@pytest.mark.parametrize(
    ("one", "message"),
    [
        ({"source": "nowhere.jsonl"}, "nowhere.jsonl"),
        (
            {"source": "pairs.jsonl", "judge": "solve"},
            "there is no 'solve' that scores under rewards:; did you mean 'solved'",
        ),
        ({"source": "pairs.jsonl", "limit": 0}, "limit: must be at least 1"),
        ({"source": "pairs.jsonl", "judgement": "long"}, "did you mean 'judge'"),
    ],
)
def test_a_set_that_cannot_be_used_is_refused_before_anything_runs(project, one, message):
    tree = {**one, "source": str(project.path.parent / one["source"])}

    def check():
        wrong = load_project(project.path, [f"evaluate.retain.general={json.dumps(tree)}"])
        prepare(StageContext(wrong, "evaluate", wrong.run_dir / "work", {}))

    with pytest.raises(UserError, match=message):
        check()
