"""Computes sequences that begin alike as one row, under any trainer: replaces the backbone's forward pass.

    a group of rows        one row
    P P P a a              P P P a a b b b
    P P P b b b

The caller sees no difference: hidden states come back in the rows that were asked for, equal to those of the plain
forward pass up to rounding, and so do all gradients. Heads and losses, above the backbone, stay as they are.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from rlhf import processes
from rlhf.data.prefix import common_prefix_length
from rlhf.models.adapters import without_peft
from rlhf.models.device import sharded
from rlhf.prefix_sharing import support
from rlhf.prefix_sharing.cost_model import Cost
from rlhf.prefix_sharing.forward import can_be_tried, replace_forward
from rlhf.prefix_sharing.layout import lay_out


@dataclass(eq=False)
class Fold:
    """A fold in place. It is taken off by `remove()`, or at the end of a `with` block."""

    model: PreTrainedModel
    """What was folded, without peft's wrapping."""
    group_size: int
    """Sequences of a group."""
    by_length: bool
    """Whether rows of like length are run together, to save padding."""
    reason: str | None = None
    """Why the model is never folded; None where it is."""
    said: set[str] = field(default_factory=set)
    """Reasons that were printed already."""

    @property
    def backbone(self) -> PreTrainedModel:
        """The model without its head."""
        return self.model.base_model  # type: ignore[return-value]  # that of a PreTrainedModel is one, too

    def __enter__(self) -> Fold:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Put the plain forward pass back."""
        state = vars(self.backbone).get("_fold")
        if state is not None and state.fold is self:
            unfold(self.model)

    def say(self, reason: str) -> None:
        """Print once why rows are not folded."""
        if reason not in self.said and processes.is_main():
            print(f"fold: {type(self.model).__name__} runs unfolded: {reason}", file=sys.stderr)
        self.said.add(reason)


@dataclass(eq=False)
class _State:
    """What a folded backbone keeps; a copy of the model has a copy of it."""

    fold: Fold
    before: Callable[..., Any] | None
    """A forward pass that something else had set on the backbone."""
    cost: Cost
    rotary: bool
    """Whether only distances matter, so that positions may be shifted."""
    widest: int | None
    """Most tokens of a row that sequences may share."""
    decodes: bool
    """Whether callers may decode with the model token by token, and so expect a cache unless they turn it off."""
    noisy: dict[tuple[Any, ...], bool] = field(default_factory=dict)
    """Whether the forward pass draws in training, by what the config says of dropout."""


@dataclass(frozen=True)
class _Rows:
    """The rows of a call."""

    ids: list[list[int]]
    """Tokens of each sequence, without padding."""
    starts: list[int]
    """Column of each sequence's first token."""
    positions: list[int]
    """Position of each sequence's first token."""
    reach: int
    """Columns, or one more than the largest position, whichever is more."""
    shape: tuple[int, int]
    rest: dict[str, Any]
    """The call's other arguments."""


@dataclass(frozen=True)
class _Item:
    """One row to compute: a shared part, and the sequences' own."""

    prompt: list[int]
    tails: list[list[int]]
    members: list[int]
    """Rows of the call."""
    position: int

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.prompt) + sum(map(len, self.tails))

    @property
    def shared(self) -> bool:
        """Whether a mask is needed to keep sequences apart."""
        return sum(map(bool, self.tails)) > 1


def fold(model: PreTrainedModel | PeftModel, group_size: int = 2, by_length: bool = True, tried: bool = True) -> Fold:
    """Compute what the sequences of a group share once, from now on or within a `with` block.

    Of a batch of R rows, i, i + R/G, i + 2R/G … (G = `group_size`) are a group: for preference pairs TRL's layout, all
    chosen, then all rejected. Their longest common beginning stands once, whatever it is; groups that share little are
    run as separate rows. Calls that cannot be folded run as they always did: generation, other outputs than the last
    states, numbers of rows that are no multiple of G. A language model that is not in training, called without
    `use_cache` and by its config's default with a cache, is one of them: pass `use_cache=False`, as TRL's trainers do.

    Args:
        model: Any decoder of transformers with full causal attention, with whatever head; peft's wrapping too.
        group_size: Sequences of a group; 1 shares nothing, and only saves padding.
        by_length: Run rows of like length together: a batch is cut into several where that costs less than its padding.
        tried: Whether a forward pass shows that it can be folded; else another process, which has the weights, tells.

    Returns:
        The fold; its `reason` says why this model runs unfolded, if it does.

    Raises:
        ValueError: `group_size` is below 1, or the model is folded already.

    Deviation: at places that `attention_mask` hides stands the state of another token, not what the model makes of
    padding. Elsewhere none; the result is the plain one, to rounding (1e-6 relative in float64, 1e-5 in float32).
    """
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, not {group_size}")
    whole = without_peft(model)
    result = Fold(whole, group_size, by_length)
    backbone = result.backbone
    if is_folded(whole):
        raise ValueError(f"{type(whole).__name__} is folded already")
    result.reason = _prompt_learning(model) or support.why_not(backbone, longest=0)
    if tried and result.reason is None:
        result.reason = _folding_check(backbone)
    if result.reason is not None:
        result.say(result.reason)
        return result
    rotary = any("rotary" in type(module).__name__.lower() for module in backbone.modules())
    decodes = whole.can_generate() or whole is backbone
    state = _State(result, vars(backbone).get("forward"), Cost.of(backbone), rotary, support.widest(backbone), decodes)
    vars(backbone)["_fold"] = state
    replace_forward(backbone, _forward)
    return result


def unfold(model: PreTrainedModel | PeftModel) -> None:
    """Put the plain forward pass back, whoever folded the model: in a copy, or in one that was pickled and loaded.

    Args:
        model: A folded model; nothing is done to another.
    """
    backbone = without_peft(model).base_model
    state = vars(backbone).pop("_fold", None)
    if state is None:
        return
    del backbone.forward
    if state.before is not None:
        backbone.forward = state.before


def is_folded(model: PreTrainedModel | PeftModel) -> bool:
    """Whether a fold is in place."""
    return "_fold" in vars(without_peft(model).base_model)


def _prompt_learning(model: nn.Module) -> str | None:
    if isinstance(model, PeftModel) and any(config.is_prompt_learning for config in model.peft_config.values()):
        return "an adapter that learns a prompt, which every row has before it"
    return None


def _folding_check(backbone: nn.Module) -> str | None:
    return support.folding_check(backbone) if can_be_tried(backbone) else None


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """What a folded backbone does when it is called."""
    state: _State = self._fold
    plain = state.before or functools.partial(type(self).forward, self)
    rows = _read(self, state, args, kwargs)
    if rows is None:
        return plain(*args, **kwargs)
    reason = support.why_not(self, rows.reach) or (_dropout(self, state, plain) if self.training else None)
    if reason is not None:
        state.fold.say(reason)
        return plain(*args, **kwargs)
    return _run(self, plain, rows, _batches(self, state, _items(rows, state)))


def _dropout(backbone: Any, state: _State, plain: Callable[..., Any]) -> str | None:
    """Why dropout forbids this call; asked at each, as adapters come and trainers disable dropout after folding."""
    if (reason := support.dropout(backbone)) is not None:
        return reason
    named = support.noise_settings(backbone.config)
    if named and named not in state.noisy:
        state.noisy[named] = not can_be_tried(backbone) or support.is_noisy(backbone, plain)
    return support.DROPOUT if named and state.noisy[named] else None


def _read(backbone: Any, state: _State, args: Sequence[Any], kwargs: dict[str, Any]) -> _Rows | None:
    """The rows of a call, or None where the call cannot be folded."""
    names = list(inspect.signature(type(backbone).forward).parameters)[1:]
    given = {name: value for name, value in (*zip(names, args, strict=False), *kwargs.items()) if value is not None}
    ids, mask, positions = (given.pop(name, None) for name in ("input_ids", "attention_mask", "position_ids"))
    if ids is None or ids.dim() != 2 or not len(ids) or len(ids) % state.fold.group_size:
        return None
    if any(tensor is not None and tensor.dim() != 2 for tensor in (mask, positions)) or _wants_more(
        backbone, state, given
    ):
        return None
    real = torch.ones(ids.shape, dtype=torch.bool) if mask is None else mask.bool().cpu()
    start_R, length_R, at_L = real.int().argmax(1), real.sum(1), torch.arange(ids.shape[1])
    if not torch.equal(real, (at_L >= start_R[:, None]) & (at_L < (start_R + length_R)[:, None])):
        return None  # holes in the mask
    if positions is None:
        if start_R.any() and not state.rotary:
            return None  # the model makes positions of its own, which padding on the left shifts
        first_R, reach = torch.zeros_like(start_R), ids.shape[1]
    else:
        positions = positions.cpu().expand(len(ids), -1)
        first_R = positions.gather(1, start_R[:, None])[:, 0]
        if not torch.equal(positions[real], (first_R[:, None] + at_L - start_R[:, None])[real]):
            return None  # packed rows
        reach = max(ids.shape[1], 1 + int(positions.max()))
    spans = zip(ids.tolist(), start_R.tolist(), length_R.tolist(), strict=True)
    rows = [row[start : start + max(1, length)] for row, start, length in spans]
    return _Rows(rows, start_R.tolist(), first_R.tolist(), reach, tuple(ids.shape), {"use_cache": False, **given})


def _wants_more(backbone: Any, state: _State, given: dict[str, Any]) -> bool:
    """Whether a call asks for more than last states, by itself or by its config, or gives more than tokens."""
    config = backbone.config
    learning = backbone.training and torch.is_grad_enabled()
    default = {
        "return_dict": getattr(config, "return_dict", True),
        "use_cache": state.decodes and not learning and getattr(config, "use_cache", False),
        "output_hidden_states": getattr(config, "output_hidden_states", False),
        "output_attentions": getattr(config, "output_attentions", False),
    }
    asked = {**default, **given}
    if not asked.pop("return_dict") or "past_key_values" in given:
        return True
    return any(asked.get(name) for name in (*default, "output_router_logits")) or any(
        isinstance(value, torch.Tensor) for value in given.values()
    )


def _items(rows: _Rows, state: _State) -> list[_Item]:
    """The rows to compute: one for a group that shares enough, else one for each sequence."""
    items = []
    count = len(rows.ids) // state.fold.group_size
    for first in range(count):
        members = list(range(first, len(rows.ids), count))
        single = [_Item(rows.ids[row][:1], [rows.ids[row][1:]], [row], rows.positions[row]) for row in members]
        shared = common_prefix([rows.ids[row] for row in members])
        if shared == 0 or len({rows.positions[row] for row in members}) > 1:
            items += single
            continue
        tails = [rows.ids[row][shared:] for row in members]
        whole = _Item(rows.ids[first][:shared], tails, members, rows.positions[first])
        apart = sum(state.cost.rows(1, item.length, shared=False) for item in single)
        fits = state.widest is None or whole.length <= state.widest
        items += [whole] if fits and state.cost.rows(1, whole.length, whole.shared) <= apart else single
    return items


def common_prefix(sequences: Sequence[list[int]]) -> int:
    """How many tokens all sequences begin with."""
    return common_prefix_length(min(sequences), max(sequences))  # of all, these two part first


def _batches(backbone: nn.Module, state: _State, items: list[_Item]) -> list[list[_Item]]:
    """The batches in which the rows are run: one, or several of like length."""
    if not state.fold.by_length or sharded(next(backbone.parameters())):
        return [items]
    batches = []
    for shared in (False, True):
        kind = [item for item in items if item.shared is shared]
        cut = state.cost.cut([item.length for item in kind], shared, torch.is_grad_enabled())
        batches += [[kind[at] for at in batch] for batch in cut]
    return batches


def _run(backbone: Any, plain: Any, rows: _Rows, batches: list[list[_Item]]) -> Any:
    """Run the batches, and put the states back where the caller expects them: [R, L, d]."""
    weight = next(backbone.parameters())
    states, where, offset = [], torch.zeros(rows.shape, dtype=torch.long), 0
    for items in batches:
        folded = lay_out([item.prompt for item in items], [item.tails for item in items], pad=0)
        width = folded.ids_RL.shape[1]
        if any(item.position for item in items):
            last = max(item.position + len(item.prompt) + max(map(len, item.tails)) for item in items) - 1
            # padding behind a sequence that begins late must not count beyond all sequences
            folded.positions_RL.add_(torch.tensor([[item.position] for item in items])).clamp_(max=last)
        sequence = 0
        for row, item in enumerate(items):
            for member in item.members:
                begin, shared, length = rows.starts[member], len(item.prompt), len(rows.ids[member])
                own = folded.states_BU[sequence, : length - shared + 1]
                where[member, begin : begin + shared] = torch.arange(shared) + row * width + offset
                where[member, begin + shared : begin + length] = own[1:] + offset
                where[member, begin + length :] = own[-1] + offset
                sequence += 1
        inputs = folded.to(weight.device).inputs(backbone.config._attn_implementation, weight.dtype)
        output = plain(**inputs, **rows.rest)
        states.append(output.last_hidden_state.flatten(0, 1))
        offset += folded.ids_RL.numel()
    asked_for = torch.cat(states)[where.flatten().to(weight.device)]
    return type(output)(last_hidden_state=asked_for.view(*rows.shape, -1))
