"""What every trainer does alike: checkpoints that are whole, exact resume, and an end at signals that loses nothing.

`ResumableTrainer` stands in front of a trainer of transformers or TRL, as in
`class SFTTrainer(ResumableTrainer, trl.SFTTrainer)`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import ExportableState

from rlhf import interrupts, processes
from rlhf.durable import sync_file
from rlhf.errors import UserError
from rlhf.interrupts import Interrupted
from rlhf.models.device import sharded
from rlhf.models.shards import is_sharded, local, own_parts
from rlhf.training import checkpoints
from rlhf.training.buckets import EpochSeeded
from rlhf.training.finite import FiniteTrainer
from rlhf.training.states import (
    load_shards,
    load_state,
    optimizer_state,
    placed,
    placed_optimizer_state,
    random_state,
    regrouped,
    save_shards,
    save_state,
    set_random_state,
)
from rlhf.training.zero import load_zero_state, zero_state

WEIGHTS = "weights.safetensors"
"""File of a checkpoint: everything that is trained."""
SHARDS, OPTIMIZER, ZERO = "weights", "optimizer", "zero"
"""Names of sharded weights, of the optimizer's state, of ZeRO's; files of processes are NAME-0, NAME-1 and so on. In
those of ZeRO the number of its stage follows the name: zero3-0."""
_GATHERED = ("_tr_loss", "_globalstep_last_logged", "_metrics", "_total_train_tokens", "_weights", "_steps", "_skipped")
"""What trainers gather between two logs, in memory alone; not every trainer has each."""


class ResumableTrainer(FiniteTrainer):
    """In front of a trainer: how its checkpoints are written and read, and how a signal ends it."""

    logs: Sequence[Path] = ()
    """Files that grow by a line a step, set by who runs it: a checkpoint has them on disk."""
    scheduled = True
    """Whether the settings ask for the checkpoint that is being written, or that training continues from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._resumed_from: Path | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(_AtStart(self))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint: what is trained, the states of what trains it, then the manifest."""
        folder, step = Path(str(self.args.output_dir)), self.state.global_step
        final = folder / f"checkpoint-{step}"
        self.store_flos()
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            checkpoints.check_space(folder, self._size_of_checkpoint())
            checkpoints.partial_folder(folder, step)
        self.accelerator.wait_for_everyone()
        partial = folder / ".partial" / final.name
        self.save_weights(partial)
        if best := self.state.best_global_step:
            self.state.best_model_checkpoint = str(folder / f"checkpoint-{best}")
        self._save_optimizer_and_scheduler(str(partial))
        self._save_scaler(str(partial))
        self._save_rng_state(str(partial))
        if self.args.should_save:
            kept: Any = self.state.stateful_callbacks
            for callback in (*self.callback_handler.callbacks, self.control):
                if isinstance(callback, ExportableState):
                    kept[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(partial / "trainer_state.json"))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for log in filter(Path.is_file, self.logs):  # what they have up to here is not written again
                sync_file(log)
            checkpoints.seal(partial, step, self.scheduled)
            checkpoints.drop_old(folder, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _size_of_checkpoint(self) -> int:
        """Bytes of the weights that are saved and of the optimizer's state, which has none before its first step."""
        weights = list(self._trained().values())
        states = getattr(self.optimizer, "state", {}).values()
        values = (value for state in states if isinstance(state, dict) for value in state.values())
        return sum(tensor.nbytes for tensor in (*weights, *values) if isinstance(tensor, torch.Tensor))

    def save_weights(self, folder: Path) -> None:
        """Write trained weights, on the main process; every process calls this. Frozen ones are where they came from.

        Under the names that weights have in memory: a library's own form may rename them, and what is not known by its
        name when it is loaded keeps the weights of the start. Of sharded weights every process writes its shard.
        """
        trained = self._trained()
        if any(map(sharded, trained.values())):
            own = {name: weight if isinstance(weight, DTensor) else local(weight) for name, weight in trained.items()}
            save_shards(folder, SHARDS, self.args.process_index, own)
        elif self.args.should_save:
            save_file({name: tensor.detach().contiguous() for name, tensor in trained.items()}, folder / WEIGHTS)

    @torch.no_grad()
    def load_weights(self, folder: Path) -> None:
        """Read what `save_weights` wrote, every tensor of it and no other."""
        whole, trained = (folder / WEIGHTS).is_file(), self._trained()
        tensors = load_file(folder / WEIGHTS) if whole else load_shards(folder, SHARDS, self.args.process_index)
        if tensors.keys() != trained.keys():
            names = ", ".join(sorted(tensors.keys() ^ trained.keys())[:3])
            raise UserError(f"{folder / WEIGHTS}: does not have the weights that are trained ({names})")
        for name, weight in trained.items():
            own = weight if isinstance(weight, DTensor) else local(weight)
            own.copy_(placed(tensors[name], own))

    def _trained(self) -> dict[str, torch.Tensor]:
        """Trained weights, and what a model remembers of its batches; those of a reference that follows too."""
        follows = getattr(self.args, "sync_ref_model", False)
        tensors = {}
        for prefix, model in {"": self.model, **({"reference.": self.ref_model} if follows else {})}.items():
            own_parts(model)
            remembered = model.state_dict(keep_vars=True).keys() & dict(model.named_buffers()).keys()
            for name, weight in model.named_parameters():
                if weight.requires_grad or prefix:
                    tensors[prefix + name] = weight
            tensors |= {prefix + name: model.get_buffer(name) for name in sorted(remembered)}
        return tensors

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.load_weights(Path(resume_from_checkpoint))

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """As the Trainer has it; under DeepSpeed the checkpoint is read here and not by DeepSpeed, which pickles."""
        if not self.is_deepspeed_enabled or resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._load_from_checkpoint(resume_from_checkpoint)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        checkpoints.read_checkpoint(Path(best))
        self._load_from_checkpoint(best)

    def _check_best(self, resumed: Path) -> None:
        """Make the checkpoint that training continues from the best one, where the best one is damaged or gone."""
        best, metric = self.state.best_global_step, f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}"
        if not best or best == self.state.global_step:  # that one has been checked
            return
        try:
            processes.from_main(lambda: checkpoints.read_checkpoint(resumed.with_name(f"checkpoint-{best}")))
        except UserError as problem:
            if self.args.should_save:
                print(f"{self.stage}: the checkpoint with the best {metric} is lost ({problem}); {resumed.name} "
                      "takes its place", file=sys.stderr)  # fmt: skip
            rows = (row for row in self.state.log_history if row["step"] == self.state.global_step and metric in row)
            self.state.best_metric = next((row[metric] for row in rows), None)
            self.state.best_global_step, self.state.best_model_checkpoint = self.state.global_step, str(resumed)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder, process = Path(output_dir), self.args.process_index
        if self.is_deepspeed_enabled:
            save_shards(folder, self._zero(), process, zero_state(self.optimizer.optimizer))
        elif is_sharded(self.model):
            save_shards(folder, OPTIMIZER, process, optimizer_state(self.optimizer, self._names()))
        elif self.args.should_save:
            save_state(folder, OPTIMIZER, optimizer_state(self.optimizer, self._names()))
        if self.args.should_save:
            save_state(folder, "scheduler", self.lr_scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder, process = Path(checkpoint), self.args.process_index
        schedule = load_state(folder, "scheduler")
        if self.is_deepspeed_enabled:
            load_zero_state(self.optimizer.optimizer, load_shards(folder, self._zero(), process), self.args.world_size)
        else:
            whole = (folder / f"{OPTIMIZER}.json").is_file()
            saved = load_state(folder, OPTIMIZER) if whole else load_shards(folder, OPTIMIZER, process)
            state, continued = placed_optimizer_state(saved, self.optimizer, self._names())
            self.optimizer.load_state_dict(state)
            schedule = regrouped(schedule, continued, len(saved["param_groups"]))
        self.lr_scheduler.load_state_dict(schedule)

    def _names(self) -> dict[int, str]:
        """Names of the trained weights, by their `id`."""
        return {id(weight): name for name, weight in self._trained().items()}

    def _zero(self) -> str:
        """Name of what DeepSpeed keeps: its stages keep it in different forms."""
        return f"{ZERO}{self.accelerator.state.deepspeed_plugin.zero_stage}"

    def _check_engine(self, checkpoint: Path) -> None:
        """Check that what wrote a checkpoint can continue from it, before any of it is read.

        Raises:
            UserError: DeepSpeed wrote it and does not run now, in another stage or on another number of processes; or
                the reverse.
        """
        wrote = [file.name.rpartition("-")[0] for file in checkpoint.glob(f"{ZERO}*-*.json")]
        if wrote != ([self._zero()] * self.args.world_size if self.is_deepspeed_enabled else []):
            before = "a launch without DeepSpeed"
            if wrote:
                before = f"DeepSpeed's ZeRO-{wrote[0].removeprefix(ZERO)} on {len(wrote)} processes"
            raise UserError(
                f"{checkpoint}: was written by {before}, and only such a launch continues from it; start it as before, "
                f"or delete {checkpoint.parent} to begin the stage anew"
            )

    def _save_scaler(self, output_dir: str) -> None:
        if self.accelerator.scaler is not None and self.args.should_save:
            save_state(Path(output_dir), "scaler", self.accelerator.scaler.state_dict())

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(load_state(Path(checkpoint), "scaler"))

    def _save_rng_state(self, output_dir: str) -> None:
        """What each process has for itself: random generators, and what was gathered since the last log."""
        gathered = {name: getattr(self, name) for name in _GATHERED if hasattr(self, name)}
        state = {"random": random_state(), "gathered": gathered}
        save_state(Path(output_dir), f"process-{self.args.process_index}", state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if (state := self._own_state(checkpoint)) is not None:
            set_random_state(state["random"])
        elif checkpoint is not None:
            set_seed(self.args.seed + self.state.global_step * self.args.world_size + self.args.process_index)

    def _own_state(self, checkpoint: str | Path | None) -> Any:
        """What this process had for itself; None where there were fewer processes then."""
        name = f"process-{self.args.process_index}"
        if checkpoint is None or not (Path(checkpoint) / f"{name}.json").is_file():
            return None
        return load_state(Path(checkpoint), name)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from a checkpoint where one is given.

        Raises:
            Interrupted: A signal came; behind the step that it came in there is a checkpoint.
            Incident: A number is not finite.
            UserError: Another engine wrote the checkpoint, in a form that this launch cannot continue from.
        """
        self._resumed_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        if self._resumed_from is not None:
            self._check_engine(self._resumed_from)
        with interrupts.deferred("stopping after the current step; another signal ends the run at once"):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """As the Trainer has it, with the order of each epoch a function of the seed."""
        sampler = super()._get_train_sampler(train_dataset)
        if self.args.train_sampling_strategy != "group_by_length":
            return sampler
        return EpochSeeded(sampler, self.args.seed if self.args.data_seed is None else self.args.data_seed)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch, unless no step is left: the trainer itself looks only behind a step, and takes one more."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True

    def take_up(self) -> None:
        """Once training begins: what the checkpoint holds besides what the trainer itself reads."""
        if self._resumed_from is None:
            return
        self.scheduled = checkpoints.is_scheduled(self._resumed_from)
        self._check_best(self._resumed_from)
        if self.args.should_save:  # a run that was killed between writing this checkpoint and dropping another
            best = self.state.best_model_checkpoint
            checkpoints.drop_old(self._resumed_from.parent, self.args.save_total_limit, best)
        before = len(list(self._resumed_from.glob("process-*.json")))
        if before != self.args.world_size and self.args.should_save:
            print(
                f"{self.stage}: continues with {self.args.world_size} processes instead of {before}: the rows of each "
                "step stay the same; rounding and random numbers (dropout) differ",
                file=sys.stderr,
            )
        state = self._own_state(self._resumed_from)
        if state is None:
            return
        for name, value in state["gathered"].items():
            _put_back(self, name, value)

    def may_stop(self) -> bool:
        """Whether a checkpoint of the step that has just been taken holds all that is needed to go on."""
        return True


class _AtStart(TrainerCallback):
    """Takes up a checkpoint before all other callbacks look at it."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.take_up()


class StopAtSignal(TrainerCallback):
    """Ends a training that was asked to stop, with a checkpoint behind the step. Add it behind all other callbacks."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint that the settings do not ask for."""
        stops = bool(self.trainer.signal) and self.trainer.may_stop()
        self.trainer.scheduled = control.should_save or not stops
        control.should_save |= stops

    def on_prediction_step(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """End the evaluation in front of the first step, where there is nothing to save.

        Raises:
            Interrupted: This process was asked to stop, and no other waits for it.
        """
        if state.global_step == 0 and args.world_size == 1 and (number := interrupts.asked()):
            raise Interrupted(number)

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """End.

        Raises:
            Interrupted: This process or another was asked to.
        """
        if self.trainer.signal and self.trainer.may_stop():
            raise Interrupted(self.trainer.signal)


def _put_back(trainer: Any, name: str, value: Any) -> None:
    """Give a trainer what it had gathered; dictionaries keep their type, which may make missing entries."""
    there = getattr(trainer, name)
    if isinstance(value, torch.Tensor):
        value = value.to(trainer.args.device)
    if not isinstance(there, dict):
        setattr(trainer, name, value)
        return
    for key, inner in value.items():
        if isinstance(there.get(key), dict):
            there[key].clear()
            there[key].update(inner)
        else:
            there[key] = inner
