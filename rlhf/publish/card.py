"""Writes the model card of a published stage: what it is, how to load it, whether it helps, where it comes from.

Everything in it comes from the run's manifests and report; no model is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from rlhf.artifacts.manifest import Manifest
from rlhf.artifacts.open import Kind
from rlhf.evaluation.formatting import duration, number
from rlhf.models.tasks import CAUSAL_LM, SEQ2SEQ, SPAN, Task
from rlhf.report import html
from rlhf.report.caveats import caveats
from rlhf.report.schema import Report
from rlhf.report.sentences import statements
from rlhf.report.tables import comparison_table_md, ledger_table_md, markdown_table

_UNDESCRIBED = {"policy": "A policy", "reward": "A reward model", "classifier": "A text classifier"}
"""What is said of a stage that recorded no method."""
_PIPELINES = {CAUSAL_LM: "text-generation", SPAN: "question-answering", SEQ2SEQ: "text2text-generation"}
"""What the hub calls what a policy does."""
_PRIVATE = ("endpoint", "api_key_env")
"""Fields of a judge behind an endpoint that give away its place in somebody's network."""
_FINGERPRINT = ("hub", "file", "folder", "sha256", "revision")
_ABSOLUTE = re.compile(r"(?<![\w.:/~\\-])(?:~|[A-Za-z]:)?[/\\](?:[^/\\\s:\"']+[/\\])*([^/\\\s:\"']+)")


@dataclass(frozen=True)
class Derived:
    """Weights that are not the stage's own: quantised, pruned, or in a file of another kind."""

    what: str
    """What they are, in the first sentence: `int8 weights`."""
    arguments: Mapping[str, str]
    """What `from_pretrained` takes besides the folder to load the model."""
    packages: tuple[str, ...]
    """Packages that loading needs besides transformers."""
    section: str
    """Markdown: how they differ from the stage's own."""


@dataclass(frozen=True)
class Subject:
    """The stage that a card describes."""

    run: str
    stage: str
    kind: Kind
    task: Task
    manifests: Mapping[str, Manifest]
    """Of all finished stages of the run, by name."""
    labels: int
    """Outputs of the head; 1 for a policy."""
    adapter: bool
    """Whether the folder holds an adapter; otherwise it holds whole weights."""
    base: str | None
    """The model that it goes back to: a hub id, a local folder, or None for random weights."""
    revision: str | None
    dtype: str
    encoder: bool
    added_tokens: bool
    """Whether the tokenizer has more tokens than the base has embeddings."""
    base_files: Mapping[str, str]
    """SHA-256 of a local base's weight files, by name."""
    verified: bool
    """Whether the folder was loaded again and gave the outputs recorded in training."""
    in_4_bits: Mapping[str, Any] | None = None
    """How an adapter's base is held in 4 bits, as arguments of `BitsAndBytesConfig`; None where it is not."""
    moved: float | None = None
    """By how much outputs changed on average when an adapter was merged that had been trained on a base in 4 bits."""
    derived: Derived | None = None
    """What the weights are where they are not the stage's own."""

    @property
    def manifest(self) -> Manifest:
        """Of the stage that is published."""
        return self.manifests[self.stage]

    @property
    def prompt_format(self) -> str:
        """`messages` or `text`."""
        return self.manifest.get("prompt_format", "messages")

    @property
    def hub_base(self) -> str | None:
        """The base if it is on the hub."""
        return self.base if self.base is not None and not is_local(self.base) else None


def is_local(base: str) -> bool:
    """Whether a base model's name is that of a folder, and no hub id."""
    if Path(base).exists():
        return True
    try:
        validate_repo_id(base)
    except HFValidationError:
        return True
    return False


def public_base(base: str) -> str:
    """A base model's name as it may be published.

    A hub id stays. A folder below the project stays as `./folder`, which neither a reader nor a library takes for a hub
    id. Of any other folder only the last part of the path stays.
    """
    if not is_local(base):
        return base
    path = os.path.normpath(os.path.expanduser(base))
    outside = os.path.isabs(path) or path.startswith("..")
    return "./" + (os.path.basename(path) if outside else path.replace(os.sep, "/"))


def publishable(value: Any) -> Any:
    """A JSON value as it may be published: absolute paths are cut to their last part, addresses of judges left out."""
    if isinstance(value, Mapping):
        return {publishable(key): publishable(item) for key, item in value.items() if key not in _PRIVATE}
    if isinstance(value, list):
        return [publishable(item) for item in value]
    return _ABSOLUTE.sub(r"\1", value) if isinstance(value, str) else value


def write_card(folder: Path, subject: Subject, report: Report, to: str | None) -> None:
    """Write README.md.

    Args:
        folder: Where to write it.
        subject: The stage that it describes.
        report: What `report.build.build_report` returned, made `publishable`.
        to: The hub id of the model, for the code that loads it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlhf.publish"), autoescape=False, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    text = environment.get_template("model_card.md").render(
        metadata=metadata(subject, report).to_yaml(),
        title=(to or f"{subject.run.replace('/', '-')}-{subject.stage}").rpartition("/")[2],
        summary=summary(subject),
        about=subject,
        name=to or "path/to/this/folder",
        base=public_base(subject.base or ""),
        loading_notes=list(_loading_notes(subject)),
        standfirst=html.standfirst(report),
        verdicts=[statement.text for statement in statements(report)],
        caveats=[caveat.text for caveat in caveats(report)],
        comparisons=comparison_table_md(report),
        lineage=_lineage(subject, report),
        settings=list(_settings(subject, report)),
        data=_data(report),
        ledger=ledger_table_md(report),
        versions=_versions(subject, report),
        limits=list(_limits(subject, report)),
    )
    ModelCard(text).save(folder / "README.md")


def metadata(subject: Subject, report: Mapping[str, Any]) -> ModelCardData:
    """The card's YAML header. It names a base only if that is on the hub, which would link to somebody else's model."""
    trl = ["trl"] if any(name.startswith("trl.") for name in subject.manifest["trainer_config"]) else []
    method = "reward-model" if subject.kind == "reward" else subject.manifest["kind"]
    relation: dict[str, Any] = (
        {"base_model_relation": "adapter" if subject.adapter else "finetune"} if subject.hub_base else {}
    )
    return ModelCardData(
        base_model=subject.hub_base,
        datasets=sorted({source["hub"] for _, _, source in _sources(report) if "hub" in source}) or None,
        library_name="peft" if subject.adapter else "transformers",
        license=_license(subject.base),
        pipeline_tag=_PIPELINES.get(subject.task, "text-classification"),
        tags=["rlhf", *trl, method, *(["lora"] if subject.adapter else [])],
        **relation,
    )


def summary(subject: Subject) -> str:
    """The first sentences of a card."""
    recorded = subject.manifest["method"] if subject.kind != "classifier" else ""
    method = recorded or _UNDESCRIBED[subject.kind]
    if subject.hub_base:
        base = f"[{subject.hub_base}](https://huggingface.co/{subject.hub_base})"
    else:
        base = f"`{public_base(subject.base)}`" if subject.base else "random weights"
    revision = f" at revision `{subject.revision}`" if subject.revision else ""
    whole = "whole weights" if subject.derived is None else subject.derived.what
    what = "a LoRA adapter for" if subject.adapter else f"{whole}, trained from"
    method += {SPAN: ", question answering", SEQ2SEQ: ", text to text"}.get(subject.task, "")
    return f"{method}: {what} {base}{revision}. It is the stage `{subject.stage}` of the run `{subject.run}`."


def _loading_notes(subject: Subject) -> Iterator[str]:
    if subject.adapter and subject.base and not subject.hub_base:
        files = "; ".join(f"`{name}` SHA-256 `{digest}`" for name, digest in subject.base_files.items())
        yield (
            f"The base model `{public_base(subject.base)}` was a local folder and is not on the hub: "
            f"give the path of your own copy instead.{f' Its weights: {files}.' if files else ''}"
        )
    if subject.adapter and subject.added_tokens:
        yield (
            "The tokenizer has a pad token that the base has no embedding for: to run padded batches, call "
            "`model.resize_token_embeddings(len(tokenizer))` on the base before loading the adapter."
        )
    if subject.in_4_bits is not None:
        yield (
            "The adapter was trained on the base in 4 bits (nf4, by bitsandbytes). It loads on the unquantized base, "
            "too, where its outputs differ a little from those of training."
        )
    if subject.derived is not None:
        if subject.derived.packages:
            yield f"To load it: `pip install {' '.join(subject.derived.packages)}`."
    elif subject.moved is not None:
        moved = number(subject.moved, 3)
        yield (
            "The adapter was trained on the base in 4 bits (nf4) and merged into the unquantized base. That changes "
            f"the outputs that training recorded by {moved} on average (nats a sequence, or logits). "
            "Before publication, this folder was loaded in this way, and gave the outputs of what was merged."
        )
    elif subject.verified:
        yield (
            "Before publication, this folder was loaded in this way, and gave the outputs that were recorded in "
            "training."
        )
    else:
        yield "Training recorded no outputs to compare with (sharded weights): this folder was loaded and not compared."


def _lineage(subject: Subject, report: Mapping[str, Any]) -> str:
    header = ("Stage", "Starts from", "Rows trained on", "Seed", "Artefact", "Time")
    rows = []
    for name, stage in report["provenance"].items():
        if subject.manifests[name]["leaves"] == "comparison":
            continue
        parents = [f"{parent} `{digest[:12]}`" for parent, digest in stage["parents"].items() if digest]
        lineage = subject.manifests[name].get("lineage")
        model = (stage.get("config") or {}).get("model") or {}
        sampled = model.get("name_or_path") if subject.manifests[name]["leaves"] == "rows" else None
        origin = lineage["base"] if lineage else sampled
        trained = report["stages"].get(name, {}).get("train_rows")
        rows.append(
            (
                f"**{name}** (this)" if name == subject.stage else name,
                ", ".join(parents) or _origin(report, origin),
                number(trained, 0),
                stage.get("seed", "–"),
                f"`{str(stage.get('artifact', ''))[:12]}`",
                duration(stage.get("wall_time_s")),
            )
        )
    return markdown_table(header, rows, right="Rows trained on,Seed,Time")


def _origin(report: Mapping[str, Any], base: str | None) -> str:
    """What a stage without a parent started from."""
    if report["rounds"]:
        before = report["rounds"]["rounds"][-2]
        return f"{before['label']} of round {before['round']}"
    return f"`{public_base(base)}`" if base else "nothing"


def _settings(subject: Subject, report: Mapping[str, Any]) -> Iterator[str]:
    """The settings of each stage, a line for each."""
    for name, stage in report["provenance"].items():
        config = stage.get("config") or {}
        compares = subject.manifests[name]["leaves"] == "comparison"
        fields = dict((config.get("evaluate") if compares else config.get("trainer")) or {})
        model = config.get("model")
        if model and "lineage" in subject.manifests[name]:
            fields["adapter"] = model.get("adapter") or "none (all weights are trained)"
            if model.get("quantization"):
                fields["base held in"] = model["quantization"]
        if fields:
            yield f"`{name}`: " + ", ".join(f"{key} {_plain(value)}" for key, value in fields.items())


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sources(report: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(stage, set, source) of every source that a stage was trained or judged on."""
    for name, stage in report["provenance"].items():
        for role, fingerprints in (stage.get("data") or {}).items():
            for source in fingerprints.get("sources", []):
                yield name, role, source


def _data(report: Mapping[str, Any]) -> str:
    used: dict[tuple[str, str, str, str], list[str]] = {}
    for stage, role, source in _sources(report):
        if "stage" in source:
            digest = report["provenance"][stage]["parents"].get(source["stage"]) or ""
            used[role, f"what {source['stage']} left", "–", f"artefact `{digest[:12]}`"] = [stage]
            continue
        name = source.get("hub") or source.get("file") or source.get("folder") or "–"
        mark = (
            f"SHA-256 `{source['sha256']}`" if "sha256" in source else f"revision {source.get('revision') or 'latest'}"
        )
        options = ", ".join(f"{key} {_plain(value)}" for key, value in source.items() if key not in _FINGERPRINT)
        stages = used.setdefault((role, name, options or "–", mark), [])
        if stage not in stages:
            stages.append(stage)
    rows = [(role, name, ", ".join(stages), options, mark) for (role, name, options, mark), stages in used.items()]
    return markdown_table(("Set", "Source", "Stages", "Read with", "Fingerprint"), rows) if rows else ""


def _versions(subject: Subject, report: Mapping[str, Any]) -> str:
    stage = report["provenance"][subject.stage]
    now = _listed(stage["versions"])
    commit = [f"git {stage['git_sha'][:12]}"] if stage.get("git_sha") else []
    earlier = [
        f"interrupted, and continued after an upgrade from {_listed(versions, stage['versions'])}"
        for versions in subject.manifest.get("earlier_versions", [])
    ]
    return "; ".join([", ".join([now, *commit]), *earlier])


def _listed(versions: Mapping[str, str], now: Mapping[str, str] | None = None) -> str:
    """`torch 2.13.0, …`; with others given, the versions that differ from those."""
    return ", ".join(f"{name} {version}" for name, version in versions.items() if (now or {}).get(name) != version)


def _limits(subject: Subject, report: Mapping[str, Any]) -> Iterator[str]:
    rows = [row for row in report["comparisons"] if row["policy"] == subject.stage]
    if subject.kind == "reward":
        yield (
            "Scores order replies to the same prompt. Their scale means nothing, and far from the training data their "
            "order means nothing either."
        )
    elif rows:
        yield "The verdicts hold for prompts like the held-out ones, and for the judges named; a judge is not a person."
        for judge in sorted({row["judge"] for row in rows} & subject.manifests.keys()):
            settings = subject.manifest["config"].get("stage") or {}
            if judge == settings.get("checkpoint_judge"):
                if settings.get("select") == "best":
                    yield f"`{judge}` chose among the policy's checkpoints: as a judge of it, that model is partial."
            elif judge in _maximised(subject):
                yield f"The policy was trained to score high with `{judge}`: as a judge of it, that model is partial."
            elif _same_rows(subject.manifests[judge], subject.manifest):
                yield (
                    f"The reward model `{judge}` learned from the same preferences as the policy: as a judge of it, it "
                    "is partial."
                )
    else:
        yield "This stage was not compared with another: nothing here shows that it is better than its base."
    yield "Safety, bias and factual truth were not examined; in these, expect what the base model does."


def _maximised(subject: Subject) -> set[str]:
    """The stages that a policy read, and those that its rows were chosen by."""
    read = set(subject.manifest["parents"])
    rows = [subject.manifests[name] for name in read & subject.manifests.keys()]
    return read.union(*(other["parents"] for other in rows if other["leaves"] == "rows"))


def _same_rows(first: Manifest, second: Manifest) -> bool:
    """Whether two stages were trained on the same set, and on the same half of it where it is halved."""
    halves = (first["identity"].get("half"), second["identity"].get("half"))
    return first.get("data") == second.get("data") and halves[0] == halves[1]


def _license(base: str | None) -> str | None:
    """The licence that a local base's own card states; nothing is fetched from a network."""
    readme = Path(base) / "README.md" if base else None
    if readme is None or not readme.is_file():
        return None
    try:
        stated = ModelCard.load(readme).data.license
    except ValueError:  # its header is no YAML
        return None
    return stated if isinstance(stated, str) else None
