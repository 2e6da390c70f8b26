"""Tries how a model can be sampled, before anything trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError
from rlhf.policies.sampler import Batching, TransformersSampler, keeps_tokens
from rlhf.policies.seq2seq_sampler import Seq2SeqSampler, start_ids
from rlhf.prefix_sharing.forward import can_be_tried, in_eval_mode
from rlhf.workflow import stage_of

_PROMPTS = [[13, 29, 5, 17, 23], [41, 3]]
"""Prompts that are completed, modulo the vocabulary."""
_EXACT, _ROUNDED = 1e-3, 0.5
"""Gaps, nats, that rounding explains: in float32, and in bfloat16, where the ways to sample are compared besides."""
_NO_CACHE = "it keeps no cache"
_OFF = "its log-probabilities are {:.2g} nats from a forward pass's"
_TOKENS = 4
_SAMPLES = 2


def batching_of(model: Any) -> Batching:
    """Which rows a model can be sampled with at once: those whose log-probabilities are a plain forward pass's.

    Two prompts of different lengths get two completions each, and again with a stop token that ends the first early;
    then each prompt with its completion is read by itself. This costs some twenty forward passes of a few tokens.

    Args:
        model: A causal language model; where its weights are sharded over processes it is not tried.

    Raises:
        UserError: Nothing works.
    """
    if not can_be_tried(model):
        return Batching.MIXED
    reasons: dict[str, None] = {}
    if not keeps_tokens(type(model)):
        raise _refused(model.config.name_or_path, type(model), _NO_CACHE)
    exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
    gaps: dict[Batching, float] = {}
    with in_eval_mode(model):
        for batching in Batching:
            try:
                gap = _gap(TransformersSampler(model, [], 0, _TOKENS, batching=batching), _plain_log_probs)
            except Exception as error:  # another architecture may raise anything
                reasons[_raised(error)] = None
                continue
            if gap <= _EXACT and exact:
                return batching
            reasons[_OFF.format(gap)] = None
            gaps[batching] = gap if math.isfinite(gap) else math.inf
    smallest = min(gaps.values(), default=math.inf)
    if not exact and smallest <= _ROUNDED:
        return next(batching for batching, gap in gaps.items() if gap <= max(3 * smallest, 0.03))
    raise _refused(model.config.name_or_path, type(model), "; ".join(reasons))


def check_encoder_decoder(model: Any) -> None:
    """The same for an encoder-decoder, whose inputs are encoded together and whose texts are written token by token.

    Args:
        model: The model; where its weights are sharded over processes it is not tried.

    Raises:
        UserError: It does not work, or its log-probabilities are not those of a plain forward pass.
    """
    if not can_be_tried(model):
        return
    exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
    starts = start_ids(model)
    with in_eval_mode(model):
        try:
            gap = _gap(Seq2SeqSampler(model, [], 0, _TOKENS, start_ids=starts), _plain_seq2seq_log_probs)
        except Exception as error:  # another architecture may raise anything
            raise _refused(model.config.name_or_path, type(model), _raised(error)) from None
    if not gap <= (_EXACT if exact else _ROUNDED):
        raise _refused(model.config.name_or_path, type(model), _OFF.format(gap))


def _raised(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _refused(name: str | None, kind: Any, reason: str) -> UserError:
    name = name or "the model"
    return UserError(f"{name}: {kind.__name__} cannot be sampled: {reason}; a policy needs another architecture")


def check_can_sample(project: ProjectConfig, model: Any) -> None:
    """Check that the policies of a run can be sampled, where any of them will be, before the first is trained.

    Raises:
        UserError: They cannot be sampled.
    """
    if not _will_sample(project):
        return
    if model.config.is_encoder_decoder:
        check_encoder_decoder(model)
    else:
        batching_of(model)


def check_architecture(project: ProjectConfig, config: PretrainedConfig) -> None:
    """The same as far as a config tells, while data is prepared and nothing is loaded.

    Raises:
        UserError: Models of this kind cannot be sampled.
    """
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if _will_sample(project) and kind is not None and not keeps_tokens(kind):
        raise _refused(config.name_or_path, kind, _NO_CACHE)


def _will_sample(project: ProjectConfig) -> bool:
    return project.evaluate.enabled or any(stage_of(name).online for name in project.stages)


@torch.no_grad()
def _gap(whole: TransformersSampler, plain_log_probs: Callable[..., list[float]]) -> float:
    """Largest difference of a sampled token's log-probability to that of a plain forward pass, relative above 1 nat."""
    model = whole.model
    size = model.config.get_text_config(decoder=True).vocab_size
    prompts = [[token % size for token in prompt] for prompt in _PROMPTS]
    seeds = [[_SAMPLES * row + sample for sample in range(_SAMPLES)] for row in range(len(prompts))]
    completions = whole(prompts, seeds)
    stop_ids = completions[0][0].ids[1:2]  # the first completion leaves the batch
    stopped = replace(whole, stop_ids=stop_ids)(prompts, seeds)
    gaps: list[float] = []
    for prompt, row, stopped_row in zip(prompts, completions, stopped, strict=True):
        for completion in (*row, *stopped_row):
            expected = plain_log_probs(model, prompt, completion.ids)
            pairs = zip(completion.log_probs, expected, strict=True)
            gaps += [abs(sampled - plain) / max(1.0, abs(plain)) for sampled, plain in pairs]
    return torch.tensor(gaps).max().item()  # NaN where any is


def _plain_log_probs(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """Log-probability of each token of a completion, nats: one forward pass, one row, no cache."""
    ids = torch.tensor([[*prompt, *completion]], device=model.device)
    log_probs = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    return log_probs.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()


def _plain_seq2seq_log_probs(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """The same of a completion to an encoded prompt."""
    starts = start_ids(model)
    ids = torch.tensor([[*starts, *completion]], device=model.device)
    source = torch.tensor([prompt], device=model.device)
    output = model(
        input_ids=source, decoder_input_ids=ids[:, :-1], decoder_attention_mask=torch.ones_like(ids[:, :-1]),
        use_cache=False,
    )  # fmt: skip
    log_probs = output.logits[0, len(starts) - 1 :].float().log_softmax(-1)
    return log_probs.gather(1, ids[0, len(starts) :, None])[:, 0].tolist()
