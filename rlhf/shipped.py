"""The recipes that ship, with the model and the data of the smallest: where they lie, and how to copy them."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

import rlhf
from rlhf.durable import written_whole
from rlhf.errors import UserError

QUICKSTART = "quickstart.yaml"
"""The recipe that needs no download."""


def origin() -> Path:
    """The folder with `recipes` and `data`: within an installed package, else the checkout that the package lies in."""
    package = Path(rlhf.__file__).resolve().parent
    share = package / "share"
    return share if share.is_dir() else package.parent


def copy_recipes(folder: Path) -> list[Path]:
    """Copy the recipes into a folder, and the data into `data` there.

    The recipes name their data by paths that hold from the YAML's folder, so they run wherever the folder is. A file
    that is there already with the same content stays; the recipes of a checkout stay as they are.

    Args:
        folder: Where to; it is made.

    Returns:
        The recipes there, in name order.

    Raises:
        UserError: The folder holds another file by one of these names, or cannot be written. Nothing is copied then,
            unless the disk fills up.
    """
    recipes, data = origin() / "recipes", origin() / "data"
    if not (recipes / QUICKSTART).is_file():
        raise UserError(f"{recipes}: the recipes are missing; install rlhf-pipeline again")
    copies = {folder / path.relative_to(recipes): path for path in _files(recipes)}
    copies |= {folder / "data" / path.relative_to(data): path for path in _files(data)}
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; name a folder")
        if folder.resolve() != recipes:
            _copy(copies)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {(error.strerror or str(error)).lower()}") from None
    return sorted(folder.glob("*.yaml"))


def laid_base(folder: Path) -> Path:
    """The model that ships, as a command names it once the recipes lie in a folder; a checkout has it beside them."""
    below = folder / "data" / "base"
    return below if below.is_dir() else folder.parent / "data" / "base"


def _copy(copies: dict[Path, Path]) -> None:
    """Copy files to where they go; those that are there already must be equal."""
    for target, source in copies.items():
        if target.exists() and not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
            raise UserError(f"{target}: is there already and differs from what ships; name another folder")
    for target, source in copies.items():
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(target) as partial:
                shutil.copyfile(source, partial)


def _files(folder: Path) -> list[Path]:
    """All files below a folder, without what Python compiled."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


def purpose(recipe: Path) -> str:
    """The first sentence of a recipe's header."""
    lines = []
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        lines.append(line.removeprefix("# ").strip())
        if lines[-1].endswith((".", ":")):
            break
    return " ".join(lines).rstrip(".:")
