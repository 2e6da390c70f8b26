"""Rows and whole reports by hand, from which every kind of sentence follows."""

from __future__ import annotations

from typing import Any

from rlhf.report.schema import Report

COMPARISON: dict[str, Any] = {
    "policy": "dpo", "baseline": "sft", "judge": "helpful", "policy_mean": 0.72, "baseline_mean": 0.6,
    "mean_difference": 0.12, "difference_ci": [0.09, 0.15], "win_rate": 0.714, "win_rate_ci": [0.66, 0.75],
    "win_rate_length_controlled": 0.7, "win_rate_length_controlled_ci": [0.64, 0.75], "p_value": 0.001,
    "p_adjusted": 0.004, "n_comparisons": 12, "kl": 8.12, "mean_length": 30.0, "baseline_mean_length": 29.0, "n": 200,
    "left_out": 0, "verdict": "better", "corrected": False, "doubted": False,
}  # fmt: skip
SEEDS: dict[str, Any] = {
    "policy": "dpo", "baseline": "sft", "judge": "helpful", "n_seeds": 3, "mean": 0.5, "std": 0.3, "min": 0.2,
    "max": 0.8, "ci": [0.1, 0.9], "win_rate": 0.62, "n": 200, "p_value": 0.01, "p_adjusted": 0.02, "n_comparisons": 12,
    "verdict": "better", "corrected": False, "doubted": False,
}  # fmt: skip
GATE: dict[str, Any] = {
    "passed": True, "accuracy": 0.7, "accuracy_ci": [0.6, 0.8], "length_baseline": 0.55, "n": 350, "prompts": 350,
    "length_baseline_ci": [0.5, 0.6], "reasons": [], "notes": [],
}  # fmt: skip
SHUT: dict[str, Any] = {**GATE, "passed": False, "reasons": ["it ranks too few rightly"]}
REWARD: dict[str, Any] = {
    "accuracy": 0.7, "accuracy_ci": [0.6, 0.8], "length_baseline": 0.55, "length_baseline_ci": [0.5, 0.6], "n": 350,
}  # fmt: skip
JUDGE: dict[str, Any] = {"position_bias": 0.3, "both_orders": 1000, "unjudged": 2, "pairs": 1002}
ROWS = {"read": 100, "trained": 60, "evaluated": 10, "dropped": {"empty side": 15, "duplicate": 25, "identical": 0}}
LABELS = {"sft": "SFT", "reward": "Reward model", "dpo": "DPO", "gate": "Gate", "ppo": "PPO"}
LEAVES = {"reward": "scorer", "gold_reward": "scorer", "gate": "verdict"}


def comparison(**changes: Any) -> dict[str, Any]:
    return {**COMPARISON, **changes}


def retained(policy: str, baseline: str, verdict: str, **changes: Any) -> dict[str, Any]:
    """A comparison on the set `general`, by log-likelihood."""
    row = {"policy": policy, "baseline": baseline, "judge": "general", "measure": "log-likelihood", "verdict": verdict,
           "baseline_mean": -2.1, "policy_mean": -2.6, "mean_difference": -0.5,
           "difference_ci": [-0.55, -0.45]}  # fmt: skip
    return {**COMPARISON, **row, **changes}


def policy(name: str, **changes: Any) -> dict[str, Any]:
    """An entry of `policies`."""
    nothing = {"mean": None, "ci": None, "n": 0}
    fields = ("length", "finished", "kl", "distinct_1", "distinct_2", "repetition")
    return {"policy": name, "scores": {}, "kl_reference": None, **dict.fromkeys(fields, nothing), **changes}


def report(**changes: Any) -> Report:
    """The contents of a report.json in which DPO is better than SFT, but for the changes."""
    stages = changes.pop("stages", {})
    evaluation = {
        "samples": 4, "temperature": 1.0, "max_new_tokens": 64, "policies": ["base", "sft", "dpo"],
        "judges": ["helpful"], "prompts": 200, "prompts_cut": 0, "measures": [], "kinds": {},
        "group_by": None, "parents": {"dpo": "sft"},
        "references": {"dpo": "sft"},
    }  # fmt: skip
    fields: dict[str, Any] = {
        "name": "quickstart", "created": "2026-01-01T00:00:00+00:00", "version": "1", "stages": stages,
        "comparisons": [COMPARISON], "measured": [], "seeds": [], "groups": [], "retained": [], "comparing": {},
        "policies": [], "samples": [], "curves": {},
        "classification": None, "robustness": None, "attributions": [], "rounds": None,
        "provenance": {
            name: {"label": LABELS.get(name, name), "kind": name, "leaves": LEAVES.get(name, "policy")}
            for name in {**LABELS, **stages}
        },
        **changes,
    }  # fmt: skip
    fields["evaluation"] = {**evaluation, **(changes.get("evaluation") or {})}
    return fields  # type: ignore[return-value]  # parts that no sentence reads are left out
