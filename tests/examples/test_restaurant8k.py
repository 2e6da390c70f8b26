import gzip
import json
import math

from examples.restaurant8k import answered
from rlhf.artifacts.manifest import read_manifest
from rlhf.config.load import load_project
from rlhf.pipeline.execute import run_stage
from rlhf.workflow import planned


def test_only_questions_with_an_answer_count():
    answers = [{"text": ["7 pm"]}, {"text": []}, {"text": ["two"]}]
    assert answered.f1([""] * 3, ["7 pm", "7 pm", ""], answers=answers) == [1.0, None, 0.0]


def test_spans_on_a_small_budget(root, real, tmp_path):
    for name, count in (("train", 120), ("test", 20)):
        with gzip.open(real / "restaurant8k" / f"{name}.json.gz", "rt") as file:
            rows = json.load(file)[:count]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    sources = {"demonstrations": "train", "rollouts": "train", "prompts": "test"}
    project = load_project(
        root / "examples/restaurant8k/span.yaml",
        [
            f"output_dir={tmp_path}", *(f"data.{role}.source={tmp_path}/{name}.json" for role, name in sources.items()),
            "data.demonstrations.weight=1", "stages.sft.max_steps=4", "stages.ppo.total_episodes=512",
        ],
    )  # fmt: skip
    for stage in planned(project):
        run_stage(project, stage)
    for stage in ("sft", "ppo"):
        assert math.isfinite(read_manifest(project.run_dir / stage)["metrics"]["train_loss"])
    assert 0 <= read_manifest(project.run_dir / "sft")["metrics"]["accuracy"] <= 1  # of the held-out rows
    rows = [json.loads(line) for line in (project.run_dir / "evaluate/samples.jsonl").read_text().splitlines()]
    assert len(rows) > 20
    for row in rows:
        for (answer,) in row["replies"].values():
            assert answer["text"] in row["columns"]["context"]
            assert (answer["scores"]["answered_f1"] is None) == (not row["columns"]["answers"]["text"])
