"""Checkpoints of a policy scored by a judge that training does not see, and the choice among them."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, TrainingArguments

from rlhf import processes
from rlhf.artifacts.open import OpenedModel
from rlhf.data.prepare import evaluation_prompts, iter_records
from rlhf.data.records import Prompt, as_completion, as_role
from rlhf.data.sets import source_set
from rlhf.data.splits import Side, content_key
from rlhf.errors import UserError
from rlhf.evaluation.compare import MIN_PROMPTS
from rlhf.evaluation.completions import complete
from rlhf.evaluation.kept import KEPT, Kept
from rlhf.evaluation.overoptimisation import Point, as_rows, peak, point, scored_everywhere, warning
from rlhf.evaluation.shares import by_all, shared
from rlhf.evaluation.stats import Floats, mean_per_prompt
from rlhf.rewards import RewardFunction, columns_of
from rlhf.rewards.compose import combined, normalisation, score_matrix
from rlhf.rewards.load import load_rewards
from rlhf.workflow import StageContext, rewards_of, rows_from

PROMPTS, SAMPLES = 64, 2
"""How many prompts a checkpoint completes, and how often each."""
TRACKED = "tracked.jsonl"


class Checkpoints(Protocol):
    """The policies of a training's checkpoints."""

    def steps(self) -> list[int]:
        """Their steps, in order."""

    def policy_at(self, step: int, start: OpenedModel) -> PreTrainedModel:
        """The policy of a step, whole on every process."""


class CheckpointJudge:
    """Scores the start and every checkpoint of a stage by a reward that training does not see, and chooses one.

    Args:
        context: The stage, which names the judge.
    """

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self.settings = context.settings

    def check(self, args: TrainingArguments) -> None:
        """Check, before anything trains, that checkpoints can be scored.

        Raises:
            UserError: No checkpoints are taken, or there are too few prompts.
        """
        context, stage = self.context, f"stages.{self.context.name}"
        if args.save_strategy not in ("steps", "epoch"):
            raise UserError(f"{stage}.save_strategy: a checkpoint judge scores checkpoints; steps or epoch takes some")
        if (count := len(tracking_prompts(context))) < MIN_PROMPTS:
            raise UserError(
                f"{stage}.checkpoint_judge: {count} prompts to score checkpoints on, at least {MIN_PROMPTS} are "
                "needed; hold out more (holdout), or leave out data.prompts"
            )
        if _prompts_side(context) == "train" and processes.is_main():
            how = "chosen by" if self.settings.select == "best" else "scored on"
            print(f"{context.name}: checkpoints are {how} {count} prompts that are trained on: without data.prompts "
                  "the held-out ones are those that policies are compared on", file=sys.stderr)  # fmt: skip

    def choose(self, checkpoints: Checkpoints, start: OpenedModel) -> dict[str, Any]:
        """Score the start and every checkpoint by the judge and by what was maximised, and write `tracked.jsonl`.

        Every process calls this: they share the prompts, and the main one writes.

        Args:
            checkpoints: The policies of the checkpoints.
            start: What training started from.

        Returns:
            `checkpoint_judge`, its name; `tracked`, a `Point` each; `tracked_on`, the side of their prompts;
            `selected_step`; `overoptimised`, the warning or None.
        """
        points, scores = _score_all(checkpoints, self.context, start)
        steps = checkpoints.steps()
        return {
            "checkpoint_judge": self.settings.checkpoint_judge,
            "tracked": points,
            "tracked_on": _prompts_side(self.context),
            "selected_step": steps[peak(scores) - 1] if self.settings.select == "best" else steps[-1],
            "overoptimised": warning(points, scores),
        }


def _score_all(checkpoints: Checkpoints, context: StageContext, start: OpenedModel) -> tuple[list[Point], list[Floats]]:
    """The points of the start and of every checkpoint, and the scores of the prompts that count at each."""
    project = context.project
    judge = str(context.settings.checkpoint_judge)
    weights = rewards_of(project, context.name)
    judges = load_rewards(project, context.parents, [*weights, judge])
    starting_policy = start.policy(placed=False).eval()
    starting_policy.to(processes.state().device)  # type: ignore[arg-type]  # `to` is typed as if it were unbound
    prompts = tracking_prompts(context)
    proxy = _Proxy(weights)
    steps = [0, *checkpoints.steps()]
    values: dict[str, list[Floats]] = {"kl": [], "length": [], "checkpoint_judge": [], "proxy": []}

    def measured(step: int) -> dict[str, Any]:
        model = checkpoints.policy_at(step, start) if step else starting_policy
        reference = (lambda: starting_policy) if step else None
        label = f"{context.name} step {step}"

        def answered(first: int, last: int) -> list[tuple[list[str], float, float]]:
            asked = prompts[first:last]
            completions, kl, _ = complete(project, start, model, asked, SAMPLES, label, reference, first=first)
            kl_PS = np.zeros((len(asked), len(completions[0]))) if kl is None else np.array(kl)
            texts = [[completion.text for completion in row] for row in completions]
            length_P = [float(np.mean([len(completion.ids) for completion in row])) for row in completions]
            return [*zip(texts, kl_PS.mean(1).tolist(), length_P, strict=True)]

        texts, kl_P, length_P = zip(*shared(0, len(prompts), answered), strict=True)
        scores = {name: _scores(by_all(judge), prompts, texts).tolist() for name, judge in judges.items()}
        return {"kl": kl_P, "length": length_P, "scores": scores}

    kept = Kept(context.directory / KEPT)
    for step in steps:
        said = kept.once(f"step {step}", functools.partial(measured, step))
        scores = {name: np.array(given) for name, given in said["scores"].items()}
        values["kl"].append(np.array(said["kl"]))
        values["length"].append(np.array(said["length"]))
        values["checkpoint_judge"].append(mean_per_prompt(scores[judge]))
        if weights:
            values["proxy"].append(mean_per_prompt(proxy([scores[name] for name in weights])))
    counts_P = scored_everywhere(values["checkpoint_judge"])
    used = {name: [of_step[counts_P] for of_step in of_steps] for name, of_steps in values.items()}
    points = [
        point(
            step,
            kl_P=used["kl"][at],
            length_P=used["length"][at],
            judge_P=used["checkpoint_judge"][at],
            proxy_P=used["proxy"][at] if weights else None,
        )
        for at, step in enumerate(steps)
    ]
    rows = as_rows(points, **values)
    if processes.is_main():
        (context.directory / TRACKED).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return points, used["checkpoint_judge"]


class _Proxy:
    """What is maximised: each reward in standard deviations of the starting policy's completions, weighted, summed."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights_K = torch.tensor(list(weights.values()), dtype=torch.float64)
        self.reference: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, scores_KPS: Sequence[Floats]) -> Floats:
        """A number per completion, [P, S]; the first call is of the starting policy's."""
        scores_BK = score_matrix([scores.ravel().tolist() for scores in scores_KPS])
        self.reference = self.reference or normalisation(scores_BK)
        return combined(scores_BK, self.weights_K, *self.reference).numpy().reshape(scores_KPS[0].shape)


def _prompts_side(context: StageContext) -> Side:
    """Whether checkpoints complete held-out prompts; without `data.prompts` the comparison has these."""
    project = context.project
    return "eval" if project.data.prompts is not None and project.holdout > 0 else "train"


def tracking_prompts(context: StageContext) -> list[Prompt]:
    """Prompts that checkpoints are chosen by.

    They are not those that the policies are compared on, or the choice would flatter the one chosen: held-out ones
    where `data.prompts` has the others, else prompts that are trained on. Which of many, their content decides.
    """
    project = context.project
    given = rows_from(project, context.name) is None
    role = source_set(project, str(context.stage.data) if given else "rollouts")
    wanted = _prompts_side(context)
    compared = {content_key(prompt.prompt) for prompt in evaluation_prompts(project, project.evaluate.prompts)}
    chosen: dict[bytes, Any] = {}
    for record, side in iter_records(project, role):
        prompt = as_role(record, "prompts")
        assert isinstance(prompt, Prompt)
        if side == wanted and (key := content_key(prompt.prompt)) not in compared:
            chosen.setdefault(key, prompt)
        if len(chosen) > 4 * PROMPTS:
            chosen = dict(sorted(chosen.items())[:PROMPTS])
    return [prompt for _, prompt in sorted(chosen.items())[:PROMPTS]]


def _scores(judge: RewardFunction, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> Floats:
    """Scores of the completions of each prompt, [P, S]; NaN where there is none."""
    samples = len(texts[0])
    columns = columns_of([prompt.extra for prompt in prompts for _ in range(samples)])
    asked = [prompt.prompt for prompt in prompts for _ in range(samples)]
    written = [text for row in texts for text in row]
    completions = [as_completion(prompt, text) for prompt, text in zip(asked, written, strict=True)]
    return np.array(judge(asked, completions, **columns), dtype=float).reshape(len(prompts), samples)
