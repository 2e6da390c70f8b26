"""A policy that a server samples: what it is handed, what it is asked, and what is believed of its answers."""

import os
import stat
from pathlib import Path

import pytest
import torch

from rlhf.errors import SamplerFailed
from rlhf.models.roles import Roles
from rlhf.policies.settings import SamplingSettings
from rlhf.policies.vllm import client
from rlhf.policies.vllm.sampler import VllmSampler
from rlhf.prefix_sharing.head import completion_log_probs
from rlhf.prefix_sharing.layout import lay_out
from tests.support.models import strengthened, strong
from tests.support.ppo import make_roles
from tests.support.vllm_server import Engine, Server, broken, busy, saying

PROMPTS, SEEDS = [[7, 8, 9], [11]], [[1, 2**63 + 2], [3, 4]]
GARBAGE = {"object": "text_completion", "choices": []}


@pytest.fixture
def server(tiny_llama):
    with Server(Engine(tiny_llama)) as server:
        yield server


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(client, "_BACKOFF", 0.01)


def sampler_at(server, roles, folder=None, **fields) -> VllmSampler:
    fields = {"max_new_tokens": 8, "max_length": 64, "temperature": 0.7, "vllm_url": server.url, **fields}
    return VllmSampler(roles, [2], SamplingSettings(sampler="vllm", **fields), folder)


@torch.no_grad()
def learn(roles, adapter: bool) -> None:
    for name, one in roles.named_parameters():
        if "lora_B.default" in name or (not adapter and name.startswith("policy")):
            one.add_(0.2 * torch.randn_like(one))


def gap(roles, prompts, results) -> float:
    """Largest distance of the sampler's log-probabilities from the policy's own, nats."""
    folded = lay_out(prompts, [[one.ids for one in row] for row in results], pad=1)
    with torch.no_grad(), roles.policy_model() as model:
        wanted, _ = completion_log_probs(model, folded, 0.7)
    said = torch.zeros_like(wanted)
    for row, one in enumerate(one for group in results for one in group):
        said[row, : len(one.ids)] = torch.tensor(one.log_probs)
    return (said - wanted)[folded.mask_BT].abs().max().item()


@pytest.mark.parametrize("adapter", [True, False])
def test_the_server_samples_the_policy_as_it_is_after_each_update(server, tiny_llama, tmp_path, adapter):
    roles = make_roles(tiny_llama, adapter)
    strengthened(roles.base, 4.0)  # unlike the model that the server was started with
    sampler = sampler_at(server, roles, tmp_path)
    names = set()
    for _ in range(3):
        learn(roles, adapter)
        results = sampler(PROMPTS, SEEDS)
        assert gap(roles, PROMPTS, results) < 1e-4
        assert all(one.finished == (one.ids[-1] == 2) for row in results for one in row)
        names.add(sampler.served.adapter or sampler.served.weights)
        assert stat.S_IMODE((tmp_path / "vllm").stat().st_mode) == 0o700
        assert len(list((tmp_path / "vllm").iterdir())) == 2 - (not adapter)  # of older ones nothing is left
    assert len(names) == 3
    assert len(server.engine.adapters) == adapter
    assert server.engine.calls.count("POST /collective_rpc") == (1 if adapter else 3)
    sampler.close()
    assert not (tmp_path / "vllm").exists()


def test_a_completion_depends_on_its_prompt_and_seed_alone(server, tiny_llama):
    sampler = sampler_at(server, make_roles(tiny_llama))
    together = sampler(PROMPTS, SEEDS)
    assert [sampler([prompt], [row])[0] for prompt, row in zip(PROMPTS, SEEDS, strict=True)] == together
    assert sampler(PROMPTS[:1], [[5]]) != [together[0][:1]]


def test_a_policy_that_does_not_learn_is_handed_over_once(server, tiny_llama):
    sampler = sampler_at(server, Roles(strong(tiny_llama).requires_grad_(False)))
    assert sampler(PROMPTS, SEEDS) == sampler(PROMPTS, SEEDS)
    assert server.engine.calls.count("POST /collective_rpc") == 1
    assert gap(sampler.roles, PROMPTS, sampler(PROMPTS, SEEDS)) < 1e-4


@pytest.mark.parametrize("fault", [broken, busy, saying(GARBAGE), saying("<html>")])
def test_what_may_be_better_the_next_time_is_asked_again(server, tiny_llama, fault):
    sampler = sampler_at(server, make_roles(tiny_llama))
    expected = sampler(PROMPTS, SEEDS)
    server.engine.faults = [fault] * 3
    assert sampler(PROMPTS, SEEDS) == expected
    assert not server.engine.faults


def choice(ids, log_probs, model="base"):
    return {"model": model, "choices": [{"token_ids": ids, "logprobs": {"token_logprobs": log_probs}}]}


FULL = [5] * 8
WRONG = {
    "no completion": GARBAGE,
    "another model": choice(FULL, [-1.0] * 8, "other"),
    "no token": choice([], []),
    "too many": choice([5] * 9, [-1.0] * 9),
    "too few": choice([5] * 7, [-1.0] * 7),
    "fewer numbers": choice(FULL, [-1.0] * 7),
    "unknown tokens": choice([10**6] * 8, [-1.0] * 8),
    "no number": choice(FULL, [-1.0] * 7 + [None]),
    "clamped": choice(FULL, [-1.0] * 7 + [-9999.0]),
    "above 0": choice(FULL, [-1.0] * 7 + [0.1]),
    "goes on": choice([5, 2, 5], [-1.0] * 3),
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
def test_no_answer_is_believed_that_is_no_completion(server, tiny_llama, body):
    sampler = sampler_at(server, make_roles(tiny_llama, adapter=False))
    server.engine.faults = [saying(body)] * 99
    with pytest.raises(SamplerFailed, match=f"vLLM at {server.url}: an answer that cannot be read"):
        sampler(PROMPTS, SEEDS)
    server.engine.faults = [saying(choice([5, 2], [-1.0, -1.0]))] * 4  # the check takes what is one
    assert [one.ids for row in sampler(PROMPTS, SEEDS) for one in row] == [[5, 2]] * 4


def test_an_answer_that_does_not_come_in_time(server, tiny_llama, monkeypatch):
    sampler = sampler_at(server, make_roles(tiny_llama))
    sampler(PROMPTS, SEEDS)
    monkeypatch.setattr(client, "TIMEOUT", 0.2)
    monkeypatch.setattr(client, "_ATTEMPTS", 2)
    server.engine.faults = [saying(GARBAGE, seconds=1.0)] * 8
    with pytest.raises(SamplerFailed, match=r"no answer in time \(ReadTimeout\)"):
        sampler(PROMPTS, SEEDS)


def test_weights_that_are_not_those_handed_over(server, tiny_llama):
    """A server that was started again, or that another run uses too."""
    sampler = sampler_at(server, make_roles(tiny_llama))
    sampler(PROMPTS, SEEDS)
    server.engine.version = "default"
    with pytest.raises(SamplerFailed, match="has weights 'default' and not those that it was handed"):
        sampler(PROMPTS, SEEDS)
    other = sampler_at(server, make_roles(tiny_llama))
    other(PROMPTS, SEEDS)
    server.engine.adapters.clear()
    server.engine.faults = [lambda handler: (server.engine.adapters.clear(), busy(handler))]
    with pytest.raises(SamplerFailed, match=r"404: The model `.*-2` does not exist"):
        other(PROMPTS, SEEDS)


@pytest.mark.parametrize(("changed", "adapter", "message"), [
    ({"dev": False}, True, "start it with VLLM_SERVER_DEV_MODE=1"),
    ({"logprobs_mode": "raw_logprobs"}, True, "start it with --logprobs-mode processed_logprobs, not raw_logprobs"),
    ({"max_model_len": 32}, True, r"takes 32 tokens, and max_length is 64 \(--max-model-len\)"),
    ({"lora_rank": 0}, True, "start it with --enable-lora --max-lora-rank 8"),
    ({"lora_rank": 1}, True, "start it with --enable-lora --max-lora-rank 8"),
])  # fmt: skip
def test_a_server_that_was_started_otherwise(server, tiny_llama, changed, adapter, message):
    for name, value in changed.items():
        setattr(server.engine, name, value)
    with pytest.raises(SamplerFailed, match=message):
        sampler_at(server, make_roles(tiny_llama, adapter))(PROMPTS, SEEDS)


def test_the_key_of_a_server_stands_in_no_message(tiny_llama, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "correct-horse-battery")
    with Server(Engine(tiny_llama), key="correct-horse-battery") as server:
        sampler_at(server, make_roles(tiny_llama))(PROMPTS, SEEDS)
    with Server(Engine(tiny_llama), key="another") as server, pytest.raises(SamplerFailed, match="401") as refused:
        sampler_at(server, make_roles(tiny_llama))(PROMPTS, SEEDS)
    assert "horse" not in str(refused.value)


def test_nobody_is_there(tiny_llama, server):
    sampler = sampler_at(server, make_roles(tiny_llama), vllm_url="http://127.0.0.1:9")
    with pytest.raises(SamplerFailed, match=r"vLLM at http://127.0.0.1:9: .*ConnectError"):
        sampler(PROMPTS, SEEDS)


def test_weights_go_to_the_folder_that_both_see(server, tiny_llama, tmp_path):
    shared, stage = tmp_path / "shared", tmp_path / "stage"
    shared.mkdir()
    stage.mkdir()
    sampler = sampler_at(server, make_roles(tiny_llama), stage, vllm_folder=str(shared))
    sampler(PROMPTS, SEEDS)
    (own,) = shared.iterdir()
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert not any(stage.iterdir())
    (own / "left by a run that was killed").mkdir()
    again = sampler_at(server, make_roles(tiny_llama), stage, vllm_folder=str(shared))
    again(PROMPTS, SEEDS)
    assert [path.name for path in shared.iterdir()] == [own.name]
    assert not (own / "left by a run that was killed").exists()
    again.close()
    assert not any(shared.iterdir())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    own.symlink_to(elsewhere)
    with pytest.raises(SamplerFailed, match="is a link or belongs to another user"):
        sampler_at(server, make_roles(tiny_llama), stage, vllm_folder=str(shared))(PROMPTS, SEEDS)
    assert not any(elsewhere.iterdir())


def test_a_disk_that_is_full_is_a_line(server, tiny_llama, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, os.strerror(28))

    roles = make_roles(tiny_llama)
    monkeypatch.setattr(type(roles.base), "save_pretrained", full)
    with pytest.raises(SamplerFailed, match="No space left on device"):
        sampler_at(server, roles, Path(tmp_path))(PROMPTS, SEEDS)


def test_the_log_of_a_server_that_fails_stays_in_the_stage(tiny_llama, tmp_path):
    stage, shared, python = tmp_path / "stage", tmp_path / "shared", tmp_path / "python"
    stage.mkdir()
    shared.mkdir()
    python.write_text("#!/bin/sh\necho 'ValueError: no room'\nexit 3\n")
    python.chmod(0o700)
    settings = SamplingSettings(sampler="vllm", vllm_python=str(python), vllm_folder=str(shared))
    sampler = VllmSampler(make_roles(tiny_llama), [2], settings, stage)
    with pytest.raises(
        SamplerFailed, match=f"ended with exit code 3: ValueError: no room .its log is {stage}/vllm.log"
    ):
        sampler(PROMPTS, SEEDS)
    sampler.close()
    assert not any(shared.iterdir())
