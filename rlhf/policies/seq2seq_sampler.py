"""Samples from encoder-decoders: each input is encoded once, finished completions leave the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from rlhf.errors import UserError
from rlhf.policies import cache as caches
from rlhf.policies.sampler import TransformersSampler, pad_right


@dataclass(frozen=True, kw_only=True)
class Seq2SeqSampler(TransformersSampler):
    """Samples from an encoder-decoder: each input is encoded once, whatever is sampled to it."""

    start_ids: Sequence[int]
    """What the decoder starts with."""

    def _prefill(
        self, prompts: Sequence[Sequence[int]], samples: int
    ) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
        """What is kept of the inputs, repeated for each sample; logits of the first token [B, V]; their lengths [B]."""
        width, device = max(map(len, prompts)), self.model.device
        states = [encode(self.model, *pad_right(part, self.pad_id, device)) for part in self._parts(prompts)]
        states_PLd = torch.cat([torch.nn.functional.pad(part, (0, 0, 0, width - part.shape[1])) for part in states])
        lengths_P = torch.tensor([len(prompt) for prompt in prompts], device=device)
        starts = torch.tensor([list(self.start_ids)] * len(prompts), device=device)
        logits_PV, cache = self._decode(starts, states_PLd, lengths_P, None)
        rows_B = torch.arange(len(prompts), device=device).repeat_interleave(samples)
        own, cross = cache.self_attention_cache, cache.cross_attention_cache
        cache = EncoderDecoderCache(
            caches.join([own], rows_B, self.max_new_tokens), caches.join([cross], rows_B, room=0)
        )
        return {"cache": cache, "states_BLd": states_PLd[rows_B]}, logits_PV[rows_B], lengths_P[rows_B]

    def _thin_out(self, kept: dict[str, Any], rows: torch.Tensor) -> None:
        kept["cache"].reorder_cache(rows)
        kept["states_BLd"] = kept["states_BLd"][rows]

    def _step(
        self, kept: dict[str, Any], tokens_B: torch.Tensor, lengths_B: torch.Tensor, width: int, step: int
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        logits_BV, _ = self._decode(tokens_B[:, None], kept["states_BLd"], lengths_B, kept["cache"])
        return logits_BV, kept

    def _decode(
        self, ids: torch.Tensor, states_BLd: torch.Tensor, lengths_B: torch.Tensor, cache: EncoderDecoderCache | None
    ) -> tuple[torch.Tensor, EncoderDecoderCache]:
        """Logits after the last of these tokens, [B, V], and the cache with them."""
        places_L = torch.arange(states_BLd.shape[1], device=states_BLd.device)
        written = ids.shape[1] + (0 if cache is None else cache.get_seq_length())
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states_BLd),
            attention_mask=(places_L < lengths_B[:, None]).long(),
            decoder_input_ids=ids,
            decoder_attention_mask=ids.new_ones(len(ids), written),
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits[:, -1], output.past_key_values


def encode(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The encoder's states, [P, L, d]."""
    return model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def start_ids(model: PreTrainedModel) -> list[int]:
    """The tokens that a decoder starts with, before it writes any.

    Raises:
        UserError: The model's files do not say.
    """
    settings = model.generation_config
    start = getattr(settings, "decoder_start_token_id", None)
    start = getattr(model.config, "decoder_start_token_id", None) if start is None else start
    if start is None:
        name = model.config.name_or_path or type(model).__name__
        raise UserError(f"{name}: its config does not say what the decoder starts with: add decoder_start_token_id")
    forced = getattr(settings, "forced_bos_token_id", None)
    return [start] if forced is None else [start, forced]
