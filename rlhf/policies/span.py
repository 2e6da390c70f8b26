"""Question answering as a policy: the input is a question and a context, the actions are the answer's start and end.

The first action is a token of the context, or no answer. The second is the last token of the answer, given the first:
the end logits over the tokens from the start on, at most `max_new_tokens` of them; after no answer there is no choice
left. Actions are numbers: 0 is no answer, n + 1 is token n of the context.

**Windows.** A context that is too long is read through windows that overlap (`rlhf.data.windows`), all of which are one
input. Each token of the context is a start once, in the window in which it has most context; the end lies in the same
window. A model is trained to mark the CLS token where a window does not hold the answer, so that window w says how much
likelier than nothing a start i is: p_w(i) / p_w(none), the odds. Given that at most one window answers, and that the
windows are independent, p(i in w) ∝ p_w(i) · Π_{v≠w} p_v(none) and p(none) ∝ Π_v p_v(none): the odds beside 1 for no
answer. So the logit of a start is s_i − s_none, both of its own window, and that of no answer is 0. With one window
this is the softmax over the CLS token and the context, as in SQuAD 2.0.

Axes beside those of `rlhf.policies.protocol`: P inputs, W windows of all inputs, L tokens of the longest, F = W · L.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, PreTrainedModel

from rlhf.config.project import EvaluateConfig
from rlhf.data.prepare import Prepared
from rlhf.data.records import Encoded, Prompt, Record, Spanned, Text, Unusable
from rlhf.data.windows import OVERLAP, Window, WindowCodec, own_tokens, text_of, tokens_of
from rlhf.errors import UserError
from rlhf.models.load import context_length
from rlhf.models.roles import Roles
from rlhf.policies.base import LogitsPolicy, PackedActions, entropy, like_sizes
from rlhf.policies.completion import Completion
from rlhf.policies.kinds import Completed, Encoder, PolicyKind, Supervised, answered

NONE = 0
"""The action that gives no answer."""
_READ = ("input_ids", "attention_mask", "token_type_ids")
_FORMATS = "name a format that has them: `format: squad` or `format: restaurant8k`"


@dataclass(frozen=True)
class SpanRow:
    """A question and a context to answer it from."""

    windows: list[Window]
    offsets: list[tuple[int, int]]
    """Characters of the context of each of its tokens."""
    prompt: Text
    columns: dict[str, Any]

    @property
    def context(self) -> str:
        """What the answer is cut from."""
        return self.columns["context"]


class SpanPolicy(LogitsPolicy):
    """A question-answering model that online training optimises; implements `rlhf.policies.protocol.Policy`.

    Args:
        roles: Policy, reference and maybe a critic.
        pad: Id of the pad token.
        temperature: Divides the logits; 0 takes the likeliest pair of start and end.
        batch_size: Inputs a forward pass when it samples.
        longest: Most tokens of an answer.
    """

    def __init__(self, roles: Roles, pad: int, temperature: float, batch_size: int, longest: int) -> None:
        super().__init__(roles, temperature)
        self.pad, self.batch_size, self.longest = pad, batch_size, longest

    @torch.no_grad()
    def sample(self, inputs: Sequence[SpanRow], seeds: Sequence[Sequence[int]]) -> list[list[Completion]]:
        """For each input one answer a seed."""
        drawn: list[list[Completion]] = [[] for _ in inputs]
        undecided = Completion([NONE, NONE], True)
        for chosen in like_sizes([self.size(row, []) for row in inputs], self.batch_size):
            groups = [[undecided] * len(seeds[p]) for p in chosen]
            packed = self.pack([inputs[p] for p in chosen], groups).to(self.device)
            with self.roles.policy_model() as model:
                outputs_F2 = _outputs(model, packed).cpu()
            packed = packed.to(torch.device("cpu"))
            log_probs_BV = self._normalised(span_logits(outputs_F2, packed, self.longest)[:, 0])
            generators = [torch.Generator().manual_seed(seed) for p in chosen for seed in seeds[p]]
            counts_B = (packed.inputs["cell_PV"] >= 0).sum(1)[packed.input_B].tolist()
            if self.temperature == 0:
                packed.actions_BT[:, 0] = likeliest_starts(outputs_F2, packed, self.longest)
            else:
                packed.actions_BT[:, 0] = _draw(log_probs_BV, counts_B, generators)
            log_probs_BTV = self._normalised(span_logits(outputs_F2, packed, self.longest))
            ends_BV = log_probs_BTV[:, 1]
            packed.actions_BT[:, 1] = (
                ends_BV.argmax(-1) if self.temperature == 0 else _draw(ends_BV, counts_B, generators)
            )
            taken_BT = log_probs_BTV.gather(-1, packed.actions_BT[..., None]).squeeze(-1)
            rows = zip(packed.actions_BT.tolist(), taken_BT.tolist(), entropy(log_probs_BTV).tolist(), strict=True)
            for p, (actions, log_probs, entropies) in zip(packed.input_B.tolist(), rows, strict=True):
                text = answer_text(inputs[chosen[p]], actions)
                drawn[chosen[p]].append(Completion(actions, True, log_probs, entropies, text))
        return drawn

    def _normalised(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits / (self.temperature or 1.0)).log_softmax(-1)

    # forward passes

    def size(self, input: SpanRow, completions: Sequence[Completion]) -> int:
        """Tokens of all windows."""
        return sum(len(window.ids) for window in input.windows)

    def pack(self, inputs: Sequence[SpanRow], completions: Sequence[Sequence[Completion]]) -> PackedActions:
        """Questions with their contexts, each once, with the answers to them.

        Beside what the model reads, `inputs` has where its outputs are: `cell_PV` is the place of each start among the
        F tokens of all windows (−1 where there is none), `none_PV` that of its window's CLS token, and `stop_PV` the
        first action that is too far to be its end; `none_W` and `input_W` have the CLS token and the input of a window.
        """
        windows = [window for row in inputs for window in row.windows]
        width = max(len(window.ids) for window in windows)
        tensors = {
            "input_ids": _padded([window.ids for window in windows], width, self.pad),
            "attention_mask": _padded([[1] * len(window.ids) for window in windows], width, 0),
        }
        if windows[0].types:
            tensors["token_type_ids"] = _padded([window.types for window in windows], width, 0)
        cells, nones, stops = (list[list[int]]() for _ in range(3))
        base = 0
        for row in inputs:
            here: tuple[list[int], ...] = ([base + row.windows[0].none], [base + row.windows[0].none], [NONE + 1])
            ranges = [(window.first, window.first + window.size) for window in row.windows]
            for window, (first, last) in zip(row.windows, own_tokens(ranges), strict=True):
                begin = base + window.place + first - window.first
                here[0].extend(range(begin, begin + last - first))
                here[1].extend([base + window.none] * (last - first))
                here[2].extend([window.first + window.size + 1] * (last - first))
                base += width
            for columns, column in zip((cells, nones, stops), here, strict=True):
                columns.append(column)
        longest = max(map(len, cells))
        tensors |= {"cell_PV": _padded(cells, longest, -1), "none_PV": _padded(nones, longest, 0),
                    "stop_PV": _padded(stops, longest, 0)}  # fmt: skip
        counts = torch.tensor([len(row.windows) for row in inputs])
        tensors["input_W"] = torch.arange(len(inputs)).repeat_interleave(counts)
        tensors["none_W"] = torch.arange(len(windows)) * width + torch.tensor([window.none for window in windows])
        actions_BT = torch.tensor([completion.ids for group in completions for completion in group])
        groups = torch.tensor([len(group) for group in completions])
        input_B = torch.arange(len(inputs)).repeat_interleave(groups)
        return PackedActions(tensors, input_B, actions_BT, torch.ones_like(actions_BT, dtype=torch.bool))

    def logits(self, model: Any, packed: PackedActions) -> torch.Tensor:
        """Logits of the start, and of the end given the start, [B, 2, V]."""
        return span_logits(_outputs(model, packed), packed, self.longest)

    def states(self, backbone: Any, packed: PackedActions) -> torch.Tensor:
        """The mean of the windows' CLS states, the state of the start, and the state of the end, [B, 3, d]."""
        hidden_Fd = backbone(**_read(packed)).last_hidden_state.flatten(0, 1)
        input_W, input_B = packed.inputs["input_W"], packed.input_B
        share_W = (1.0 / input_W.bincount()[input_W]).to(hidden_Fd.dtype)
        none_Wd = hidden_Fd[packed.inputs["none_W"]] * share_W[:, None]
        none_Pd = torch.zeros_like(none_Wd[: len(packed.inputs["cell_PV"])]).index_add(0, input_W, none_Wd)
        starts_B, ends_B = packed.actions_BT.unbind(1)
        start_B = packed.inputs["cell_PV"][input_B, starts_B]
        return torch.stack([none_Pd[input_B], hidden_Fd[start_B], hidden_Fd[start_B + ends_B - starts_B]], 1)


def span_logits(outputs_F2: torch.Tensor, packed: PackedActions, longest: int) -> torch.Tensor:
    """Logits of every start, and of every end given the start that was taken; −∞ where an action is not allowed.

    Args:
        outputs_F2: The model's start and end logits of each token.
        packed: Inputs with their actions; only the starts matter.
        longest: Most tokens of an answer.

    Returns:
        [B, 2, V]; a start has s_i − s_none, no answer has 0 (see the file's docstring).
    """
    cell_PV, none_PV, stop_PV = (packed.inputs[name] for name in ("cell_PV", "none_PV", "stop_PV"))
    starts_F, ends_F = outputs_F2.unbind(-1)
    start_PV = (starts_F[cell_PV.clamp(min=0)] - starts_F[none_PV]).masked_fill(cell_PV < 0, -torch.inf)
    input_B, starts_B1 = packed.input_B, packed.actions_BT[:, :1]
    ends_V = torch.arange(cell_PV.shape[1], device=cell_PV.device)
    cell_BV = cell_PV[input_B].gather(1, starts_B1) + ends_V - starts_B1
    stop_B1 = stop_PV[input_B].gather(1, starts_B1).clamp(max=starts_B1 + longest)
    allowed_BV = (ends_V >= starts_B1) & (ends_V < stop_B1)
    end_BV = ends_F[cell_BV.clamp(0, len(ends_F) - 1)].masked_fill(~allowed_BV, -torch.inf)
    return torch.stack([start_PV[input_B], end_BV], 1)


def likeliest_starts(outputs_F2: torch.Tensor, packed: PackedActions, longest: int) -> torch.Tensor:
    """The start of the likeliest answer, arg max over pairs of p(start) · p(end | start), [B].

    Args:
        outputs_F2: The model's start and end logits of each token.
        packed: The inputs.
        longest: Most tokens of an answer.
    """
    best = []
    for p in range(len(packed.inputs["cell_PV"])):
        starts_V = (packed.inputs["cell_PV"][p] >= 0).nonzero()
        every = packed._replace(input_B=torch.full((len(starts_V),), p), actions_BT=starts_V.expand(-1, 2))
        log_probs_VTV = span_logits(outputs_F2, every, longest).log_softmax(-1)
        start_V = log_probs_VTV[:, 0].gather(1, starts_V).squeeze(1)
        best.append(int((start_V + log_probs_VTV[:, 1].amax(-1)).argmax()))
    return torch.tensor(best)[packed.input_B]


def answer_text(row: SpanRow, actions: Sequence[int]) -> str:
    """The characters of the context that an answer marks; none for no answer."""
    start, end = actions
    return "" if start == NONE else text_of(row.context, row.offsets, start - 1, end - 1)


def _outputs(model: Any, packed: PackedActions) -> torch.Tensor:
    """Start and end logits of each token of all windows, [F, 2], float32."""
    outputs = model(**_read(packed))
    return torch.stack([outputs.start_logits, outputs.end_logits], -1).flatten(0, 1).float()


def _read(packed: PackedActions) -> dict[str, torch.Tensor]:
    return {name: packed.inputs[name] for name in _READ if name in packed.inputs}


def _draw(log_probs_BV: torch.Tensor, counts_B: Sequence[int], generators: Sequence[torch.Generator]) -> torch.Tensor:
    """An action a row, each by a generator of its own, from those that its input has."""
    rows = zip(log_probs_BV.exp(), counts_B, generators, strict=True)
    return torch.cat([torch.multinomial(row[:count], 1, generator=generator) for row, count, generator in rows])


def _padded(rows: Sequence[Sequence[int]], width: int, value: int) -> torch.Tensor:
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


class SpanKind(PolicyKind):
    """Question answering by marking a span of the context, `AutoModelForQuestionAnswering`."""

    def _types(self, window: Window) -> list[int]:
        """`token_type_ids`, where the model tells types of tokens apart."""
        return window.types if getattr(self.config, "type_vocab_size", 0) > 1 else []

    def demonstrations(self, args: Any) -> Encoder:
        """A row for each window, with the places of the answer; of the CLS token, where the answer is not in it."""
        codec = WindowCodec(self.tokenizer, args.max_length)

        def encode(record: Record) -> list[Encoded]:
            if not isinstance(record, Spanned):
                raise UserError(
                    f"{record.origin}: a span policy learns from questions, contexts and answers in them, and this is "
                    f"something else; {_FORMATS}"
                )
            windows, offsets = codec.windows(record.question, record.context)
            answers = [tokens_of(answer, offsets) for answer in record.answers]
            ranges = [(window.first, window.first + window.size) for window in windows]
            within = [
                next((answer for answer in answers if first <= answer[0] and answer[1] < last), None)
                for first, last in ranges
            ]
            if answers and not any(within):
                raise Unusable("answer longer than a window")
            return [self._marked(window, answer) for window, answer in zip(windows, within, strict=True)]

        return Encoder(encode, {"max_length": args.max_length, "overlap": OVERLAP})

    def _marked(self, window: Window, answer: tuple[int, int] | None) -> Encoded:
        places = [window.none] * 2 if answer is None else [window.place + token - window.first for token in answer]
        limits = [window.none, window.place, window.place + window.size]
        return Encoded({"input_ids": window.ids, "token_type_ids": self._types(window), "places": [*places, *limits]})

    def supervised(self, model: PreTrainedModel, data: Prepared, args: Any) -> Supervised:
        """Cross-entropy of the first and of the last token of the answer."""
        if args.class_weights is not None:
            raise UserError("stages.sft.class_weights: a span policy has no classes; leave it out")

        def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
            rows = None if num_items_in_batch is None else num_items_in_batch / labels.shape[1]
            return span_loss(outputs.start_logits, outputs.end_logits, labels, args.label_smoothing_factor, rows)

        def collate(rows: list[Mapping[str, Any]]) -> Mapping[str, Any]:
            ids = [row["input_ids"] for row in rows]
            width, pad = max(map(len, ids)), int(self.tokenizer.pad_token_id)  # type: ignore[arg-type]
            batch = {
                "input_ids": _padded(ids, width, pad),
                "attention_mask": _padded([[1] * len(row) for row in ids], width, 0),
                "labels": torch.tensor([row["places"] for row in rows]),
            }
            if rows[0]["token_type_ids"]:
                batch["token_type_ids"] = _padded([row["token_type_ids"] for row in rows], width, 0)
            return batch

        return Supervised(collate, loss, share_right)

    def prompts(self, args: Any) -> Encoder:
        """The windows of each question and context."""
        limit = context_length(self.config) if args is None else args.max_length
        codec = WindowCodec(self.tokenizer, limit)

        def encode(record: Prompt) -> Encoded:
            question, context = (record.extra.get(name) for name in ("question", "context"))
            if not isinstance(question, str) or not isinstance(context, str):
                raise UserError(f"{record.origin}: a span policy takes a `question` and a `context`; {_FORMATS}")
            windows, offsets = codec.windows(question, context)
            columns = {
                "windows": [window.ids for window in windows],
                "types": [self._types(window) for window in windows],
                "places": [list(window[2:]) for window in windows],
                "offsets": [list(span) for span in offsets],
                "prompt": json.dumps(record.prompt),
            }
            return Encoded(columns)

        return Encoder(encode, {"max_length": limit, "overlap": OVERLAP})

    def inputs(self, rows: Iterable[Mapping[str, Any]]) -> Sequence[SpanRow]:
        """Questions and contexts, with the other columns of their rows."""
        result = []
        for row in rows:
            parts = zip(row["windows"], row["types"], row["places"], strict=True)
            windows = [Window(ids, types, *places) for ids, types, places in parts]
            offsets = [(begin, end) for begin, end in row["offsets"]]
            result.append(SpanRow(windows, offsets, json.loads(row["prompt"]), json.loads(row["extra"])))
        return result

    def _policy(self, roles: Roles, temperature: float, batch_size: int, longest: int) -> SpanPolicy:
        return SpanPolicy(roles, int(self.tokenizer.pad_token_id), temperature, batch_size, longest)  # type: ignore[arg-type]

    def policy(self, roles: Roles, settings: Any, fold: bool = True) -> SpanPolicy:
        """The policy that online training optimises."""
        return self._policy(roles, settings.temperature, settings.sampling_batch_size, settings.max_new_tokens)

    def complete(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        settings: EvaluateConfig,
        *,
        samples: int,
        seed: int,
        label: str,
        reference: Callable[[], PreTrainedModel] | None = None,
        first: int = 0,
    ) -> Completed:
        """The likeliest answer to each question."""
        roles = Roles(model, reference=None if reference is None else reference())
        policy = self._policy(roles, 0.0, settings.batch_size, settings.max_new_tokens)
        return answered(self, policy, prompts, samples=1, seed=seed, batch_size=settings.batch_size, first=first)


KIND = SpanKind


def span_loss(
    starts_BL: torch.Tensor,
    ends_BL: torch.Tensor,
    places_B5: torch.Tensor,
    smoothing: float = 0.0,
    denominator: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Cross-entropy of where answers start and end: the mean of the two, over the CLS token and the context.

    Unlike transformers' own loss it leaves out the question and the padding, so that a row's loss does not depend on
    the rows beside it.

    Args:
        starts_BL: Start logits of each token.
        ends_BL: End logits.
        places_B5: Of each row the places of start and end, of the CLS token, and of the context, [first, last).
        smoothing: Share of the target that is spread evenly over the places (Szegedy et al., 2016, section 7).
        denominator: Rows of the whole optimizer step; None for those given.

    Returns:
        The sum of the rows' losses over the denominator, nats.

    Source: Devlin et al., "BERT" (2019), sections 4.2 and 4.3.
    """
    none_B1, first_B1, last_B1 = places_B5[:, 2:].split(1, 1)
    places_L = torch.arange(starts_BL.shape[1], device=starts_BL.device)
    outside_BL = (places_L != none_B1) & ((places_L < first_B1) | (places_L >= last_B1))
    loss = starts_BL.new_zeros((), dtype=torch.float32)
    for logits_BL, right_B1 in ((starts_BL, places_B5[:, :1]), (ends_BL, places_B5[:, 1:2])):
        log_probs_BL = logits_BL.float().masked_fill(outside_BL, -torch.inf).log_softmax(-1)
        right_B = log_probs_BL.gather(1, right_B1).squeeze(1)
        mean_B = log_probs_BL.masked_fill(outside_BL, 0.0).sum(1) / (~outside_BL).sum(1)
        loss = loss - ((1 - smoothing) * right_B + smoothing * mean_B).sum() / 2
    return loss / (len(places_B5) if denominator is None else denominator)


def share_right(prediction: EvalPrediction) -> dict[str, float]:
    """Share of rows (windows) whose likeliest start and likeliest end are both right."""
    places_B5 = np.asarray(prediction.label_ids)
    right_B = np.ones(len(places_B5), dtype=bool)
    for place, logits in enumerate(prediction.predictions[:2]):
        logits_BL, places_L = np.asarray(logits), np.arange(np.asarray(logits).shape[1])
        inside_BL = (places_L >= places_B5[:, 3:4]) & (places_L < places_B5[:, 4:5]) | (places_L == places_B5[:, 2:3])
        right_B &= np.where(inside_BL, logits_BL, -np.inf).argmax(1) == places_B5[:, place]
    return {"accuracy": float(right_B.mean())}
