"""JSON files that this package writes and reads again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.durable import written_whole
from rlhf.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")


def read_object(path: Path, fields: Mapping[str, type], remedy: str) -> dict[str, Any]:
    """Read a JSON object that this package wrote.

    Args:
        path: The file.
        fields: The fields that must be in it, with their types.
        remedy: What the user can do where the file is damaged.

    Raises:
        UserError: The file cannot be read, holds no JSON object, or lacks one of the fields.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path}: is no file; {remedy}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not valid JSON; {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; {remedy}")
    for name, kind in fields.items():
        if not isinstance(value.get(name), kind):
            raise UserError(f"{path}: has no {name!r}, or one of another type; {remedy}")
    return value
