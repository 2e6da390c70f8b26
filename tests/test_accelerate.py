"""Stages through the real `accelerate launch`, on two CPU processes."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from rlhf.config.load import load_project
from rlhf.pipeline.folder import locked
from tests.support.projects import write_project

STAGES = {
    name: {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1}
    for name in ("sft", "reward", "dpo", "ppo")
}
for name in (
    "sft",
    "reward",
    "dpo",
):  # batches of a step, as many rows of one on each process
    STAGES[name] |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
STAGES["ppo"] |= {"max_new_tokens": 8, "num_ppo_epochs": 2, "normalize_samples": 8, "max_steps": 4, "advantage": "gae"}


def launched(root, recipe, *arguments) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(root / "recipes/accelerate/cpu.yaml"), *recipe, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "find_unused_parameters" not in done.stderr  # looked for in vain


def first_step(folder) -> dict:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return next(row for row in rows if "loss" in row)


def test_stages_on_two_processes_equal_one(tmp_path, tiny_llama, root):
    """Two processes with four rows each, in one batch or two, take the same first step as one with a batch of eight."""
    two, single = tmp_path / "two", tmp_path / "one"
    for folder in (two, single):
        folder.mkdir()
    path = write_project(two, tiny_llama, stages=STAGES)
    for stage in STAGES:
        launched(root, [str(root / f"recipes/{stage}.py")], "--config", path)
    whole = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    alone = write_project(single, tiny_llama, stages={name: {**stage, **whole} for name, stage in STAGES.items()})
    for stage in STAGES:
        subprocess.run(
            [sys.executable, str(root / f"recipes/{stage}.py"), "--config", str(alone)], check=True, capture_output=True
        )
        ours, theirs = (first_step(folder / "runs/tiny" / stage) for folder in (two, single))
        if stage == "ppo":
            assert_same_rollouts(*(folder / "runs/tiny/ppo/metrics.jsonl" for folder in (two, single)))
        else:
            assert ours["num_tokens"] == theirs["num_tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    record = json.loads((two / "runs/tiny/dpo/stage.json").read_text())
    assert record["metrics"]["steps"] == 2
    assert set(record["parents"]) == {"sft"}


@pytest.mark.scale
def test_a_shared_critic_on_two_processes_equals_one(tmp_path, tiny_llama, root):
    """After a rollout in which its head learns alone, through the averaged gradients of one pass."""
    options = {**STAGES["ppo"], "critic": "shared", "critic_warmup_rollouts": 1, "rewards": {"long": 1.0}}
    options["max_grad_norm"] = 1.0
    files = []
    for name, size in (("two", 4), ("one", 8)):
        (tmp_path / name).mkdir()
        stages = {"ppo": {**options, "per_device_train_batch_size": size}}
        path = write_project(tmp_path / name, tiny_llama, stages=stages)
        if name == "two":
            launched(root, [str(root / "recipes/ppo.py")], "--config", path)
        else:
            command = [sys.executable, str(root / "recipes/ppo.py"), "--config", str(path)]
            subprocess.run(command, check=True, capture_output=True)
        files.append(path.parent / "runs/tiny/ppo/metrics.jsonl")
    assert_same_rollouts(*files)


def assert_same_rollouts(*files) -> None:
    """The same prompts, replies, rewards and steps, however many processes share them."""
    ours, theirs = ([json.loads(line) for line in path.read_text().splitlines()] for path in files)
    rollouts = [row for row in ours if "objective/scores" in row]
    assert len(rollouts) == 2
    for row, other in zip(rollouts, [row for row in theirs if "objective/scores" in row], strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert value == pytest.approx(other[name], abs=1e-5, rel=1e-3 if name == "grad_norm" else 1e-5), name


def test_a_users_mistake_is_told_once(tmp_path, tiny_llama, root):
    path = write_project(tmp_path, tiny_llama, stages=STAGES)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(root / "recipes/accelerate/cpu.yaml"), str(root / "recipes/dpo.py"), "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert "no finished stage is there" in done.stderr


@pytest.mark.parametrize("name", ["cpu", "ddp", "fsdp2", "zero2", "zero3", "nodes"])
def test_accelerate_reads_each_config(root, name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(root / f"recipes/accelerate/{name}.yaml"))
    assert (config.num_machines, config.num_processes) == ((2, 16) if name == "nodes" else (1, 2))


@pytest.mark.slow
def test_a_stage_that_goes_on_in_a_later_epoch_ends_in_the_same_weights(tmp_path, tiny_llama, root):
    """On two processes, stopped in the middle of the second epoch; with rows of like length together and without."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(root / "tests/support/resumed.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [*command, script, str(tmp_path), str(tiny_llama)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [line for line in done.stdout.splitlines() if line.endswith(("equal", "different"))]
    assert results == ["sft True equal", "reward True equal", "dpo True equal", "sft False equal"]


@pytest.mark.slow
def test_an_interrupted_run_ends_what_accelerate_started(tmp_path, tiny_llama, root):
    """Nothing trains once `rlhf run` has ended, and what goes on goes on alone: no step is logged twice."""
    options = {**STAGES["sft"], "max_steps": 150, "save_steps": 7}
    project = load_project(write_project(tmp_path, tiny_llama, stages={"sft": options}))
    command = [sys.executable, "-m", "rlhf.cli", "run", str(project.path), "--only", "sft"]
    command += ["--accelerate", str(root / "recipes/accelerate/cpu.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (project.run_dir / ".sft.partial/checkpoints/checkpoint-7").exists():
        assert run.poll() is None
        time.sleep(0.05)
    run.terminate()
    assert run.wait() == 143
    with locked(project):
        assert not (project.run_dir / "sft").exists()
    checkpoints = (project.run_dir / ".sft.partial/checkpoints").glob("checkpoint-*")
    last = max(int(path.name.partition("-")[2]) for path in checkpoints)
    logged = [json.loads(line) for line in (project.run_dir / ".sft.partial/metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["step"] == last, "no step is lost"
    subprocess.run(command, check=True, env=environment, capture_output=True)
    rows = [json.loads(line) for line in (project.run_dir / "sft/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 151))


@pytest.mark.slow
def test_a_stage_goes_on_with_another_number_of_processes(tmp_path, tiny_llama, root):
    """With as many rows a step its losses are those of the run that one process trained to its end."""
    one = {"max_steps": 60, "save_steps": 20, "learning_rate": 1e-3, "logging_steps": 1,
           "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}  # fmt: skip
    path = write_project(tmp_path, tiny_llama, stages={"sft": one})
    recipe = [sys.executable, str(root / "recipes/sft.py"), "--config", str(path)]
    subprocess.run(recipe, check=True, capture_output=True)
    (tmp_path / "runs/tiny").rename(tmp_path / "whole")
    stopped = subprocess.Popen(recipe, stderr=subprocess.DEVNULL)
    partial = tmp_path / "runs/tiny/.sft.partial"
    while not (partial / "checkpoints/checkpoint-20").exists():
        assert stopped.poll() is None
        time.sleep(0.02)
    stopped.terminate()
    assert stopped.wait() == 143
    launched(root, [str(root / "recipes/sft.py")], "--config", path, "--gradient_accumulation_steps", "1")
    logs = [
        [json.loads(line) for line in (folder / "sft/metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "whole", tmp_path / "runs/tiny")
    ]
    losses = [[(row["step"], row["loss"]) for row in log if "loss" in row] for log in logs]
    assert [step for step, _ in losses[1]] == list(range(1, 61))
    assert [loss for _, loss in losses[1]] == pytest.approx([loss for _, loss in losses[0]], rel=1e-3)
    assert not list((tmp_path / "runs/tiny").glob(".sft.set-aside-*"))


FAULTS = """
import os, signal, time
def score(prompts, completions, **columns):
    if os.environ["RANK"] == "1":
        {fault}
    return [1.0 for completion in completions]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "process 1 of 2 was killed"),
        ("raise ValueError('no such reply')", "process 1 of 2: .*no such reply"),
        (
            "time.sleep(600)",
            r"process 0 of 2 waited \d+ s in \w+.* for process 1, which is at .*judge.py:\d+ \(score\)",
        ),
    ],
    ids=["killed", "failed", "hangs"],
)
def test_a_process_that_fails_ends_all_and_is_what_is_said_once(tmp_path, tiny_llama, root, fault, said):
    options = {**STAGES["ppo"], "rewards": {"long": 1.0}, "ddp_timeout": 12}
    path = write_project(tmp_path, tiny_llama, stages={"ppo": options})
    (tmp_path / "judge.py").write_text(FAULTS.format(fault=fault))
    command = [sys.executable, "-m", "rlhf.cli", "run", str(path), "--only", "ppo"]
    command += ["--accelerate", str(root / "recipes/accelerate/cpu.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": "0", "WORLD_SIZE": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, run.stderr
    assert re.search(said, errors[0])
    assert "Traceback" not in run.stderr
    assert "closed by peer" not in run.stderr
    assert run.returncode in (1, 2)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(path) not in listed
