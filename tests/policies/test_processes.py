"""Every kind of policy learns on two processes as it does on one."""

import itertools
import os
import subprocess
import sys

import pytest
import torch

from tests.support.kinds import KINDS
from tests.support.kinds_on_processes import trained
from tests.support.launches import environment


def test_two_processes_equal_one(request, root, tmp_path):
    bases = {kind: request.getfixturevalue(entry.fixture) for kind, entry in KINDS.items()}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.support.kinds_on_processes", str(tmp_path / "two.pt"),
         *(f"{kind}={base}" for kind, base in bases.items())],
        capture_output=True, text=True, check=False, cwd=root, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(tmp_path / "two.pt")
    for kind, base in bases.items():
        rows, weights = trained(kind, tmp_path / "one" / kind, base, 1)
        for row, other in zip(rows, two[kind, True, None][0], strict=True):
            assert row.keys() == other.keys()
            for name in row:
                tolerance = 1e-3 if name == "grad_norm" else 1e-4
                assert row[name] == pytest.approx(other[name], abs=1e-5, rel=tolerance), (kind, name)
        for name, weight in weights.items():
            torch.testing.assert_close(
                weight, two[kind, True, None][1][name], atol=1e-5, rtol=1e-4, msg=f"{kind}: {name}"
            )


@pytest.mark.scale
def test_sharded_weights_are_trained_as_whole_ones(request, root, tmp_path):
    bases = {kind: request.getfixturevalue(entry.fixture) for kind, entry in KINDS.items()}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.support.kinds_on_processes", str(tmp_path / "two.pt"), "--sharded",
         *(f"{kind}={base}" for kind, base in bases.items())],
        capture_output=True, text=True, check=False, cwd=root, env=environment(), timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(tmp_path / "two.pt")
    for kind, adapter in itertools.product(bases, (True, False)):
        rows, weights = two[kind, adapter, None]
        for gather in (True, False):
            sharded_rows, sharded_weights = two[kind, adapter, gather]
            for row, other in zip(rows, sharded_rows, strict=True):
                assert other == pytest.approx(row, abs=1e-5, rel=1e-3), (kind, adapter, gather)
            for name, weight in weights.items():
                torch.testing.assert_close(
                    weight, sharded_weights[name], atol=1e-5, rtol=1e-4, msg=f"{kind} {adapter} {gather}: {name}"
                )
