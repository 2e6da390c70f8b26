"""A fake run with plausible numbers, for tests of the report: no model is run."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.projects import write_rows

POLICIES = ("base", "sft", "dpo")
_NAMES = ("Amira", "Jonas", "Mei", "Tobias", "Ines", "Kofi", "Lena", "Ravi")
_PRODUCTS = ("kettle", "desk lamp", "headphones", "rain jacket", "office chair")
_GOLD = {"base": 0.21, "sft": 0.55, "dpo": 0.72}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def reply(text: str = "ok", tokens: int = 2, kl: float | None = None, finished: bool = True, **scores: float | None):
    """One reply of samples.jsonl."""
    return {"text": text, "tokens": tokens, "finished": finished, "kl": kl, "scores": scores}


def make_row(index: int, judge: str = "gold", **scores: list[float | None]) -> dict[str, Any]:
    """A row of samples.jsonl in which only the scores matter: `make_row(0, base=[0.1, None], sft=[0.3])`."""
    replies = {policy: [reply(**{judge: score}) for score in values] for policy, values in scores.items()}
    return {"index": index, "prompt": f"prompt {index}", "columns": {}, "replies": replies}


def preference_row(index: int, shares: list[float | None], pair: str = "sft vs base", judge: str = "pairs") -> dict:
    """A row in which a judge of pairs compared sample s of one policy with sample s of another."""
    policy, baseline = pair.split(" vs ")
    row = make_row(index, **{name: [None] * len(shares) for name in (policy, baseline)})
    return {**row, "preferences": {judge: {pair: shares}}}


def _support_reply(policy: str, name: str, product: str, order: str, draw: random.Random) -> dict[str, Any]:
    right = f"Hello {name}, I am sorry about the trouble with your {product}. "
    step = f"I have sent a replacement for order {order}; it leaves our warehouse tomorrow."
    texts = {
        "base": [
            f"the {product} is a {product} and the order the",
            "Hello. Hello. You can the order",
            "Thank you for.",
        ],
        "sft": [
            f"Hello {name}, your {product} is noted. Please wait.",
            right + f"We look at order {order}.",
            right + step,
        ],
        "dpo": [right + step, right + step + " Write to me here if it does not arrive by Friday."],
    }
    gold = min(1.0, max(0.0, draw.gauss(_GOLD[policy], 0.14)))
    text = draw.choice(texts[policy])
    return reply(
        text=text,
        tokens=max(3, len(text) // 4 + draw.randint(-2, 2)),
        finished=draw.random() < {"base": 0.62, "sft": 0.97, "dpo": 0.99}[policy],
        kl={"base": None, "sft": draw.gauss(14.0, 4), "dpo": draw.gauss(6.1, 3)}[policy],
        reward=4 * gold - 1.6 + draw.gauss(0, 0.6),
        gold=gold if draw.random() > 0.002 else None,
    )


def sample_rows(prompts: int = 120, samples: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of samples.jsonl in which dpo > sft > base."""
    draw = random.Random(seed)
    rows = []
    for index in range(prompts):
        name, product, order = draw.choice(_NAMES), draw.choice(_PRODUCTS), f"{draw.randint(10000, 99999)}"
        complaint = f"Hi, this is {name}. My {product} (order {order}) arrived broken and nobody answers. What now?"
        prompt = complaint if index % 3 else [{"role": "system", "content": "You are the support desk."},
                                              {"role": "user", "content": complaint}]  # fmt: skip
        replies = {
            policy: [_support_reply(policy, name, product, order, draw) for _ in range(samples)] for policy in POLICIES
        }
        rows.append({"index": index, "prompt": prompt, "columns": {"name": name, "order": order}, "replies": replies})
    return rows


def _stage(name: str, metrics: dict[str, Any], parents: dict[str, str], wall: float) -> dict[str, Any]:
    digest = "".join(random.Random(name).choices("0123456789abcdef", k=40))
    kind, _, seed = name.partition("@")
    return {
        "stage": name,
        "kind": kind,
        "repetition": int(seed or 0),
        "label": LABELS[kind],
        "leaves": LEAVES.get(kind, "policy"),
        "order": 10 * list(LABELS).index(kind),
        "hash": digest,
        "artifact": digest[::-1],
        "identity": {},
        "config": {"trainer": {"learning_rate": 1e-3, "beta": 0.1, "hub_token": "hf_private"}, "evaluate": None},
        "seed": 0,
        "versions": {"torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0", "peft": "0.21.2"},
        "git_sha": digest[5:],
        "lineage": {"base": "data/base", "revision": None, "adapter": True},
        "parents": parents,
        "data": {"preferences": {"sources": [{"file": "preferences.jsonl", "sha256": digest}], "seed": 0}},
        "metrics": metrics,
        "wall_time_s": wall,
        "peak_memory_mb": 911.4,
    }  # fmt: skip


def _curve(name: str, steps: int = 90) -> list[dict[str, float]]:
    draw, rows = random.Random(name), []
    for step in range(1, steps + 1):
        fall, noise = math.exp(-step / 22), lambda scale: draw.gauss(0, scale)
        row = {
            "step": step,
            "epoch": step / 30,
            "learning_rate": 1e-3 * (1 - step / steps),
            "grad_norm": 0.9 + fall + noise(0.1),
        }
        if name == "sft":
            row |= {"loss": 0.71 + 1.5 * fall + noise(0.05), "mean_token_accuracy": 0.82 - 0.4 * fall + noise(0.01)}
        else:
            key = "accuracy" if name == "reward" else "rewards/accuracies"
            row |= {"loss": 0.36 + 0.33 * fall + noise(0.03), key: 0.86 - 0.35 * fall + noise(0.03)}
        if name == "dpo":
            row |= {"rewards/chosen": 0.5 * (1 - fall) + noise(0.1), "rewards/rejected": -1.8 * (1 - fall) + noise(0.1)}
            row["rewards/margins"] = row["rewards/chosen"] - row["rewards/rejected"]
        rows.append(row)
        if step % 30 == 0:
            rows.append({"step": step, "epoch": step / 30, "eval_loss": row["loss"] + 0.06})
    return rows


LABELS = {"sft": "SFT", "reward": "Reward model", "dpo": "DPO", "gate": "Gate", "ppo": "PPO", "evaluate": "Evaluation"}
"""As the stages name themselves, in the order they run."""
LEAVES = {"reward": "scorer", "gate": "verdict", "evaluate": "comparison"}
STAGES: dict[str, tuple[dict[str, Any], dict[str, str], str, float]] = {
    "sft": ({"loss": 0.742, "loss_before": 2.215, "train_rows": 2630, "eval_rows": 300}, {}, "demonstrations", 61.2),
    "reward": (
        {"accuracy": 0.871, "accuracy_ci": [0.832, 0.902], "length_baseline": 0.552,
         "length_baseline_ci": [0.5, 0.603], "n": 350},
        {"sft": "3fa0c1"}, "preferences", 48.0,
    ),
    "dpo": ({"loss": 0.41, "accuracy": 0.848}, {"sft": "3fa0c1"}, "preferences", 74.9),
}  # fmt: skip


def fake_run(directory: Path, stages: Iterable[str] = (*STAGES, "evaluate"), rows: list[dict] | None = None) -> Path:
    """Write a run's folder with these stages finished."""
    for name in stages:
        if name == "evaluate":
            metrics = {
                "policies": list(POLICIES),
                "judges": ["reward", "gold"],
                "parents": {"sft": "base", "dpo": "sft"},
                "references": {"sft": "base", "dpo": "sft"},
            }
            record = _stage(name, metrics, {"sft": "3fa0c1", "reward": "77ab01", "dpo": "9e01dd"}, 55.5)
            record["config"]["evaluate"] = {"prompts": 120, "samples": 4, "temperature": 1.0, "max_new_tokens": 64}
            write_json(directory / name / "stage.json", record)
            write_rows(directory / name / "samples.jsonl", sample_rows() if rows is None else rows)
            continue
        metrics, parents, kind, wall = STAGES[name]
        write_json(directory / name / "stage.json", _stage(name, metrics, parents, wall))
        write_rows(directory / name / "metrics.jsonl", _curve(name))
        dropped = {"duplicate": 41, "prompt held out": 12, "empty side": 8 if kind == "preferences" else 2}
        rows_lost = [{"origin": f"{kind}.jsonl:{12 + 7 * i}", "reason": "empty side"} for i in range(13)]
        counts = {"read": 3000, "trained": 2700 - sum(dropped.values()), "evaluated": 300, "held_out": 312,
                  "truncated": 4, "eos_lost": 1, "prompt_trimmed": 3, "dropped": dropped, "duplicates": 41}  # fmt: skip
        write_json(directory / name / "ledger.json", {"sets": {kind: {**counts, "rows": rows_lost}}})
    return directory


def fake_unjudged_run(directory: Path, pairs: int = 60) -> Path:
    """A run of SFT and DPO whose replies nothing judges: SFT lowers the held-out loss, DPO raises the pairs' margin."""
    rows = sample_rows()
    for row in rows:
        for samples in row["replies"].values():
            for sample in samples:
                sample["scores"] = {}
    fake_run(directory, ("sft", "dpo", "evaluate"), rows)
    record = json.loads((directory / "evaluate" / "stage.json").read_text(encoding="utf-8"))
    record["metrics"]["judges"] = []
    write_json(directory / "evaluate" / "stage.json", record)
    draw = random.Random(2)
    means = {"held-out demonstrations": {"base": -2.2, "sft": -0.75, "dpo": -0.8},
             "held-out chosen replies": {"base": -90.0, "sft": -45.0, "dpo": -47.0},
             "held-out rejected replies": {"base": -92.0, "sft": -50.0, "dpo": -58.0}}  # fmt: skip
    lines = []
    for name, by_policy in means.items():
        for number in range(pairs):
            hard = draw.gauss(0, 0.1)
            values = {policy: mean * (1 + hard) + draw.gauss(0, 0.05 * -mean) for policy, mean in by_policy.items()}
            lines.append({"set": name, "origin": f"rows.jsonl:{number}", "prompt": number, "values": values})
    write_rows(directory / "evaluate" / "likelihoods.jsonl", lines)
    return directory


def fake_rounds(directory: Path, count: int) -> Path:
    """Rounds of a run, each a little better than the one before; returns the folder of the last."""
    for number in range(1, count + 1):
        folder = directory if number == 1 else directory / f"round-{number}"
        rows = sample_rows()
        for row in rows:
            for sample in row["replies"]["dpo"]:
                score, gain = sample["scores"]["gold"], 0.05 + row["index"] % 5 / 100
                sample["scores"]["gold"] = score and score + gain * (number - 1)
        fake_run(folder, rows=rows)
        record = json.loads((folder / "evaluate" / "stage.json").read_text(encoding="utf-8"))
        record["identity"] = {**record.get("identity", {}), "rewards": {"gold": {"function": "score"}}}
        write_json(folder / "evaluate" / "stage.json", record)
        if number > 1:
            counts = {"preferences": 120, "demonstrations": 0, "feedback": 30}
            write_json(folder / "round.json", {"round": number, "start": "dpo", "leaves": "dpo",
                                               "votes": 150 * (number - 1), "rows": counts})  # fmt: skip
    return folder


def tracked_points(turn: float = 6.0) -> list[dict[str, Any]]:
    """Checkpoints whose score by the checkpoint judge turns down at a KL of `turn` while its reward goes on rising."""
    points = []
    for step, kl in enumerate((0.0, 1.1, 3.0, 5.8, 9.5, 15.2)):
        score, proxy = 0.55 + 0.25 * (2 * math.sqrt(kl / turn) - kl / turn), 1.3 * math.sqrt(kl)
        intervals = {"checkpoint_judge_ci": [score - 0.03, score + 0.03], "proxy_ci": [proxy - 0.2, proxy + 0.2]}
        points.append(
            {"step": 20 * step, "kl": kl, "length": 24 + kl, "checkpoint_judge": score, "proxy": proxy, **intervals}
        )
    return points


def gate_metrics(accuracy_shift: float = 1.0, pairs: int = 350) -> dict[str, Any]:
    """Metrics of the gate stage, measured as the stage does on fabricated scores."""
    import numpy as np

    from rlhf.data.records import Preference
    from rlhf.evaluation.gate import Measures, verdict
    from rlhf.evaluation.reward_model import Pairs, distribution, examine

    draw = np.random.default_rng(0)
    length_M = draw.normal(12, 80, pairs).round()
    scores_M2 = np.stack([draw.normal(accuracy_shift, 1, pairs), draw.normal(0, 1, pairs)], 1)
    records = [Preference(f"Prompt {number}", "chosen", "rejected") for number in range(pairs)]
    policy_N = draw.normal(accuracy_shift + 0.4, 0.8, 64)
    measures = Measures(
        invariance={"batch": 0.0004, "eos": 0.61},
        scores=distribution({"chosen": scores_M2[:, 0], "rejected": scores_M2[:, 1], "policy": policy_N}),
        **examine(scores_M2, Pairs(records, length_M, length_M)),
    )
    model = {**measures, **verdict(measures)}
    return {"passed": model["passed"], "models": {"reward": model}, "policy": "sft", "gates": "ppo"}


FINDINGS = {
    "set": "preferences",
    "findings": [
        {"kind": "contradictory", "count": 12, "n": 3000, "share": 0.004, "ci": None, "values": {}, "said": True,
         "examples": [["preferences.jsonl:7", "preferences.jsonl:91"]], "text": "pairs also stand in the other order"},
        {"kind": "length", "count": 1797, "n": 3000, "share": 0.599, "ci": [0.581, 0.616], "said": True,
         "values": {"shorter": 1100.0}, "examples": [], "text": "pairs prefer the reply that is longer in characters"},
    ],
}  # fmt: skip


OVEROPTIMISED = (
    "over-optimised: the checkpoint judge's score turned down after step 60 (KL 5.8 nats), 0.80 to 0.71 at the last, "
    "while what was maximised rose from 3.13 to 5.07"
)


def fake_full_run(directory: Path, accuracy_shift: float = 0.1, prompts: int = 120, samples: int = 4) -> Path:
    """A run with everything a report can show: seeds, groups, a gate, tracked checkpoints, regressions, findings."""
    rows = sample_rows(prompts, samples)
    draw = random.Random(3)
    for row in rows:
        row["columns"]["topic"] = ("delivery", "refund", "account")[row["index"] % 3]
        replies = row["replies"]
        for name, shift in (("dpo@1", 0.02), ("dpo@2", -0.03), ("ppo", -0.1 if row["index"] % 3 else 0.06)):
            replies[name] = [
                {**sample, "scores": {judge: score and score + shift * (-3 if (name, judge) == ("ppo", "reward") else 1)
                                      for judge, score in sample["scores"].items()}}
                for sample in replies["dpo"]
            ]  # fmt: skip
        row["preferences"] = {
            "claude <judge>": {
                f"{policy} vs {baseline}": [draw.choice((0.0, 0.5, 1.0, 1.0)) for _ in replies["base"]]
                for policy in ("sft", "dpo", "dpo@1", "dpo@2", "ppo")
                for baseline in ("sft", "base")
                if policy != baseline
            }
        }
    fake_run(directory, rows=rows)
    for name, wall in (("ppo", 310.0), ("dpo@1", 70.0), ("dpo@2", 71.0)):
        metrics: dict[str, Any] = {"loss": 0.42, "accuracy": 0.84}
        if name == "ppo":
            metrics = {"rollouts": 40, "scores": 1.31, "scores_first": -0.2, "episodes": 2560, "selected_step": 60,
                       "tracked": tracked_points(), "overoptimised": OVEROPTIMISED}  # fmt: skip
        write_json(directory / name / "stage.json", _stage(name, metrics, {"sft": "3fa0c1"}, wall))
        write_rows(directory / name / "metrics.jsonl", _curve(name))
    gate = gate_metrics(accuracy_shift)
    write_json(directory / "gate" / "stage.json", _stage("gate", gate, {"sft": "3fa0c1", "reward": "77ab01"}, 9.1))
    for name in ("reward", "dpo"):
        write_json(directory / name / "findings.json", FINDINGS)
    record = json.loads((directory / "evaluate" / "stage.json").read_text(encoding="utf-8"))
    parents = {"sft": "base", "dpo": "sft", "dpo@1": "sft", "dpo@2": "sft", "ppo": "sft"}
    record["metrics"] |= {
        "policies": ["base", *parents], "judges": ["reward", "gold", "claude <judge>"], "parents": parents,
        "references": parents, "group_by": "topic", "comparing": {"claude <judge>": JUDGE_REPORT},
    }  # fmt: skip
    write_json(directory / "evaluate" / "stage.json", record)
    kept = [(name, measure, draw.gauss(mean, 0.2)) for name, measure, mean in
            (("general", "log-likelihood", -2.1), ("sums", "score", 0.6)) for _ in range(60)]  # fmt: skip
    lost = {"base": 0.0, "sft": 0.5, "dpo": 0.51, "dpo@1": 0.5, "dpo@2": 0.52, "ppo": 0.62}
    write_rows(directory / "evaluate" / "retained.jsonl", [
        {"set": name, "measure": measure, "origin": f"{name}.jsonl:{place}",
         "values": {policy: value - (by if measure == "log-likelihood" else 0) + draw.gauss(0, 0.05)
                    for policy, by in lost.items()}}
        for place, (name, measure, value) in enumerate(kept)
    ])  # fmt: skip
    return directory


JUDGE_REPORT = {
    "endpoint": "http://127.0.0.1:8000/v1", "model": "judge-70b", "pairs": 1920, "identical": 12, "unjudged": 7,
    "both_orders": 1901, "disagree": 456, "first_shown": 301, "position_bias": 0.24, "questions": 3816, "cached": 40,
    "failed": 3, "unreadable": 4, "requests": 3790, "prompt_tokens": 2_101_334, "completion_tokens": 14_002,
}  # fmt: skip


INTENTS = ("card arrival", "lost card", "top up", "transfer", "exchange rate", "refund")
_ASKED = ("When does my new card get here", "I lost my card on the train", "My top up did not go through",
          "How long does a transfer take", "What rate do you exchange at", "I want my money back for this")  # fmt: skip
_ACCURACY = {"sft": 0.68, "ppo": 0.84}


def label_rows(prompts: int = 150, classes: int = len(INTENTS), harder: float = 0.0) -> list[dict[str, Any]]:
    """Rows of samples.jsonl in which two classifiers answer, ppo more often right than sft and too sure."""
    draw, rows = random.Random(5), []
    names = [*INTENTS, *(f"intent {number}" for number in range(classes - len(INTENTS)))][:classes]
    for index in range(prompts):
        right = draw.randrange(classes)
        replies, luck = {}, draw.random()
        for policy, accuracy in _ACCURACY.items():
            good = luck + draw.gauss(0, 0.15) < accuracy - harder
            chosen = right if good else (right + draw.choice((1, 1, 2))) % classes
            sure = min(0.999, max(0.2, draw.gauss(0.75 if policy == "sft" else 0.95, 0.1)))
            answer = reply(names[chosen], tokens=1, kl=draw.uniform(0, 0.3), right=float(chosen == right))
            replies[policy] = [{**answer, "log_prob": math.log(sure)}]
        text = f"{_ASKED[right % len(_ASKED)]} ({index})?"
        rows.append({"index": index, "prompt": text, "columns": {"label": names[right]}, "replies": replies})
    return rows


def fake_label_run(directory: Path, prompts: int = 150, classes: int = len(INTENTS)) -> Path:
    """A run of two classifiers with everything that a report can show of them."""
    fake_run(directory, stages=["sft"])
    trained = {"rollouts": 40, "scores": 0.8, "scores_first": 0.6, "episodes": 2560}
    write_json(directory / "ppo" / "stage.json", _stage("ppo", trained, {"sft": "3fa0c1"}, 41.0))
    metrics = {"policies": ["sft", "ppo"], "judges": ["right"], "parents": {"sft": "base", "ppo": "sft"},
               "references": {"ppo": "sft"}, "kinds": {"sft": "label", "ppo": "label"}}  # fmt: skip
    record = _stage("evaluate", metrics, {"sft": "3fa0c1", "ppo": "9e01dd"}, 12.0)
    record["config"]["evaluate"] = {"prompts": prompts, "samples": 1, "temperature": 0.0, "max_new_tokens": 1}
    write_json(directory / "evaluate" / "stage.json", record)
    write_rows(directory / "evaluate" / "samples.jsonl", label_rows(prompts, classes))
    perturbed = [
        {**row, "prompt": row["prompt"].upper(), "perturbation": name}
        for name, harder in (("typos", 0.1), ("case", 0.0), ("drop_words", 0.25))
        for row in label_rows(prompts, classes, harder)
    ]
    write_rows(directory / "evaluate" / "perturbed.jsonl", perturbed)
    tokens = ["[CLS]", " i", " lost", " my", " card", " on", " the", " tra", "in", " [SEP]"]
    parts = [0.1, 0.0, 2.1, -0.2, 1.3, 0.02, 0.0, -0.4, -0.3, 0.0]
    attribution = {"index": 3, "scorer": "ppo", "of": "ppo", "completion": "lost card", "score": 2.31,
                   "tokens": tokens, "leave_one_out": parts,
                   "gradient_times_input": [0.8 * part + 0.05 for part in parts]}  # fmt: skip
    write_rows(directory / "evaluate" / "attributions.jsonl", [attribution, {**attribution, "index": 7}])
    return directory
