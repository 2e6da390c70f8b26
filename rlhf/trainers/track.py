"""Checkpoints of a policy held against a judge that training does not see, and the choice among them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from rlhf.data.prepare import iter_records, source_set
from rlhf.data.records import Text
from rlhf.data.splits import contexts
from rlhf.data.tokenize import Codec
from rlhf.evaluation.overoptimisation import Point, as_rows, peak, point, warning
from rlhf.evaluation.replies import fitted, replies_to
from rlhf.evaluation.stats import Floats, mean_per_prompt
from rlhf.models.adapters import without_peft
from rlhf.models.load import load_policy
from rlhf.models.roles import POLICY
from rlhf.rewards import RewardFunction
from rlhf.rewards.compose import normalisation, normalise, score_matrix, weighted_sum
from rlhf.rewards.load import load_rewards
from rlhf.rollout.kl import sequence_kl
from rlhf.rollout.sample import as_completion
from rlhf.stages import STAGES, StageContext, rewards_of
from rlhf.trainers.common import Ready

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

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Write them, on the main process."""
        if state.is_world_process_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            tensors = {name: one.detach().cpu().contiguous() for name, one in self.trained.items()}
            save_file(tensors, self.folder / f"{state.global_step}.safetensors")

    def steps(self) -> list[int]:
        """The steps that were kept, in order."""
        return sorted(int(path.stem) for path in self.folder.glob("*.safetensors"))

    @torch.no_grad()
    def restore(self, step: int) -> None:
        """Give the policy its weights of a step."""
        for name, tensor in load_file(self.folder / f"{step}.safetensors").items():
            self.trained[name].copy_(tensor)

    def drop(self) -> None:
        """Delete what was kept."""
        shutil.rmtree(self.folder, ignore_errors=True)


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

    The main process writes `tracked.jsonl` (`overoptimisation.as_rows`) and gives the policy the chosen weights.

    Args:
        kept: The checkpoints' policies.
        context: The stage.
        ready: What it began with.
        policy: The trained policy.
        trainer: Its trainer, finished.

    Returns:
        `gold`, the judge; `tracked`, a `Point` each; `selected_step`; `overoptimised`, the warning or None. Nothing
        without a gold judge.
    """
    found: dict[str, Any] = {}
    if kept is not None and trainer.is_world_process_zero():
        stage = context.project.stages[context.name]
        points, gold = _score_all(kept, context, ready, policy)
        steps = kept.steps()
        chosen = steps[peak(points) - 1] if stage.select == "gold" else steps[-1]
        kept.restore(chosen)
        kept.drop()
        found = {"gold": stage.gold, "tracked": points, "selected_step": chosen, "overoptimised": warning(points, gold)}
    trainer.accelerator.wait_for_everyone()
    return found


def _score_all(
    kept: Candidates, context: StageContext, ready: Ready, policy: PeftModel | PreTrainedModel
) -> tuple[list[Point], list[Floats]]:
    """The points of the start and of every checkpoint, and the gold score of each prompt at each."""
    begun, project = ready.begun, context.project
    gold_name = str(project.stages[context.name].gold)
    proxies = rewards_of(project, context.name)
    judges = load_rewards(project, context.parents, [*proxies, gold_name])
    start = load_policy(begun.source, begun.config, begun.tokenizer).to(policy.device).eval()
    codec = Codec(begun.tokenizer)
    prompts, columns = tracking_prompts(context)
    ids, _ = fitted(start, codec, prompts, project.evaluate.max_new_tokens)
    reference: tuple[torch.Tensor, torch.Tensor] | None = None
    points: list[Point] = []
    values: dict[str, list[Floats]] = {"kl": [], "gold": [], "proxy": []}
    for step in (0, *kept.steps()):
        model = start
        if step:
            kept.restore(step)
            model = without_peft(policy)
        replies = replies_to(project, model, codec, ids, SAMPLES, f"{context.name} step {step}")
        kl_PS = np.zeros((len(ids), len(replies[0])))
        if step:
            kl_PS = np.array(sequence_kl(model, start, ids, replies, project.evaluate.temperature or 1.0))
        texts = [[one.text for one in row] for row in replies]
        gold_P = mean_per_prompt(_scores(judges[gold_name], prompts, texts, columns))
        proxy_P = None
        if proxies:
            parts = [_scores(judges[name], prompts, texts, columns).ravel().tolist() for name in proxies]
            scores_BK = score_matrix(parts)
            reference = reference or normalisation(scores_BK)
            scaled_BK = normalise(scores_BK, *reference)
            total_B = weighted_sum(scaled_BK, torch.tensor(list(proxies.values())).double(), scaled_BK.nanmean(0))
            proxy_P = mean_per_prompt(total_B.numpy().reshape(len(ids), -1))
            values["proxy"].append(proxy_P)
        length_P = np.array([np.mean([len(one.ids) for one in row]) for row in replies])
        points.append(point(step, kl_PS.mean(1), length_P, gold_P, proxy_P))
        values["kl"].append(kl_PS.mean(1))
        values["gold"].append(gold_P)
    rows = as_rows(points, **values)
    (context.directory / TRACKED).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return points, values["gold"]


def tracking_prompts(context: StageContext) -> tuple[list[Text], dict[str, list[Any]]]:
    """Prompts that checkpoints are chosen by, with the other columns of their rows.

    They are not those that the policies are compared on, or the choice would flatter the one chosen: held-out ones
    where `data.prompts` has the others, else prompts that are trained on.
    """
    project = context.project
    role = source_set(project, str(STAGES[context.name].data))
    wanted = "eval" if project.data.prompts is not None and project.holdout > 0 else "train"
    found: dict[str, tuple[Text, dict[str, Any]]] = {}
    for record, side in iter_records(project, role):
        prompt = contexts(record)[0]
        if side == wanted:
            found.setdefault(json.dumps(prompt), (prompt, record.extra))
        if len(found) == PROMPTS:
            break
    prompts = [prompt for prompt, _ in found.values()]
    names = {name for _, extra in found.values() for name in extra} - {"prompts", "completions"}
    return prompts, {name: [extra.get(name) for _, extra in found.values()] for name in names}


def _scores(
    judge: RewardFunction, prompts: Sequence[Text], texts: Sequence[Sequence[str]], columns: dict[str, list[Any]]
) -> Floats:
    """Scores of the replies to each prompt, [P, S]; NaN where there is none."""
    many = len(texts[0])
    repeated = {name: [value for value in values for _ in range(many)] for name, values in columns.items()}
    asked = [prompt for prompt in prompts for _ in range(many)]
    replies = [as_completion(prompt, text) for prompt, row in zip(prompts, texts, strict=True) for text in row]
    return np.array(judge(asked, replies, **repeated), dtype=float).reshape(len(prompts), many)
