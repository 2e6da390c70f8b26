"""A reward model of any architecture, with its own tokenizer, as a reward function."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from rlhf.artifacts.open import open_model, recorded_quantization
from rlhf.config.project import ModelConfig
from rlhf.data.records import Text
from rlhf.data.tokenize import Codec
from rlhf.models.load import context_length
from rlhf.models.tasks import is_encoder
from rlhf.models.tokenizer import ends_in_eos
from rlhf.prefix_sharing.fold import fold, is_folded
from rlhf.prefix_sharing.support import why_not
from rlhf.rewards.labels import label_number, log_odds


class RewardModel:
    """Scores completions with an `AutoModelForSequenceClassification`.

    A single output is the score; of several outputs, the score is the log odds of `label`. Prompt and completion are
    rendered with the model's own template and tokenizer, so a BERT can judge a GPT. A reward model trained here reads
    an EOS after what its template gives, a model from elsewhere does not. An encoder that is a reward model reads plain
    prompt and completion as two segments, a classifier as one text. A sequence above the model's limit keeps its end,
    where the completion is, and the first token of an encoder, where its head reads.

    Args:
        name: A finished reward stage's folder, any folder of a reward model or classifier, or a hub id.
        batch_size: Sequences scored at once.
        label: Number or name of the label whose log odds are the score; None for a reward model.

    Raises:
        UserError: The model cannot be loaded, has no head, or has several labels and `label` is not one of them.
    """

    rowwise = True

    def __init__(self, name: str | Path, batch_size: int = 32, label: int | str | None = None) -> None:
        settings = ModelConfig(name_or_path=str(name), adapter=None, quantization=recorded_quantization(Path(name)))
        opened = open_model(settings)
        self.tokenizer = opened.tokenizer
        self.label = label_number(label, opened.label_names, str(name))
        self.model = opened.scorer().eval()
        ours = ends_in_eos(self.tokenizer) or opened.is_stage
        encoder = is_encoder(self.model.config)
        self.codec = Codec(self.tokenizer, encoder=encoder, eos=ours, segments=self.label is None)
        self.batch_size = batch_size

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """A score per completion, in the reward model's own units, or in nats for a label's log odds."""
        return score_texts(self.model, self.codec, prompts, completions, self.batch_size, self.label)


def score_texts(
    model: Any,
    codec: Codec,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    batch_size: int = 32,
    label: int | None = None,
) -> list[float | None]:
    """Scores of completions by a loaded sequence classifier, as `RewardModel` gives them.

    Args:
        model: The classifier. A sequence above its limit keeps its end, and an encoder's its first token.
        codec: Its tokenizer.
        prompts: Prompt of each completion; neighbours with the same prompt are scored together.
        completions: What is scored.
        batch_size: Sequences per batch.
        label: The class whose log odds are the score; None for a model with a single output.
    """
    limit = context_length(model.config)
    rows = [sequence_ids(codec, limit, *texts) for texts in zip(prompts, completions, strict=True)]
    each = itertools.groupby(range(len(rows)), key=lambda row: prompts[row])
    groups = [[rows[row] for row in members] for _, members in each]
    return list(itertools.chain(*score_groups(model, groups, batch_size, label)))


def sequence_ids(codec: Codec, limit: int | None, prompt: Text, completion: Text) -> list[int]:
    """Token ids of prompt and completion as a reward model reads them; above the limit the end, and an encoder's first.

    Args:
        codec: The model's tokenizer.
        limit: Most tokens it can read; None for any number.
        prompt: The prompt.
        completion: What is scored.
    """
    ids, _ = codec.sequence(prompt, completion)
    if not limit or len(ids) <= limit:
        return ids
    first = 1 if codec.encoder else 0
    return [*ids[:first], *ids[first - limit :]]


@torch.no_grad()
def score_groups(
    model: Any, groups: Sequence[Sequence[Sequence[int]]], batch_size: int = 32, label: int | None = None
) -> list[list[float]]:
    """Scores of token sequences by a sequence classifier; the common prefix of each group is computed once.

    Args:
        model: The classifier; its config names the pad token.
        groups: Token ids of the sequences of each group: completions of a prompt, or the sides of a pair.
        batch_size: Sequences per batch.
        label: The class whose log odds are the score; None for a model with a single output.
    """
    training = model.training
    model.eval()
    scores: list[list[float]] = [[] for _ in groups]
    for size in sorted({len(group) for group in groups} - {0}):
        numbers = [number for number, group in enumerate(groups) if len(group) == size]
        numbers.sort(key=lambda number: -max(map(len, groups[number])))
        share = size > 1 and not is_folded(model) and why_not(model, longest=0) is None
        with fold(model, size) if share else contextlib.nullcontext():
            for begin in range(0, len(numbers), step := max(1, batch_size // size)):
                chosen = numbers[begin : begin + step]
                batch = _scores(model, [groups[number][at] for at in range(size) for number in chosen], label)
                for at, number in enumerate(chosen):
                    scores[number] = batch[at :: len(chosen)]
    model.train(training)
    return scores


def _scores(model: Any, rows: Sequence[Sequence[int]], label: int | None) -> list[float]:
    """Scores of a batch."""
    device = next(model.parameters()).device
    pad = model.config.get_text_config().pad_token_id
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float()
    values = logits.squeeze(-1) if label is None else log_odds(logits, label, _multi_label(model))
    return list(values.tolist())


def _multi_label(model: Any) -> bool:
    """Whether several labels of a classifier can be true at once."""
    return model.config.problem_type == "multi_label_classification"
