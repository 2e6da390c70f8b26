"""An image and its class, or a list of several classes at once: what an image classifier is fine-tuned on."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.images import load_image
from rlhf.data.records import Image, Labelled, Unusable
from rlhf.errors import UserError

NAME = "images"
COLUMNS = ("image", "label")


def matches(row: dict[str, Any]) -> bool:
    """Whether an image or its path stands beside a label, and no text."""
    image, label = row.get("image"), row.get("label", ...)
    return _columns.is_text(image) and (label is None or _columns.is_label(label)) and "text" not in row


def parse(row: dict[str, Any], origin: str) -> Labelled:
    """The row as a labelled image, which is opened once to see that it can be.

    Raises:
        Unusable: There is no image, or no label.
        UserError: The image cannot be read.
    """
    image = _columns.value(row, "image", origin)
    if image is None or image == "":
        raise Unusable("no image")
    if not isinstance(image, str):
        raise _columns.wrong_type(image, "image", origin, "a path, a data URI or an image of `datasets`")
    if not isinstance(image, Image) and not image.startswith("data:"):  # a source has resolved the paths of files
        raise UserError(f"{origin}: image {image!r}: no such file (a path is relative to the file that names it)")
    names, several = _columns.labels(row, "label", origin)
    try:
        load_image(image)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    return Labelled(Image(image), names, several, _columns.rest(row, *COLUMNS), origin)
