"""Run one stage in this process: verify its parents, run it in a folder beside its place, record it, move it there."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import time
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from rlhf import processes, progress
from rlhf.artifacts.hashing import digest
from rlhf.artifacts.manifest import Manifest, artifact_hash, git_sha, read_manifest, verify, versions, write_manifest
from rlhf.config.project import ProjectConfig, StageId
from rlhf.durable import sync_tree, written_whole
from rlhf.errors import Defect, Incident, RowsToCome, UserError, reason
from rlhf.failure import explained_stage
from rlhf.pipeline import folder, identity, partial, peers
from rlhf.pipeline.agreement import check_alike
from rlhf.training import tracking
from rlhf.trl_trainers.library_names import check_library_names
from rlhf.workflow import StageContext, ancestors_of, order_of, parents_of, stage_of

_RECORDED = ("tokenizer", "max_length", "prompt_format", "lineage", "probe", "processes")
"""What a stage returns among its metrics that the manifest has a field for."""


def run_stage(project: ProjectConfig, name: str) -> None:
    """Run a stage to its end; an interrupted one of the same identity continues where it stopped.

    Every process of a distributed launch calls this; the main one writes.

    Raises:
        UserError: A parent is missing or changed, or the stage refuses its input.
    """
    problem = stage_of(name).launch_problem
    if problem is not None and (why := problem(project, name, processes.count(), os.environ)):
        raise UserError(why)
    if project.has_stage(name):
        peers.patience = project.stage(name).trainer.get("ddp_timeout") or peers.patience
    _wait()
    if peers.own is not None and processes.nodes() > 1:
        peers.own.join_nodes(project.run_dir)
    parents = {parent: project.run_dir / parent for parent in parents_of(project, name)}
    for directory in parents.values():
        verify(directory)
    decides = identity.identity(project, name)
    check_alike(project, name, decides)
    directory = folder.partial_dir(project, name)

    def claim() -> list[dict[str, str]]:
        folder.own_folder(project)
        return partial.claim(directory, identity.beginning(project, name, decides, processes.count()), versions())

    worked = processes.from_main(claim)
    if partial.is_whole(project, name):  # and was killed before it was moved
        _wait()
        processes.from_main(lambda: partial.settle(project, name))
        return
    quiet_libraries()
    context = StageContext(project, name, directory, parents)
    start = time.perf_counter()
    with tracking.reporting(context):
        metrics = stage_of(name).run(context)
        _wait()
        if processes.is_main():
            record = _record(context, decides, dict(metrics), time.perf_counter() - start)
            record["earlier_versions"] = worked[:-1]
            sync_tree(directory)
            write_manifest(directory, record)
            partial.move_into_place(directory, project.run_dir / name)
            tracking.finished(context, lambda: _reported(project, name, record["metrics"]))


def _reported(project: ProjectConfig, name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """What a finished stage measured, as it is reported: of a comparison, what the report says of it."""
    if stage_of(name).leaves != "comparison":
        return metrics
    from rlhf.report.build import build_report

    report = build_report(project.run_dir)
    compared = {part: tracking.comparisons(report[part]) for part in ("comparisons", "measured", "retained")}
    return {**compared, "policies": {entry["policy"]: entry for entry in report["policies"]}}


def prepare_stage(project: ProjectConfig, name: str, running: Collection[str] = ()) -> None:
    """Read, check and tokenise a stage's data, where the stage will find it, and try whether its trainer can be made.

    Its parents may be missing.

    Args:
        project: The project.
        name: The stage.
        running: Stages about to run: what stands in their place now is not what this one will start from.

    Raises:
        UserError: The data or the settings are wrong.
    """
    stage = stage_of(name)
    tracking.check_reporters(project, name)
    if stage.prepare is None:
        return
    quiet_libraries()
    directory = folder.partial_dir(project, name)
    directory.mkdir(parents=True, exist_ok=True)
    parents = {
        parent: done
        for parent in (*parents_of(project, name), *ancestors_of(project, name))
        if parent not in running and read_manifest(done := project.run_dir / parent) is not None
    }
    context = StageContext(project, name, directory, parents)
    try:
        ready = stage.prepare(context)
        if stage.dry_run is not None:
            stage.dry_run(context, ready)
    except RowsToCome:
        pass  # all else that can be checked has been
    finally:
        partial.remove_if_empty(directory)


def _record(context: StageContext, decides: dict[str, Any], metrics: dict[str, Any], seconds: float) -> Manifest:
    """The manifest of a finished stage."""
    project, directory = context.project, context.directory
    for name in ("ledger.json", "dropped.jsonl", "findings.json"):
        if (directory / partial.DATA / name).is_file() and not (directory / name).is_file():
            with written_whole(directory / name) as copy:
                shutil.copy(directory / partial.DATA / name, copy)
    recorded: Any = {key: metrics.pop(key) for key in _RECORDED if key in metrics}
    trained = project.has_stage(context.name)
    options = dataclasses.asdict(context.settings) if trained else {}
    trainer = options.pop("trainer", {})
    options.pop("model", None)
    model = dataclasses.asdict(project.stage_model(context.name) if trained else project.model)
    return {
        "stage": context.name,
        "kind": context.stage.name,
        "repetition": StageId.parse(context.name).repetition,
        "order": order_of(project, context.name),
        "label": context.stage.label,
        "leaves": context.stage.leaves,
        "method": context.stage.method,
        "trainer_config": list(context.stage.trainer),
        "hash": digest(decides),
        "artifact": artifact_hash(directory),
        "identity": decides,
        "config": {"trainer": trainer, "model": model, "evaluate": decides.get("evaluate"), "stage": options},
        "seed": project.stage_seed(context.name),
        "versions": versions(),
        "git_sha": git_sha(project.path.parent),
        "parents": decides["parents"],
        "data": decides.get("data", {}),
        **recorded,
        "metrics": metrics,
        "wall_time_s": round(seconds, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _wait() -> None:
    """A barrier where there are several processes, which wait for each other `peers.patience` seconds."""
    if processes.count() > 1:
        try:
            state = processes.state(peers.patience)
        except UserError:
            raise
        except Exception as error:
            if processes.nodes() == 1:
                raise
            address = ":".join(os.environ[f"MASTER_{part}"] for part in ("ADDR", "PORT"))
            raise UserError(
                f"node {processes.node()}: processes of other nodes are not there ({reason(error)}); does the stage "
                f"run on all {processes.nodes()} nodes, and can each reach {address}?"
            ) from None
        state.wait_for_everyone()


def attempt(function: Callable[[ProjectConfig, str], None], project: ProjectConfig, name: str) -> None:
    """Run or prepare a stage; whatever a library raises becomes a line, with its traceback in the run's folder.

    The line of a stage that fails while it runs is noted in its partial folder.

    Where the stage has not begun, the run may leave no folder: then the file is among the temporary ones.

    Raises:
        UserError: The stage refuses its input, or a library cannot do what the settings ask for.
        Defect: Our own code raised something.
    """
    in_run_folder = function is run_stage and stage_of(name).leaves != "base"
    try:
        with explained_stage(project, name, project.run_dir if in_run_folder else None):
            check_library_names()
            function(project, name)
    except (UserError, Defect, Incident) as error:
        if function is run_stage:
            partial.note_failure(folder.partial_dir(project, name), str(error))
        raise


def join_stage(
    stage: Callable[[ProjectConfig, str], None], project: ProjectConfig, name: str, key: str, watch: Path | None = None
) -> None:
    """A stage as part of a run, with which it ends.

    Args:
        stage: `run_stage`, or `prepare_stage`.
        project: The project.
        name: The stage.
        key: Of the run that holds the folder.
        watch: The file in which the main process tells how far it is (`rlhf.progress`).
    """
    told = progress.watching(watch if processes.is_main() else None)
    with folder.joined(project.run_dir, key, leads=processes.node() == 0), told:
        attempt(stage, project, name)


def quiet_environment() -> None:
    """No chatter: set before the libraries are imported."""
    for name, value in {
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)


def quiet_libraries() -> None:
    """No bar for loading weights, which takes a moment, and no notes about the libraries' next versions."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
