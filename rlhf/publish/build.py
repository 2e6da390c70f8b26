"""Builds the folder of a stage for others: weights, tokenizer, card and report, loaded again and compared with the run.

It holds safetensors, JSON and text: no pickle, no path of this machine, no token.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import get_token
from peft import PeftModel
from peft.utils.constants import SAFETENSORS_WEIGHTS_NAME
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.artifacts.confined import check_confined
from rlhf.artifacts.manifest import Manifest, is_finished, read_manifests
from rlhf.artifacts.open import OpenedModel, open_stage
from rlhf.artifacts.rounds import run_name
from rlhf.config.project import ModelConfig
from rlhf.errors import UserError, reason
from rlhf.models import probe
from rlhf.models.labels import adapter_labels
from rlhf.models.load import ADAPTER_CONFIG, Source, adapter_config, model_config
from rlhf.models.processor import load_processor
from rlhf.models.quantization import is_quantized, settle
from rlhf.models.tasks import LABEL, Task, is_encoder
from rlhf.models.tokenizer import check_tokenizer
from rlhf.publish.base import held_in_4_bits, moved
from rlhf.publish.card import Derived, Subject, is_local, public_base, publishable, write_card
from rlhf.report.build import build_report
from rlhf.secrets import holds_secret

_WEIGHTS = ("config.json", "generation_config.json", "model.safetensors.index.json")
_ALLOWED = {".safetensors", ".gguf", ".json", ".jinja", ".txt", ".model", ".md"}
_TEXT = {".json", ".jinja", ".txt", ".md"}


@dataclass(frozen=True)
class Published:
    """A folder ready to be pushed."""

    folder: Path
    files: tuple[tuple[str, int], ...]
    """Name and size in bytes of each file."""
    verified: bool
    """Whether the loaded folder gave the outputs recorded in training (none were if the weights were sharded)."""


@dataclass(frozen=True)
class Finished:
    """A finished stage that a folder for others is built from."""

    run_dir: Path
    stage: str
    opened: OpenedModel

    @property
    def task(self) -> Task:
        """What its head computes."""
        return LABEL if self.opened.kind == "reward" else self.opened.task

    @property
    def has_adapter(self) -> bool:
        """Whether it left an adapter; otherwise it left whole weights."""
        return (self.run_dir / self.stage / ADAPTER_CONFIG).is_file()

    def model(self) -> PreTrainedModel:
        """Its model on the CPU, with adapter and head merged, once it has given the outputs recorded in training.

        An adapter that was trained on a base in 4 bits is merged into the unquantized base, whose outputs differ.
        """
        plain = self.opened.unquantized()
        whole = plain.kind == "policy" or plain.task.images
        return plain.policy(placed=False) if whole else plain.scorer(placed=False)

    def expected(self, model: PreTrainedModel) -> dict[str, Any] | None:
        """The probe of what `model` gave; None where training recorded none."""
        recorded = self.opened.manifest.get("probe")
        exact = self.opened.settings.quantization is None
        return recorded if exact or not recorded else probe.again(model, recorded)

    def describe(
        self,
        folder: Path,
        to: str | None,
        *,
        adapter: bool,
        expected: dict[str, Any] | None,
        added: bool,
        derived: Derived | None = None,
    ) -> tuple[tuple[str, int], ...]:
        """Write card and report beside the weights, and check all files.

        Args:
            folder: Where the weights are.
            to: The hub id it will have, for the card.
            adapter: Whether they are an adapter.
            expected: The probe that the loaded folder was held against; None where there was none.
            added: Whether the tokenizer has more tokens than the base has embeddings.
            derived: What the weights are where they are not the stage's own.

        Returns:
            Name and size in bytes of each file.

        Raises:
            UserError: A file is not allowed.
        """
        opened, origin = self.opened, self.opened.source
        manifests = read_manifests(self.run_dir)  # a stage may have ended meanwhile, and is in the report then
        base, revision = _first_base(self.stage, manifests, origin)
        subject = Subject(
            run=run_name(self.run_dir), stage=self.stage, kind=opened.kind, task=self.task, manifests=manifests,
            labels=len(opened.label_names), adapter=adapter, base=base, revision=revision, dtype=opened.settings.dtype,
            encoder=is_encoder(model_config(origin)), added_tokens=added,
            base_files=_base_files(origin.base) if adapter else {}, verified=bool(expected),
            in_4_bits=held_in_4_bits(opened, self.task) if adapter else None,
            moved=None if adapter else moved(opened, expected), derived=derived,
        )  # fmt: skip
        report = publishable({key: value for key, value in build_report(self.run_dir).items() if key != "samples"})
        write_card(folder, subject, report, to)
        (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        return swept(folder)


def finished(run_dir: Path, stage: str) -> Finished:
    """A finished stage that may be handed out.

    Raises:
        UserError: The stage is not finished, stages that it came from were replaced since, or a link in the run leads
            outside.
    """
    check_confined(run_dir)
    opened = open_stage(run_dir / stage)
    _check_lineage(run_dir, stage, read_manifests(run_dir))
    return Finished(run_dir, stage, opened)


def build_folder(run_dir: Path, stage: str, folder: Path, merge: bool = False, to: str | None = None) -> Published:
    """Build the folder that would be pushed, and verify it by loading it.

    Args:
        run_dir: A run's folder.
        stage: One of its finished stages.
        folder: A new or empty folder.
        merge: Write whole weights, with the adapter merged.
        to: The hub id it will have, for the card.

    Raises:
        UserError: The stage cannot be handed out (`finished`), nobody else has its base, the folder does not give the
            outputs recorded in training, or a file is not allowed.
    """
    source, whole = run_dir / stage, finished(run_dir, stage)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty")
    adapter, opened = whole.has_adapter and not merge, whole.opened
    if not whole.has_adapter and not merge and not (source / "config.json").is_file():
        raise UserError(f"{source}: holds no model")
    if adapter and is_finished(Path(opened.source.base)):
        raise UserError(
            f"{source}: its base is {opened.source.base}, a stage of a run, which nobody else has; "
            "publish whole weights with --merge"
        )
    folder.mkdir(parents=True, exist_ok=True)
    opened.processor.save_pretrained(folder)
    expected = opened.manifest.get("probe")
    if adapter:
        _copy_adapter(source, folder)
    elif whole.has_adapter:
        expected = _save_merged(whole, folder)
    else:
        _copy_weights(source, folder)
    added = _verify(folder, whole, expected)
    files = whole.describe(folder, to, adapter=adapter, expected=expected, added=added)
    return Published(folder, files, bool(expected))


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


def _save_merged(whole: Finished, folder: Path) -> dict[str, Any] | None:
    """Write whole weights, with the adapter and its head merged.

    Returns:
        The probe of what was written; None where training recorded none.
    """
    model = whole.model()
    model.save_pretrained(folder)
    expected = whole.expected(model)
    del model
    gc.collect()
    return expected


def load_whole(folder: Path, dtype: str, task: Task, **arguments: Any) -> PreTrainedModel:
    """Load a folder of whole weights with transformers alone.

    Args:
        folder: The folder, or a download of it.
        dtype: Type of the weights.
        task: What the head computes.
        arguments: What `from_pretrained` takes besides, such as `gguf_file`.

    Raises:
        UserError: It cannot be loaded, or weights are missing.
    """
    try:
        model, info = task.model_class.from_pretrained(
            str(folder), output_loading_info=True, **_arguments(dtype), **arguments
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: cannot be loaded: {reason(error)}") from None
    if info["missing_keys"]:  # loading would draw a missing head at random
        raise UserError(f"{folder}: lost the weights {min(info['missing_keys'])}; build it again from the stage")
    if is_quantized(model):
        settle(model, str(folder))
    return model


def _load_adapter(folder: Path, whole: Finished) -> PeftModel:
    """Load a folder of an adapter with peft, on the stage's base."""
    opened, task = whole.opened, whole.task
    arguments = _arguments(opened.settings.dtype)
    if task.new_head:
        arguments["num_labels"] = task.outputs or adapter_labels(folder)
    in_4_bits = held_in_4_bits(opened, task)
    if in_4_bits is not None:
        arguments["quantization_config"] = BitsAndBytesConfig(**in_4_bits)
    try:
        model = task.model_class.from_pretrained(opened.source.base, revision=opened.source.revision, **arguments)
        if in_4_bits is not None:
            settle(model, opened.source.base)
        if opened.kind != "policy" and not task.images:  # the score is read at the last token before the pads
            model.config.pad_token_id = AutoTokenizer.from_pretrained(str(folder)).pad_token_id
        return PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: cannot be loaded: {reason(error)}") from None


def _arguments(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}


def _verify(folder: Path, whole: Finished, expected: dict[str, Any] | None) -> bool:
    """Load the folder, and compare the tokenizer with what training recorded and the model with a probe.

    Returns:
        Whether the tokenizer has more tokens than the base has embeddings.
    """
    opened = whole.opened
    processor = load_processor(ModelConfig(name_or_path=str(folder)), folder, whole.task.images)
    check_tokenizer(processor, opened.manifest.get("tokenizer") or {}, folder)
    probe.check_head(folder)
    adapter = (folder / ADAPTER_CONFIG).is_file()
    model = _load_adapter(folder, whole) if adapter else load_whole(folder, opened.settings.dtype, whole.task)
    if expected:
        probe.check(model, expected, str(folder), "what was written is not the model of the stage")
    added = False
    if isinstance(processor, PreTrainedTokenizerBase):
        embeddings: Any = model.get_input_embeddings()
        added = len(processor) > len(embeddings.weight)
    del model
    gc.collect()
    return added


def _base_files(base: str) -> dict[str, str]:
    """SHA-256 of a local base's weight files, by name."""
    digests = {}
    for path in sorted(Path(base).glob("*.safetensors")) if is_local(base) else []:
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def swept(folder: Path) -> tuple[tuple[str, int], ...]:
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
