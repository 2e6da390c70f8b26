"""The versions of the libraries that this package was written for, and what is said where another one differs."""

from __future__ import annotations

from importlib.metadata import version

from rlhf.errors import UserError

TESTED = {"accelerate": "1.15.0", "peft": "0.21.2", "transformers": "5.23.0", "trl": "1.16.0"}
"""Those of constraints.txt. What is used of these libraries beyond their documented interface may move in any other."""


def library_moved(library: str, problem: str) -> UserError:
    """The error that an installed library is not the one that was expected.

    Args:
        library: Its name.
        problem: What has moved.
    """
    wanted = f"use {library} {TESTED[library]}: pip install {library}=={TESTED[library]}"
    return UserError(f"{library} {version(library)}: {problem}; {wanted}")
