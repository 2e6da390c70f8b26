"""Stages whose policy a server samples."""

import json

import pytest
import torch
from safetensors.torch import load_file

from rlhf.artifacts.manifest import model_files
from rlhf.errors import UserError
from rlhf.pipeline.execute import run_stage
from rlhf.policies.vllm import client
from tests.support.projects import chats, make_project
from tests.support.vllm_server import Engine, Server, broken

PPO = {
    "max_steps": 6, "learning_rate": 1e-2, "num_ppo_epochs": 2, "max_new_tokens": 8, "normalize_samples": 8,
    "truncated": "score", "sampler": "vllm",
}  # fmt: skip
SAMPLED = ("objective/scores", "objective/kl", "policy/loss", "value/loss", "response/length")


@pytest.fixture
def server(tiny_llama, monkeypatch):
    monkeypatch.setattr(client, "_BACKOFF", 0.01)
    with Server(Engine(tiny_llama, max_model_len=256)) as server:
        yield server


def run(folder, base, stage="ppo", **fields):
    project = make_project(folder, base, chats(), stages={stage: {**PPO, **fields}})
    run_stage(project, stage)
    return project.run_dir / stage


def rows(folder) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if "objective/scores" in row]


def weights(folder):
    return [load_file(file) for file in model_files(folder) if file.suffix == ".safetensors"]


@pytest.mark.parametrize("adapter", [{"r": 4}, pytest.param(None, marks=pytest.mark.slow)])
def test_ppo_learns_what_it_learns_without_a_server_and_a_failure_changes_nothing(
    tmp_path, tiny_llama, server, adapter, capsys
):
    """The third rollout fails in the middle; a checkpoint stands before it, and the same command goes on."""
    options = {"adapter": adapter, "vllm_url": server.url, "save_steps": 100, "learning_rate": 1e-3}
    whole = run(tmp_path / "whole", tiny_llama, **options)
    alone = run(tmp_path / "alone", tiny_llama, **{**options, "sampler": "transformers", "vllm_url": None})
    for row, other in zip(rows(whole), rows(alone), strict=True):
        assert row["sampler/gap"] < 1e-5
        for name in SAMPLED:  # the stand-in samples as this process does
            assert row[name] == pytest.approx(other[name], abs=1e-4, rel=1e-3), name
    assert not (whole / "vllm").exists()
    server.engine.faults = [None] * 26 + [broken] * 99
    with pytest.raises(UserError, match=f"sampler: vLLM at {server.url}: RemoteProtocolError"):
        run(tmp_path / "broken", tiny_llama, **options)
    partial = tmp_path / "broken/runs/tiny/.ppo.partial"
    assert [path.name for path in (partial / "checkpoints").iterdir()] == ["checkpoint-4"]
    assert not (partial / "vllm").exists()
    server.engine.faults = []
    resumed = run(tmp_path / "broken", tiny_llama, **options)
    assert (whole / "rollouts.jsonl").read_text() == (resumed / "rollouts.jsonl").read_text()
    for ours, theirs in zip(weights(whole), weights(resumed), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_rank_hands_its_policy_over_once(tmp_path, tiny_llama, server):
    fields = {"max_new_tokens": 8, "samples": 2, "prompts": 8, "sampling_batch_size": 2, "truncated": "score"}
    kept = {}
    for sampler in ({"sampler": "vllm", "vllm_url": server.url}, {"sampler": "transformers"}):
        project = make_project(
            tmp_path / sampler["sampler"], tiny_llama, chats(),
            stages={"rank": {**fields, **sampler}, "dpo": {"max_steps": 1}},
        )  # fmt: skip
        run_stage(project, "rank")
        kept[sampler["sampler"]] = (project.run_dir / "rank/pairs.jsonl").read_text()
    assert kept["vllm"] == kept["transformers"]
    assert server.engine.calls.count("POST /collective_rpc") == 1
