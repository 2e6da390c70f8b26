"""Publishes a stage: builds a folder, loads it and compares it with the run, then pushes it as one commit.

`dry_run` stops before the push, so that the folder can be looked at. It holds safetensors, JSON and text: no pickle, no
path of this machine, no token. Only `publish` pushes anything.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel
from peft.utils.constants import SAFETENSORS_WEIGHTS_NAME
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.artifacts.confined import check_confined
from rlhf.artifacts.manifest import Manifest, is_finished, read_manifests
from rlhf.artifacts.open import OpenedModel, open_stage
from rlhf.artifacts.rounds import run_name
from rlhf.config.project import ModelConfig
from rlhf.errors import UserError
from rlhf.models import probe
from rlhf.models.labels import adapter_labels
from rlhf.models.load import ADAPTER_CONFIG, Source, adapter_config, model_config
from rlhf.models.processor import load_processor
from rlhf.models.quantization import settle
from rlhf.models.tasks import LABEL, Task, is_encoder
from rlhf.models.tokenizer import check_tokenizer
from rlhf.publish.base import held_in_4_bits, moved
from rlhf.publish.card import Subject, is_local, public_base, publishable, write_card
from rlhf.report.build import build_report
from rlhf.secrets import holds_secret

_WEIGHTS = ("config.json", "generation_config.json", "model.safetensors.index.json")
_ALLOWED = {".safetensors", ".json", ".jinja", ".txt", ".model", ".md"}
_TEXT = {".json", ".jinja", ".txt", ".md"}
_SUPERSEDED = ["*.safetensors", "*.safetensors.index.json", *_WEIGHTS[:2], ADAPTER_CONFIG]
"""Files of an earlier push that go: an adapter beside whole weights would load as another model."""


@dataclass(frozen=True)
class Published:
    """A folder ready to be pushed."""

    folder: Path
    files: tuple[tuple[str, int], ...]
    """Name and size in bytes of each file."""
    verified: bool
    """Whether the loaded folder gave the outputs recorded in training (none were if the weights were sharded)."""


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


def build_folder(run_dir: Path, stage: str, folder: Path, merge: bool = False, to: str | None = None) -> Published:
    """Build the folder that would be pushed, and verify it by loading it.

    Args:
        run_dir: A run's folder.
        stage: One of its finished stages.
        folder: A new or empty folder.
        merge: Write whole weights, with the adapter merged.
        to: The hub id it will have, for the card.

    Raises:
        UserError: The stage is not finished, stages that it came from were replaced since, nobody else has its base, or
            the folder does not give the outputs recorded in training; or a link in the run leads outside.
    """
    check_confined(run_dir)
    source = run_dir / stage
    opened = open_stage(source)
    manifests = read_manifests(run_dir)
    _check_lineage(run_dir, stage, manifests)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty")
    adapter = (source / ADAPTER_CONFIG).is_file() and not merge
    if not adapter and not merge and not (source / "config.json").is_file():
        raise UserError(f"{source}: holds no model")
    origin, dtype, kind = opened.source, opened.settings.dtype, opened.kind
    task = LABEL if kind == "reward" else opened.task
    if adapter and is_finished(Path(origin.base)):
        raise UserError(
            f"{source}: its base is {origin.base}, a stage of a run, which nobody else has; "
            "publish whole weights with --merge"
        )
    folder.mkdir(parents=True, exist_ok=True)
    opened.processor.save_pretrained(folder)
    expected = opened.manifest.get("probe")
    if adapter:
        _copy_adapter(source, folder)
    elif (source / ADAPTER_CONFIG).is_file():
        expected = _save_merged(opened, folder)
    else:
        _copy_weights(source, folder)
    in_4_bits = held_in_4_bits(opened, task) if adapter else None
    verified, added = _verify(folder, opened.manifest, expected, origin, dtype, kind, task, in_4_bits)
    base, revision = _first_base(stage, manifests, origin)
    subject = Subject(
        run=run_name(run_dir), stage=stage, kind=kind, task=task, manifests=manifests,
        labels=len(opened.label_names), adapter=adapter, base=base, revision=revision, dtype=dtype,
        encoder=is_encoder(model_config(origin)), added_tokens=added,
        base_files=_base_files(origin.base) if adapter else {},
        verified=verified,
        in_4_bits=in_4_bits,
        moved=None if adapter else moved(opened, expected),
    )  # fmt: skip
    report = publishable({key: value for key, value in build_report(run_dir).items() if key != "samples"})
    write_card(folder, subject, report, to)
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return Published(folder, _sweep(folder), verified)


def _check_lineage(run_dir: Path, stage: str, manifests: Mapping[str, Manifest]) -> None:
    """Check that nothing the card tells of was replaced since: no ancestor, and nothing the stage was compared with.

    Raises:
        UserError: Something was.
    """
    comparisons = (name for name, manifest in manifests.items() if manifest["leaves"] == "comparison")
    queue = [stage, *(name for name in comparisons if stage in manifests[name]["parents"])]
    seen = set()
    while queue:
        name = queue.pop(0)
        seen.add(name)
        for parent, artifact in manifests[name]["parents"].items():
            now = manifests[parent]["artifact"] if parent in manifests else None
            if now != artifact:
                raise UserError(
                    f"{run_dir / name}: was made from {parent} {str(artifact)[:12]}, which is {str(now)[:12]} now; "
                    "bring the run up to date with rlhf run first"
                )
            if parent not in seen:
                queue.append(parent)


def _first_base(stage: str, manifests: Mapping[str, Manifest], origin: Source) -> tuple[str | None, str | None]:
    """The model that a stage goes back to, through parents that are whole weights, and its revision.

    None where that is random weights made by the run.
    """
    lineage = manifests[stage].get("lineage")
    if lineage is None:
        return (None, None) if manifests[stage]["leaves"] == "base" else (origin.base, origin.revision)
    base, revision = lineage["base"] or origin.base, lineage["revision"] or origin.revision
    parents = [name for name in manifests[stage]["parents"] if name == Path(base).name]
    if parents and is_finished(Path(base)):
        return _first_base(parents[0], manifests, origin)
    return base, revision


def _copy_adapter(source: Path, folder: Path) -> None:
    shutil.copy(source / SAFETENSORS_WEIGHTS_NAME, folder)
    config = adapter_config(source)
    config["base_model_name_or_path"] = public_base(config["base_model_name_or_path"])
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy_weights(source: Path, folder: Path) -> None:
    for path in (*(source / name for name in _WEIGHTS), *source.glob("model*.safetensors")):
        if path.is_file():
            shutil.copy(path, folder)


def _save_merged(opened: OpenedModel, folder: Path) -> dict[str, Any] | None:
    """Write whole weights, with the adapter and its head merged; into the unquantized base, whatever it was trained on.

    Returns:
        The probe of what was written; None where training recorded none.
    """
    recorded, plain = opened.manifest.get("probe"), opened.unquantized()
    model = plain.policy(placed=False) if plain.kind == "policy" or plain.task.images else plain.scorer(placed=False)
    model.save_pretrained(folder)
    result = recorded if plain is opened or not recorded else probe.again(model, recorded)
    del model
    gc.collect()
    return result


def load_published(
    folder: Path,
    base: str,
    revision: str | None,
    dtype: str,
    kind: str,
    task: Task,
    in_4_bits: Mapping[str, Any] | None = None,
) -> PreTrainedModel | PeftModel:
    """Load a published folder as its card says, with transformers alone, or with peft on the base.

    Args:
        folder: The folder, or a download of it.
        base: Where the base model is; read only if the folder holds an adapter.
        revision: Revision of the base model.
        dtype: Type of the weights.
        kind: `policy`, `reward` or `classifier`.
        task: What the head computes.
        in_4_bits: Arguments of `BitsAndBytesConfig` for the base of an adapter; None where it is not quantized.

    Raises:
        UserError: Weights are missing.
    """
    auto = task.model_class
    arguments: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    if not (folder / ADAPTER_CONFIG).is_file():
        model, info = auto.from_pretrained(str(folder), output_loading_info=True, **arguments)
        if info["missing_keys"]:  # loading would draw a missing head at random
            raise UserError(f"{folder}: lost the weights {min(info['missing_keys'])}; build it again from the stage")
        return model
    if task.new_head:
        arguments["num_labels"] = task.outputs or adapter_labels(folder)
    if in_4_bits is not None:
        arguments["quantization_config"] = BitsAndBytesConfig(**in_4_bits)
    model = auto.from_pretrained(base, revision=revision, **arguments)
    if in_4_bits is not None:
        settle(model, base)
    if kind != "policy" and not task.images:  # the score is read at the last token before the pads
        model.config.pad_token_id = AutoTokenizer.from_pretrained(str(folder)).pad_token_id
    return PeftModel.from_pretrained(model, str(folder))


def _verify(
    folder: Path, manifest: Manifest, expected: dict[str, Any] | None, origin: Source, dtype: str, kind: str,
    task: Task, in_4_bits: Mapping[str, Any] | None,
) -> tuple[bool, bool]:  # fmt: skip
    """Load the folder, and compare the tokenizer with what training recorded and the model with a probe.

    Returns:
        Whether there is a probe to compare with, and whether the tokenizer has more tokens than the base has
        embeddings.
    """
    processor = load_processor(ModelConfig(name_or_path=str(folder)), folder, task.images)
    check_tokenizer(processor, manifest.get("tokenizer") or {}, folder)
    probe.check_head(folder)
    try:
        model = load_published(folder, origin.base, origin.revision, dtype, kind, task, in_4_bits)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: cannot be loaded: {_first_line(error)}") from None
    if expected:
        probe.check(model, expected, str(folder), "what was written is not the model of the stage")
    added = False
    if isinstance(processor, PreTrainedTokenizerBase):
        embeddings: Any = model.get_input_embeddings()
        added = len(processor) > len(embeddings.weight)
    del model
    gc.collect()
    return bool(expected), added


def _base_files(base: str) -> dict[str, str]:
    """SHA-256 of a local base's weight files, by name."""
    digests = {}
    for path in sorted(Path(base).glob("*.safetensors")) if is_local(base) else []:
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _sweep(folder: Path) -> tuple[tuple[str, int], ...]:
    """List the files, and check that each is of an allowed kind and holds no token and no path of this user's.

    Raises:
        UserError: A file is not allowed.
    """
    secrets = [secret for secret in (get_token(), str(Path.home()) if len(Path.home().parts) > 2 else None) if secret]
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise UserError(f"{path}: a link is not published: what it leads to would be")
        if path.suffix not in _ALLOWED:
            raise UserError(f"{path}: a {path.suffix} file is not published; only {', '.join(sorted(_ALLOWED))} are")
        text = path.read_text(encoding="utf-8", errors="replace") if path.suffix in _TEXT else ""
        if holds_secret(text) or any(secret in text for secret in secrets):
            raise UserError(f"{path}: holds a token or a path of this machine; nothing was published")
        files.append((name, path.stat().st_size))
    return tuple(files)


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
