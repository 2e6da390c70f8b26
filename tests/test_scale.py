"""Stages on several processes that share the weights among them, through the real `accelerate launch`, on CPUs."""

import subprocess
import sys

import pytest

from tests.support.launches import environment, on_cpus
from tests.support.projects import write_project


@pytest.mark.slow
def test_fsdp_on_cpus_is_refused_where_accelerate_would_leave_it_out(tmp_path, tiny_llama, root):
    path = write_project(tmp_path, tiny_llama)
    command = [sys.executable, "-m", "rlhf.cli", "run", str(path), "--only", "sft"]
    command += ["--accelerate", str(on_cpus("fsdp2", tmp_path))]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(PYTHONPATH=str(root)), timeout=300
    )
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "FSDP, which accelerate does not run on CPUs" in errors[0]


@pytest.mark.scale
def test_accelerate_shards_on_cpus_in_the_harness(tmp_path, root):
    """The harness changes a name alone: parameters are shards, on the CPU, and gloo carries them."""
    (tmp_path / "shards.py").write_text(
        "import torch\n"
        "from accelerate import Accelerator\n"
        "from torch.distributed.tensor import DTensor\n"
        "from rlhf.models.device import process_state\n"
        "process_state()\n"
        "accelerator = Accelerator()\n"
        "model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))\n"
        "optimizer = torch.optim.AdamW(model.parameters())\n"
        "model, optimizer = accelerator.prepare(model, optimizer)\n"
        "parameters = list(model.parameters())\n"
        "assert all(isinstance(one, DTensor) for one in parameters)\n"
        "assert sum(one.to_local().numel() for one in parameters) == sum(one.numel() for one in parameters) // 2\n"
        "assert torch.distributed.get_backend() == 'gloo' and accelerator.device.type == 'cpu'\n"
        "print(accelerator.distributed_type.value)\n"
    )
    settings = on_cpus("fsdp2", tmp_path)
    settings.write_text(settings.read_text().replace("TRANSFORMER_BASED_WRAP", "NO_WRAP"))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(settings)]
    done = subprocess.run(
        [*command, str(tmp_path / "shards.py")], capture_output=True, text=True, check=False, env=environment(),
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["FSDP", "FSDP"]
