"""The benchmarks run, at a size at which their numbers mean nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
PROTOCOL = {2: ["preference"], 3: ["ppo", "rollout"], 4: ["gpu_checks"]}
"""What each command of benchmarks/gpu.sh leaves."""


def bench(name, out, *options):
    """Run a benchmark at its smallest; what it printed, and its result file."""
    command = [sys.executable, ROOT / f"benchmarks/{name}.py", "--tiny", "--repeats", "1", "--threads", "1"]
    done = subprocess.run([*command, "--out", out, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    text = out.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    return done.stdout, json.loads(text)


def check_environment(environment):
    assert environment["torch_threads"] == 1
    assert environment["cpus"] >= 1
    assert {"torch", "transformers"} <= set(environment["versions"])


def test_rollout(tmp_path):
    printed, result = bench("rollout", tmp_path / "new" / "rollout.json")
    check_environment(result["environment"])
    assert {"generate", "generate-best", "ours", "generate-4", "generate-best-4", "ours-4"} <= set(result["rows"])
    assert "| ours-4 " in printed
    ours = result["rows"]["ours"]
    assert set(ours["tokens_per_second"]) == {"median", "min", "max"}
    assert ours["ratio_to_generate"] > 0
    assert ours["ratio_to_generate-best"] > 0
    assert "ratio_to_generate" not in result["rows"]["ours-4"]
    for run in result["runs"]:
        assert run["tokens"] == run["reply_length"] * result["size"]["batch"]
        assert run["tokens_per_second"] == pytest.approx(run["tokens"] / run["seconds"])


def test_ppo_without_trl(tmp_path):
    printed, result = bench("ppo", tmp_path / "ppo.json", "--episodes", "8", "--rows", "trl,trl-best,full,lora-4")
    check_environment(result["environments"]["ours"])
    assert result["left_out"] == ["trl", "trl-best"]
    assert "Left out for want of --trl-python: trl, trl-best" in printed
    assert set(result["rows"]) == {"full", "lora-4"}
    assert result["jobs"]["lora-4"]["samples"] == 4
    for run in result["runs"]:
        assert run["episodes_per_second"] == pytest.approx(8 / run["seconds"])
        assert run["peak_mb"] >= run["before_mb"] > 0
        assert 0 < run["reply_length"] <= result["size"]["reply"]


def test_a_row_that_is_not_there_is_refused():
    command = [sys.executable, ROOT / "benchmarks/ppo.py", "--tiny", "--rows", "mine"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no row mine; there are " in done.stderr


def test_preference(tmp_path):
    rows = "dpo:trl,dpo:off,dpo:ours,reward:trl-best,reward:ours"
    printed, result = bench("preference", tmp_path / "preference.json", "--count", "8", "--rows", rows)
    check_environment(result["environment"])
    assert result["environment"]["versions"]["trl"].startswith("1.16")
    assert "| dpo:ours " in printed
    mine = result["rows"]["dpo:ours"]
    times = {name: result["rows"][name]["seconds"]["median"] for name in ("dpo:trl", "dpo:ours")}
    assert mine["speed_to_trl"] == pytest.approx(times["dpo:trl"] / times["dpo:ours"])
    assert mine["loss_difference"] < 1e-5
    assert "speed_to_trl" not in result["rows"]["reward:ours"]
    assert result["jobs"]["dpo:ours"]["fold"]
    assert not result["jobs"]["dpo:off"]["fold"]
    for run in result["runs"]:
        assert run["peak_mb"] >= run["before_mb"] > 0
        assert len(run["losses"]) == 1


def test_preference_at_a_ratio(tmp_path):
    options = ("--count", "8", "--rows", "reward:trl,reward:ours", "--ratio", "2", "--bf16", "--lora")
    _, result = bench("preference", tmp_path / "ratio.json", *options)
    assert result["options"]["ratio"] == 2
    assert result["jobs"]["reward:trl"]["bf16"]


def test_preflight(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    asked = [f"\n\nHuman: How many are {number} and {number + 1}?\n\nAssistant: " for number in range(48)]
    rows = [{"chosen": f"{ask}{2 * number + 1}.", "rejected": f"{ask}Many."} for number, ask in enumerate(asked)]
    pairs.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text("Measured:\n<!-- preflight -->\n<!-- end of preflight -->\n", encoding="utf-8")
    options = ("--pairs", pairs, "--rows", "lora 2", "--time", "--page", page)
    printed, result = bench("preflight", tmp_path / "preflight.json", *options)
    check_environment(result["environment"])
    stages = result["runs"]["lora 2"]
    assert list(stages) == ["sft", "reward", "dpo", "ppo"]
    for stage in stages.values():
        assert stage["estimated"]["measured"]
        assert stage["estimated"]["bytes"] == pytest.approx(sum(stage["estimated"]["parts"].values()))
        assert 0.5 < stage["estimated"]["bytes"] / stage["measured"]["peak"] < 2
    assert len(stages["ppo"]["measured"]["rollouts"]) == 12
    assert page.read_text(encoding="utf-8").count("| ppo lora 2 |") == printed.count("| ppo lora 2 |") == 1


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_the_gpu_protocol_runs_dry(tmp_path, call):
    """Every command of it, on the CPU at the smallest size; what it writes says that it is a dry run."""
    environment = {**os.environ, "DRY": "1", "PYTHON": sys.executable, "RESULTS": str(tmp_path), "TRL_PYTHON": "none"}
    done = subprocess.run(
        ["bash", ROOT / "benchmarks/gpu.sh", str(call)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in PROTOCOL.get(call, ()):
        result = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        assert result["dry_run"]
        assert result["rows"]
    assert call == 1 or {path.stem for path in tmp_path.glob("*.json")} == set(PROTOCOL[call])


@pytest.mark.parametrize("change", ["one-backward", "merged-measuring", "scale-low-rank", "merged-training"])
def test_a_change_changes_no_gradient(tmp_path, tiny_llama, monkeypatch, change):
    import torch

    from tests.support.ppo import make_trainer

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from ppo_changes import CHANGES

    found = []
    for change_trainer in (None, CHANGES[change]):
        trainer = make_trainer(tmp_path, tiny_llama)
        for name, parameter in trainer.policy.roles.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        trainer.optimizer = trainer.create_optimizer()
        if change_trainer:
            change_trainer(trainer)
        batch = trainer.collect_rollout(1).micro_batch(range(8), 17.0, trainer.policy)
        trainer.training_step(trainer.model, {"micro_batch": batch})
        found.append({name: parameter.grad for name, parameter in trainer.policy.trained().items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4)


@pytest.fixture
def first_hour(monkeypatch):
    """The program of docs/first-hour.md."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import first_hour

    return first_hour


def test_the_first_hour_counts_what_is_typed(first_hour, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    result = {"steps": [], "exports": []}
    shell = first_hour.Typed(tmp_path, tmp_path / "bin", 3, tmp_path / "out/result.json", result)
    assert shell.run("One", "threads", 'echo "$OMP_NUM_THREADS|$PYTHONPATH"') == "3|\n"
    shell.run("One", "looked at", "true", typed=False)
    shell.run("One", "wait", "sleep 1")
    assert json.loads((tmp_path / "out/result.json").read_text()) == result
    assert [step["keystrokes"] for step in result["steps"]] == [len('echo "$OMP_NUM_THREADS|$PYTHONPATH"') + 1, 0, 8]
    assert 1 <= result["steps"][2]["seconds"] < 60
    with pytest.raises(SystemExit, match="ended with 3 after"):
        shell.run("One", "fail", "exit 3")
    assert len(result["steps"]) == 3
    steps = [{"part": "One", "step": "a", "command": "x | y", "keystrokes": 6, "seconds": 1.4},
             {"part": "One", "step": "b", "command": "z", "keystrokes": 0, "seconds": 9.0},
             {"part": "One", "step": "c", "command": "z", "keystrokes": 2, "seconds": 2.4}]  # fmt: skip
    rows = first_hour.table(steps).splitlines()[2:]
    assert rows == [
        r"| One | a | `x \| y` | 6 | 1 |", "|  | c | `z` | 2 | 2 |", "|  | **together** |  | **8** | **4** |",
    ]  # fmt: skip


def test_every_command_of_the_first_hour_is_one_of_the_program(first_hour):
    from tests.support.pages import check_command

    chain = first_hour.Chain("Mine", "mine.jsonl", "sft,ppo", "gguf-q8_0", "How many?", "stages.ppo.total_episodes=8")
    commands = [command for _, command in chain.commands(100)]
    assert len(commands) == 6
    for command in commands:
        check_command(command.rpartition("| ")[2])
