"""How a classifier reads its input: a text through a tokenizer, or an image through an image processor."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedTokenizerBase

from rlhf.artifacts.open import OpenedModel
from rlhf.data import augment
from rlhf.data.records import Encoded, Image, Labelled, Prompt, Text
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError
from rlhf.models.load import context_length, model_config
from rlhf.models.processor import pixel_values
from rlhf.models.tasks import is_encoder
from rlhf.policies.kinds import Encoder

_CACHED = 2**28


class Reader(ABC):
    """Makes a classifier's inputs of the column of encoded rows that has what is classified."""

    column: ClassVar[str]
    """That column; its values are called contents here."""
    augmentations: ClassVar[Collection[str]]
    """Names of the changes that `batch` can make (`data.augment`)."""

    @abstractmethod
    def demonstrations(self, args: Any) -> Encoder:
        """How labelled rows are encoded: the content, and its classes by name in `classes`.

        Args:
            args: The sft stage's arguments.
        """

    @abstractmethod
    def prompts(self, args: Any) -> Encoder:
        """How prompts are encoded.

        Args:
            args: The settings of sampling; None in evaluation.
        """

    @abstractmethod
    def prompt(self, row: Mapping[str, Any]) -> Text:
        """The prompt of a row that was encoded as a prompt."""

    @abstractmethod
    def size(self, content: Any) -> int:
        """How much there is to read: contents of like size make batches with little padding."""

    @abstractmethod
    def batch(self, contents: Sequence[Any], augment: Sequence[str] = ()) -> dict[str, torch.Tensor]:
        """What the model takes, of P contents, [P, …] each.

        Args:
            contents: What is read.
            augment: Changes that are made, by name.
        """

    @abstractmethod
    def state(self, backbone: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The hidden state that stands for each content, [P, d].

        Args:
            backbone: The model without its head.
            inputs: What `batch` made.
        """


class TextReader(Reader):
    """Reads texts.

    Args:
        tokenizer: The model's.
        config: The model's.
    """

    column = "input_ids"
    augmentations = augment.TEXT

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
        self.tokenizer, self.config = tokenizer, config

    def _codec(self, max_length: int | None, keep: str = "keep_start") -> Codec:
        return Codec(self.tokenizer, max_length, keep, encoder=is_encoder(self.config))

    def demonstrations(self, args: Any) -> Encoder:
        """Token ids of each text, cut to `max_length`."""
        codec = self._codec(args.max_length, args.truncation_mode)
        return Encoder(codec.labelled, {"max_length": args.max_length, "keep": codec.keep})

    def prompts(self, args: Any) -> Encoder:
        """Token ids of each text."""
        limit = context_length(self.config) if args is None else args.max_length
        codec = self._codec(limit)

        def encode(record: Prompt) -> Encoded:
            if isinstance(record.prompt, Image):
                raise UserError(f"{record.origin}: this is an image, and the model reads text")
            ids = codec.prompt(record.prompt)
            columns = {"input_ids": ids[:limit], "prompt": json.dumps(record.prompt)}
            return Encoded(columns, truncated=len(columns["input_ids"]) < len(ids))

        return Encoder(encode, {"max_length": limit})

    def prompt(self, row: Mapping[str, Any]) -> Text:
        """The text."""
        return json.loads(row["prompt"])

    def size(self, content: Sequence[int]) -> int:
        """Tokens."""
        return len(content)

    def batch(self, contents: Sequence[Sequence[int]], augment: Sequence[str] = ()) -> dict[str, torch.Tensor]:
        """Padded ids and their mask."""
        rows = [self._augmented(ids, augment) for ids in contents]
        padded = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        return {name: padded[name] for name in ("input_ids", "attention_mask")}

    def _augmented(self, ids: Sequence[int], names: Sequence[str]) -> list[int]:
        for name in names:
            ids = augment.TEXT[name](ids, self.tokenizer.all_special_ids)
        return list(ids)

    def state(self, backbone: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """An encoder's state of the first token, a causal model's of the last: there it has read the whole text."""
        hidden_PLd = backbone(**inputs).last_hidden_state
        mask_PL = inputs["attention_mask"].bool()
        if is_encoder(self.config):
            place_P = mask_PL.int().argmax(1)
        else:
            place_P = mask_PL.shape[1] - 1 - mask_PL.flip(1).int().argmax(1)
        return hidden_PLd[torch.arange(len(hidden_PLd), device=hidden_PLd.device), place_P]


class ImageReader(Reader):
    """Reads images; the pixels of a small set are made once.

    Args:
        processor: The model's.
        config: The model's.
    """

    column = "image"
    augmentations = augment.IMAGE

    def __init__(self, processor: BaseImageProcessor, config: PretrainedConfig) -> None:
        self.processor, self.config = processor, config
        self._pixels: dict[str, torch.Tensor] = {}
        self._held = 0

    def demonstrations(self, args: Any) -> Encoder:
        """Where each image is."""

        def encode(record: Any) -> Encoded:
            if not isinstance(record, Labelled):
                raise UserError(f"{record.origin}: a classifier of images learns from images with a `label`")
            return Encoded({"image": _name(record.text, record.origin), "classes": list(record.labels)})

        return Encoder(encode, {})

    def prompts(self, args: Any) -> Encoder:
        """Where each image is."""
        return Encoder(lambda record: Encoded({"image": _name(record.prompt, record.origin)}), {})

    def prompt(self, row: Mapping[str, Any]) -> Text:
        """The image's name."""
        return Image(row["image"])

    def size(self, content: str) -> int:
        """All images are of one size when the model reads them."""
        return 1

    def batch(self, contents: Sequence[str], augment: Sequence[str] = ()) -> dict[str, torch.Tensor]:
        """Pixels, [P, channels, height, width]."""
        return {"pixel_values": torch.stack([self._augmented(self._read(ref), augment) for ref in contents])}

    def _augmented(self, pixels_CHW: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        for name in names:
            pixels_CHW = augment.IMAGE[name](pixels_CHW)
        return pixels_CHW

    def _read(self, ref: str) -> torch.Tensor:
        if (known := self._pixels.get(ref)) is not None:
            return known
        pixels_CHW = pixel_values(self.processor, self.config, ref)
        self._held += pixels_CHW.nbytes + len(ref)
        if self._held <= _CACHED:
            self._pixels[ref] = pixels_CHW
        return pixels_CHW

    def state(self, backbone: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The state of the CLS token; without one, the mean over all places."""
        hidden = backbone(**inputs).last_hidden_state
        if hidden.dim() == 4:  # convolutional: [P, d, height, width]
            return hidden.mean((2, 3))
        if any(name.endswith("cls_token") for name, _ in backbone.named_parameters()):
            return hidden[:, 0]
        return hidden.mean(1)


def reader_of(opened: OpenedModel) -> Reader:
    """How a classifier reads its input."""
    config = model_config(opened.source)
    if isinstance(opened.processor, BaseImageProcessor):
        return ImageReader(opened.processor, config)
    return TextReader(opened.processor, config)


def _name(content: Text, origin: str) -> str:
    """The name of an image.

    Raises:
        UserError: It is a text.
    """
    if not isinstance(content, Image):
        raise UserError(f"{origin}: this is text, and the model reads images")
    return str(content)
