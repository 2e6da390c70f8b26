"""Publishes a stage: builds its folder, then pushes it as one commit.

`dry_run` stops before the push, so that the folder can be looked at. Only `publish` pushes anything.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from rlhf.artifacts.rounds import run_name
from rlhf.errors import UserError
from rlhf.models.load import ADAPTER_CONFIG
from rlhf.publish.build import build_folder

_SUPERSEDED = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", ADAPTER_CONFIG]
"""Files of an earlier push that go: an adapter beside whole weights would load as another model."""


@dataclass(frozen=True)
class PublishResult:
    """What was pushed, or would be without `dry_run`."""

    url: str | None
    """Page of the model on the hub; None for a dry run."""
    folder: Path
    files: tuple[tuple[str, int], ...]
    verified: bool
    private: bool


def publish(
    run_dir: Path,
    stage: str,
    to: str | None,
    *,
    merge: bool = False,
    private: bool = True,
    dry_run: bool = False,
    token: str | None = None,
) -> PublishResult:
    """Build `run_dir/published/STAGE` and push it.

    Args:
        run_dir: A run's folder.
        stage: One of its finished stages.
        to: Hub id, `user/name`; a dry run needs none.
        merge: Publish whole weights, with the adapter merged.
        private: Create the repository as private, and refuse an existing one that is public.
        dry_run: Build and verify the folder, and push nothing. A base on the hub is still loaded from there.
        token: Hub token; None takes that of the login.

    Raises:
        UserError: The stage cannot be published, the id is malformed, or the hub refuses or cannot be reached.
    """
    if to is not None:
        _check_id(to)
    elif not dry_run:
        raise UserError("name where to publish: --to user/name, or publish: {to: user/name} in the YAML")
    if not dry_run and not (token or get_token()):
        raise UserError("no hub token: run `hf auth login` or set HF_TOKEN")
    folder = run_dir / "published" / stage
    partial = folder.with_name(f".{stage}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        built = build_folder(run_dir, stage, partial, merge, to)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()  # if nothing is in it
    if dry_run or to is None:
        return PublishResult(None, folder, built.files, built.verified, private)
    url, is_private = _push(folder, to, private, token, f"Publish {stage} of {run_name(run_dir)}")
    return PublishResult(url, folder, built.files, built.verified, is_private)


def _check_id(to: str) -> None:
    try:
        validate_repo_id(to)
    except HFValidationError as error:
        raise UserError(f"{to!r} is no hub id such as user/name: {_first_line(error)}") from None
    if "/" not in to:
        raise UserError(f"{to!r} is no hub id such as user/name: say whose it is")


def _push(folder: Path, to: str, private: bool, token: str | None, message: str) -> tuple[str, bool]:
    """Create the repository if it does not exist, and commit the folder.

    Returns:
        The model's page, and whether it is private.
    """
    api = HfApi(token=token, library_name="rlhf")
    with _as_user_error(to):
        repo = api.create_repo(to, private=private, exist_ok=True)
        is_private = bool(api.model_info(repo.repo_id).private)
        if private and not is_private:
            raise UserError(f"{to}: is there already and is public; publish with --public, or to another id")
        api.upload_folder(repo_id=repo.repo_id, folder_path=folder, commit_message=message, delete_patterns=_SUPERSEDED)
    return str(repo), is_private


@contextlib.contextmanager
def _as_user_error(to: str) -> Iterator[None]:
    """Turn a refusal of the hub, or a missing network, into one line."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise UserError(f"{to}: cannot publish while HF_HUB_OFFLINE is set") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        answer = f": {_first_line(error.server_message)}" if error.server_message else ""
        reason = {
            401: "the hub does not accept the token; run `hf auth login`",
            403: "the token may not write there; it needs write access",
        }.get(status, f"the hub answered {status}")
        raise UserError(f"{to}: {reason}{answer}") from None
    except (HTTPError, OSError) as error:
        raise UserError(f"{to}: cannot reach {constants.ENDPOINT}: {_first_line(error)}") from None
    except (ValueError, RuntimeError) as error:  # the card's header, an upload that was cut off
        raise UserError(f"{to}: the hub does not take it: {_first_line(error)}") from None


def _first_line(error: object) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
