"""What the gate measures: a reward model on held-out pairs, beside a ruler and chance."""

from __future__ import annotations

import gc
import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.config.project import ProjectConfig
from rlhf.data.checks import none_held_out
from rlhf.data.prepare import evaluation_prompts, iter_records
from rlhf.data.records import Preference, Text
from rlhf.data.splits import canonical, content_key
from rlhf.errors import UserError
from rlhf.evaluation.calibration import accuracy_by_length, calibration_curve, expected_calibration_error
from rlhf.evaluation.completions import fitted, load, replies_to
from rlhf.evaluation.reward_model import effective_pairs, length_baseline, share_interval, wins
from rlhf.evaluation.stats import Floats
from rlhf.policies.completion import as_completion
from rlhf.rewards import RewardFunction
from rlhf.rewards.text import completion_text

PAIRS = 2000
"""Most held-out pairs scored: at this many the interval is 4 points wide at most."""
_PROMPTS = 64
"""Prompts that the policy replies to, and pairs on which invariance is tried."""
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BINS = 24


@dataclass(frozen=True)
class Pairs:
    """Held-out pairs, and what a ruler says of all."""

    records: list[Preference]
    length_M: Floats
    """Characters of the chosen less those of the rejected reply, held-out pairs."""
    train_length_N: Floats
    """The same of the training pairs: they decide whether the ruler prefers long or short."""

    @property
    def prompts(self) -> list[Text]:
        """Prompt of each."""
        return [one.prompt for one in self.records]


def held_out_pairs(project: ProjectConfig) -> Pairs:
    """The held-out preference pairs; of more than `PAIRS` a fixed choice, whatever their order.

    Raises:
        UserError: There is none.
    """
    chosen: list[tuple[int, int, Preference]] = []  # a heap: what hashes highest goes first
    train: list[int] = []
    for number, (record, side) in enumerate(iter_records(project, "preferences")):
        assert isinstance(record, Preference)
        if side == "train":
            train.append(_length(record))
            continue
        heapq.heappush(chosen, (-_place(record), number, record))
        if len(chosen) > PAIRS:
            heapq.heappop(chosen)
    if not chosen:
        raise no_pairs(project, len(train))
    records = [record for _, _, record in sorted(chosen, key=lambda entry: entry[1])]
    return Pairs(records, np.array([_length(one) for one in records], float), np.array(train, float))


def score_pairs(judge: RewardFunction, pairs: Sequence[Preference]) -> Floats:
    """Scores of the chosen and the rejected reply, array (M, 2); the two of a pair are scored together."""
    prompts = [one.prompt for one in pairs for _ in range(2)]
    replies = [reply for one in pairs for reply in (one.chosen, one.rejected)]
    return np.array(judge(prompts, replies), dtype=float).reshape(-1, 2)


def full_examination(
    judge: RewardFunction, pairs: Pairs, prompts: Sequence[Text], replies: Sequence[Text]
) -> tuple[dict[str, Any], Floats]:
    """What `examine`, `invariance` and `distribution` say of a reward model.

    Args:
        judge: The reward model.
        pairs: Held-out pairs.
        prompts: Prompts.
        replies: A reply of the policy to each, scored beside the pairs.

    Returns:
        Those findings, `invariance` and `scores` among them; and the margin of each pair.
    """
    scores_M2 = score_pairs(judge, pairs.records)
    found = examine(scores_M2, pairs)
    known = scores_M2[np.isfinite(scores_M2)]
    spread = float(known.std()) if len(known) else 0.0
    found["invariance"] = invariance(judge, pairs.records[:_PROMPTS], spread)
    policy_N = np.array(judge(prompts, replies), dtype=float)
    found["scores"] = distribution({"chosen": scores_M2[:, 0], "rejected": scores_M2[:, 1], "policy": policy_N})
    return found, _margins(scores_M2)


def examine(scores_M2: Floats, pairs: Pairs) -> dict[str, Any]:
    """How good a reward model is on held-out pairs.

    Args:
        scores_M2: Scores of chosen and rejected; a tie counts one half, and so does a pair without both scores.
        pairs: The pairs.

    Returns:
        `n`, `prompts` (different ones), `n_effective` (independent pairs that these count as), `unscored` (replies
        without a finite score, of 2 n), `accuracy`, `accuracy_ci` (95%, pairs of a prompt kept together),
        `length_baseline` (a ruler by characters, its direction learned on the training pairs) with its interval,
        `prefers_longer` (share of the pairs of different lengths), `ece` and `calibration` of sigmoid(margin),
        `by_length`: accuracy in buckets of the length difference.
    """
    margins_M = _margins(scores_M2)
    prompts = [canonical(one) for one in pairs.prompts]
    right_M = wins(margins_M)
    train_N = pairs.train_length_N if len(pairs.train_length_N) else pairs.length_M
    ruler_M = length_baseline(train_N, pairs.length_M)
    differ_M = pairs.length_M != 0
    longer = float(wins((margins_M * np.sign(pairs.length_M))[differ_M]).mean()) if differ_M.any() else None
    return {
        "n": len(margins_M),
        "prompts": len(set(prompts)),
        "n_effective": effective_pairs(right_M, prompts),
        "unscored": int((~np.isfinite(scores_M2)).sum()),
        "accuracy": float(right_M.mean()),
        "accuracy_ci": list(share_interval(right_M, prompts)),
        "length_baseline": float(ruler_M.mean()),
        "length_baseline_ci": list(share_interval(ruler_M, prompts)),
        "prefers_longer": longer,
        "ece": expected_calibration_error(margins_M),
        "calibration": calibration_curve(margins_M),
        "by_length": accuracy_by_length(margins_M, pairs.length_M),
    }


def invariance(judge: RewardFunction, pairs: Sequence[Preference], std: float) -> dict[str, float | None]:
    """How far a score moves with what should not matter, in standard deviations of the scores.

    Args:
        judge: The reward model.
        pairs: Pairs to try it on.
        std: Standard deviation of its scores.

    Returns:
        `batch`: largest change between all replies scored together, padded to the longest, and each by itself; None
        where none has a score, or one has it in one of the two only.
        `eos`: mean change when the reply's text already ends in the end token; None where there is no such token, or no
        score.
    """
    prompts = [one.prompt for one in pairs]
    replies = [one.chosen for one in pairs]
    together_M = np.array(judge(prompts, replies), dtype=float)
    alone_M = np.array([judge([prompt], [reply])[0] for prompt, reply in zip(prompts, replies, strict=True)], float)
    scale = std or 1.0
    end = _end_token(judge)
    ended = None
    if end is not None:
        ended_M = np.array(judge(prompts, [_with_end(reply, end) for reply in replies]), dtype=float)
        moved_M = np.abs(ended_M - together_M)
        moved_M = moved_M[np.isfinite(moved_M)]
        ended = float(moved_M.mean() / scale) if len(moved_M) else None
    known_M = np.isfinite(together_M)
    comparable = known_M.any() and (known_M == np.isfinite(alone_M)).all()
    batch = float(np.abs(together_M - alone_M)[known_M].max() / scale) if comparable else None
    return {"batch": batch, "eos": ended}


def distribution(scores: Mapping[str, Floats]) -> dict[str, Any]:
    """Mean, standard deviation, quantiles and a histogram over common edges of several sets of scores."""
    known = {name: values[np.isfinite(values)] for name, values in scores.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(known.values())), bins=_BINS)
    sets = {
        name: {
            "n": len(values),
            "mean": float(values.mean()),
            "std": float(values.std()),
            "quantiles": [float(one) for one in np.quantile(values, _QUANTILES)],
            "counts": [int(one) for one in np.histogram(values, bins=edges)[0]],
        }
        for name, values in known.items()
        if len(values)
    }
    return {"edges": [float(edge) for edge in edges], "quantiles": list(_QUANTILES), **sets}


def policy_replies(
    project: ProjectConfig, policy: str, folder: Path | None, stage: str | None
) -> tuple[list[Text], list[Text]]:
    """Held-out prompts, and a reply to each by the policy that training will start from.

    Args:
        project: The project.
        policy: Its name.
        folder: Its folder; None for a base model.
        stage: The stage whose settings load it.
    """
    prompts = [one.prompt for one in evaluation_prompts(project, _PROMPTS)]
    model, codec = load(project, folder, stage)
    ids, _ = fitted(model, codec, prompts, project.evaluate.max_new_tokens)
    replies = replies_to(project, model, codec, ids, 1, policy)
    del model
    gc.collect()
    return prompts, [as_completion(prompt, row[0].text) for prompt, row in zip(prompts, replies, strict=True)]


def write_pairs(folder: Path, pairs: Pairs, margins: Mapping[str, Floats]) -> None:
    """Each pair with every model's margin, what has no score and what is most wrong first: that is where to look."""
    least_M = np.min([*margins.values()], axis=0)
    worst = np.argsort(np.where(np.isnan(least_M), -np.inf, least_M), kind="stable")
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for place in worst:
            record = pairs.records[place]
            row = {
                "origin": record.origin,
                "margins": {
                    name: None if np.isnan(values[place]) else round(float(values[place]), 6)
                    for name, values in margins.items()
                },
                "length_difference": int(pairs.length_M[place]),
                "prompt": record.prompt, "chosen": record.chosen, "rejected": record.rejected,
            }  # fmt: skip
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _margins(scores_M2: Floats) -> Floats:
    """Scores of the chosen less those of the rejected; NaN where one is not finite."""
    known_M2 = np.where(np.isfinite(scores_M2), scores_M2, np.nan)
    return known_M2[:, 0] - known_M2[:, 1]


def no_pairs(project: ProjectConfig, rows: int) -> UserError:
    """What is said where no pair of so many rows is held out."""
    return UserError(
        f"{project.path}: no pair to judge the reward model by: {none_held_out('preferences', rows, project.holdout)}; "
        "give a larger holdout or more rows"
    )


def _length(record: Preference) -> int:
    return len(completion_text(record.chosen)) - len(completion_text(record.rejected))


def _place(record: Preference) -> int:
    """A number that follows from the content alone."""
    return int.from_bytes(content_key(record.prompt, record.chosen), "big")


def _end_token(judge: Any) -> str | None:
    """The end token of a reward model, of an ensemble its first's; None of a function."""
    judge = getattr(judge, "models", [judge])[0]
    return getattr(getattr(judge, "tokenizer", None), "eos_token", None)


def _with_end(reply: Text, end: str) -> Text:
    if isinstance(reply, str):
        return reply + end
    return [*reply[:-1], {**reply[-1], "content": reply[-1]["content"] + end}]
