"""Which launch file a run takes, what it says of nodes, and the Slurm script that writes one."""

import inspect
import os
import re
import subprocess

import pytest
import yaml
from accelerate.utils import launch as accelerate_launch
from typer.testing import CliRunner

from rlhf.cli import app
from rlhf.errors import UserError
from rlhf.pipeline import runner
from rlhf.pipeline.execute import run_stage
from rlhf.pipeline.launch_file import OWN, find_launch, with_own
from tests.support.projects import make_project, write_project

ONE = {"distributed_type": "MULTI_GPU", "num_processes": 2}
TWO = {**ONE, "num_machines": 2, "num_processes": 4, "main_process_ip": "127.0.0.1", "main_process_port": 29500}


def write(path, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings))
    return str(path)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("run c.yaml --accelerate", ["run", "c.yaml", "--accelerate", OWN]),
        ("run c.yaml --accelerate --only sft", ["run", "c.yaml", "--accelerate", OWN, "--only", "sft"]),
        ("run c.yaml --accelerate seed=1", ["run", "c.yaml", "--accelerate", OWN, "seed=1"]),
        ("run c.yaml --accelerate ddp.yaml seed=1", ["run", "c.yaml", "--accelerate", "ddp.yaml", "seed=1"]),
        ("chat run", ["chat", "run"]),
    ],
)
def test_the_option_without_a_file_means_the_machines_own(typed, meant):
    assert with_own(typed.split()) == meant


def test_the_machines_own_file_is_where_accelerate_config_writes(tmp_path, monkeypatch):
    from accelerate.commands.config import config_args

    own = tmp_path / "accelerate/default_config.yaml"
    monkeypatch.setattr(config_args, "default_config_file", str(own))
    with pytest.raises(UserError, match=f"{own}: no such file; run `accelerate config`"):
        find_launch(OWN)
    write(own, **TWO, machine_rank=1)
    assert find_launch(OWN)[:4] == (own, 2, 1, 4)
    assert find_launch(OWN).line() == f"{own}: 4 processes on 2 nodes, of which this is node 1"


@pytest.mark.parametrize(
    ("settings", "instead"),
    [
        ({"distributed_type": "DEEPSPEED"}, "fsdp2.yaml"),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_offload_params": True}}, "set it to false"),
        (
            {"distributed_type": "FSDP", "fsdp_config": {"fsdp_activation_checkpointing": True}},
            "gradient_checkpointing",
        ),
    ],
    ids=["deepspeed", "offload", "checkpointing"],
)
def test_what_ppo_cannot_run_under_is_refused_by_a_run_and_by_its_processes(
    tmp_path, tiny_llama, monkeypatch, settings, instead
):
    """By the file before anything trains; by the variables that accelerate makes of it where a recipe is launched."""
    project = make_project(tmp_path, tiny_llama, stages={"sft": {}, "ppo": {}})
    launch = find_launch(write(tmp_path / "engine.yaml", **ONE | settings))
    runner._check_launch(project, ["sft"], launch)
    with pytest.raises(UserError, match=rf"engine.yaml: stages.ppo: the accelerate config .*{instead}"):
        runner._check_launch(project, ["ppo"], launch)
    known = inspect.getsource(accelerate_launch)
    for name, value in launch.variables.items():
        assert f'"{name}"' in known
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"^stages.ppo: the accelerate config .*{instead}"):
        run_stage(project, "ppo")


def test_one_file_serves_all_nodes(tmp_path):
    file = write(tmp_path / "nodes.yaml", **TWO)
    assert [find_launch(file, node).node for node in (None, 0, 1)] == [0, 0, 1]
    words = find_launch(file, 1).command("a.b", "c")
    assert words == ["--quiet", "--config_file", file, "--machine_rank", "1", "-m", "a.b", "c"]
    alone = find_launch(write(tmp_path / "one.yaml", **ONE))
    assert (alone.nodes, "--machine_rank" in alone.command("a.b")) == (1, False)
    assert alone.line() == f"{alone.file}: 2 processes"


@pytest.mark.parametrize(
    ("settings", "node", "said"),
    [
        ({**TWO, "num_processes": 3}, 0, "num_processes: those of all 2 nodes"),
        ({**TWO, "num_machines": "two"}, 0, "num_machines: expected a number from 1 on, not 'two'"),
        ({**TWO, "main_process_ip": None}, 0, "main_process_ip: missing"),
        (TWO, 2, "--node 2: .* has 2 nodes"),
        (ONE, 1, "--node 1: .* has 1 node "),
        ({"model": {}, "stages": {"sft": {}}}, None, "no accelerate config"),
        ({"num_processes": 2}, None, "distributed_type: expected one of .*; it is missing"),
        ({**ONE, "distributed_type": "XLA"}, None, "distributed_type: expected one of .*; not 'XLA'"),
        ({"distributed_type": "MULTI_GPU"}, None, "num_processes: missing"),
        ({**ONE, "distributed_type": "NO"}, None, "distributed_type: 'NO' starts one process; for 2, take MULTI_GPU"),
        ({**ONE, "compute_environment": "AMAZON_SAGEMAKER"}, None, "compute_environment: stages are started on LOCAL"),
        ({**ONE, "num_proceses": 3}, None, "accelerate refuses it: .*num_proceses"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, settings, node, said):
    with pytest.raises(UserError, match=said):
        find_launch(write(tmp_path / "nodes.yaml", **settings), node)


RANKED = {"rank": {"rewards": {"long": 1.0}, "sampler": "vllm"}, "dpo": {"max_steps": 1}}


@pytest.mark.parametrize(
    ("stages", "kind", "said"),
    [
        ({"ppo": {"rewards": {"long": 1.0}}}, "DEEPSPEED", "stages.ppo: the accelerate config asks for DeepSpeed"),
        (RANKED, "MULTI_GPU", "stages.rank.sampler: a vllm server is asked by one process"),
    ],
)
def test_a_stage_that_cannot_run_as_launched_is_refused_before_the_others_train(
    tmp_path, tiny_llama, stages, kind, said
):
    project = make_project(tmp_path, tiny_llama, stages={"sft": {"max_steps": 1}, **stages})
    launch = find_launch(write(tmp_path / "launch.yaml", distributed_type=kind, num_processes=2))
    for refused in (
        lambda: runner.run(project, launch=launch, say=lambda line: None),
        lambda: runner.check(project, launch),
    ):
        with pytest.raises(UserError, match=f"launch.yaml: {said}"):
            refused()
    assert not project.run_dir.exists()


@pytest.mark.parametrize("typed", ["run --accelerate c.yaml", "check --accelerate c.yaml seed=1 --node 1"])
def test_a_project_taken_for_the_launch_file_is_noticed(typed):
    with pytest.raises(UserError, match=r"--accelerate c.yaml: no project is named: rlhf \w+ CONFIG --accelerate"):
        with_own(typed.split())


def test_a_node_needs_a_launch_file(tmp_path, tiny_llama):
    done = CliRunner().invoke(app, ["run", str(write_project(tmp_path, tiny_llama)), "--node", "1"])
    assert str(done.exception) == "--node: names a node of a launch file; name the file with --accelerate"


@pytest.fixture
def cluster(tmp_path):
    """Programs that stand for Slurm's, which start each task here, and for what a task would start."""
    programs = {
        "scontrol": 'printf "%s\\n" n7 n8 n9',
        "srun": 'shift; for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node "$@"; done',
        "rlhf": 'echo "rlhf $*"; cp "$FILE" seen.yaml',
        "accelerate": 'echo "accelerate $*"',
    }
    for name, body in programs.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "123456", "SLURM_NNODES": "3", "SLURM_JOB_NODELIST": "n[7-9]", "SLURM_GPUS_ON_NODE": "4"}
    return {**os.environ, **slurm, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero3"])
def test_the_slurm_script_starts_the_run_on_every_node(tmp_path, root, cluster, name):
    script, launch = root / "recipes/slurm.sh", root / f"recipes/accelerate/{name}.yaml"
    done = subprocess.run(
        ["bash", str(script), "c.yaml", "seed=1"], env={**cluster, "LAUNCH": str(launch)}, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    file = tmp_path / ".rlhf-123456.yaml"
    assert done.stdout.splitlines() == [f"rlhf run c.yaml seed=1 --accelerate {file} --node {n}" for n in range(3)]
    assert not file.exists()
    seen = yaml.safe_load((tmp_path / "seen.yaml").read_text())
    assert (seen["num_machines"], seen["num_processes"], seen["main_process_ip"]) == (3, 12, "n7")
    assert find_launch(str(tmp_path / "seen.yaml"), 2).nodes == 3
    shipped = yaml.safe_load(launch.read_text())
    assert {
        key: seen[key] for key in shipped if key not in ("num_machines", "num_processes", "machine_rank", "gpu_ids")
    }


def test_the_slurm_script_starts_one_stage(tmp_path, root, cluster):
    environment = {**cluster, "LAUNCH": str(root / "recipes/accelerate/ddp.yaml"), "STAGE": "dpo"}
    done = subprocess.run(
        ["bash", str(root / "recipes/slurm.sh"), "c.yaml", "seed=1"], env=environment, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = r"accelerate launch --config_file \S+ --machine_rank 2 -m rlhf.pipeline.stage c.yaml dpo seed=1"
    assert re.fullmatch(said, done.stdout.splitlines()[-1])
