"""Looks at a model without loading it: what it is, how large, how much it reads at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf import network
from rlhf.config.project import ModelConfig
from rlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from rlhf.data.tokenize import Codec

TINY, LARGE = 50e6, 20e9
"""Parameters below which a model is tiny, and above which it is large."""


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model."""

    name: str
    policy: str = "causal_lm"
    """What it becomes where no setting says otherwise."""
    encoder: bool = False
    """Whether it is an encoder like BERT."""
    parameters: float | None = None
    counted: bool = True
    """Whether the parameters were counted; else its name says so."""
    context: int | None = None
    """Tokens it reads at once."""
    template: bool = False
    """Whether its tokenizer has a chat template, so that it has learned to reply."""
    images: bool = False
    """Whether it reads images."""
    codec: Codec | None = None
    """Template and tokenizer."""
    unknown: str | None = None
    """Why nothing but the name is known."""

    @property
    def writes(self) -> bool:
        """Whether it writes replies."""
        return self.policy in ("causal_lm", "seq2seq")

    @property
    def size(self) -> str:
        """Its parameters in words."""
        if self.parameters is None:
            return "size unknown"
        number = self.parameters
        for unit, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
            if number >= unit:
                return f"{number / unit:.3g} {word} parameters" + ("" if self.counted else ", as its name says")
        return f"{number:.0f} parameters"


def look_at_model(name: str) -> ModelFacts:
    """What is known of a model, from its config and its tokenizer.

    Args:
        name: A folder or a hub id.

    Raises:
        UserError: There is no such folder, its files are damaged, or the hub has no such model.
    """
    from rlhf.models.load import context_length, model_config, source_of
    from rlhf.models.tasks import is_encoder, task_of

    here = Path(name).expanduser().exists()
    if not here and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"--model: {name}: no such folder")
    reachable = here or network.hub_resolves()
    try:
        source = source_of(ModelConfig(name_or_path=name))
        config = model_config(source)
    except UserError:
        if reachable:
            raise
        return ModelFacts(name, parameters=_named_size(name), counted=False, unknown="the hub cannot be reached")
    task = task_of(config)
    facts = ModelFacts(
        name, task.policy, is_encoder(config), _parameters(config, task.auto), True,
        None if task.images else context_length(config), images=task.images,
    )  # fmt: skip
    return facts if task.images else _with_tokenizer(facts)


def _with_tokenizer(facts: ModelFacts) -> ModelFacts:
    """The same, with what its tokenizer says."""
    from rlhf.data.tokenize import PLAIN_TEMPLATE, Codec
    from rlhf.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(ModelConfig(name_or_path=facts.name))
    own = str(tokenizer.chat_template) != PLAIN_TEMPLATE
    return replace(facts, template=own, codec=Codec(tokenizer, encoder=facts.encoder))


def _parameters(config: PretrainedConfig, auto: str) -> float | None:
    """The parameters of a model of this config, which is built without memory for its weights."""
    import torch
    import transformers

    try:
        with torch.device("meta"):
            model = getattr(transformers, auto).from_config(config)
    except Exception:  # a damaged config raises anything; `rlhf check` says what is wrong with it
        return None
    return float(sum(weight.numel() for weight in model.parameters()))


def _named_size(name: str) -> float | None:
    """The parameters that a model's name tells: 0.6e9 of `Qwen3-0.6B`."""
    match = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([bBmM])(?![a-zA-Z])", name.replace("-", " ").replace("_", " "))
    return float(match[1]) * {"b": 1e9, "m": 1e6}[match[2].lower()] if match else None
