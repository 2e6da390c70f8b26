"""What a base in 4 bits saves and costs: the quickstart on both bases, and one training of a larger model.

    python benchmarks/quantization.py [--runs FOLDER] [--stages sft,dpo] [--samples 4] [--page docs/quantization.md]

The quickstart, or some of its stages, is run twice, with `model.quantization` null and nf4 (in --runs, where finished
stages are used again).
Each policy of the one run is compared with that of the other by the true quality on the same prompts. Memory and time
are measured apart, on the quickstart's base and on a random Llama of 92 million weights: a process each loads it,
attaches an adapter and trains a few steps. Time is that of the processor, which other programs do not lengthen. Writes
`results/quantization.json`, and tables into the page.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from efficiency import write_section
from setting import environment, run_program

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes/quickstart.yaml"
KINDS = {"unquantized": "null", "nf4": "nf4"}
TRAINED = "sft,reward,dpo,ppo"
MEASURES = ("loss", "accuracy", "scores", "kl")
POLICIES = ("base", "sft", "dpo", "ppo")
LARGE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
VOCABULARY, ROWS, LENGTH, STEPS = 8000, 2, 128, 3


def main() -> None:
    """Run what is missing, and write results and tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/quantization", help="folder of the two runs")
    parser.add_argument("--stages", default=TRAINED, help="those that are run (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=4, help="completions a prompt of each policy (default: 4)")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/quantization.md", help="page of the tables")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/quantization.json", help="results")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "KIND"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(train(Path(args.child[0]), args.child[1])))
        return
    args.runs.mkdir(parents=True, exist_ok=True)
    for kind, setting in KINDS.items():
        command = [sys.executable, "-m", "rlhf.cli", "run", str(project_of(args.runs, args.stages.split(","))),
                   f"name={kind}", f"output_dir={args.runs}", f"model.quantization={setting}",
                   f"evaluate.samples={args.samples}"]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True)
    results = results_of(args.runs, args.stages.split(","))
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_section(args.page, "quantization", tables(results))
    print(tables(results))


def project_of(folder: Path, stages: list[str]) -> Path:
    """A file with the quickstart's project, of whose stages only some are left."""
    project = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    project["stages"] = {name: settings for name, settings in project["stages"].items() if name in stages}
    project.pop("rounds")
    # code runs from the project's own folder alone
    shutil.copytree(ROOT / "data/support", folder / "data/support", dirs_exist_ok=True)
    file = folder / "project.yaml"
    file.write_text(yaml.safe_dump(project), encoding="utf-8")
    return file


def results_of(runs: Path, stages: list[str]) -> dict[str, Any]:
    """What the two runs left, and what is measured apart."""
    return {
        "environment": environment(),
        "stages": {kind: stages_of(runs / kind, stages) for kind in KINDS},
        "comparisons": comparisons(runs, [name for name in POLICIES if name == "base" or name in stages]),
        "trainings": measured_apart(),
    }


def stages_of(run: Path, stages: list[str]) -> dict[str, Any]:
    """What each trained stage was measured by on held-out rows, or PPO's reward in its last rollout."""
    found = {}
    for name in stages:
        metrics = json.loads((run / name / "stage.json").read_text(encoding="utf-8"))["metrics"]
        found[name] = {key: metrics[key] for key in MEASURES if metrics.get(key) is not None}
    return found


def comparisons(runs: Path, policies: list[str]) -> list[dict[str, Any]]:
    """Each policy on the base in 4 bits against the same on the unquantized one, by the true quality."""
    from rlhf.artifacts.manifest import read_manifest
    from rlhf.evaluation.across import Sampled, joined, problem
    from rlhf.evaluation.compare import compare, correct

    sampled = []
    for kind in KINDS:
        folder = runs / kind / "evaluate"
        rows: Any = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
        manifest = read_manifest(folder)
        assert manifest is not None
        settings = manifest["config"]["evaluate"]
        sampled += [Sampled(f"{policy} {kind}", policy, rows, settings, {"gold": 0}) for policy in policies]
    if (why := problem(sampled)) is not None:
        raise SystemExit(why)
    rows = joined(sampled)
    return [dict(row) for row in correct([
        compare(rows, f"{policy} nf4", f"{policy} unquantized", "gold") for policy in policies
    ])]  # fmt: skip


def measured_apart() -> dict[str, Any]:
    """What `train` measures of each base, in a process for each kind."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    with tempfile.TemporaryDirectory() as folder:
        set_seed(0)
        LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **LARGE)).save_pretrained(folder)
        gc.collect()
        bases = {"the quickstart's base": str(ROOT / "data/base"), "a Llama of 92 million weights": folder}
        return {
            name: {kind: run_program(kind, Path(__file__).name, "--child", base, kind) for kind in KINDS}
            for name, base in bases.items()
        }


def train(folder: Path, kind: str) -> dict[str, float]:
    """Train an adapter on a base for a few steps.

    Returns:
        Size of the base, and by how much memory grew at most from before it was loaded, while it was and in training,
        MB; median seconds a step.
    """
    import torch

    from rlhf.config.project import ModelConfig
    from rlhf.models.adapters import attach, lora_config
    from rlhf.models.load import load_policy, source_of
    from rlhf.models.quantization import quantized_layers
    from rlhf.models.tasks import CAUSAL_LM

    settings = ModelConfig(name_or_path=str(folder), quantization="nf4" if kind == "nf4" else None)
    source, processor = source_of(settings), None
    before = resident("VmRSS")
    base: Any = load_policy(source, settings, processor)  # type: ignore[arg-type]
    states = [layer.weight.quant_state for _, layer in quantized_layers(base)]
    weights = sum(weight.nbytes for weight in base.parameters())
    weights += sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states)
    loading = resident("VmHWM") - before
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    model = attach(base, lora_config({"r": 16}, CAUSAL_LM.peft, joined=False), source)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for _ in range(STEPS):
        ids = torch.randint(0, base.config.vocab_size, (ROWS, LENGTH), generator=generator)
        started = time.process_time()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - started)
    return {"base_mb": weights / 2**20, "loading_mb": loading, "training_mb": resident("VmHWM") - before,
            "seconds_a_step": statistics.median(seconds[1:])}  # fmt: skip


def resident(what: str) -> float:
    """Memory of this process, MB: now (`VmRSS`) or at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 2**10


def tables(results: dict[str, Any]) -> str:
    """The tables of the page."""
    stages = results["stages"]
    lines = ["| | Unquantized (float32) | nf4 |", "|---|---:|---:|"]
    names = {
        "base_mb": "base, MB",
        "loading_mb": "most memory while it is loaded, MB",
        "training_mb": "most memory in training, MB",
        "seconds_a_step": "processor seconds a step",
    }
    for base, measured in results["trainings"].items():
        for key, name in names.items():
            digits = {"base_mb": 1, "seconds_a_step": 2}.get(key, 0)
            values = (f"{measured[kind][key]:,.{digits}f}" for kind in KINDS)
            lines.append(f"| {base}: {name} | " + " | ".join(values) + " |")
    lines += ["", "| Stage | Measure | Unquantized | nf4 |", "|---|---|---:|---:|"]
    for stage, plain in stages["unquantized"].items():
        ours = stages["nf4"][stage]
        lines += [f"| {stage} | {key} | {plain[key]:.3f} | {ours[key]:.3f} |" for key in plain if key in ours]
    lines += ["", "| Policy | Unquantized | nf4 | Difference [95%] | Verdict |", "|---|---:|---:|---:|---|"]
    for row in results["comparisons"]:
        low, high = row["difference_ci"]
        lines.append(
            f"| {row['policy'].split()[0]} | {row['baseline_mean']:.3f} | {row['policy_mean']:.3f} | "
            f"{row['mean_difference']:+.3f} [{low:+.3f}, {high:+.3f}] | {row['verdict']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
