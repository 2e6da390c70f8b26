"""From scores and divergences to the reward of each token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def token_rewards(
    scores_B: torch.Tensor,
    kl_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    kl_coef: float,
    cut_B: torch.Tensor,
    missing_eos_penalty: float,
    bootstrap: bool,
) -> torch.Tensor:
    """r_t = −β KL_t, and at the last token of a reply also its score.

    A reply that was cut loses `missing_eos_penalty` at its last token. Its score is that of a text without an end: with
    `bootstrap` it is left out, as the critic's value stands for what was still to come.

    Args:
        scores_B: Scores, [B]; NaN for a reply that has none.
        kl_BT: Estimate of each token's KL to the reference, nats, [B, T].
        mask_BT: Bool, true at the tokens of replies that take part, from the start of a row.
        kl_coef: β, units of the score a nat.
        cut_B: Bool, [B]: the reply ended at the limit.
        missing_eos_penalty: In units of the score.
        bootstrap: Whether a cut reply is worth what the critic expects, instead of its score.

    Returns:
        [B, T], 0 where the mask is false.

    Source: KL in the reward, score at the end: Ziegler et al. (2019), section 2.1; the penalty: Huang et al., "The N+
    Implementation Details of RLHF with PPO" (2024), detail 6.
    """
    rewards_BT = (-kl_coef * kl_BT.float()).masked_fill(~mask_BT, 0.0)
    at_end_B = torch.where(cut_B & bootstrap, 0.0, scores_B.float()) - missing_eos_penalty * cut_B.float()
    rows = mask_BT.any(1)
    last_B = mask_BT.sum(1) - 1
    rewards_BT[rows, last_B[rows]] += at_end_B[rows]
    return rewards_BT


def alike(scores_PS: torch.Tensor) -> torch.Tensor:
    """Which groups of replies have but one score, [P]: where replies to a prompt are compared, they teach nothing.

    Args:
        scores_PS: Scores, NaN for a reply that has none.
    """
    highest, lowest = (scores_PS.masked_fill(scores_PS.isnan(), filling) for filling in (-math.inf, math.inf))
    return ~(highest.amax(1) > lowest.amin(1))


ROUNDING, GROSS = 2e-3, 2e-2
"""Distance, nats a token, between log-probabilities that should be the same: above the first it is told, above the
second the run ends. Float32 leaves 1e-5; a wrong mask, 0.1 and more."""


def disagreement(what: str, distance: float, model: str, shared: bool) -> str | None:
    """What it means that log-probabilities differ that should be the same.

    Args:
        what: Which.
        distance: How far apart they are, nats a token.
        model: The policy's class.
        shared: Whether replies share rows.

    Returns:
        A sentence with the number, or None where it is rounding.
    """
    if not distance > ROUNDING:
        return None
    cause = "it computes other numbers where replies share a row (set fold: false)"
    if not shared:
        cause = "token by token and as a whole it computes other numbers"
    return (
        f"{what} by {distance:.2g} nats a token, where it must be 0: either {model} is at fault, as {cause}, or its "
        "adapter changes it before it is trained"
    )


def hacking_signs(history: list[dict[str, float]], window: int = 5) -> str | None:
    """Whether scores rise together with lengths and KL, which is what reward hacking looks like from outside.

    Compared are the means of the first and the last `window` rollouts: the score rose, replies became longer by half
    or more, and KL is above 10 nats a reply.

    Args:
        history: For each rollout `scores`, `length` (tokens) and `kl` (nats a reply).
        window: Rollouts on each side; with fewer than twice as many nothing is said.

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
    """What the last rollout said, for the stage's record; nothing where none was logged.

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
