"""Images that records name: the path of a file, or a data URI.

A path is one that can be opened from the current folder; formats resolve those that are relative to their file.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from urllib.parse import unquote_to_bytes

from rlhf.errors import UserError


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
                raise ValueError("no comma")
            return base64.b64decode(content, validate=True) if head.endswith(";base64") else unquote_to_bytes(content)
        except (binascii.Error, ValueError) as error:
            raise UserError(f"{ref[:40]}…: not a data URI of an image: {error}") from None
    try:
        return Path(ref).read_bytes()
    except (OSError, ValueError) as error:  # a path with a null character is a ValueError
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(f"{ref}: the image cannot be read: {reason.lower()}") from None
