"""Loads what makes a model's inputs, and makes those of image models."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoImageProcessor, BaseImageProcessor, PretrainedConfig

from rlhf import network
from rlhf.config.project import ModelConfig
from rlhf.data.images import in_mode, load_image, shown
from rlhf.errors import UserError, reason
from rlhf.models.tokenizer import Processor, load_tokenizer
from rlhf.models.weights import check_json, check_pointers

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_OF_TEXT = ("tokenizer", "eos_token", "pad_token", "chat_template")


def load_processor(config: ModelConfig, source: str | Path | None = None, images: bool = False) -> Processor:
    """Load a model's tokenizer, or its image processor.

    Args:
        config: The model it belongs to.
        source: A stage's folder, whose processor is taken as it is.
        images: Whether the model reads images.

    Raises:
        UserError: It cannot be loaded, or the settings of a tokenizer are given for an image model.
    """
    if not images:
        return load_tokenizer(config, source)
    if given := next((key for key in _OF_TEXT if getattr(config, key) is not None), None):
        raise UserError(f"model.{given}: the model reads images and has no tokenizer; take it out")
    name = str(source or config.name_or_path)
    check_pointers(name)
    try:
        return AutoImageProcessor.from_pretrained(
            name,
            backend="pil",  # the same pixels whether torchvision is installed or not
            revision=None if source else config.revision,
            trust_remote_code=False,
            local_files_only=not Path(name).exists() and not network.hub_resolves(),
        )
    except Exception as error:  # a damaged file raises an exception of its own kind
        check_json(name)
        raise UserError(f"{name}: no image processor can be loaded: {reason(error)}") from None


def pixel_values(processor: BaseImageProcessor, config: PretrainedConfig, ref: str) -> torch.Tensor:
    """An image as its model reads it, float32 [channels, height, width].

    Args:
        processor: The model's: it resizes and normalises.
        config: The model's, which says how many channels it reads.
        ref: A path or a data URI.

    Raises:
        UserError: The image cannot be read, or the model's channels are no known kind of image.
    """
    channels = getattr(config, "num_channels", 3)
    if channels not in _MODES:
        raise UserError(f"{config.model_type}: reads images of {channels} channels; 1, 3 and 4 are known")
    image = in_mode(load_image(ref), _MODES[channels])
    try:
        return processor(image, return_tensors="pt")["pixel_values"][0]
    except Exception as error:  # an image that is too narrow, say
        raise UserError(f"{shown(ref)}: the model's image processor refuses it: {reason(error)}") from None
