"""Encoder-decoders as policies: the input is a text, encoded once, and an action is a token of the text written to it.

T5 and BART are such models. What the decoder starts with (`decoder_start_token_id`, and a forced BOS where the model
has one) is given and no action.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput
from transformers.trainer_pt_utils import LabelSmoother

from rlhf.config.project import EvaluateConfig
from rlhf.data.prepare import Prepared
from rlhf.data.records import Demonstration, Encoded, Prompt, Text, Unusable
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError
from rlhf.models.load import context_length
from rlhf.models.roles import Roles
from rlhf.policies.base import LogitsPolicy, PackedActions
from rlhf.policies.completion import Completion, decoded
from rlhf.policies.kinds import Completed, Encoder, PolicyKind, Supervised, answered
from rlhf.policies.sample import stop_ids
from rlhf.policies.sampler import pad_right
from rlhf.policies.seq2seq_sampler import Seq2SeqSampler, encode, start_ids


@dataclass(frozen=True)
class SourceRow:
    """A text to which another is written."""

    ids: list[int]
    prompt: Text
    columns: dict[str, Any]


class Seq2SeqPolicy(LogitsPolicy):
    """An encoder-decoder that online training optimises; implements `rlhf.policies.protocol.Policy`.

    Args:
        roles: Policy, reference and maybe a critic.
        tokenizer: Theirs.
        max_new_tokens: Longest completion, in tokens.
        temperature: Divides the logits; 0 takes the likeliest token.
        batch_size: Completions sampled at once.
        label: Words before a progress bar of sampling; None shows none.
    """

    def __init__(
        self,
        roles: Roles,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int,
        temperature: float,
        batch_size: int,
        label: str | None = None,
    ) -> None:
        super().__init__(roles, temperature)
        self.tokenizer, self.max_new_tokens, self.batch_size, self.label = tokenizer, max_new_tokens, batch_size, label
        self.start_ids = start_ids(roles.base)
        self._stop_ids = stop_ids(roles.base, tokenizer)

    @property
    def exact_log_probs(self) -> bool:
        """Whether sampling gives the log-probabilities of training, token by token and as a whole."""
        return super().exact_log_probs and not torch.is_autocast_enabled(self.device.type)

    @property
    def mismatch_hint(self) -> str:
        """What may be at fault where log-probabilities differ that must be equal."""
        name = type(self.roles.base).__name__
        return f"{name} is at fault, as token by token and as a whole it computes other numbers"

    def sample(self, inputs: Sequence[SourceRow], seeds: Sequence[Sequence[int]]) -> list[list[Completion]]:
        """For each input one completion a seed, with their text."""
        with self.roles.sampling_model() as model:
            sampler = Seq2SeqSampler(
                model, self._stop_ids, self._pad, self.max_new_tokens, self.temperature, self.batch_size,
                label=self.label, start_ids=self.start_ids,
            )  # fmt: skip
            return decoded(sampler([row.ids for row in inputs], seeds), self.tokenizer)

    @property
    def _pad(self) -> int:
        return int(self.tokenizer.pad_token_id)

    # forward passes

    def size(self, input: SourceRow, completions: Sequence[Completion]) -> int:
        """Tokens of an input and its completions."""
        return len(input.ids) + sum(len(completion.ids) for completion in completions)

    def pack(self, inputs: Sequence[SourceRow], completions: Sequence[Sequence[Completion]]) -> PackedActions:
        """Inputs, each once, with the completions of them."""
        cpu = torch.device("cpu")
        ids_PL, mask_PL = pad_right([row.ids for row in inputs], self._pad, cpu)
        actions_BT, mask_BT = pad_right([completion.ids for group in completions for completion in group], 0, cpu)
        counts = torch.tensor([len(group) for group in completions])
        return PackedActions(
            {"input_ids": ids_PL, "attention_mask": mask_PL},
            torch.arange(len(inputs)).repeat_interleave(counts),
            actions_BT,
            mask_BT.bool(),
        )

    def logits(self, model: Any, packed: PackedActions) -> torch.Tensor:
        """Logits of the vocabulary at each token, given the input and the tokens before, [B, T, V]."""
        ids = self._decoder_ids(packed.actions_BT[:, :-1])
        output = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._encoded(model, packed)),
            attention_mask=packed.inputs["attention_mask"][packed.input_B],
            decoder_input_ids=ids,
            decoder_attention_mask=torch.ones_like(ids),  # some models hide pad tokens, and may start with one
            use_cache=False,
        )
        return output.logits[:, len(self.start_ids) - 1 :].float()

    def states(self, backbone: Any, packed: PackedActions) -> torch.Tensor:
        """The decoder's states before each token and after the last, [B, T + 1, d]."""
        ids = self._decoder_ids(packed.actions_BT)
        hidden_BUd = backbone.get_decoder()(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            encoder_hidden_states=self._encoded(backbone, packed),
            encoder_attention_mask=packed.inputs["attention_mask"][packed.input_B],
            use_cache=False,
        ).last_hidden_state[:, len(self.start_ids) - 1 :]
        # behind a sequence's end the state is that after its last token
        last_B = packed.mask_BT.sum(1, keepdim=True)
        places_BU = torch.arange(hidden_BUd.shape[1], device=last_B.device).expand(hidden_BUd.shape[:2])
        return hidden_BUd.take_along_dim(places_BU.minimum(last_B)[..., None], 1)

    def _encoded(self, model: Any, packed: PackedActions) -> torch.Tensor:
        """The encoder's states of each sequence's input, [B, L, d]; each input is encoded once."""
        return encode(model, **packed.inputs)[packed.input_B]

    def _decoder_ids(self, actions_BT: torch.Tensor) -> torch.Tensor:
        """What the decoder reads: what it starts with, and these actions."""
        starts = torch.tensor(self.start_ids, device=actions_BT.device).expand(len(actions_BT), -1)
        return torch.cat([starts, actions_BT], 1)


class Seq2SeqKind(PolicyKind):
    """Encoder-decoders that write a text to a text."""

    def demonstrations(self, args: Any) -> Encoder:
        """Token ids of the prompt in `input_ids` and of the completion, EOS included, in `labels`.

        `max_length` limits each of the two.
        """
        limit = args.max_length
        codec = Codec(self.tokenizer, limit, args.truncation_mode)

        def encode(record: Any) -> Encoded:
            if not isinstance(record, Demonstration):
                raise UserError(f"{record.origin}: an encoder-decoder learns from `prompt` and `completion`")
            ids, prompt_trimmed = self._source(record, codec)
            target = self._target(record)
            columns = {"input_ids": ids, "labels": target[:limit]}
            eos_lost = len(columns["labels"]) < len(target)
            return Encoded(columns, prompt_trimmed or eos_lost, eos_lost, prompt_trimmed)

        return Encoder(encode, {"max_length": limit, "keep": codec.keep})

    def _source(self, record: Demonstration | Prompt, codec: Codec) -> tuple[list[int], bool]:
        """Token ids of a prompt within the limit, the tokens that frame a text kept, and whether it was cut."""
        if not isinstance(record.prompt, str):
            raise UserError(f"{record.origin}: an encoder-decoder reads plain text, not messages")
        ids = codec.prompt(record.prompt)
        if not ids:
            raise Unusable("prompt without a token")
        if codec.max_length is None or len(ids) <= codec.max_length:
            return ids, False
        cutting = copy.deepcopy(self.tokenizer)
        cutting.truncation_side = "left" if codec.keep == "keep_end" else "right"
        return cutting(record.prompt, truncation=True, max_length=codec.max_length)["input_ids"], True

    def _target(self, record: Demonstration) -> list[int]:
        ids = list(self.tokenizer(text_target=record.completion)["input_ids"])
        eos = int(self.tokenizer.eos_token_id)
        return ids if eos in ids[-2:] else [*ids, eos]  # behind it some tokenizers name the language

    def supervised(self, model: PreTrainedModel, data: Prepared, args: Any) -> Supervised:
        """Cross-entropy of the completion's tokens, averaged over those of the whole optimizer step."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.padding_side = "right"  # the decoder's start must stand before the first token
        collator = DataCollatorForSeq2Seq(tokenizer, model)
        smoother = LabelSmoother(args.label_smoothing_factor)  # the models' own loss ignores accumulation

        def collate(rows: list[Mapping[str, Any]]) -> Mapping[str, Any]:
            return collator([{name: row[name] for name in ("input_ids", "labels")} for row in rows])

        def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
            return smoother(outputs, labels, num_items_in_batch=num_items_in_batch)

        return Supervised(collate, loss)

    def prompts(self, args: Any) -> Encoder:
        """Token ids of each prompt, cut to `max_length`."""
        limit = context_length(self.config) if args is None else args.max_length
        if args is not None:
            if args.sampler != "transformers":
                raise UserError(f"sampler: {args.sampler} samples causal language models only; leave it out")
            self._check_room(args.max_new_tokens, "max_new_tokens")
        codec = Codec(self.tokenizer, limit)

        def encode(record: Prompt) -> Encoded:
            ids, cut = self._source(record, codec)
            return Encoded({"input_ids": ids, "prompt": json.dumps(record.prompt)}, cut, prompt_trimmed=cut)

        return Encoder(encode, {"max_length": limit})

    def _check_room(self, max_new_tokens: int, where: str) -> None:
        positions = context_length(self.config)
        if positions is not None and max_new_tokens >= positions:
            raise UserError(f"{where}: {max_new_tokens} tokens are too many for a decoder of {positions} positions")

    def inputs(self, rows: Iterable[Mapping[str, Any]]) -> Sequence[SourceRow]:
        """Texts, with the other columns of their rows."""
        return [SourceRow(row["input_ids"], json.loads(row["prompt"]), json.loads(row["extra"])) for row in rows]

    def policy(self, roles: Roles, settings: Any, fold: bool = True) -> Seq2SeqPolicy:
        """The policy that online training optimises."""
        return Seq2SeqPolicy(
            roles, self.tokenizer, settings.max_new_tokens, settings.temperature, settings.sampling_batch_size
        )

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
        """Sample completions; of a prompt that is too long, the start is kept."""
        self._check_room(settings.max_new_tokens, "evaluate.max_new_tokens")
        roles = Roles(model, reference=None if reference is None else reference())
        policy = Seq2SeqPolicy(
            roles, self.tokenizer, settings.max_new_tokens, settings.temperature, settings.batch_size, label
        )
        samples = samples if settings.temperature > 0 else 1  # greedy completions of a prompt are all the same
        return answered(self, policy, prompts, samples=samples, seed=seed, batch_size=settings.batch_size, first=first)


KIND = Seq2SeqKind
