"""Two nodes, each with a launcher and a process of its own, on this machine: a run, a stage, and what goes wrong."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml

from rlhf.artifacts.manifest import read_manifest
from rlhf.config.load import load_project
from tests.support.launches import environment
from tests.support.projects import write_project

SFT = {"max_steps": 4, "learning_rate": 1e-2, "save_steps": 1, "per_device_train_batch_size": 2}
pytestmark = pytest.mark.scale


@pytest.fixture
def launch(tmp_path):
    """A launch file of two nodes with a process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "num_machines": 2, "num_processes": 2,
        "main_process_ip": "127.0.0.1", "main_process_port": port, "mixed_precision": "no", "rdzv_backend": "static",
        "same_network": True,
    }  # fmt: skip
    file = tmp_path / "nodes.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture
def path(tmp_path, tiny_llama):
    return write_project(
        tmp_path, tiny_llama, stages={"sft": SFT}, evaluate={"prompts": 6, "samples": 2, "max_new_tokens": 6}
    )


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, words)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


def run_on(path, launch, *more):
    """`rlhf run` on both nodes; those of node 1 have words of their own."""
    command = ["rlhf.cli", "run", path, "--accelerate", launch]
    return [start(*command, "--node", node, *own) for node, own in enumerate(([], [*more]))]


def stage_on(path, launch, *more):
    """One stage by itself on both nodes."""
    command = ["rlhf.pipeline.launcher", "--quiet", "--config_file", launch]
    words = ["-m", "rlhf.pipeline.stage", path, "sft"]
    return [start(*command, "--machine_rank", node, *words, *own) for node, own in enumerate(([], [*more]))]


def ends(nodes, seconds=150):
    """Exit code, output and lines of errors of each node."""
    said = [node.communicate(timeout=seconds) for node in nodes]
    errors = [[line for line in text.splitlines() if line.startswith("error: ")] for _, text in said]
    assert not any("Traceback" in text for _, text in said), said
    return [node.returncode for node in nodes], [out for out, _ in said], errors


def test_a_run_on_two_nodes(path, launch):
    codes, (led, followed), errors = ends(run_on(path, launch))
    assert (codes, errors) == ([0, 0], [[], []])
    assert followed.splitlines() == ["running sft", "running evaluate"]
    assert "report: " in led
    run_dir = load_project(path).run_dir
    assert read_manifest(run_dir / "sft")["metrics"]["steps"] == 4
    assert read_manifest(run_dir / "evaluate")["metrics"]["prompts"] == 6
    assert not [*run_dir.glob(".nodes*"), *run_dir.parent.glob(".*.nodes")]


def test_a_run_whose_folder_is_not_shared_does_not_begin(path, launch, tmp_path):
    nodes = run_on(path, launch, f"output_dir={tmp_path / 'elsewhere'}", "--wait", "5")
    codes, _, errors = ends(nodes[1:])
    assert codes == [2]
    assert re.fullmatch(r"error: \S+/elsewhere/.tiny.nodes: node 0 not heard of for 5 s; .*", *errors[0])
    nodes[0].send_signal(signal.SIGTERM)
    assert ends(nodes[:1])[0] == [143]
    assert not [*load_project(path).run_dir.parent.glob(".*.nodes")]


def test_a_stage_whose_folder_is_not_shared_does_not_begin(path, launch, tmp_path):
    codes, _, errors = ends(stage_on(path, launch, f"output_dir={tmp_path / 'elsewhere'}"))
    assert all(codes)
    for (line,) in errors:
        assert re.fullmatch(r"error: .*/tiny: node 1 \(\S+\) does not see what node 0 writes there; .*", line)
    assert not (tmp_path / "elsewhere").exists()


def in_the_middle(path, launch, begin):
    """The nodes of a training that has taken some of very many steps."""
    project = yaml.safe_load(path.read_text())
    project["stages"]["sft"]["max_steps"] = 2000
    path.write_text(yaml.safe_dump(project))
    nodes = begin(path, launch)
    checkpoint = load_project(path).run_dir / ".sft.partial/checkpoints/checkpoint-3"
    while not checkpoint.exists():
        assert nodes[0].poll() is None, nodes[0].communicate()
        time.sleep(0.1)
    return nodes


@pytest.mark.parametrize("node", [0, 1])
def test_a_run_that_is_asked_to_stop_on_one_node_stops_on_both(path, launch, node):
    nodes = in_the_middle(path, launch, run_on)
    nodes[node].terminate()
    codes, _, errors = ends(nodes)
    assert (codes, errors) == ([143, 143], [[], []])


@pytest.mark.parametrize("begin", [run_on, stage_on], ids=["run", "stage"])
def test_a_node_that_is_killed_is_named_by_the_other(path, launch, begin):
    nodes = in_the_middle(path, launch, begin)
    kill(nodes[1])
    codes, _, ((line,),) = ends(nodes[:1], 60)
    assert codes[0] in (1, 2)
    assert re.match(r"error: node 1 \(\S+\), with process 1 of 2, is not heard of any more at step \d+: ", line)


def kill(node):
    """Kill a process and all that it started, as a power cut does."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, row.split())) for row in listed.splitlines()[1:]]
    family = {node.pid}
    while more := {pid for pid, parent in parents if parent in family} - family:
        family |= more
    for pid in family:
        os.kill(pid, signal.SIGKILL)
