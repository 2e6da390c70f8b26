"""The sampler that asks a vLLM server, which is handed the policy's weights before each rollout.

With LoRA the server gets the base once, with the adapters of earlier stages merged, and then the policy's adapter, each
time under a name of its own. With all weights trained it gets them all. Either way it reads files, which the main
process writes to a folder that this user alone can read; of several processes that share a server each asks for its own
prompts. vLLM computes in its own kernels, so that its log-probabilities are near the trainer's and not equal: the
trainer computes its own, logs the gap and truncates the importance weight.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rlhf import processes
from rlhf.errors import SamplerFailed, UserError, reason
from rlhf.models.roles import POLICY, Roles
from rlhf.policies.completion import Completion
from rlhf.policies.settings import SamplingSettings
from rlhf.policies.vllm.client import TIMEOUT, Client, Refused
from rlhf.policies.vllm.limits import largest_rank, room_for
from rlhf.policies.vllm.running import served_model
from rlhf.policies.vllm.server import NAME, Server
from rlhf.policies.vllm.weights import (
    Weights,
    adapter_weights,
    model_weights,
    private_folder,
    write_adapter,
    write_model,
)

T = TypeVar("T")
LOG = "vllm.log"
_FOLDER = "vllm"
_SEEDS = 1 << 63
"""vLLM's seeds are below it."""
_ABOVE_0 = 1e-3
"""Nats that rounding may leave a log-probability above 0."""


class Served(NamedTuple):
    """What a server has been handed."""

    address: str
    model: str
    """Name of the model whose weights were replaced."""
    weights: str
    """Of its weights."""
    adapter: str | None = None
    """Name of the adapter on it."""


class VllmSampler:
    """A `Sampler` that hands the policy over before each rollout.

    Args:
        roles: The models; the policy is sampled from.
        stop_ids: Tokens that end a completion.
        settings: How it is sampled, and where the server is.
        folder: The stage's, for the weights and the log of a server that is started; temporary if None.
    """

    exact_log_probs = False

    def __init__(self, roles: Roles, stop_ids: Sequence[int], settings: SamplingSettings, folder: Path | None) -> None:
        self.roles, self.stop_ids, self.settings = roles, sorted(stop_ids), settings
        self._given = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._run, self._updates = secrets.token_hex(4), 0
        self.server: Server | None = None
        """The one that this process has started."""
        self.served: Served | None = None
        self._client: Client | None = None

    def __call__(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[list[Completion]]:
        """For each prompt one completion a seed, from the policy as it is now; every process must call in step.

        Raises:
            SamplerFailed: The server fails, on all processes if it does for one.
        """
        served = self._hand_over()
        rows = [(list(prompt), seed) for prompt, row in zip(prompts, seeds, strict=True) for seed in row]
        flat = iter(processes.together(_failing(lambda: self._sampled(served, rows))))
        return [[next(flat) for _ in row] for row in seeds]

    def close(self) -> None:
        """End the server that was started, and delete the weights that were written."""
        if self.server is not None:
            self.server.close()
        if processes.is_main() and self._updates:
            shutil.rmtree(self._folder, ignore_errors=True)

    # handing over

    def _hand_over(self) -> Served:
        """Give the server the policy's weights of now; what the others need to know comes from the main process."""
        served, shared = self.served, self.roles.shared
        if served is not None and not self.roles.trained("policy"):
            return served  # nothing has changed
        self._updates += 1
        name = f"{self._run}-{self._updates}"
        if served is None or not shared:
            weights = model_weights(self.roles, processes.is_main())
            served = processes.from_main(_failing(lambda: self._give_model(name, weights)))
        if shared:
            adapter, model = adapter_weights(self.roles, processes.is_main()), served
            served = processes.from_main(_failing(lambda: self._give_adapter(model, name, adapter)))
        self.served, self._client = served, self._client or Client(served.address)
        return served

    def _give_model(self, name: str, weights: Weights) -> Served:
        """Write the model's weights and have the server read them, or start it with them."""
        files = self._folder / "model"
        if self.served is None:
            private_folder(self._folder)
        write_model(self.roles, weights, files)
        if self.settings.vllm_url is None and self.server is None:
            client, model = self._start(files), NAME
        else:
            client = self._client or Client(self.settings.vllm_url or "")
            model = self.served.model if self.served is not None else self._checked(client)
            client.call("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(files)}})
            if not client.call("POST", "/reset_prefix_cache")["success"]:
                raise SamplerFailed(client.line("it keeps what it computed with other weights: another run uses it"))
        client.call("POST", "/update_weight_version", {"new_version": name})
        self._client = client
        return Served(client.address, model, name)

    def _start(self, files: Path) -> Client:
        """A server of this process on the model."""
        log = (self._folder if self._given is None else self._given.absolute()) / LOG
        print(f"sampler: starting vLLM, which takes a minute or more; its log is {log}", file=sys.stderr)
        settings, options = self.settings, []
        if settings.max_length is not None:
            options += ["--max-model-len", str(settings.max_length)]
        if self.roles.shared:
            options += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(room_for(self._rank))]
        options += ["--dtype", str(self.roles.base.dtype).removeprefix("torch.")]
        options += ["--gpu-memory-utilization", str(settings.vllm_memory)]
        self.server = Server(str(settings.vllm_python), files, log, options)
        self.server.wait()
        return self.server.client

    def _checked(self, client: Client) -> str:
        """The name of the model of a server that runs, after a check that it samples as it must."""
        return served_model(client, self.settings, self._rank if self.roles.shared else 0, TIMEOUT)

    @property
    def _rank(self) -> int:
        """The largest rank of the policy's adapter."""
        return largest_rank(self.roles.policy.peft_config[POLICY].to_dict())

    def _give_adapter(self, served: Served, name: str, weights: Weights) -> Served:
        """Write the adapter and have the server load it under its own name, so that none that is older is meant."""
        assert self._client is not None
        files = self._folder / name
        write_adapter(self.roles, weights, files)
        loaded = {"lora_name": name, "lora_path": str(files), "load_inplace": True}  # by an earlier try, perhaps
        self._client.call("POST", "/v1/load_lora_adapter", loaded)
        if served.adapter is not None:
            with contextlib.suppress(Refused):  # it is gone already
                self._client.call("POST", "/v1/unload_lora_adapter", {"lora_name": served.adapter})
            shutil.rmtree(self._folder / served.adapter)
        return served._replace(adapter=name)

    @property
    def _folder(self) -> Path:
        """Where the main process writes weights."""
        if self.settings.vllm_folder is not None:
            own = sha256(str(self._given or self._run).encode()).hexdigest()[:12]
            return Path(self.settings.vllm_folder).absolute() / f"rlhf-{own}"
        if self._given is not None:
            return self._given.absolute() / _FOLDER
        self._temporary = self._temporary or tempfile.TemporaryDirectory(prefix="rlhf-")
        return Path(self._temporary.name)

    # sampling

    def _sampled(self, served: Served, rows: Sequence[tuple[list[int], int]]) -> list[Completion]:
        """A completion a row, by the weights that were handed over.

        Raises:
            SamplerFailed: There is none, or the server has other weights by now.
        """
        assert self._client is not None
        asked = served.adapter or served.model
        completions = self._client.complete(
            [self._request(asked, prompt, seed) for prompt, seed in rows], lambda body: self._completion(body, asked)
        )
        info = self._client.call("GET", "/weight_info")
        now = info.get("weight_version") if isinstance(info, dict) else info
        if now != served.weights:
            raise SamplerFailed(
                self._client.line(
                    f"it has weights {now!r} and not those that it was handed ({served.weights!r}): it was started "
                    "again, or another run uses it"
                )
            )
        return completions

    def _request(self, model: str, prompt: list[int], seed: int) -> dict[str, Any]:
        """The body for one completion: nothing that shapes the distribution but the temperature."""
        return {
            "model": model, "prompt": prompt, "seed": seed % _SEEDS, "max_tokens": self.settings.max_new_tokens,
            "temperature": self.settings.temperature, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
            "presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": True, "stop_token_ids": self.stop_ids,
            "logprobs": 0, "return_token_ids": True, "return_tokens_as_token_ids": True,
        }  # fmt: skip

    def _completion(self, body: Any, model: str) -> Completion:
        """The completion of an answer; vLLM knows no entropy.

        Raises:
            ValueError: It is none of this model, or not one that was asked for.
        """
        (choice,) = body["choices"]
        ids, log_probs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        if body["model"] != model:
            raise ValueError(f"it is from {body['model']!r}, not {model!r}")
        if not ids or len(ids) > self.settings.max_new_tokens or len(log_probs) != len(ids):
            raise ValueError(f"{len(ids)} tokens with {len(log_probs)} log-probabilities")
        if not all(type(token) is int and 0 <= token < self._vocabulary for token in ids):
            raise ValueError("tokens that the model does not have")
        if not all(type(value) is float and math.isfinite(value) and -9999 < value < _ABOVE_0 for value in log_probs):
            raise ValueError("log-probabilities that are none")
        ended = [token in self.stop_ids for token in ids]
        if any(ended[:-1]) or not (ended[-1] or len(ids) == self.settings.max_new_tokens):
            raise ValueError(f"it ends after {len(ids)} tokens, where nothing ends it")
        return Completion(ids, ended[-1], log_probs)

    @property
    def _vocabulary(self) -> int:
        return int(self.roles.config.get_text_config().vocab_size)


def _failing(work: Callable[[], T]) -> Callable[[], T]:
    """Work whose errors are those of a sampler.

    Raises:
        SamplerFailed: What the user gave, or the machine, does not let it be done.
    """

    def attempt() -> T:
        try:
            return work()
        except SamplerFailed:
            raise
        except UserError as error:
            raise SamplerFailed(str(error)) from None
        except OSError as error:
            raise SamplerFailed(f"sampler: {reason(error)}") from None

    return attempt
