"""Where the code of a reward may come from: the project's folder, or an installed package. Nothing is imported here.

A YAML is trusted like a Makefile, and this keeps a slip from running a file that lies elsewhere: in a download folder,
in /tmp, in another project, behind a link.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import site
import sys
import sysconfig
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import rlhf
from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError

_ROOT_MARKS = (".git", "pyproject.toml")
"""What the top folder of a checkout holds."""


def project_folder(project: ProjectConfig) -> Path:
    """The folder whose code a project may run: the checkout that its YAML lies in, else the YAML's own folder.

    Links are resolved. Neither the user's home nor the root of the file system counts as a checkout.
    """
    own = project.path.parent.resolve()
    roots = (folder for folder in (own, *own.parents) if any((folder / mark).exists() for mark in _ROOT_MARKS))
    root = next(roots, own)
    return own if root in (Path.home().resolve(), Path(root.anchor)) else root


def code_file(target: str, project: ProjectConfig) -> Path:
    """The file of a reward that is named by path, looked up beside the YAML, then in the current folder.

    Raises:
        UserError: There is none, or it lies outside the project's folder once links are resolved.
    """
    given = Path(target).expanduser()
    found = [path.resolve() for path in (project.path.parent / given, given) if path.is_file()]
    if not found:
        raise UserError(f"rewards: {project.resolve(target)}: no such file")
    folder = project_folder(project)
    inside = [path for path in found if _is_own(path, folder, project)]
    if not inside:
        raise UserError(
            f"rewards: {target}: lies at {found[0]}, {_where(found[0], folder)}, and is not run; copy it into the "
            "project's folder, or install it as a package and name its module"
        )
    return inside[0]


def check_module(name: str, project: ProjectConfig) -> None:
    """Check that a reward's module is this package's, an installed package's, or lies in the project's folder.

    A module that is not there passes: importing it says so.

    Raises:
        UserError: It belongs to Python itself, or lies elsewhere.
    """
    top, *inner = name.split(".")
    if top in sys.stdlib_module_names:
        raise UserError(f"rewards: {name}: is a module of Python itself; name a function of an installed package")
    if (spec := _found(top)) is None or _is_installed(top, _places(spec)):
        return
    folder = project_folder(project)
    while spec is not None:
        for place in _places(spec):
            if not _is_own(found := place.resolve(), folder, project):
                raise UserError(
                    f"rewards: {name}: lies at {found}, is not installed and {_where(found, folder)}, and is not run; "
                    "install it (pip install -e), or move it into the project's folder"
                )
        if not inner or spec.submodule_search_locations is None:
            return
        spec = PathFinder.find_spec(inner.pop(0), list(spec.submodule_search_locations))


def _is_own(path: Path, folder: Path, project: ProjectConfig) -> bool:
    """Whether a file is the project's own: it lies in its folder, and not among what a run has left there.

    The folder of a run may come from somebody else.
    """
    run = project.run_dir.resolve()
    first = run if project.round == 1 else run.parent
    return path.is_relative_to(folder) and not path.is_relative_to(first)


def _where(path: Path, folder: Path) -> str:
    inside = path.is_relative_to(folder)
    return "in the folder of the run" if inside else f"outside the project's folder {folder}"


def _found(top: str) -> ModuleSpec | None:
    """Where a top-level module would be imported from, without importing it."""
    try:
        return find_spec(top)
    except ValueError:  # no name of a module, or a module without a file
        return None


def _places(spec: ModuleSpec) -> list[Path]:
    """The file of a module, and the folders of a package."""
    file = [spec.origin] if spec.origin and spec.has_location else []
    return [Path(place) for place in (*file, *(spec.submodule_search_locations or ()))]


def _is_installed(top: str, places: Iterable[Path]) -> bool:
    """Whether all places of a top-level module are those of an installed package, of an editable one too."""
    own = tuple(Path(folder).resolve() for folder in rlhf.__path__) if top == "rlhf" else ()
    return all(
        any(place.is_relative_to(folder) for folder in _site_folders())
        or any(place.resolve().is_relative_to(folder) for folder in own or _editable_folders())
        for place in places
    )


@functools.cache
def _site_folders() -> tuple[Path, ...]:
    """The folders into which packages are installed, as they are named and with links resolved."""
    names = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        names.append(site.getusersitepackages())
    named = [Path(name) for name in names]
    return tuple(dict.fromkeys((*named, *(folder.resolve() for folder in named))))


@functools.cache
def _editable_folders() -> tuple[Path, ...]:
    """The folders of packages that are installed without being copied (`pip install -e`)."""
    origins = (json.loads(found.read_text("direct_url.json") or "{}") for found in importlib.metadata.distributions())
    editable = [origin["url"] for origin in origins if origin.get("dir_info", {}).get("editable")]
    return tuple(Path(unquote(urlsplit(url).path)).resolve() for url in editable)
