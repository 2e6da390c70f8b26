"""Tensors that two processes share, beside tensors that each has whole: what a trainer and a loader do with them."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf.models.unwritten import difference, parameters
from tests.support.launches import environment
from tests.support.models import untied


@pytest.fixture(scope="module")
def seen(tmp_path_factory, tiny_llama, tiny_t5):
    """What each process saw."""
    folder = tmp_path_factory.mktemp("shards")
    other = untied(folder, tiny_llama)  # its weights have a head, and its config says that there is none
    config = json.loads((other / "config.json").read_text()) | {"tie_word_embeddings": True}
    (other / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.support.shards_on_processes", str(folder), str(other), str(tiny_t5)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_a_norm_is_over_sharded_and_whole_tensors(seen):
    for of in (process["shards"] for process in seen):
        assert of["norm"] == pytest.approx(67**0.5)
        assert of["norm of sharded"] == pytest.approx(55**0.5)
        assert of["norm of whole"] == pytest.approx(12**0.5)
        assert of["norm of gradients"] == pytest.approx(3.0)


@pytest.mark.slow
def test_gradients_are_clipped_by_their_common_norm(seen):
    for of in (process["shards"] for process in seen):
        assert of["clipped to 1.0"] == [[pytest.approx(1 / 3)], [pytest.approx(1 / 3)]]
        assert of["clipped to 100.0"] == [[1.0], [1.0]]


@pytest.mark.slow
def test_what_is_sharded_is_gathered_and_put_back(seen):
    rows = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert [process["shards"]["counted"] for process in seen] == [[9, 7], [9, 5]]
    for of in (process["shards"] for process in seen):
        assert of["whole"] == rows
        assert of["state"] == {"0.weight": rows, "1.weight": [[2.0, 2.0, 2.0]]}
        assert of["not kept"] == {}
        assert of["put"] == [[7.0], [8.0]]


@pytest.mark.slow
def test_gradients_of_whole_parameters_are_averaged(seen):
    """Of a parameter that one process has a gradient of, the other's counts as 0."""
    for process in seen:
        assert process["averages"] == [[2.0, 2.0], [1.5, 1.5], None]


@pytest.mark.slow
def test_rollouts_take_whole_weights_if_every_process_has_memory_for_twice_as_much(seen):
    assert [process["fits"] for process in seen] == [[True, False, False]] * 2


@pytest.mark.slow
def test_processes_that_read_no_weights_have_the_main_ones_parameters_or_none_goes_on(seen):
    main, other = seen
    assert main["t5"] == other["t5"]
    assert {"torch.float16", "torch.float32"} == set(main["t5"].values())
    assert main["untied"] == other["untied"]
    assert "lm_head.weight is tied to model.embed_tokens.weight by its config, and not by its weights" in main["untied"]


def test_parameters_differ_in_name_size_or_tie(tiny_llama):
    with torch.device("meta"):
        model, apart = (
            AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_llama, **options))
            for options in ({}, {"tie_word_embeddings": False})
        )
    tied, untied_ones = parameters(model), parameters(apart)
    assert difference(tied, tied) is None
    assert "lm_head.weight is tied to" in difference(tied, untied_ones)
    assert "by its weights, and not by its config" in difference(untied_ones, tied)
    lacks = {name: one for name, one in tied.items() if name != "model.norm.weight"}
    assert difference(tied, lacks) == "model.norm.weight is in its config alone"
    assert difference(lacks, tied) == "model.norm.weight is in its weights alone"
    sized = tied | {"model.norm.weight": tied["model.norm.weight"]._replace(shape=(3,))}
    assert difference(sized, tied) == "model.norm.weight has size [3] by its config, and [32] in its weights"
