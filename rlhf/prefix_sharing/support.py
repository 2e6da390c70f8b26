"""Which models can share prompts: those whose layers have full causal attention, and take a mask of pairs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from rlhf.prefix_sharing.forward import in_eval_mode
from rlhf.prefix_sharing.layout import lay_out

_TAKE_A_MASK = ("eager", "sdpa", "flex_attention")
_LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Rotary embeddings whose angles depend on how long the longest row is."""

ROUTERS = "router losses, which count every token of every row"
DROPOUT = "dropout or other noise, which is drawn for each row by itself"
_NOISE = re.compile("drop|jitter|neftune")
"""In the names of probabilities and scales: `attn_pdrop`, `layerdrop`, `router_jitter_noise`, `neftune_noise_alpha`."""

_WINDOW = re.compile(
    "(^|_)(window|window_size|window_len|local_attention|chunk_size|chunk_length|index_topk|indexer_budget)$"
)
"""In the names of numbers of tokens that a layer looks back at, at most: `keep_window_size`, `attention_chunk_size`."""

_PROMPT, _COMPLETIONS = [13, 29, 5, 17], [[23, 41, 3], [7, 31]]
_TIMES = 6
"""The tokens that `folding_check` reads, modulo the vocabulary, and how often they are repeated at most."""


def why_not(model: PreTrainedModel, longest: int | None = None) -> str | None:
    """Why a model's settings do not let it share prompts, or None where they do.

    Args:
        model: A transformers model.
        longest: Tokens of the longest sequence; None if it is not known. A window that is no shorter hides nothing.
    """
    config: PretrainedConfig = model.config.get_text_config()
    if getattr(config, "is_encoder_decoder", False) or not getattr(config, "is_causal", True):
        return "attention that is not causal"
    if getattr(config, "use_bidirectional_attention", False):
        return "bidirectional attention"
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        return "attention that is not causal"
    kinds = set(getattr(config, "layer_types", None) or ())
    if other := kinds - {"full_attention", "sliding_attention"}:
        return f"layers of type {', '.join(sorted(other))}"
    for name, window in _windows(config).items():
        if longest is None or longest > window:
            return f"attention over at most {window} tokens ({name})"
    if (attention := config._attn_implementation) not in _TAKE_A_MASK:
        return f"attention implementation {attention}, which takes no mask of pairs"
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return f"{config.model_type}: positions that are part of the mask"
    for kind, limit in _rotations(config):
        if kind in _LENGTH_DEPENDENT and (longest is None or limit is None or longest > limit):
            return f"rotary embedding of type {kind}, which depends on the length of the row"
    if getattr(config, "output_router_logits", False):
        return ROUTERS
    return None


def widest(model: PreTrainedModel) -> int | None:
    """Most tokens of a row that several sequences may share; None where only the sequences' own lengths matter.

    Layers that make their mask by themselves count the columns of a row, not the positions of its tokens: those with a
    window of another kind than transformers' own, and those that keep a table of all columns or pairs of them.
    """
    config: PretrainedConfig = model.config.get_text_config()
    limits = [window for name, window in _windows(config).items() if name != "sliding_window"]
    positions = getattr(config, "max_position_embeddings", None)
    squares = [buffer for buffer in model.buffers() if buffer.dim() > 1]
    tables = [buffer for buffer in squares if buffer.shape[-1] in (buffer.shape[-2], positions)]
    limits += [table.shape[-1] for table in tables]
    return min(limits, default=None)


def dropout(model: nn.Module) -> str | None:
    """Why a model cannot share prompts while it trains: dropout and other noise draw for each row by itself.

    Found in its layers, as modules or as probabilities that their functions read. For what only the config names, see
    `noise_settings`.
    """
    return DROPOUT if any(map(_draws, model.modules())) else None


def noise_settings(config: PretrainedConfig) -> tuple[tuple[str, float], ...]:
    """What a config says of dropout and other noise. A layer may read it when it runs, or have been told otherwise."""
    return tuple((name, value) for name, value in vars(config.get_text_config()).items() if _is_noise(name, value))


@torch.no_grad()
def is_noisy(backbone: Any, forward: Callable[..., Any]) -> bool:
    """Whether a forward pass draws in training, found by trying: the same tokens twice, in the mode the model is in.

    Args:
        backbone: The backbone.
        forward: Its forward pass, without hooks.
    """
    weight = next(backbone.parameters())
    ids = (
        torch.tensor([[*_PROMPT, *_COMPLETIONS[0]]], device=weight.device)
        % backbone.config.get_text_config().vocab_size
    )
    devices = [] if weight.device.type == "cpu" else [weight.device]
    with torch.random.fork_rng(devices, device_type="cuda" if not devices else weight.device.type):
        first, second = (forward(input_ids=ids, use_cache=False).last_hidden_state for _ in range(2))
    return not torch.equal(first, second)


def folding_check(backbone: Any) -> str | None:
    """Why a backbone cannot share prompts, found by trying: two short sequences by themselves and as one row.

    What settings do not tell shows here: positions that the model makes by itself, states beside attention, a mask that
    is ignored, windows of a few tokens. Costs four forward passes of at most 54 tokens.
    """
    return _tried(backbone, _folded) or _tried(backbone, _folded, _times(backbone.config.get_text_config()))


def packing_check(backbone: Any) -> str | None:
    """Why a backbone cannot take several sequences in a row whose positions restart: they would see one another."""
    return _tried(backbone, _packed)


def _draws(module: nn.Module) -> bool:
    """Whether a layer itself has a probability above 0."""
    drops = "drop" in type(module).__name__.lower()
    return any(_is_noise(name, value) or (drops and name == "p" and value > 0) for name, value in vars(module).items())


def _is_noise(name: str, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and bool(_NOISE.search(name))


@torch.no_grad()
def _tried(backbone: Any, run: Callable[..., torch.Tensor], times: int = 1) -> str | None:
    size = backbone.config.get_text_config().vocab_size
    prompt, *completions = ([token % size for token in tokens] * times for tokens in (_PROMPT, *_COMPLETIONS))
    weight = next(backbone.parameters())
    try:
        with in_eval_mode(backbone):
            together, apart = run(backbone, prompt, completions), _folded(backbone, prompt, completions, widest=0)
    except Exception as error:  # another architecture may raise anything
        return f"{type(backbone).__name__} does not take several sequences in a row ({type(error).__name__}: {error})"
    difference = float((together - apart).abs().max() / apart.abs().max())
    if difference <= (1e-4 if weight.dtype in (torch.float32, torch.float64) else 0.05):
        return None
    return f"{type(backbone).__name__}, whose states change by {difference:.0%} when sequences share a row"


def _times(config: PretrainedConfig) -> int:
    """How often over the tokens of a check stand within the model's positions and windows."""
    limits = [getattr(config, "max_position_embeddings", None), *_windows(config).values()]
    columns = len(_PROMPT) + sum(map(len, _COMPLETIONS))
    return max(1, min([_TIMES, *(limit // columns for limit in limits if limit)]))


def _packed(backbone: Any, prompt: list[int], completions: list[list[int]]) -> torch.Tensor:
    rows = [[*prompt, *completion] for completion in completions]
    device = next(backbone.parameters()).device
    ids = torch.tensor([[token for row in rows for token in row]], device=device)
    positions = torch.tensor([[at for row in rows for at in range(len(row))]], device=device)
    states = backbone(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state[0]
    ends = list(itertools.accumulate(map(len, rows)))
    longest = max(map(len, completions))
    own = [  # as `Folded.states_BU` has them: from the prompt's last token, the last one repeated
        min(end - len(completion) - 1 + step, end - 1)
        for end, completion in zip(ends, completions, strict=True) for step in range(longest + 1)
    ]  # fmt: skip
    return states[own].float()


def _folded(backbone: Any, prompt: list[int], completions: list[list[int]], widest: int | None = None) -> torch.Tensor:
    weight = next(backbone.parameters())
    folded = lay_out([prompt], [completions], pad=0, widest=widest).to(weight.device)
    inputs = folded.inputs(backbone.config._attn_implementation, weight.dtype)
    if widest == 0:
        del inputs["position_ids"]  # it must be told the positions that it would count by itself
    return backbone(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)[folded.states_BU.flatten()].float()


def _windows(config: PretrainedConfig) -> dict[str, int]:
    """How far layers look back at most, by the setting's name; nothing for layers that see all."""
    kinds = set(getattr(config, "layer_types", None) or ())
    used = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    windows = dict(_window_numbers(vars(config)))
    if not used:
        windows.pop("sliding_window", None)
    return windows


def _window_numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in settings.items():
        if isinstance(value, PretrainedConfig | Mapping):
            yield from _window_numbers(value if isinstance(value, Mapping) else vars(value))
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0 and _WINDOW.search(str(name)):
            yield str(name), value


def _rotations(config: PretrainedConfig) -> list[tuple[str | None, int | None]]:
    """Type of each rotary embedding, and up to how many tokens it is the plain one."""
    given = getattr(config, "rope_parameters", None) or {}
    ropes = [given] if "rope_type" in given else [rope for rope in given.values() if isinstance(rope, dict)]
    known = getattr(config, "original_max_position_embeddings", None)
    return [(rope.get("rope_type"), rope.get("original_max_position_embeddings", known)) for rope in ropes]
