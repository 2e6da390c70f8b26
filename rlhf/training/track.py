"""Checkpoints of a policy held against a judge that training does not see, and the choice among them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from rlhf.data.prepare import evaluation_prompts, iter_records, source_set
from rlhf.data.records import Text
from rlhf.data.splits import Side, content_key, contexts
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError
from rlhf.evaluation.compare import MIN_PROMPTS
from rlhf.evaluation.completions import fitted, replies_to
from rlhf.evaluation.overoptimisation import Point, as_rows, peak, point, scored_everywhere, warning
from rlhf.evaluation.stats import Floats, mean_per_prompt
from rlhf.models.adapters import without_peft
from rlhf.models.device import process_state, sharded
from rlhf.models.roles import POLICY
from rlhf.policies.completion import as_completion
from rlhf.policies.kl import sequence_kl
from rlhf.rewards import RewardFunction, columns_of
from rlhf.rewards.compose import normalisation, normalise, score_matrix, weighted_sum
from rlhf.rewards.load import load_rewards
from rlhf.training.common import Ready
from rlhf.workflow import StageContext, rewards_of, stage_of

PROMPTS, SAMPLES = 64, 2
"""How many prompts a checkpoint replies to, and how often to each."""
TRACKED = "tracked.jsonl"


class Candidates(TrainerCallback):
    """Keeps the policy's trained weights at every checkpoint, so that one of them can be chosen.

    Args:
        policy: The model that is trained, of several roles the policy.
        folder: Where the weights go, a file a step.
    """

    def __init__(self, policy: PeftModel | PreTrainedModel, folder: Path) -> None:
        self.folder = folder
        adapter = isinstance(policy, PeftModel)
        self.trained = {
            name: parameter
            for name, parameter in policy.named_parameters(remove_duplicate=True)
            if not adapter or f".{POLICY}." in f"{name}."
        }

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """After a resume: what an interrupted run kept beyond its checkpoint goes, what it could not keep is kept now.

        The weights are those of the checkpoint that training goes on from.
        """
        if not state.is_world_process_zero:
            return
        for step in self.steps():
            if step > state.global_step:
                self._file(step).unlink()
        if state.global_step and state.global_step not in self.steps():
            self._write(state.global_step)

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Write them, on the main process."""
        if state.is_world_process_zero:
            self._write(state.global_step)

    def _write(self, step: int) -> None:
        """Whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: one.detach().cpu().contiguous() for name, one in self.trained.items()}
        partial = self.folder / f"{step}.partial"
        save_file(tensors, partial)
        partial.replace(self._file(step))

    def _file(self, step: int) -> Path:
        return self.folder / f"{step}.safetensors"

    def steps(self) -> list[int]:
        """The steps that were kept, in order."""
        return sorted(int(path.stem) for path in self.folder.glob("*.safetensors"))

    @torch.no_grad()
    def restore(self, step: int) -> None:
        """Give the policy its weights of a step."""
        for name, tensor in load_file(self._file(step)).items():
            self.trained[name].copy_(tensor)


def drop(kept: Candidates | None) -> None:
    """Delete what was kept, once the artefact is saved: until then a run that was interrupted needs it."""
    if kept is not None and process_state().is_main_process:
        shutil.rmtree(kept.folder, ignore_errors=True)


def check_tracking(context: StageContext, args: TrainingArguments) -> None:
    """Hold, before anything trains, that checkpoints can be scored by the stage's gold judge, if it has one.

    Raises:
        UserError: No checkpoints are taken, there are too few prompts, or weights are sharded.
    """
    stage = f"stages.{context.name}"
    if context.project.stages[context.name].gold is None:
        return
    if args.save_strategy not in ("steps", "epoch"):
        raise UserError(f"{stage}.save_strategy: a gold judge scores checkpoints; steps or epoch takes some")
    if sharded():
        raise UserError(f"{stage}.gold: checkpoints of weights that are sharded (FSDP, DeepSpeed) are not scored")
    if (count := len(tracking_prompts(context)[0])) < MIN_PROMPTS:
        raise UserError(
            f"{stage}.gold: {count} prompts to score checkpoints on, at least {MIN_PROMPTS} are needed; hold out more "
            "(holdout), or leave out data.prompts"
        )
    if _side(context) == "train" and process_state().is_main_process:
        how = "chosen by" if context.project.stages[context.name].select == "gold" else "scored on"
        print(f"{context.name}: checkpoints are {how} {count} prompts that are trained on: without data.prompts the "
              "held-out ones are those that policies are compared on", file=sys.stderr)  # fmt: skip


def candidates(context: StageContext, policy: PeftModel | PreTrainedModel, trainer: Trainer) -> Candidates | None:
    """Have a trainer keep its checkpoints' policies, where the stage names a gold judge."""
    if context.project.stages[context.name].gold is None:
        return None
    kept = Candidates(policy, context.directory / "candidates")
    trainer.add_callback(kept)
    return kept


def choose(
    kept: Candidates | None, context: StageContext, ready: Ready, policy: PeftModel | PreTrainedModel, trainer: Trainer
) -> dict[str, Any]:
    """Score the start and every checkpoint by the gold judge and by what was maximised; keep the one that is wanted.

    The main process writes `tracked.jsonl` (`overoptimisation.as_rows`); every process gives its policy the chosen
    weights.

    Args:
        kept: The checkpoints' policies.
        context: The stage.
        ready: What it began with.
        policy: The trained policy.
        trainer: Its trainer, finished.

    Returns:
        `checkpoint_judge`, its name; `tracked`, a `Point` each; `tracked_on`, the side of their prompts;
        `selected_step`; `overoptimised`, the warning or None. Nothing without a checkpoint judge.
    """
    if kept is None:
        return {}
    stage = context.project.stages[context.name]
    found: list[dict[str, Any]] = [{}]
    if trainer.is_world_process_zero():
        points, gold = _score_all(kept, context, ready, policy)
        steps = kept.steps()
        chosen = steps[peak(gold) - 1] if stage.select == "gold" else steps[-1]
        found = [
            {"checkpoint_judge": stage.gold, "tracked": points, "tracked_on": _side(context), "selected_step": chosen,
             "overoptimised": warning(points, gold)}
        ]  # fmt: skip
    broadcast_object_list(found)
    kept.restore(found[0]["selected_step"])
    return found[0]


def _score_all(
    kept: Candidates, context: StageContext, ready: Ready, policy: PeftModel | PreTrainedModel
) -> tuple[list[Point], list[Floats]]:
    """The points of the start and of every checkpoint, and the gold scores of the prompts that count at each."""
    start, project = ready.start, context.project
    gold = str(project.stages[context.name].gold)
    weights = rewards_of(project, context.name)
    judges = load_rewards(project, context.parents, [*weights, gold])
    starting_policy = start.opened.policy(placed=False).to(policy.device).eval()
    codec = Codec(start.tokenizer)
    prompts, columns = tracking_prompts(context)
    ids, _ = fitted(starting_policy, codec, prompts, project.evaluate.max_new_tokens)
    proxy = _Proxy(weights)
    steps = [0, *kept.steps()]
    values: dict[str, list[Floats]] = {"kl": [], "length": [], "checkpoint_judge": [], "proxy": []}
    for step in steps:
        model = starting_policy
        if step:
            kept.restore(step)
            model = without_peft(policy)
        replies = replies_to(project, model, codec, ids, SAMPLES, f"{context.name} step {step}")
        kl_PS = np.zeros((len(ids), len(replies[0])))
        if step:
            kl_PS = np.array(sequence_kl(model, starting_policy, ids, replies, project.evaluate.temperature or 1.0))
        texts = [[one.text for one in row] for row in replies]
        scores = {name: _scores(judges[name], prompts, texts, columns) for name in judges}
        values["kl"].append(kl_PS.mean(1))
        values["length"].append(np.array([np.mean([len(one.ids) for one in row]) for row in replies]))
        values["checkpoint_judge"].append(mean_per_prompt(scores[gold]))
        if weights:
            values["proxy"].append(mean_per_prompt(proxy([scores[name] for name in weights])))
    counts_P = scored_everywhere(values["checkpoint_judge"])
    used = {name: [one[counts_P] for one in of] for name, of in values.items()}
    points = [
        point(
            step,
            *(used[name][at] for name in ("kl", "length", "checkpoint_judge")),
            used["proxy"][at] if weights else None,
        )
        for at, step in enumerate(steps)
    ]
    rows = as_rows(points, **values)
    (context.directory / TRACKED).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return points, used["checkpoint_judge"]


class _Proxy:
    """What is maximised: each reward in standard deviations of the starting policy's replies, weighted, summed."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights_K = torch.tensor(list(weights.values()), dtype=torch.float64)
        self.reference: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, scores_KPS: Sequence[Floats]) -> Floats:
        """One number a reply, [P, S]; the first call is of the starting policy's replies."""
        scores_BK = score_matrix([scores.ravel().tolist() for scores in scores_KPS])
        self.reference = self.reference or normalisation(scores_BK)
        scaled_BK = normalise(scores_BK, *self.reference)
        return weighted_sum(scaled_BK, self.weights_K, scaled_BK.nanmean(0)).numpy().reshape(scores_KPS[0].shape)


def _side(context: StageContext) -> Side:
    """Whether checkpoints reply to held-out prompts; without `data.prompts` the comparison has these."""
    project = context.project
    return "eval" if project.data.prompts is not None and project.holdout > 0 else "train"


def tracking_prompts(context: StageContext) -> tuple[list[Text], dict[str, list[Any]]]:
    """Prompts that checkpoints are chosen by, with the other columns of their rows.

    They are not those that the policies are compared on, or the choice would flatter the one chosen: held-out ones
    where `data.prompts` has the others, else prompts that are trained on. Which of many, their content decides.
    """
    project = context.project
    role = source_set(project, str(stage_of(context.name).data))
    wanted = _side(context)
    compared = {content_key(one.prompt) for one in evaluation_prompts(project, project.evaluate.prompts)}
    found: dict[bytes, tuple[Text, dict[str, Any]]] = {}
    for record, side in iter_records(project, role):
        prompt = contexts(record)[0]
        if side == wanted and content_key(prompt) not in compared:
            found.setdefault(content_key(prompt), (prompt, record.extra))
        if len(found) > 4 * PROMPTS:
            found = dict(sorted(found.items())[:PROMPTS])
    found = dict(sorted(found.items())[:PROMPTS])
    prompts = [prompt for prompt, _ in found.values()]
    return prompts, columns_of([extra for _, extra in found.values()])


def _scores(
    judge: RewardFunction, prompts: Sequence[Text], texts: Sequence[Sequence[str]], columns: dict[str, list[Any]]
) -> Floats:
    """Scores of the replies to each prompt, [P, S]; NaN where there is none."""
    many = len(texts[0])
    repeated = {name: [value for value in values for _ in range(many)] for name, values in columns.items()}
    asked = [prompt for prompt in prompts for _ in range(many)]
    replies = [as_completion(prompt, text) for prompt, row in zip(prompts, texts, strict=True) for text in row]
    return np.array(judge(asked, replies, **repeated), dtype=float).reshape(len(prompts), many)
