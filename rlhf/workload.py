"""What a stage holds in memory and computes, as its file declares it; `rlhf.preflight` turns it into bytes and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlhf.config.project import ModelConfig

POLICY, REFERENCE, CRITIC, REWARD = "policy", "reference", "critic", "reward model"
"""Roles of models, as tables name them."""

PAIR = (("prompt_ids", "chosen_ids"), ("prompt_ids", "rejected_ids"))
"""The two sequences of a preference."""

Head = Literal["tiled", "whole", "score"]
"""What stands above the backbone in a pass: the language-model head, `tiled` where the logits of a few positions exist
at a time and `whole` where those of all completions do; or a head with few outputs, `score`."""


@dataclass(frozen=True)
class Held:
    """A model that a stage holds."""

    role: str
    base: ModelConfig | None
    """Where its weights come from; None where it stands on the weights of the stage's first model."""
    adapter: Mapping[str, Any] | None = None
    """Fields of its own `peft.LoraConfig`; None where all its weights are its own, or where it has none."""
    trained: bool = False
    scores: bool = False
    """Whether its head has a few outputs and not the vocabulary's."""


@dataclass(frozen=True)
class Pass:
    """One kind of forward pass of a stage, with or without a backward pass."""

    name: str
    roles: tuple[str, ...]
    """Which models compute, one after the other."""
    sequences: tuple[tuple[str, ...], ...]
    """For each sequence of a row the columns that it consists of; it is trained, or scored, on the last of them."""
    at_once: int
    """Rows of a batch on a device."""
    head: Head
    backward: bool = False
    writes: int = 0
    """Most tokens of a completion that follows each sequence."""
    samples: int = 1
    """Completions of a sequence."""
    sampling: bool = False
    """Whether the completions are written token by token in this pass; else they are there already."""
    epochs: float = 1.0
    """How often it goes through the rows."""
    rows: float | None = None
    """Rows that it takes in all, over all devices and epochs; None for `epochs` times those of the set."""
    held_out: bool = False
    """Whether the rows are those that are not trained on."""
    shares: bool = True
    """Whether what the sequences of a row have in common is computed once."""
    sorted: bool = True
    """Whether rows of similar length stand in a batch together, as far as a step's rows allow."""


@dataclass(frozen=True)
class Workload:
    """What a stage holds and computes."""

    models: tuple[Held, ...]
    """The first is what the others may share the weights of."""
    passes: tuple[Pass, ...]
    saves: bool = True
    """Whether it writes a model and loads it again to compare."""


@dataclass(frozen=True)
class Circumstances:
    """What else decides a stage's workload."""

    settings: Mapping[str, Any]
    """Fields of its trainer's config, those that the YAML leaves open included."""
    devices: int = 1
    sharded: bool = False
    """Whether the weights are sharded over the devices."""

    def training(self, epochs: float = 1.0, **fields: Any) -> Pass:
        """The pass that trains.

        Args:
            epochs: How often a row of the set is used by the time that `num_train_epochs` counts 1.
            **fields: Of `Pass`.
        """
        get = self.settings.__getitem__
        steps, batch = get("max_steps"), get("per_device_train_batch_size")
        rows = steps * batch * get("gradient_accumulation_steps") * self.devices if steps > 0 else None
        given = {"name": "training", "at_once": batch, "backward": True, "epochs": epochs * get("num_train_epochs")}
        return Pass(**{**given, "rows": rows, **fields})

    def evaluation(self, training: Pass) -> Pass:
        """The pass over the held-out rows, before training and after it."""
        batch = self.settings["per_device_eval_batch_size"]
        return replace(training, name="evaluation", at_once=batch, backward=False, epochs=2.0, rows=None, held_out=True)
