"""Whether what the arena needs besides the package is installed."""

from __future__ import annotations

from importlib.util import find_spec

from rlhf.errors import UserError

_NEEDED = ("evalica", "krippendorff", "limits", "sklearn", "sse_starlette", "starlette", "statsmodels", "uvicorn")


def check_installed() -> None:
    """Check that the packages of the extra `arena` are there.

    Raises:
        UserError: Some are missing.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UserError(f"the arena needs {', '.join(missing)}: pip install 'rlhf-pipeline[arena]'")
