"""Folders of images, one folder a class: `digits/3/0001.png` is an image of class 3."""

from __future__ import annotations

import itertools
from pathlib import Path

from rlhf.data.images import SUFFIXES
from rlhf.data.readers import Rows
from rlhf.data.records import Image

Classes = dict[str, list[Path]]
"""The images of each class."""


def classes_in(folder: Path) -> Classes:
    """The images of each sub-folder that holds any, sorted by name; hidden files and folders are left out."""
    found: Classes = {}
    for path in _visible(folder):
        images = [file for file in _visible(path) if file.suffix.lower() in SUFFIXES and file.is_file()]
        if images:
            found[path.name] = images
    return found


def splits_in(folder: Path) -> list[str]:
    """The sub-folders that are such folders themselves: `digits/train/3/0001.png`."""
    return [path.name for path in _visible(folder) if classes_in(path)]


def read_classes(classes: Classes, name: str) -> Rows:
    """Rows of image and label, an image of each class in turn, so that a limit does not leave out whole classes.

    Args:
        classes: The images of each class.
        name: The folder's name in messages.
    """
    for images in itertools.zip_longest(*classes.values()):
        for label, image in zip(classes, images, strict=True):
            if image is not None:
                yield {"image": Image(image.absolute()), "label": label}, f"{name}/{label}/{image.name}"


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_"))) if folder.is_dir() else []
