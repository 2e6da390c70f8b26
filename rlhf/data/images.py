"""Images that records name: the path of a file, or a data URI.

Sources make paths absolute, so that what was prepared from one folder can be trained on from another.
"""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from rlhf.data.records import Image
from rlhf.errors import UserError

if TYPE_CHECKING:
    from PIL import Image as pillow

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""What the names of images end in."""

_KINDS = {
    b"\x89PNG\r\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
}


def image_bytes(ref: str) -> bytes:
    """The encoded bytes of an image.

    Args:
        ref: A path or a data URI.

    Raises:
        UserError: There is no such file, or the data URI is malformed.
    """
    if ref.startswith("data:"):
        head, comma, content = ref.partition(",")
        try:
            if not comma:
                raise ValueError("it has no comma")
            return base64.b64decode(content, validate=True) if head.endswith(";base64") else unquote_to_bytes(content)
        except ValueError as error:
            raise UserError(f"{shown(ref)}: not a data URI of an image: {error}") from None
    try:
        return Path(ref).read_bytes()
    except (OSError, ValueError) as error:  # a null character in a path is a ValueError
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(f"{ref}: the image cannot be read: {why.lower()}") from None


def load_image(ref: str) -> pillow.Image:
    """An image with its pixels, in the mode that it is stored in.

    Args:
        ref: A path or a data URI.

    Raises:
        UserError: It cannot be read or is damaged, or Pillow is not installed.
    """
    try:
        from PIL import Image as pillow
    except ImportError:
        raise UserError("the package Pillow, which reads images, is not installed: pip install pillow") from None
    content = image_bytes(ref)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            image = pillow.open(io.BytesIO(content))
            image.load()
    except Exception as error:  # damaged files raise OSError, SyntaxError, ValueError, struct.error and others
        why = "no known kind of image" if type(error).__name__ == "UnidentifiedImageError" else str(error)
        raise UserError(f"{shown(ref)}: the image cannot be read: {why or type(error).__name__}") from None
    return image


def in_mode(image: pillow.Image, mode: str) -> pillow.Image:
    """An image in another mode; 16 bits a pixel keep their upper 8, which Pillow would clip to white.

    Args:
        image: Any image.
        mode: `L` (grey), `RGB` or `RGBA`.
    """
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    return image if image.mode == mode else image.convert(mode)


def as_image(value: Any) -> Image | None:
    """A value of a table as an image: encoded bytes, alone or as `datasets` stores them (`{"bytes": …, "path": …}`).

    Args:
        value: Any value.

    Returns:
        A data URI; None if the value is something else, or bytes of something else.
    """
    content = value.get("bytes") if isinstance(value, dict) and value.keys() == {"bytes", "path"} else value
    if not isinstance(content, bytes):
        return None
    kind = next((kind for start, kind in _KINDS.items() if content.startswith(start)), None)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        kind = "webp"
    return Image(f"data:image/{kind};base64,{base64.b64encode(content).decode()}") if kind else None


def shown(ref: str) -> str:
    """An image's name in messages: a data URI is cut short."""
    return f"{ref[:40]}…" if ref.startswith("data:") and len(ref) > 40 else ref
