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
from rlhf.rewards.labels import label_names, label_number, log_odds


class RewardModel:
    """Scores replies with an `AutoModelForSequenceClassification`.

    One output is the score; of several, the log odds of `label` are. The text, prompt and reply, is rendered with the
    model's own template and tokenizer, so a BERT can judge a GPT. A sequence above its limit keeps its end: that is
    where the reply is.

    Args:
        name: A finished reward stage's folder, any folder of a reward model or classifier, or a hub id.
        batch_size: Sequences scored at once.
        label: Number or name of the label that is wanted of a classifier with several; None for a reward model.

    Raises:
        UserError: The model cannot be loaded, has no head, or has several labels of which `label` is none.
    """

    def __init__(self, name: str | Path, batch_size: int = 32, label: int | str | None = None) -> None:
        config = ModelConfig(name_or_path=str(name), adapter=None)
        source = source_of(config)
        self.tokenizer = load_tokenizer(config)
        names = label_names(source)
        self.label = label_number(label, names, str(name))
        self.model = load_scorer(source, config, self.tokenizer, labels=len(names)).model.eval()
        probe.check_folder(self.model, Path(name))
        self.model.to(device())
        self.codec = Codec(self.tokenizer, encoder=is_encoder(self.model.config))
        self.limit = context_length(self.model.config)
        self.batch_size = batch_size

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """One score a reply, in the reward model's own units, or in nats where it is a label's log odds."""
        rows = [self.codec.sequence(prompt, reply)[0] for prompt, reply in zip(prompts, completions, strict=True)]
        rows = [row[-self.limit :] if self.limit else row for row in rows]
        return list(score_sequences(self.model, rows, self.batch_size, self.label))


@torch.no_grad()
def score_sequences(
    model: Any, rows: Sequence[Sequence[int]], batch_size: int = 32, label: int | None = None
) -> list[float]:
    """Scores of token sequences from a sequence classifier, longest first so that batches pad little.

    Args:
        model: The classifier; its config names the pad token.
        rows: Token ids of each sequence.
        batch_size: Sequences a batch.
        label: The class whose log odds are the score; None for a model with one output, which is the score.
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
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float()
        values = logits.squeeze(-1) if label is None else log_odds(logits, label, _multi_label(model))
        for index, score in zip(chosen, values.tolist(), strict=True):
            scores[index] = score
    model.train(training)
    return scores


def _multi_label(model: Any) -> bool:
    """Whether a classifier's labels do not exclude one another."""
    return model.config.problem_type == "multi_label_classification"
