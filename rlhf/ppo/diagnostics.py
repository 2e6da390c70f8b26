"""What a rollout says about the run: its metrics, some completions to read, and signs of trouble."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from rlhf.objectives.kl import k1
from rlhf.objectives.masking import Reduce, masked_mean, masked_moments, masked_sum
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.rollout import Collected


def rollout_metrics(*, collected: Collected, names: Sequence[str], kl_coef: float, reduce: Reduce) -> dict[str, float]:
    """Means over the completions of all processes; every process must call in step.

    Args:
        collected: The rollout.
        names: Of the rewards, in order.
        kl_coef: β it was collected with.
        reduce: Sums a tensor over all processes.

    Returns:
        Those of the numbers that are finite, under the names that docs/ppo.md lists.
    """
    rollout, sampled, scores_B = collected.rollout, collected.sampled, collected.scores_B
    scored_B = ~scores_B.isnan()
    every_B, drawn_B = torch.ones_like(scored_B), collected.drawn_B
    _, variance = masked_moments(scores_B, scored_B, reduce)
    metrics = {
        "objective/kl": _mean(reduce, sequence_kl(collected) * drawn_B, every_B),
        "objective/scores": _mean(reduce, scores_B * drawn_B, scored_B),
        "objective/scores_std": variance.sqrt().item(),
        "objective/rlhf_reward": _mean(reduce, collected.paid_B * drawn_B, scored_B),
        "response/length": _mean(reduce, sampled.written_BT.sum(1), every_B),
        "response/eos_share": _mean(reduce, (~sampled.cut_B).float(), every_B),
        "response/scored_share": _mean(reduce, scored_B.float(), every_B),
    }
    if sampled.entropies_BT is not None:
        metrics["policy/entropy"] = _mean(reduce, sampled.entropies_BT, sampled.written_BT)
    for name, column_B in zip(names, collected.scores_BK.T, strict=True):
        metrics[f"reward/{name}"] = _mean(reduce, column_B * drawn_B, ~column_B.isnan())
    if rollout.values_BT is not None:
        mask_BT = rollout.mask_BT
        _, unexplained = masked_moments(rollout.returns_BT - rollout.values_BT, mask_BT, reduce)
        _, total = masked_moments(rollout.returns_BT, mask_BT, reduce)
        metrics["value/explained_variance"] = (1 - unexplained / total).item() if total > 0 else math.nan
        metrics["value/mean"] = _mean(reduce, rollout.values_BT, mask_BT)
    metrics["objective/kl_coef"] = kl_coef
    if rollout.samples > 1:
        equal_P = equal_score_groups(scores_B.view(-1, rollout.samples))
        metrics["objective/alike"] = _mean(reduce, equal_P.float(), torch.ones_like(equal_P))
    if rollout.weights_BT is not None and bool((drawn_B == 1).all()):
        metrics["sampler/gap"] = _mean(reduce, (rollout.log_probs_BT - sampled.log_probs_BT).abs(), sampled.written_BT)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def reference_distance(*, collected: Collected, reduce: Reduce) -> float:
    """Mean |log π − log π_ref| of a token over all processes, nats: 0 while the policy is its reference."""
    gaps_BT = (collected.rollout.log_probs_BT - collected.reference_BT).abs()
    return _mean(reduce, gaps_BT, collected.sampled.written_BT)


def _mean(reduce: Reduce, values: torch.Tensor, mask: torch.Tensor) -> float:
    """Masked mean over all processes."""
    count = reduce(mask.sum().double())
    return masked_mean(reduce(masked_sum(values.double(), mask)), torch.tensor(True), count).item()


def sequence_kl(collected: Collected) -> torch.Tensor:
    """The k1 estimate of each completion's KL to the reference, nats/completion, [B]."""
    return (k1(collected.rollout.log_probs_BT, collected.reference_BT) * collected.sampled.written_BT).sum(1)


def sample_rows(*, collected: Collected, names: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The first completions with their scores, for reading.

    Args:
        collected: The rollout.
        names: Of the rewards, in order.
        count: At most so many.
    """
    scores_B, kl_B = collected.scores_B, sequence_kl(collected)
    return [
        {
            "prompt": collected.rollout.inputs[row // collected.rollout.samples].prompt,
            "completion": completion.text,
            "tokens": len(completion.ids),
            "finished": completion.finished,
            "rewards": dict(zip(names, map(_number, collected.scores_BK[row].tolist()), strict=True)),
            "score": _number(scores_B[row].item()),
            "kl": kl_B[row].item(),
        }
        for row, completion in enumerate(collected.completions[:count])
    ]


def _number(score: float) -> float | None:
    return None if math.isnan(score) else score


def equal_score_groups(scores_PS: torch.Tensor) -> torch.Tensor:
    """Which groups of completions have only one score, [P]: an estimator that compares them learns nothing there.

    Args:
        scores_PS: Scores, NaN for a completion that has none.
    """
    highest, lowest = (scores_PS.masked_fill(scores_PS.isnan(), filling) for filling in (-math.inf, math.inf))
    return ~(highest.amax(1) > lowest.amin(1))


ROUNDING, MAX_DISTANCE = 2e-3, 2e-2
"""Distance, nats a token, between log-probabilities that should be the same: above the first there is a warning, above
the second the run ends. Float32 leaves 1e-5; a wrong mask, 0.1 and more."""


LARGE_GAP = 0.1
"""Mean distance, nats a token, of another engine's log-probabilities from the trainer's, above which there is a
warning: bfloat16 leaves about 0.01, other weights 1 and more."""


def disagreement(what: str, distance: float, mismatch_hint: str) -> str | None:
    """What it means that log-probabilities differ that should be the same.

    Args:
        what: Which.
        distance: How far apart they are, nats a token.
        mismatch_hint: What may be at fault (`Policy.mismatch_hint`).

    Returns:
        A sentence with the number, or None where it is rounding.
    """
    if not distance > ROUNDING:
        return None
    return (
        f"{what} by {distance:.2g} nats a token, where it must be 0: either {mismatch_hint}, or its adapter changes it "
        "before it is trained"
    )


def signs_of_trouble(
    metrics: Mapping[str, float], args: PPOConfig, rollout: int, history: list[dict[str, float]]
) -> Iterator[tuple[str, str]]:
    """What a rollout's metrics say in plain words where something is wrong: the kind of trouble, and a sentence.

    Args:
        metrics: Of the rollout (`rollout_metrics`).
        args: Settings of the training.
        rollout: Its number, from 0.
        history: As `hacking_signs` has it.
    """
    cut = 1 - metrics["response/eos_share"]
    if metrics["objective/kl"] < -1:
        yield (
            "kl",
            (
                f"the mean KL of rollout {rollout} is {metrics['objective/kl']:.2f} nats a reply: below 0 by more than "
                "chance, the log-probabilities of sampling and of training differ"
            ),
        )
    if rollout == 0 and cut > 0.5 and args.bootstraps:
        yield (
            "cut",
            (
                f"{cut:.0%} of the replies hit max_new_tokens ({args.max_new_tokens}) and get no score of their own: "
                "raise it, or set truncated: score"
            ),
        )
    if metrics.get("objective/alike") == 1 and args.estimator.min_group > 1:
        yield (
            "alike",
            (
                f"in rollout {rollout} all replies to a prompt have the same score, for every prompt: there is nothing "
                "to learn from; raise samples_per_prompt or temperature, or use a reward that tells them apart"
            ),
        )
    if (gap := metrics.get("sampler/gap", 0.0)) > LARGE_GAP:
        yield (
            "gap",
            (
                f"in rollout {rollout} the sampler's log-probabilities are {gap:.2g} nats a token off the trainer's: "
                "does it have the same weights, and in which precision? Little is learned from such replies"
            ),
        )
    if metrics["response/scored_share"] < 0.5:
        yield "unscored", f"only {metrics['response/scored_share']:.0%} of the replies could be scored"
    if signs := hacking_signs(history):
        yield "hacking", signs


def hacking_signs(history: list[dict[str, float]], window: int = 5) -> str | None:
    """Whether scores rise together with lengths and KL, which is what reward hacking looks like from outside.

    It compares the means of the first and the last `window` rollouts. The signs are that the score rose, completions
    became longer by half or more, and KL is above 10 nats a completion.

    Args:
        history: For each rollout `scores`, `length` (tokens) and `kl` (nats a completion).
        window: Rollouts on each side; with fewer than twice as many there is no answer.

    Returns:
        A sentence with the numbers, or None.

    Source: Zheng et al., "Secrets of RLHF in Large Language Models Part I: PPO" (2023), section 5.
    """
    if len(history) < 2 * window:
        return None
    first, last = (
        {key: sum(row[key] for row in part) / window for key in ("scores", "length", "kl")}
        for part in (history[:window], history[-window:])
    )
    if last["scores"] > first["scores"] and last["length"] >= 1.5 * first["length"] and last["kl"] > 10:
        return (
            f"signs of reward hacking: the score rose from {first['scores']:.2f} to {last['scores']:.2f} while replies "
            f"grew from {first['length']:.0f} to {last['length']:.0f} tokens and KL is {last['kl']:.0f} nats a reply; "
            "read some replies in rollouts.jsonl, raise kl_coef or add a reward for length"
        )
    return None


def last_rollout(log: Sequence[Mapping[str, Any]], history: list[dict[str, float]]) -> dict[str, Any]:
    """Numbers of the last rollout, for the stage's manifest; nothing where no rollout was logged.

    Args:
        log: The trainer's logged rows.
        history: As for `hacking_signs`.
    """
    rows = [row for row in log if "objective/scores" in row]
    if not rows:
        return {}
    names = ("objective/scores", "objective/kl", "response/length", "response/eos_share", "episodes")
    return {
        **{name.rpartition("/")[2]: rows[-1][name] for name in names},
        "scores_first": rows[0]["objective/scores"],
        "rollouts": len(history),
        "warning": hacking_signs(history),
    }
