"""Which tokens a score rests on: a sequence classifier's decision, or a reward, shared out among the tokens it read.

Two measures, which need not agree: the gradient sees how the score would begin to change, leaving out sees how it does.
Axes: B sequences of a batch, T tokens, D features of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from rlhf.artifacts.open import OpenedModel
from rlhf.data.records import Encoded, Prompt, as_completion
from rlhf.evaluation.attributed import Attribution
from rlhf.evaluation.samples import Row
from rlhf.models.load import context_length, is_encoder
from rlhf.models.tasks import LABEL
from rlhf.policies.kinds import policy_kind
from rlhf.rewards.labels import log_odds
from rlhf.rewards.model import RewardModel, sequence_ids
from rlhf.rewards.text import SEPARATOR

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ScoreOf = Callable[[torch.Tensor], torch.Tensor]
"""Logits of a sequence classifier (B, C) -> the scores to share out (B)."""


def reward(logits_B1: torch.Tensor) -> torch.Tensor:
    """The score of a reward model, whose head has one output."""
    return logits_B1.squeeze(-1)


def label_score(label: int, multi_label: bool = False) -> ScoreOf:
    """The log odds of a class as the score: what speaks for this class against all others (`rewards.labels.log_odds`).

    A single logit would not do: what raises all logits alike decides nothing.
    """
    return lambda logits_BC: log_odds(logits_BC, label, multi_label)


def gradient_times_input(model: PreTrainedModel, ids: Sequence[int], score_of: ScoreOf = reward) -> list[float]:
    """The part of each token by the gradient: the sum over D of e_td * d score / d e_td, e_t its input embedding.

    What the embeddings of the tokens add to the score if it is taken to be linear in them (Shrikumar et al. 2016, "Not
    Just a Black Box"; for a score that is linear the parts add up to it, but for its constant). One forward and one
    backward pass.

    Args:
        model: A sequence classifier in evaluation mode.
        ids: The tokens of a sequence, T.
        score_of: What of its logits is shared out.

    Returns:
        T values in units of the score; above zero raises it.
    """
    seen: list[torch.Tensor] = []

    def replaced(module: torch.nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[0]

    handle = model.get_input_embeddings().register_forward_hook(replaced)
    try:
        with torch.enable_grad():
            score = score_of(_logits(model, [ids])).sum()
            (gradient,) = torch.autograd.grad(score, seen[0])
    finally:
        handle.remove()
    parts_T = (gradient.double() * seen[0].detach().double()).sum(-1)[0]
    return [float(part) for part in parts_T]


@torch.no_grad()
def leave_one_out(
    model: PreTrainedModel,
    ids: Sequence[int],
    score_of: ScoreOf = reward,
    mask_id: int | None = None,
    keep: Collection[int] = (),
    batch_size: int = 32,
) -> list[float]:
    """The part of each token by its absence: the score of the sequence less that of the sequence without the token.

    T + 1 forward passes, in batches.

    Args:
        model: A sequence classifier in evaluation mode.
        ids: The tokens of a sequence, T.
        score_of: What of its logits is shared out.
        mask_id: The token that stands for an unknown one, where the model has learned one (BERT): it takes the token's
            place, and the others stay in theirs. Without it the sequence is shorter by the token.
        keep: Tokens that are never left out, such as the one at which an encoder's head reads: their part is 0.
        batch_size: Sequences scored at once.

    Returns:
        T values in units of the score; above zero raises it.
    """
    places = [t for t, token in enumerate(ids) if token not in keep]
    without = [[*ids[:t], *([] if mask_id is None else [mask_id]), *ids[t + 1 :]] for t in places]
    rows = [list(ids), *without]
    scores = [
        float(score)
        for start in range(0, len(rows), batch_size)
        for score in score_of(_logits(model, rows[start : start + batch_size])).double()
    ]
    parts = dict(zip(places, (scores[0] - score for score in scores[1:]), strict=True))
    return [parts.get(t, 0.0) for t in range(len(ids))]


def attribution(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    score_of: ScoreOf,
    *,
    index: int,
    scorer: str,
    of: str,
    completion: str,
) -> Attribution:
    """Both measures of one sequence, as a line of `attributions.jsonl`; in an encoder the mask stands for a token.

    The special tokens that frame a text are not left out, since what a head reads there it reads nowhere else.

    Args:
        model: A sequence classifier in evaluation mode.
        tokenizer: Its tokenizer.
        ids: The tokens of the sequence.
        score_of: What of its logits is shared out.
        index: Line of samples.jsonl.
        scorer: The model's name.
        of: The policy whose completion it is.
        completion: The class that was decided for, or the completion that was scored.
    """
    mask_id = tokenizer.mask_token_id if is_encoder(model.config) else None
    frame = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    with torch.no_grad():
        score = float(score_of(_logits(model, [ids]))[0])
    return Attribution(
        index=index,
        scorer=scorer,
        of=of,
        completion=completion,
        score=score,
        tokens=token_texts(tokenizer, ids),
        leave_one_out=leave_one_out(model, ids, score_of, mask_id, frame),
        gradient_times_input=gradient_times_input(model, ids, score_of),
    )


def of_decisions(
    opened: OpenedModel,
    model: PreTrainedModel,
    policy: str,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    first: int = 0,
) -> list[Attribution]:
    """What the answers of a classifier rest on; nothing of another kind of policy, or of an image.

    Args:
        opened: The policy.
        model: The policy, loaded.
        policy: Its name.
        prompts: Rows of samples.jsonl, neighbours.
        answers: The class that it named for each; of several the first is explained.
        first: The line of the first.
    """
    if opened.task != LABEL:
        return []
    encode = policy_kind(opened).prompts(None).encode
    names, several = opened.classes
    model.eval()
    found = []
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), first):
        said = [name for name in names if name in answer.split(SEPARATOR)] if several else [answer]
        for name in said[:1]:
            encoded = encode(prompt)
            assert isinstance(encoded, Encoded)
            found.append(
                attribution(
                    model, opened.tokenizer, encoded.columns["input_ids"], label_score(names.index(name), several),
                    index=index, scorer=policy, of=policy, completion=name,
                )
            )  # fmt: skip
    return found


def of_reward_models(judges: Mapping[str, Any], rows: Sequence[Row], policy: str) -> list[Attribution]:
    """What the scores of a policy's first completions rest on, by every judge that is a reward model.

    Args:
        judges: By name; those that are no `RewardModel` are passed over.
        rows: Those to explain; a prompt without a completion is left out.
        policy: Whose completion.
    """
    found = []
    for name, judge in judges.items():
        if not isinstance(judge, RewardModel):
            continue
        limit = context_length(judge.model.config)
        several = judge.model.config.problem_type == "multi_label_classification"
        score_of = reward if judge.label is None else label_score(judge.label, several)
        for row in rows:
            for sample in row["replies"].get(policy, [])[:1]:
                completion = as_completion(row["prompt"], sample["text"])
                ids = sequence_ids(judge.codec, limit, row["prompt"], completion)
                found.append(
                    attribution(
                        judge.model, judge.tokenizer, ids, score_of,
                        index=row["index"], scorer=name, of=policy, completion=sample["text"],
                    )
                )  # fmt: skip
    return found


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text of a sequence, spaces included; the texts together are the whole text.

    A token that only begins a character of several bytes adds nothing, the one that ends it adds the character.
    """
    texts, done = [], ""
    for count in range(1, len(ids) + 1):
        text = str(tokenizer.decode(list(ids[:count]), skip_special_tokens=False))
        ready = text if count == len(ids) else text.rstrip("\ufffd")
        texts.append(ready[len(done) :])
        done = ready if len(ready) > len(done) else done
    return texts


def _logits(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits of a batch in float32, padded on the right."""
    place = next(model.parameters()).device
    pad = model.config.get_text_config().pad_token_id
    ids_BT = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad or 0)
    lengths_B = torch.tensor([len(row) for row in rows])
    mask_BT = (torch.arange(ids_BT.shape[1])[None] < lengths_B[:, None]).long()
    output = model(input_ids=ids_BT.to(place), attention_mask=mask_BT.to(place))
    logits: torch.Tensor = output.logits.float()
    return logits
