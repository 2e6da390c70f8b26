"""Does PPO learn? Three unlike problems, three seeds each: score and KL by rollout, and a paired comparison at the end.

    python benchmarks/learning.py --real FOLDER [--problems quickstart stories bytes] [--seeds 0 1 2] [--critics shared]

* quickstart: recipes/quickstart.yaml without DPO; the reward model is the run's own, the true quality is measured.
* stories: a Llama of 260 thousand parameters, rewarded by a sentiment classifier trained here on film reviews: an
  encoder with a tokenizer of its own.
* bytes: a GPT-2 of a million parameters on bytes (absolute positions), rewarded by a plain function.

FOLDER holds `rt_polarity/train.jsonl` (text, label), `models/stories260K` and `models/atome-vanilla-1M`. Writes
`results/learning.json`, and with matplotlib there, docs/images/learning.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from rlhf.config.load import load_project
from rlhf.pipeline import runner

ROOT = Path(__file__).parents[1]
PROBLEMS = {
    "quickstart": ("Quickstart: the run's reward model", "gold"),
    "stories": ("Stories, rewarded by a sentiment classifier", "sentiment"),
    "bytes": ("Bytes, rewarded by a function", "joy"),
}
"""Title, and the judge of the final comparison."""

_NAMES = ("Lily", "Mia", "Sue", "Anna", "Lucy", "Sara", "Tom", "Ben", "Max", "Sam", "Tim", "Jack")
_OPENINGS = (
    "Once upon a time, there was a little child named {}.", "One day, {} went to the park.", "{} had a big box.",
    "{} and a friend were in the garden.", "It was raining and {} was at home.", "{} saw a small cat. The cat",
    "{} woke up early. Then", 'Mom said to {}, "', "{} wanted to bake a cake, but", "On the way to school, {}",
)  # fmt: skip
_JOY = '''import re

STEMS = ("happ", "smil", "laugh", "play", "lov", "friend", "hug", "danc", "sang", "sing")
WORDS = re.compile(rf"\\b(?:joy|fun|nice|(?:{'|'.join(STEMS)})\\w*)\\b")


def joy(prompts, completions, **columns):
    """How many different words of joy a reply has, at most four."""
    return [float(min(4, len(set(WORDS.findall(text.lower()))))) for text in completions]
'''
_PPO = {
    "per_device_train_batch_size": 32, "gradient_accumulation_steps": 2, "samples_per_prompt": 2,
    "total_episodes": 1920, "learning_rate": 2.0e-3, "kl_coef": 0.1, "truncated": "score", "missing_eos_penalty": 0.0,
}  # fmt: skip


def projects(real: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """The problems as projects, by name; `classifier` is what `stories` is rewarded by."""
    prompts = [{"prompt": opening.format(name)} for opening, name in itertools.product(_OPENINGS, _NAMES)]
    random.Random(0).shuffle(prompts)
    (folder / "openings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    (folder / "joy.py").write_text(_JOY, encoding="utf-8")
    shutil.copy(ROOT / "data/support/gold.py", folder)  # a project runs code of its own folder alone
    quickstart = yaml.safe_load((ROOT / "recipes/quickstart.yaml").read_text(encoding="utf-8"))
    del quickstart["stages"]["dpo"]
    scratch = {
        "architecture": "bert", "tokenizer": {"vocab_size": 4096}, "hidden_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 256, "max_position_embeddings": 256,
    }  # fmt: skip
    classifier = {
        "model": {"scratch": scratch, "adapter": None},
        "data": {"demonstrations": {"source": str(real / "rt_polarity/train.jsonl"), "holdout": 0.1}},
        "stages": {"sft": {"learning_rate": 5.0e-4, "num_train_epochs": 2, "per_device_train_batch_size": 32}},
        "evaluate": False,
    }
    openings = {"rollouts": {"source": str(folder / "openings.jsonl"), "holdout": 0.3}}
    sentiment = {"model": str(folder / "runs/classifier/sft"), "label": 1}
    return {
        "quickstart": {**quickstart, "rewards": {"gold": {"function": "gold.py:score"}}},
        "classifier": classifier,
        "stories": {
            "model": {"name_or_path": str(real / "models/stories260K"), "adapter": {"r": 16}},
            "data": openings, "rewards": {"sentiment": sentiment}, "stages": {"ppo": {**_PPO, "max_new_tokens": 48}},
            "evaluate": {"prompts": 40, "samples": 4, "max_new_tokens": 48},
        },
        "bytes": {
            "model": {"name_or_path": str(real / "models/atome-vanilla-1M"), "eos_token": "Ċ", "adapter": {"r": 16}},
            "data": openings, "rewards": {"joy": {"function": "joy.py:joy"}},
            "stages": {"ppo": {**_PPO, "max_new_tokens": 96, "learning_rate": 5.0e-4}},
            "evaluate": {"prompts": 40, "samples": 4, "max_new_tokens": 96},
        },
    }  # fmt: skip


def run(name: str, tree: dict[str, Any], seed: int, folder: Path) -> Path:
    """Run a project to its end; returns its folder."""
    run_name = name if name == "classifier" else f"{name}-{seed}"
    path = folder / f"{run_name}.yaml"
    tree = {**tree, "name": run_name, "seed": seed, "output_dir": str(folder / "runs")}
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    runner.run(load_project(path), say=lambda line: print(f"{run_name}: {line}", flush=True))
    return folder / "runs" / run_name


def with_critic(tree: dict[str, Any], critic: str) -> dict[str, Any]:
    """The same project with this kind of critic."""
    stages = tree["stages"]
    return {**tree, "stages": {**stages, "ppo": {**stages["ppo"], "critic": critic}}}


def read(run_dir: Path, judge: str) -> dict[str, Any]:
    """Curves of a finished run, and its comparison with the policy that PPO started from."""
    from rlhf.report.build import build_report

    lines = (run_dir / "ppo/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "objective/scores" in row]
    report = build_report(run_dir)
    baseline = "sft" if "sft" in report["stages"] else "base"
    (final,) = (
        row for row in report["comparisons"]
        if (row["policy"], row["baseline"], row["judge"]) == ("ppo", baseline, judge)
    )  # fmt: skip
    curves = {name: [row[key] for row in rows] for name, key in _CURVES.items()}
    return {"curves": curves, "comparison": {key: final[key] for key in _COMPARED}}


_CURVES = {"episodes": "episodes", "score": "objective/scores", "kl": "objective/kl", "length": "response/length"}
_COMPARED = ("judge", "baseline", "policy_mean", "baseline_mean", "mean_difference", "difference_ci", "kl", "verdict")


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """The comparisons, a line for each seed."""
    lines = []
    for problem, runs in results.items():
        for seed, run in enumerate(runs):
            row = run["comparison"]
            low, high = row["difference_ci"]
            lines.append(
                f"{problem:<18}{seed:>2}  {row['judge']:<10} {row['baseline_mean']:6.2f} -> {row['policy_mean']:6.2f}  "
                f"{row['mean_difference']:+.2f} [{low:+.2f}, {high:+.2f}]  KL {row['kl']:5.1f}  {row['verdict']}"
            )
    return "\n".join(lines)


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Score by episodes, mean and range over the seeds; and score against KL, a line for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(results), figsize=(4.2 * len(results), 6), squeeze=False, layout="constrained"
    )
    for (problem, runs), (upper, lower) in zip(results.items(), axes.T, strict=True):
        curves = [run["curves"] for run in runs]
        scores = np.array([curve["score"] for curve in curves])
        episodes = curves[0]["episodes"]
        upper.fill_between(episodes, scores.min(0), scores.max(0), alpha=0.25, label="range of the seeds")
        upper.plot(episodes, scores.mean(0), label="mean")
        name, _, critic = problem.partition("-")
        upper.set(
            title=PROBLEMS[name][0] + (f", {critic} critic" if critic else ""),
            xlabel="episodes",
            ylabel="score (normalised)",
        )
        upper.legend(frameon=False)
        for seed, curve in enumerate(curves):
            lower.plot(curve["kl"], curve["score"], marker=".", linewidth=0.8, label=f"seed {seed}")
        lower.set(xlabel="KL to the starting policy (nats a completion)", ylabel="score (normalised)")
        lower.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True, help="folder of data and models")
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--critics", nargs="+", choices=("separate", "shared"), default=["separate"])
    parser.add_argument("--folder", type=Path, help="where the runs go; a temporary folder if not given")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/learning.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/images/learning.png")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    trees = projects(args.real.resolve(), folder.resolve())
    results: dict[str, list[dict[str, Any]]] = {}
    for problem in args.problems:
        if problem == "stories":
            run("classifier", trees["classifier"], 0, folder)
        for critic in args.critics:
            name = problem if critic == "separate" else f"{problem}-{critic}"
            runs = [run(name, with_critic(trees[problem], critic), seed, folder) for seed in args.seeds]
            results[name] = [read(folder, PROBLEMS[problem][1]) for folder in runs]
    print(table(results))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    try:
        draw(results, args.plot)
    except ModuleNotFoundError:
        print("no matplotlib: no picture")


if __name__ == "__main__":
    main()
