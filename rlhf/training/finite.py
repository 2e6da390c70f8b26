"""No step on numbers that are not finite: `FiniteTrainer` looks at loss and gradient in front of every update."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlhf import interrupts
from rlhf.errors import Incident
from rlhf.models.shards import clip_gradients
from rlhf.models.shards import norm as norm_of
from rlhf.training import incidents
from rlhf.training.buckets import set_epoch
from rlhf.training.train_loss import mean_train_loss

if TYPE_CHECKING:
    from transformers import Trainer

    class _Base(Trainer):
        """What they all have."""

        model: Any
        optimizer: Any
        lr_scheduler: Any
        ref_model: Any
else:
    _Base = object


class FiniteTrainer(_Base):
    """In front of a trainer of transformers or TRL: ends the training, or skips the step, where numbers are not finite.

    Who runs it sets `stage`, `on_nonfinite`, `incident_file` and `origins`.
    """

    stage = "train"
    """Name of the stage, for messages."""
    on_nonfinite = "stop"
    """What becomes of a step whose loss or gradient is not finite: `stop` the training, or `skip` the step."""
    incident_file: Path | None = None
    """Where such steps are described."""
    origins: Callable[[], Sequence[str]] | None = None
    """Gives file and line of every training row."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._losses: list[torch.Tensor] = []
        self._sum_before = torch.zeros(())
        self._skips = False
        self._steps, self._skipped = 0, 0  # since the last log
        self.signal = 0  # by which a process was asked to stop, as all of them agree
        super().__init__(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a micro-batch.

        DeepSpeed takes its step within the backward pass, before anything here could look at the loss, and leaves it
        out where the gradient is not finite. So a loss that is not finite gets such a gradient.
        """
        result: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not (self.is_deepspeed_enabled and self.model.training):
            return result
        loss = result[0] if return_outputs else result
        loss = loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
        return (loss, result[1]) if return_outputs else loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of a micro-batch; its loss is looked at before the update."""
        if self.on_nonfinite == "skip" and not self._losses:
            self._sum_before = self._tr_loss.clone()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._losses.append(loss.detach())
        return loss.nan_to_num(0.0, 0.0, 0.0) if self.on_nonfinite == "skip" else loss

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip the gradient of a step, once it is known to be finite: clipping spreads what is not to all of it."""
        if self.is_deepspeed_enabled:  # which has clipped and taken the step, unless its gradient was not finite
            return self._checked(super()._clip_grad_norm(model), model)
        norm = self._checked(self._total_norm(model), model)
        clip_gradients(_with_gradient(model), self.args.max_grad_norm, norm)
        return norm

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm of a step's gradient, where it was not clipped."""
        if grad_norm is not None:
            return super()._get_grad_norm(model, grad_norm)
        own = super()._get_grad_norm(model) if self.is_deepspeed_enabled else self._total_norm(model)
        return self._checked(own, model)

    def _total_norm(self, model: Any) -> torch.Tensor:
        self.accelerator.unscale_gradients()
        return norm_of([parameter.grad for parameter in _with_gradient(model)])

    def _checked(self, norm: Any, model: Any) -> Any:
        """A step's gradient norm; that of no gradient where the step's numbers are not finite and it is skipped.

        The processes agree on it, and on whether one of them was asked to stop.

        Raises:
            Incident: They are not finite, and no step is skipped.
        """
        losses, self._losses = self._losses, []
        norm = torch.as_tensor(norm, device=self.args.device)
        in_losses = ~torch.isfinite(torch.stack(losses)).all() if losses else torch.zeros_like(norm, dtype=torch.bool)
        # float16's scaler looks for such gradients itself, and skips their steps
        in_gradient = torch.zeros_like(in_losses) if self._scales() else ~torch.isfinite(norm)
        asked = torch.tensor(float(interrupts.asked() or 0), device=self.args.device)
        flags = torch.stack([in_losses.float(), in_gradient.float(), asked])
        if self.args.world_size > 1:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        of_loss, of_gradient, self.signal = map(int, flags.tolist())
        self._steps += 1
        if of_loss or of_gradient:
            self.nonfinite("loss" if of_loss else "gradient", losses, float(norm), model)
            norm = torch.zeros_like(norm)
        if self._skips:
            self._skips = False
            self._skipped += 1
            self._tr_loss.copy_(self._sum_before)  # the mean that is logged is one over the steps that were taken
        return norm

    def _scales(self) -> bool:
        """Whether the loss is scaled so that gradients fit float16."""
        scaled = self.is_deepspeed_enabled and self.accelerator.mixed_precision == "fp16"
        return scaled or self.accelerator.scaler is not None

    def nonfinite(self, what: str, losses: Sequence[torch.Tensor], norm: float, model: Any) -> None:
        """Describe the step that is being computed, whose numbers are not finite, and leave it without a gradient.

        Every process calls it.

        Args:
            what: Which number is not: `loss`, `gradient` or another.
            losses: Of the step's micro-batches on this process.
            norm: Of the gradient.
            model: Has the gradients.

        Raises:
            Incident: Unless `on_nonfinite` is `skip`, or where weights are not finite either, which no step mends.
        """
        step, norms = self.state.global_step + 1, incidents.norms(model)
        lost, skips = not math.isfinite(norms["weight_norm"]), self.on_nonfinite == "skip"
        incidents.describe(
            self.incident_file, {"losses": [float(loss) for loss in losses], "rows": self._with_origins()},
            stage=self.stage, step=step, what=what, action=self.on_nonfinite, gradient_norm=norm,
            learning_rate=self._get_learning_rate(), **norms,
        )  # fmt: skip
        if lost or not skips:
            described = f"; its rows and norms are in {self.incident_file}" if self.incident_file else ""
            state = "the weights are not either" if lost else "the step was not taken"
            remedy = "lower learning_rate" + ("" if lost else ", fix those rows, or set on_nonfinite: skip")
            raise Incident(
                f"stages.{self.stage}: the {what} of step {step} is not finite, and {state}{described}; {remedy}"
            )
        self._skips = True
        self._losses.clear()
        model.zero_grad(set_to_none=True)  # so that the optimizer leaves the weights and its own state alone

    def rows_of_step(self) -> list[int]:
        """Numbers of the training rows of the step that is being computed, on this process."""
        loader, args = self.callback_handler.train_dataloader, self.args
        if getattr(loader, "batch_sampler", None) is None:
            return []
        steps = max(1, math.ceil(len(loader) / args.gradient_accumulation_steps))
        epoch, step = divmod(self.state.global_step, steps)
        set_epoch(loader, epoch)  # the order is a function of seed and epoch alone
        first = step * args.gradient_accumulation_steps
        batches = itertools.islice(iter(loader.batch_sampler), first, first + args.gradient_accumulation_steps)
        return [row for batch in batches for row in batch]

    def _with_origins(self) -> list[dict[str, Any]]:
        """The rows of the step with their places, where the rows are those of the set: packed ones are not."""
        rows, origins = self.rows_of_step(), self.origins() if self.origins is not None else []
        known = len(origins) == len(self.train_dataset)  # type: ignore[arg-type]
        return [{"row": row, **({"origin": origins[row]} if known else {})} for row in rows]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log: the mean loss of all steps at the end, and the number of steps skipped since the last time."""
        if "train_loss" in logs:  # of the steps since a resume, as the Trainer counts them
            logs["train_loss"] = mean_train_loss(self.state.log_history) or logs["train_loss"]
        if "loss" in logs:
            taken = self._steps - self._skipped
            if self._skipped and taken:
                logs["loss"] *= self._steps / taken
            elif self._skipped:
                logs.pop("loss")
                logs.pop("grad_norm", None)
            if self.on_nonfinite == "skip":
                logs["skipped_steps"] = self._skipped
            self._steps, self._skipped = 0, 0
        super().log(logs, start_time)


def _with_gradient(model: Any) -> list[Any]:
    return [parameter for parameter in model.parameters() if parameter.grad is not None]
