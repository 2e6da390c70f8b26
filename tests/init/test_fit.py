"""Batches become smaller until the estimate is within the share of the memory, and the rows of a step stay."""

from dataclasses import replace

import pytest

from rlhf.config.load import load_project
from rlhf.init.draft import Batch
from rlhf.init.fit import SHARE, fitted, timed
from rlhf.preflight import Machine, estimate
from tests.support.projects import write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("fit")
    return load_project(write_project(folder, tiny_llama, stages={"dpo": {"max_length": 256}}))


def machine(memory):
    return Machine("a small one", "cpu", memory, 1e11)


def with_batch(project, batch):
    fields = {line.key: line.value for line in batch.lines}
    stage = project.stages["dpo"]
    return replace(project, stages={"dpo": replace(stage, trainer={**stage.trainer, **fields})})


def peak(project, batch, memory):
    return next(each.bytes for each in estimate(with_batch(project, batch), machine(memory)) if each.stage == "dpo")


def test_the_largest_batch_that_fits_is_taken(project):
    whole = peak(project, Batch(16, 16), 1e12)
    eight = peak(project, Batch(16, 8), 1e12)
    memory = eight / SHARE * 1.001
    assert whole > SHARE * memory
    chosen = fitted({"dpo": Batch(16, 16)}, machine(memory), lambda batches: with_batch(project, batches["dpo"]))["dpo"]
    assert (chosen.rows, chosen.at_once, chosen.checkpointing) == (16, 8, False)
    assert "at its peak" in chosen.why


def test_with_memory_enough_nothing_is_accumulated(project):
    chosen = fitted({"dpo": Batch(16, 16)}, machine(1e12), lambda batches: with_batch(project, batches["dpo"]))["dpo"]
    assert (chosen.at_once, chosen.checkpointing) == (16, False)


@pytest.mark.slow
def test_what_does_not_fit_at_all_is_said(project):
    chosen = fitted({"dpo": Batch(4, 4)}, machine(1e5), lambda batches: with_batch(project, batches["dpo"]))["dpo"]
    assert (chosen.rows, chosen.at_once, chosen.checkpointing) == (4, 1, True)
    assert chosen.why.startswith("does not fit even so: ")


def test_a_model_whose_code_fails_is_one_of_which_nothing_is_known(project, monkeypatch):
    def broken(*given, **fields):
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr("rlhf.init.fit.estimate", broken)
    monkeypatch.setattr("rlhf.init.fit.estimate_seconds", broken)
    batches = fitted({"dpo": Batch(16, 16)}, machine(1e12), lambda batches: project)
    assert batches["dpo"].at_once == 4
    assert timed(batches, project, machine(1e12), {}) == batches
