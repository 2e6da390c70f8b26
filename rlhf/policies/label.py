"""Classifiers as policies: the input is a text or an image, the one action is its class.

Where several classes can be right at once, each is an action of its own, yes or no, independent of the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction, PreTrainedModel

from rlhf.config.project import EvaluateConfig, ProjectConfig
from rlhf.data.classes import check_classes, check_known, class_names, demonstrated_classes
from rlhf.data.prepare import Prepared
from rlhf.data.records import Prompt, Text
from rlhf.errors import UserError
from rlhf.models.adapters import without_peft
from rlhf.models.heads import score_head
from rlhf.models.labels import Classes, classes_named
from rlhf.models.roles import Roles
from rlhf.policies.base import LogitsPolicy, PackedActions, entropy, like_sizes
from rlhf.policies.completion import Completion
from rlhf.policies.kinds import Completed, Encoder, PolicyKind, Supervised, answered
from rlhf.policies.readers import Reader, reader_of
from rlhf.rewards.text import SEPARATOR


@dataclass(frozen=True)
class LabelRow:
    """A text or an image to classify."""

    content: Any
    """What the reader makes the model's inputs of: token ids, or the name of an image."""
    prompt: Text
    columns: dict[str, Any]


class LabelPolicy(LogitsPolicy):
    """A classifier that online training optimises; implements `rlhf.policies.protocol.Policy`.

    Args:
        roles: Policy, reference and maybe a critic.
        reader: How they read their input.
        classes: What it tells apart.
        temperature: Divides the logits; 0 takes the likeliest class.
        batch_size: Inputs a forward pass when it samples.
    """

    def __init__(self, roles: Roles, reader: Reader, classes: Classes, temperature: float, batch_size: int) -> None:
        super().__init__(roles, temperature)
        self.reader, self.classes, self.batch_size = reader, classes, batch_size

    @property
    def action_count(self) -> int | None:
        """How many actions there are to choose from, once; None where several are taken."""
        return None if self.classes.several else len(self.classes.names)

    @torch.no_grad()
    def sample(self, inputs: Sequence[LabelRow], seeds: Sequence[Sequence[int]]) -> list[list[Completion]]:
        """For each input one answer a seed."""
        drawn: list[list[Completion]] = [[] for _ in inputs]
        for chosen, log_probs_PTV in self._distributions(inputs):
            for p, log_probs_TV in zip(chosen, log_probs_PTV, strict=True):
                drawn[p] = [self._completion(log_probs_TV, self._draw(log_probs_TV, seed)) for seed in seeds[p]]
        return drawn

    @torch.no_grad()
    def every_action(self, inputs: Sequence[LabelRow]) -> list[list[Completion]]:
        """For each input an answer for every class."""
        every: list[list[Completion]] = [[] for _ in inputs]
        for chosen, log_probs_PTV in self._distributions(inputs):
            for p, log_probs_TV in zip(chosen, log_probs_PTV, strict=True):
                every[p] = [self._completion(log_probs_TV, [number]) for number in range(log_probs_TV.shape[-1])]
        return every

    def _distributions(self, inputs: Sequence[LabelRow]) -> Iterable[tuple[list[int], torch.Tensor]]:
        """Batches of inputs, by their places, with log π of every action, [P, T, V] on the CPU."""
        actions = [Completion([0] * (len(self.classes.names) if self.classes.several else 1), True)]
        for chosen in like_sizes([self.size(row, []) for row in inputs], self.batch_size):
            packed = self.pack([inputs[p] for p in chosen], [actions] * len(chosen)).to(self.device)
            with self.roles.policy_model() as model:
                yield chosen, self.action_log_probs(model, packed).float().cpu()

    def _draw(self, log_probs_TV: torch.Tensor, seed: int) -> list[int]:
        if self.temperature == 0:
            return log_probs_TV.argmax(-1).tolist()
        generator = torch.Generator().manual_seed(seed)
        return torch.multinomial(log_probs_TV.exp(), 1, generator=generator).squeeze(-1).tolist()

    def _completion(self, log_probs_TV: torch.Tensor, actions: list[int]) -> Completion:
        log_probs = [log_probs_TV[t, action].item() for t, action in enumerate(actions)]
        return Completion(actions, True, log_probs, entropy(log_probs_TV).tolist(), self.text(actions))

    def text(self, actions: Sequence[int]) -> str:
        """The name of the class, or of each class that was said to be right."""
        names = self.classes.names
        if not self.classes.several:
            return names[actions[0]]
        return SEPARATOR.join(name for name, yes in zip(names, actions, strict=True) if yes)

    # forward passes

    def size(self, input: LabelRow, completions: Sequence[Completion]) -> int:
        """How much there is to read of the input."""
        return self.reader.size(input.content)

    def pack(self, inputs: Sequence[LabelRow], completions: Sequence[Sequence[Completion]]) -> PackedActions:
        """Inputs, each once, with the answers to them."""
        counts = torch.tensor([len(group) for group in completions])
        actions_BT = torch.tensor([completion.ids for group in completions for completion in group])
        return PackedActions(
            self.reader.batch([row.content for row in inputs]),
            torch.arange(len(inputs)).repeat_interleave(counts),
            actions_BT,
            torch.ones_like(actions_BT, dtype=torch.bool),
        )

    def logits(self, model: Any, packed: PackedActions) -> torch.Tensor:
        """Logits of the classes, [B, 1, C]; of several, of no and yes for each class, [B, C, 2]."""
        logits_PC = model(**packed.inputs).logits.float()
        if self.classes.several:
            return torch.stack([torch.zeros_like(logits_PC), logits_PC], -1)[packed.input_B]
        return logits_PC[packed.input_B, None]

    def states(self, backbone: Any, packed: PackedActions) -> torch.Tensor:
        """The state that stands for an input, before and after its classes alike, [B, T + 1, d]."""
        states_Pd = self.reader.state(backbone, packed.inputs)
        return states_Pd[packed.input_B, None].expand(-1, packed.actions_BT.shape[1] + 1, -1)


class LabelKind(PolicyKind):
    """Classifiers of texts and of images."""

    @cached_property
    def reader(self) -> Reader:
        """How the model reads its input."""
        return reader_of(self.opened)

    @property
    def augmentations(self) -> Collection[str]:
        """Changes of training rows that leave their class, by name."""
        return self.reader.augmentations

    def demonstrations(self, args: Any) -> Encoder:
        """Each text or image, and its classes by name."""
        return self.reader.demonstrations(args)

    def classes(self, data: Prepared, args: Any) -> Classes:
        """The classes of the data, on both sides of the split, then answers that are none of them.

        Several can be right at once where a row has not exactly one.
        """
        learned, held_out = data.train["classes"], data.eval["classes"]
        check_classes({name for names in learned for name in names})
        rows = [*learned, *held_out]
        names = class_names({name for each in rows for name in each})
        more = args.extra_answers or {}
        for name, share in more.items():
            if name in names:
                raise UserError(f"stages.sft.extra_answers: {name!r} is a class of the data")
            if not isinstance(share, int | float) or not 0 <= share <= 1:
                raise UserError(f"stages.sft.extra_answers.{name}: expected a share from 0 to 1, not {share!r}")
        return Classes([*names, *more], any(len(each) != 1 for each in rows))

    def supervised(self, model: PreTrainedModel, data: Prepared, args: Any) -> Supervised:
        """Cross-entropy of the class, or of each class's yes and no."""
        classes = classes_named(model)
        several, numbers = classes.several, {name: number for number, name in enumerate(classes.names)}
        learned, weights_C = len(numbers) - len(args.extra_answers or ()), None
        if args.extra_answers and score_head(model).bias is None:
            raise UserError(
                f"stages.sft.extra_answers: the head of {self.opened.name} has no bias, which holds their logits"
            )
        if args.class_weights is not None:
            if several:
                raise UserError("stages.sft.class_weights: several classes at once are each a question of its own")
            weights_C = balanced_weights([numbers[names[0]] for names in data.train["classes"]], learned)

        def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
            labels = labels[:, :learned] if several else labels
            return class_loss(
                outputs.logits[:, :learned], labels, weights_C, args.label_smoothing_factor, num_items_in_batch
            )

        def collate(rows: list[Mapping[str, Any]], augment: Sequence[str] = ()) -> Mapping[str, Any]:
            batch = self.reader.batch([row[self.reader.column] for row in rows], augment)
            labels = [[numbers[name] for name in row["classes"]] for row in rows]
            if several:
                batch["labels"] = torch.zeros(len(rows), len(numbers))
                for place, row in enumerate(labels):
                    batch["labels"][place, row] = 1.0
            else:
                batch["labels"] = torch.tensor([row[0] for row in labels])
            return batch

        augmenting = partial(collate, augment=args.augment) if args.augment else None
        return Supervised(collate, loss, share_right, augmenting)

    @torch.no_grad()
    def finish(self, model: Any, data: Prepared, args: Any) -> None:
        """Give each extra answer a constant logit, so that it is the likeliest on its share of the least sure rows.

        The rows are the held-out ones, or those trained on where none are held out.
        """
        if not args.extra_answers:
            return
        rows = data.eval if len(data.eval) else data.train
        head, learned = score_head(without_peft(model)), len(model.config.id2label) - len(args.extra_answers)
        training = model.training
        model.eval()
        surest: list[float] = []
        for first in range(0, len(rows), args.per_device_eval_batch_size):
            batch = self.reader.batch(rows[self.reader.column][first : first + args.per_device_eval_batch_size])
            logits = model(**{name: tensor.to(head.weight.device) for name, tensor in batch.items()}).logits
            surest += logits[:, :learned].max(-1).values.tolist()
        model.train(training)
        for output, share in enumerate(args.extra_answers.values(), learned):
            head.weight[output] = 0.0
            head.bias[output] = torch.tensor(surest).quantile(share)

    def prompts(self, args: Any) -> Encoder:
        """Each text or image."""
        return self.reader.prompts(args)

    def inputs(self, rows: Iterable[Mapping[str, Any]]) -> Sequence[LabelRow]:
        """Texts or images, with the other columns of their rows."""
        names = self.opened.label_names
        result = []
        for row in rows:
            columns = json.loads(row["extra"])
            check_known(columns.get("label"), names, self.opened.name)
            result.append(LabelRow(row[self.reader.column], self.reader.prompt(row), columns))
        return result

    def check_columns(self, columns: Iterable[Mapping[str, Any]], project: ProjectConfig, where: str) -> None:
        """Check that the labels of prompts are classes that the model knows, or will know from the demonstrations."""
        known = set(self.opened.label_names) if self.opened.has_head else demonstrated_classes(project)
        if known:
            for row in columns:
                check_known(row.get("label"), known, where)

    def policy(self, roles: Roles, settings: Any, fold: bool = True) -> LabelPolicy:
        """The policy that online training optimises."""
        batch_size = settings.sampling_batch_size
        return LabelPolicy(roles, self.reader, self.opened.classes, settings.temperature, batch_size)

    def complete(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        settings: EvaluateConfig,
        *,
        samples: int,
        seed: int,
        label: str,
        reference: Callable[[], PreTrainedModel] | None = None,
        first: int = 0,
    ) -> Completed:
        """The likeliest class of each input."""
        roles = Roles(model, reference=None if reference is None else reference())
        policy = LabelPolicy(roles, self.reader, self.opened.classes, 0.0, settings.batch_size)
        return answered(self, policy, prompts, samples=1, seed=seed, batch_size=settings.batch_size, first=first)


KIND = LabelKind


def balanced_weights(labels: Sequence[int], classes: int) -> torch.Tensor:
    """Weights by which every class counts as much as any other, n / (C · n_c), float32 [C]; 0 for an empty class.

    Source: King and Zeng, "Logistic Regression in Rare Events Data" (2001).
    """
    counts_C = torch.bincount(torch.tensor(labels, device="cpu"), minlength=classes)  # also in a dry run
    return torch.where(counts_C > 0, len(labels) / (classes * counts_C.clamp(min=1)), 0.0)


def class_loss(
    logits_BC: torch.Tensor,
    labels: torch.Tensor,
    weights_C: torch.Tensor | None = None,
    smoothing: float = 0.0,
    denominator: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross-entropy of a classifier.

    Args:
        logits_BC: Its outputs, batch by classes.
        labels: Numbers of the right classes, [B]; or [B, C], 1 where a class is right and 0 elsewhere, for a sigmoid of
            each class.
        weights_C: How much each class weighs; only with labels of shape B.
        smoothing: Share of the target that is spread evenly over the classes (Szegedy et al., 2016, section 7).
        denominator: Rows (or rows times classes) of the whole optimizer step; None for those given.

    Returns:
        The sum of the rows' losses over the denominator, nats.
    """
    count = labels.numel() if denominator is None else denominator
    if labels.dim() == 2:
        targets_BC = labels * (1 - smoothing) + smoothing / 2
        return nn.functional.binary_cross_entropy_with_logits(logits_BC.float(), targets_BC, reduction="sum") / count
    weights_C = None if weights_C is None else weights_C.to(logits_BC.device)
    return (
        nn.functional.cross_entropy(
            logits_BC.float(), labels, weight=weights_C, reduction="sum", label_smoothing=smoothing
        )
        / count
    )


def share_right(prediction: EvalPrediction) -> dict[str, float]:
    """Share of rows whose likeliest class is their own; of several classes, of those that are said rightly."""
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    right = (logits > 0) == (labels > 0) if labels.ndim == 2 else logits.argmax(-1) == labels
    return {"accuracy": float(right.mean())}
