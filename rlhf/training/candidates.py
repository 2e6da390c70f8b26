"""Checkpoints of a policy as candidates: their weights are kept, and a judge that is handed in chooses among them.

They are there until the stage is in its place: one that is killed before chooses again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from rlhf import processes
from rlhf.artifacts.open import OpenedModel
from rlhf.durable import written_whole
from rlhf.models.adapters import without_peft
from rlhf.models.roles import POLICY
from rlhf.models.shards import is_sharded, own_parts, put, whole_state
from rlhf.training.trainer import ResumableTrainer
from rlhf.workflow import CANDIDATES


class Judge(Protocol):
    """Scores checkpoints and chooses one; training knows no more of it."""

    def check(self, args: TrainingArguments) -> None:
        """Check, before anything trains, that checkpoints can be scored.

        Raises:
            UserError: They cannot.
        """

    def choose(self, candidates: Candidates, start: OpenedModel) -> dict[str, Any]:
        """Score the start and every candidate; every process calls this, and all are told the same.

        Args:
            candidates: The checkpoints.
            start: What training started from.

        Returns:
            Metrics of the stage; `selected_step` is the candidate that is kept.
        """


class Candidates(TrainerCallback):
    """Keeps the policy's trained weights at every checkpoint, so that one of them can be chosen.

    Where the weights are sharded, a file has them whole, and a judge is given a whole copy of the policy.

    Args:
        policy: The model that is trained, of several roles the policy.
        folder: Where the weights go, a file for each step.
        trainer: Knows which checkpoints the settings ask for; one that a signal asked for is no candidate.
    """

    def __init__(self, policy: PeftModel | PreTrainedModel, folder: Path, trainer: ResumableTrainer) -> None:
        self.policy, self.folder, self.trainer = policy, folder, trainer
        self.copy: PeftModel | PreTrainedModel | None = None

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """After a resume, drop what an interrupted run kept beyond its checkpoint, and keep what it could not.

        The weights are those of the checkpoint that training continues from.
        """
        if state.is_world_process_zero:
            for step in self.steps():
                if step > state.global_step:
                    self._file(step).unlink()
        missing = processes.from_main(lambda: state.global_step not in self.steps())
        if state.global_step and self.trainer.scheduled and missing:
            self._write(state.global_step)

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the weights."""
        if self.trainer.scheduled:
            self._write(state.global_step)

    def _write(self, step: int) -> None:
        """Write a file whole or not at all, on the main process; the others give their part."""
        main = processes.is_main()
        tensors = whole_state(_trained(self.policy), keep=main)
        if main:
            self.folder.mkdir(parents=True, exist_ok=True)
            with written_whole(self._file(step)) as partial:
                save_file(tensors, partial)

    def _file(self, step: int) -> Path:
        return self.folder / f"{step}.safetensors"

    def steps(self) -> list[int]:
        """The steps that were kept, in order."""
        return sorted(int(path.stem) for path in self.folder.glob("*.safetensors"))

    def restore(self, step: int) -> None:
        """Give the policy its weights of a step."""
        self._give(self.policy, step)

    def policy_at(self, step: int, start: OpenedModel) -> PreTrainedModel:
        """The policy of a step, whole on every process: the trained one, or a copy where its weights are sharded.

        Args:
            step: The step.
            start: What training started from.
        """
        if not is_sharded(self.policy):
            self.copy = self.policy
        elif self.copy is None:
            model: Any = start.policy(placed=False)
            if isinstance(self.policy, PeftModel):
                model = get_peft_model(model, self.policy.peft_config[POLICY], adapter_name=POLICY)
            self.copy = model.to(processes.state().device)
        self._give(self.copy, step)
        return without_peft(self.copy)

    def _give(self, policy: PeftModel | PreTrainedModel, step: int) -> None:
        weights = _trained(policy)
        for name, tensor in load_file(self._file(step)).items():
            put(weights[name], tensor)


def _trained(policy: PeftModel | PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of a policy that a training may move, by name; looked up anew, as sharding replaces them."""
    own_parts(policy)
    adapter = isinstance(policy, PeftModel)
    return {
        name: parameter
        for name, parameter in policy.named_parameters(remove_duplicate=True)
        if not adapter or f".{POLICY}." in f"{name}."
    }


def keep_candidates(
    judge: Judge | None, policy: PeftModel | PreTrainedModel, folder: Path, trainer: ResumableTrainer
) -> Candidates | None:
    """Have a trainer keep its checkpoints' policies, where there is a judge to choose among them."""
    if judge is None:
        return None
    candidates = Candidates(policy, folder / CANDIDATES, trainer)
    trainer.add_callback(candidates)
    return candidates


def choose(judge: Judge | None, candidates: Candidates | None, start: OpenedModel) -> dict[str, Any]:
    """Have the judge choose, and give the policy the chosen weights; every process calls this.

    Args:
        judge: Whom the stage asks.
        candidates: The checkpoints' policies.
        start: What training started from.

    Returns:
        What the judge says; nothing without one.
    """
    if judge is None or candidates is None:
        return {}
    processes.state().wait_for_everyone()  # the main process has kept the last one
    said = judge.choose(candidates, start)
    candidates.copy = None
    candidates.restore(said["selected_step"])
    return said
