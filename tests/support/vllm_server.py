"""A server that speaks vLLM's protocol, strictly, and samples with transformers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlhf.policies.sampler import TransformersSampler
from tests.support.local_server import LocalServer

FIELDS = {
    "model": str, "prompt": list, "seed": int, "max_tokens": int, "temperature": float, "top_p": float, "top_k": int,
    "min_p": float, "repetition_penalty": float, "presence_penalty": float, "frequency_penalty": float,
    "ignore_eos": bool, "stop_token_ids": list, "logprobs": int, "return_token_ids": bool,
    "return_tokens_as_token_ids": bool,
}  # fmt: skip
PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
         "frequency_penalty": 0.0, "ignore_eos": True, "logprobs": 0, "return_token_ids": True}  # fmt: skip


class Odd(Exception):
    """A request that vLLM would refuse.

    Args:
        status: Of the answer.
        message: What is odd.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Engine:
    """The model of a server, and what was asked of it.

    Args:
        folder: Of the model that it starts with.
        lora_rank: Largest rank of an adapter; 0 for none.
        max_model_len: Most tokens of prompt and completion together.
        dev: Whether it takes new weights.
    """

    name = "base"

    def __init__(self, folder: Path, lora_rank: int = 16, max_model_len: int = 64, dev: bool = True) -> None:
        self.folder, self.lora_rank, self.max_model_len, self.dev = folder, lora_rank, max_model_len, dev
        self.logprobs_mode = "processed_logprobs"
        self.model = self.computed = self._load(folder)
        """What was loaded last, and what the prefix cache was computed with."""
        self.adapters: dict[str, Any] = {}
        """Models with an adapter merged."""
        self._lock = threading.Lock()  # one request computes at a time: loading a model is for one thread
        self.version = "default"
        self.calls: list[str] = []
        self.faults: list[Callable[[BaseHTTPRequestHandler], Any] | None] = []
        """What becomes of the next completions, one each; None for what they should."""

    @staticmethod
    def _load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder).eval()

    def answer(self, method: str, path: str, body: Any) -> Any:
        """What the server answers; a `str` is no JSON."""
        self.calls.append(f"{method} {path}")
        route = {
            "GET /health": lambda _: "", "GET /v1/models": self._models, "POST /v1/completions": self.complete,
            "POST /v1/load_lora_adapter": self._load_adapter, "POST /v1/unload_lora_adapter": self._unload_adapter,
            "GET /server_info?config_format=json": self._info, "GET /weight_info": self._weight_info,
            "POST /collective_rpc": self._rpc, "POST /reset_prefix_cache": self._reset,
            "POST /update_weight_version": self._update_version,
        }.get(f"{method} {path}")  # fmt: skip
        dev = not path.startswith("/v1") and path != "/health"
        if route is None or (dev and not self.dev):
            raise Odd(404, "Not Found")
        with self._lock:
            return route(body)

    def _models(self, _: Any) -> Any:
        adapters = [{"id": name, "parent": self.name} for name in self.adapters]
        return {"object": "list", "data": [{"id": self.name, "parent": None}, *adapters]}

    def _info(self, _: Any) -> Any:
        lora = {"max_lora_rank": self.lora_rank} if self.lora_rank else None
        model = {"logprobs_mode": self.logprobs_mode, "max_model_len": self.max_model_len}
        return {"vllm_config": {"model_config": model, "lora_config": lora}}

    def _weight_info(self, _: Any) -> Any:
        return {"weight_version": self.version}

    def _update_version(self, body: Any) -> Any:
        self.version = body["new_version"]
        return {"success": True, "new_version": self.version}

    def _rpc(self, body: Any) -> Any:
        if body["method"] != "reload_weights" or body["kwargs"].keys() != {"weights_path"}:
            raise Odd(500, "Call to collective_rpc method failed")
        self.model = self._load(Path(body["kwargs"]["weights_path"]))
        return {"results": [None]}

    def _reset(self, _: Any) -> Any:
        self.computed = self.model
        return {"success": True}

    def _load_adapter(self, body: Any) -> Any:
        if body.keys() - {"lora_name", "lora_path", "load_inplace"}:
            raise Odd(400, "unknown field")
        path = Path(body["lora_path"])
        if not self.lora_rank or not (path / "adapter_config.json").is_file():
            raise Odd(404, f"Loading lora {body['lora_name']} failed: No adapter found for {path}")
        rank = json.loads((path / "adapter_config.json").read_text())["r"]
        if rank > self.lora_rank:
            raise Odd(500, f"LoRA rank {rank} is greater than max_lora_rank {self.lora_rank}.")
        if body["lora_name"] in self.adapters and not body.get("load_inplace"):
            raise Odd(400, "has already been loaded")
        fresh = self._load(self.folder)
        fresh.load_state_dict(self.computed.state_dict())
        self.adapters[body["lora_name"]] = PeftModel.from_pretrained(fresh, path).merge_and_unload().eval()
        return f"Success: LoRA adapter '{body['lora_name']}' added successfully."

    def _unload_adapter(self, body: Any) -> Any:
        if self.adapters.pop(body["lora_name"], None) is None:
            raise Odd(404, "cannot be found")
        return "Success"

    def complete(self, body: Any) -> Any:
        """A completion of a prompt."""
        for field, kind in FIELDS.items():
            if type(body.get(field)) is not kind:
                raise Odd(400, f"{field} is {body.get(field)!r}")
        if unknown := body.keys() - FIELDS.keys():
            raise Odd(400, f"unknown field {unknown}")
        if odd := [field for field, value in PLAIN.items() if body[field] != value]:
            raise Odd(400, f"{odd} shape the distribution")
        if len(body["prompt"]) + body["max_tokens"] > self.max_model_len or not 0 <= body["seed"] < 2**63:
            raise Odd(400, "too long, or a seed that is none")
        model = self.computed if body["model"] == self.name else self.adapters.get(body["model"])
        if model is None:
            raise Odd(404, f"The model `{body['model']}` does not exist.")
        sampler = TransformersSampler(model, body["stop_token_ids"], 1, body["max_tokens"], body["temperature"])
        with torch.no_grad():
            [[completion]] = sampler([body["prompt"]], [[body["seed"]]])
        choice = {
            "index": 0, "text": "", "token_ids": completion.ids, "logprobs": {"token_logprobs": completion.log_probs},
            "finish_reason": "stop" if completion.finished else "length",
        }  # fmt: skip
        return {"object": "text_completion", "model": body["model"], "choices": [choice]}


class Server(LocalServer):
    """`with Server(engine) as server:` serves it at `server.url`.

    Args:
        engine: What answers.
        key: What clients have to show under `/v1`, if anything.
    """

    def __init__(self, engine: Engine, key: str | None = None) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                text = self.rfile.read(length)
                if key is not None and self.path.startswith("/v1") and self.headers["Authorization"] != f"Bearer {key}":
                    return self.reply(401, {"error": "Unauthorized"})
                faults = engine.faults if self.path == "/v1/completions" else []
                if faults and (fault := faults.pop(0)) is not None:
                    return fault(self)
                try:
                    return self.reply(200, engine.answer(self.command, self.path, json.loads(text) if text else None))
                except Odd as odd:
                    return self.reply(odd.status, {"error": {"message": str(odd), "code": odd.status}})

            def reply(self, status: int, body: Any) -> None:
                plain = isinstance(body, str)
                data = body.encode() if plain else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if plain else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *details: object) -> None:
                pass

            do_GET = do_POST = _handle

        super().__init__(Handler)
        self.engine = engine

    def handle_error(self, *details: object) -> None:
        """A client that has gone is no error."""


# what can become of a completion


def broken(handler: Any) -> None:
    """The connection is closed without an answer."""
    handler.close_connection = True


def busy(handler: Any) -> None:
    """The server says that it is too busy."""
    handler.reply(503, {"error": {"message": "try later"}})


def saying(body: Any, seconds: float = 0.0) -> Callable[[Any], None]:
    """The answer is this, after so many seconds."""

    def fault(handler: Any) -> None:
        time.sleep(seconds)
        handler.reply(200, body)

    return fault
