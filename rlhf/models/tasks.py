"""What the head of a model computes: the class of transformers that loads it, and peft's name for it.

A kind of policy (`rlhf.policies`) and a reward model each have a task. A task is told by the setting `model.policy`, or
by what the model's files say that it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from peft import TaskType
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from rlhf.errors import UserError, unknown_name


@dataclass(frozen=True)
class Task:
    """What a head computes."""

    policy: str
    """The kind of policy that it is, a file of `rlhf.policies`."""
    auto: str
    """The class of transformers that loads it."""
    peft: TaskType | None
    """What an adapter's config calls it."""
    heads: tuple[str, ...]
    """How the names of architectures that have this head end."""
    new_head: bool = False
    """Whether the head is drawn where the files have none: it is trained by the stage that draws it."""
    images: bool = False
    """Whether it reads images and not text."""
    outputs: int | None = None
    """Outputs of the head; None where data or vocabulary decide."""

    @property
    def model_class(self) -> Any:
        """The class of transformers that loads it."""
        return getattr(transformers, self.auto)


CAUSAL_LM = Task("causal_lm", "AutoModelForCausalLM", TaskType.CAUSAL_LM, ("ForCausalLM", "LMHeadModel"))
LABEL = Task("label", "AutoModelForSequenceClassification", TaskType.SEQ_CLS, ("ForSequenceClassification",), True)
IMAGE_LABEL = Task("label", "AutoModelForImageClassification", None, ("ForImageClassification",), True, images=True)
SPAN = Task("span", "AutoModelForQuestionAnswering", TaskType.QUESTION_ANS, ("ForQuestionAnswering",), True, outputs=2)
SEQ2SEQ = Task("seq2seq", "AutoModelForSeq2SeqLM", TaskType.SEQ_2_SEQ_LM, ("ForConditionalGeneration",))
TASKS = (CAUSAL_LM, LABEL, IMAGE_LABEL, SPAN, SEQ2SEQ)


def has_new_head(config: PretrainedConfig) -> bool:
    """Whether a model's files have a head that a stage draws and trains, and not only what it stands on."""
    heads = tuple(ending for task in TASKS if task.new_head for ending in task.heads)
    return any(name.endswith(heads) for name in config.architectures or ())


def is_encoder(config: PretrainedConfig) -> bool:
    """Whether a model is an encoder like BERT (bidirectional, trained with masks) and no causal language model."""
    causal = any(name.endswith(CAUSAL_LM.heads) for name in config.architectures or ())
    decodes = getattr(config, "is_encoder_decoder", False)
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not causal and not decodes


def reads_images(config: PretrainedConfig) -> bool:
    """Whether a model classifies images."""
    return config.model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES and not hasattr(config, "vocab_size")


def task_of(config: PretrainedConfig, policy: str | None = None) -> Task:
    """The task of a policy.

    Args:
        config: The model's config.
        policy: The kind of policy, as `model.policy` names it; None takes what the model is: by the head that its files
            have, else a label for an encoder, text for an encoder-decoder and for a causal language model.

    Raises:
        UserError: There is no such kind of policy.
    """
    images = reads_images(config)
    if policy is not None:
        fitting = [task for task in TASKS if task.policy == policy]
        if not fitting:
            kinds = dict.fromkeys(task.policy for task in TASKS)
            raise UserError(f"model.policy: unknown {policy!r}; {unknown_name(policy, kinds)}")
        return next((task for task in fitting if task.images == images), fitting[0])
    if images:
        return IMAGE_LABEL
    if getattr(config, "is_encoder_decoder", False):
        return SEQ2SEQ
    for name in config.architectures or ():
        for task in (LABEL, SPAN):
            if name.endswith(task.heads):
                return task
    return LABEL if is_encoder(config) else CAUSAL_LM


def adapter_task(config: Mapping[str, Any]) -> Task:
    """The task that a saved adapter was trained for."""
    return next((task for task in TASKS if config.get("task_type") == task.peft), IMAGE_LABEL)
