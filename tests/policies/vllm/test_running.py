"""A server that the user starts is asked before anything trains."""

from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace

import pytest
from transformers import LlamaConfig

from rlhf.errors import UserError
from rlhf.policies.settings import SamplingSettings
from rlhf.stages._sampling import settle_sampler
from tests.support.local_server import LocalServer
from tests.support.vllm_server import Engine, Server

CONFIG = LlamaConfig(hidden_size=64, num_attention_heads=2)


def settle(url, adapter=None, **fields):
    settings = SamplingSettings(sampler="vllm", vllm_url=url, max_length=64, **fields)
    settle_sampler(SimpleNamespace(name="ppo", project=None), settings, adapter, CONFIG)


def test_a_server_that_fits_is_not_mentioned(tiny_llama, capsys):
    with Server(Engine(tiny_llama)) as server:
        settle(server.url, {"r": 16})
        assert server.engine.calls == ["GET /health", "GET /server_info?config_format=json", "GET /v1/models"]
    assert "vllm_url" not in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "unix:/nowhere/vllm"])
def test_a_server_may_be_started_later(url, capsys, monkeypatch):
    settle(url)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stages.ppo.vllm_url: warning: no server answers yet: vLLM at {url}: ConnectError")
    monkeypatch.setenv("RANK", "1")  # the main process alone says it
    settle(url)
    assert "vllm_url" not in capsys.readouterr().err


@pytest.mark.parametrize(("changed", "message"), [
    ({"dev": False}, "it does not say how it was started: start it with VLLM_SERVER_DEV_MODE=1"),
    ({"logprobs_mode": "raw_logprobs"}, "start it with --logprobs-mode processed_logprobs, not raw_logprobs"),
    ({"max_model_len": 32}, r"it takes 32 tokens, and max_length is 64 \(--max-model-len\)"),
    ({"lora_rank": 4}, "start it with --enable-lora --max-lora-rank 8"),
])  # fmt: skip
def test_a_server_that_was_started_otherwise_is_refused(tiny_llama, changed, message):
    with Server(Engine(tiny_llama)) as server:
        for name, value in changed.items():
            setattr(server.engine, name, value)
        with pytest.raises(UserError, match=rf"^stages\.ppo\.vllm_url: vLLM at {server.url}: {message}$"):
            settle(server.url, {"r": 8})


def answering(status: int, kind: str, text: str) -> type[BaseHTTPRequestHandler]:
    """Says the same to every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *details: object) -> None:
            pass

    return Handler


@pytest.mark.parametrize(("status", "kind", "text", "message"), [
    (200, "text/html", "<html>", "it does not answer as a vLLM server of version 0.32 or newer"),
    (200, "application/json", "{}", "it does not answer as a vLLM server of version 0.32 or newer"),
    (404, "text/html", "<html>", "what answers is no vLLM server: it has no /health"),
])  # fmt: skip
def test_another_kind_of_server_is_refused(status, kind, text, message):
    with LocalServer(answering(status, kind, text)) as server, pytest.raises(UserError, match=message):
        settle(server.url)
