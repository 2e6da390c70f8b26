"""Sampling with vLLM on the trainer's own GPU (colocated).

With LoRA only the adapter is handed over after an update: the base is written once, with the parent stage's adapter
merged, and vLLM loads the policy's adapter beside it. With all weights trained they are loaded into the running engine.
vLLM computes in its own kernels, so its log-probabilities are near the trainer's and not equal: the trainer computes
its own, logs the gap and truncates the importance weight.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase

from rlhf.errors import UserError
from rlhf.models.device import device
from rlhf.models.roles import POLICY, Roles
from rlhf.policies.completion import Completion

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM has kernels for; an adapter of a rank between runs with the next."""


class VllmSampler:
    """A `Sampler` whose engine lives as long as the trainer.

    Args:
        roles: The models; the policy is sampled from.
        tokenizer: Its tokenizer, which vLLM wants beside the weights.
        stop_ids: Tokens that end a completion.
        max_new_tokens: Longest completion, in tokens.
        max_length: Longest prompt and completion together; None for what the model has.
        temperature: Divides the logits; no top-k, no top-p.
        memory: Share of the GPU's memory for vLLM, its copy of the weights and its cache.

    Raises:
        UserError: vLLM is not installed, there is no GPU, or the adapter's rank is above those it has.
    """

    exact_log_probs = False

    def __init__(
        self,
        roles: Roles,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Sequence[int],
        max_new_tokens: int,
        max_length: int | None,
        temperature: float,
        memory: float,
    ) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine in this process, its weights in reach
        try:
            import vllm
            from vllm.lora.request import LoRARequest
        except ImportError:
            raise UserError("stages.ppo.sampler: vllm is not installed (pip install vllm)") from None
        if device().type != "cuda":
            raise UserError("stages.ppo.sampler: vllm needs a GPU")
        self.roles, self.temperature = roles, temperature
        self._vllm, self._request = vllm, LoRARequest
        self.stop_ids, self.max_new_tokens = list(stop_ids), max_new_tokens
        self._folder = tempfile.TemporaryDirectory()
        self._updates = 0
        base = Path(self._folder.name) / "base"
        roles.base.save_pretrained(base, state_dict=dict(plain_weights(roles)))
        tokenizer.save_pretrained(base)
        lora: dict[str, Any] = {}
        if roles.shared:
            config: Any = roles.policy.peft_config[POLICY]
            lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": _rank(config)}
        self.engine = vllm.LLM(
            model=str(base), dtype=str(roles.base.dtype).removeprefix("torch."), max_model_len=max_length,
            gpu_memory_utilization=memory, logprobs_mode="processed_logprobs", seed=0, **lora,
        )  # fmt: skip

    def __call__(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[list[Completion]]:
        """For each prompt one completion a seed, from the policy as it is now."""
        request = self._hand_over()
        rows = [(list(prompt), seed) for prompt, row in zip(prompts, seeds, strict=True) for seed in row]
        outputs = self.engine.generate(
            [{"prompt_token_ids": ids} for ids, _ in rows],
            [self._parameters(seed) for _, seed in rows],
            lora_request=request,
            use_tqdm=False,
        )
        flat = iter([self._completion(output.outputs[0]) for output in outputs])
        return [[next(flat) for _ in row] for row in seeds]

    def _parameters(self, seed: int) -> Any:
        return self._vllm.SamplingParams(
            temperature=self.temperature, top_k=0, top_p=1.0, max_tokens=self.max_new_tokens, logprobs=0,
            stop_token_ids=self.stop_ids, ignore_eos=True, detokenize=False, seed=seed % 2**63,
        )  # fmt: skip

    def _completion(self, output: Any) -> Completion:
        """A completion; vLLM knows no entropy."""
        ids = list(output.token_ids)
        log_probs = [by_token[token].logprob for token, by_token in zip(ids, output.logprobs, strict=True)]
        return Completion(ids, ids[-1] in self.stop_ids, log_probs)

    def _hand_over(self) -> Any:
        """Give the engine the policy's weights of now: the adapter alone, or all."""
        shutil.rmtree(Path(self._folder.name) / f"adapter-{self._updates}", ignore_errors=True)
        self._updates += 1
        if self.roles.shared:
            folder = Path(self._folder.name) / f"adapter-{self._updates}"
            self.roles.policy.save_pretrained(str(folder), selected_adapters=[POLICY], save_embedding_layers=False)
            return self._request(folder.name, self._updates, str(folder))
        model = self.engine.llm_engine.model_executor.driver_worker.model_runner.model
        model.load_weights(plain_weights(self.roles))
        self.engine.reset_prefix_cache()
        return None


def _rank(config: LoraConfig) -> int:
    """The rank that vLLM makes room for."""
    largest = max([config.r, *(config.rank_pattern or {}).values()])
    if largest > _RANKS[-1]:
        raise UserError(f"stages.ppo.sampler: vllm takes adapters up to rank {_RANKS[-1]}, not {largest}")
    return next(rank for rank in _RANKS if rank >= largest)


def plain_weights(roles: Roles) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and weights of the policy's language model as if no adapter had ever been put on it."""
    for name, tensor in roles.base.state_dict().items():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), tensor
