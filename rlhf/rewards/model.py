"""A reward model of any architecture, with its own tokenizer, as a reward function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from rlhf.config import ModelConfig
from rlhf.data.records import Text
from rlhf.data.tokenize import Codec
from rlhf.models import probe
from rlhf.models.device import device
from rlhf.models.load import context_length, is_encoder, load_scorer, source_of
from rlhf.models.tokenizer import load_tokenizer


class RewardModel:
    """Scores replies with an `AutoModelForSequenceClassification` that has one label.

    The text is rendered with the reward model's own template and tokenizer, so a BERT can judge a GPT. A sequence above
    its limit keeps its end: that is where the reply is.

    Args:
        name: A finished reward stage's folder, any folder of a reward model, or a hub id.
        batch_size: Sequences scored at once.

    Raises:
        UserError: The model cannot be loaded or has no head with one output.
    """

    def __init__(self, name: str | Path, batch_size: int = 32) -> None:
        config = ModelConfig(name_or_path=str(name), adapter=None)
        source = source_of(config)
        self.tokenizer = load_tokenizer(config)
        self.model = load_scorer(source, config, self.tokenizer).model.eval()
        probe.check_folder(self.model, Path(name))
        self.model.to(device())
        self.codec = Codec(self.tokenizer, encoder=is_encoder(self.model.config))
        self.limit = context_length(self.model.config)
        self.batch_size = batch_size

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """One score a reply, in the reward model's own units."""
        rows = [self.codec.sequence(prompt, reply)[0] for prompt, reply in zip(prompts, completions, strict=True)]
        return list(
            score_sequences(self.model, [row[-self.limit :] if self.limit else row for row in rows], self.batch_size)
        )


@torch.no_grad()
def score_sequences(model: Any, rows: Sequence[Sequence[int]], batch_size: int = 32) -> list[float]:
    """Scores of token sequences from a one-label sequence classifier, longest first so that batches pad little.

    Args:
        model: The classifier; its config names the pad token.
        rows: Token ids of each sequence.
        batch_size: Sequences a batch.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    pad = model.config.get_text_config().pad_token_id
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    scores = [0.0] * len(rows)
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        ids = pad_sequence([torch.tensor(rows[index]) for index in chosen], batch_first=True, padding_value=pad)
        lengths = torch.tensor([len(rows[index]) for index in chosen])
        mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float().squeeze(-1)
        for index, score in zip(chosen, logits.tolist(), strict=True):
            scores[index] = score
    model.train(training)
    return scores
