"""Run one stage in this process: verify its parents, run it in a folder beside its place, record it, move it there.

`accelerate launch -m rlhf.pipeline.stage CONFIG STAGE` starts it on many processes; recipes call `launch`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import shutil
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from rlhf.artifacts.hashing import digest
from rlhf.artifacts.manifest import (
    Manifest,
    artifact_hash,
    git_sha,
    read_manifest,
    verify,
    versions,
    write_manifest,
)
from rlhf.config import trainer_fields
from rlhf.config.load import load_project
from rlhf.config.project import ProjectConfig, StageId
from rlhf.errors import Defect, GateClosed, UserError
from rlhf.failure import explained, explained_stage
from rlhf.pipeline import contract, folder, gatekeeper
from rlhf.trl_trainers.library_names import check_library_names
from rlhf.workflow import StageContext, ancestors_of, is_stage, parents_of, planned, stage_of, stages

_GRACE = 30.0
"""Seconds in which the main process says what all of them found wrong, and the launcher ends the others.

Were one of these to end first, the launcher would end the main one before it has said anything. A mistake that the main
process did not see is said after that time.
"""
_RECORDED = ("tokenizer", "max_length", "prompt_format", "lineage", "probe")


def run_stage(project: ProjectConfig, name: str) -> None:
    """Run a stage to its end; an interrupted one of the same identity goes on where it stopped.

    Every process of a distributed launch calls this; the main one writes.

    Raises:
        UserError: A parent is missing or changed, or the stage refuses its input.
    """
    parents = {parent: project.run_dir / parent for parent in parents_of(project, name)}
    for directory in parents.values():
        verify(directory)
    identity = contract.identity(project, name)
    directory = folder.partial_dir(project, name)
    main = int(os.environ.get("RANK", "0")) == 0
    if main:
        folder.own_folder(project)
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        worked = folder.claim(directory, contract.beginning(identity, processes), versions())
    _wait(project.stage(name).trainer.get("ddp_timeout") if project.has_stage(name) else None)
    quiet_libraries()
    context = StageContext(project, name, directory, parents)
    start = time.perf_counter()
    metrics = stage_of(name).run(context)
    _wait()
    if main:
        record = _record(context, identity, dict(metrics), time.perf_counter() - start)
        record["earlier_versions"] = worked[:-1]
        write_manifest(directory, record)
        folder.move_into_place(directory, project.run_dir / name)


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
        if stage.trial is not None:
            stage.trial(context, ready)
    finally:
        folder.remove_if_empty(directory)


def _record(context: StageContext, identity: dict[str, Any], metrics: dict[str, Any], seconds: float) -> Manifest:
    """The manifest of a finished stage."""
    project, directory = context.project, context.directory
    for name in ("ledger.json", "dropped.jsonl", "findings.json"):
        if (directory / "data" / name).is_file():
            shutil.copy(directory / "data" / name, directory / name)
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
        "order": context.stage.order,
        "label": context.stage.label,
        "leaves": context.stage.leaves,
        "method": context.stage.method,
        "trainer_config": list(context.stage.trainer),
        "hash": digest(identity),
        "artifact": artifact_hash(directory),
        "identity": identity,
        "config": {"trainer": trainer, "model": model, "evaluate": identity.get("evaluate"), "stage": options},
        "seed": project.stage_seed(context.name),
        "versions": versions(),
        "git_sha": git_sha(project.path.parent),
        "parents": identity["parents"],
        "data": identity.get("data", {}),
        **recorded,
        "metrics": metrics,
        "wall_time_s": round(seconds, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _wait(patience: float | None = None) -> None:
    """A barrier where there are several processes, which wait for each other so many seconds from the first on."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from rlhf.models.device import process_state

        process_state(patience).wait_for_everyone()


def launch(stage: str, arguments: Sequence[str] | None = None) -> int:
    """What a recipe runs: `--config FILE [--any_trainer_field value …]`.

    Returns:
        The exit code, as `guarded` has it.
    """
    parser = argparse.ArgumentParser(
        description=f"Run the {stage} stage of a project.", usage="%(prog)s [-h] --config FILE [--FIELD VALUE ...]",
        epilog=_fields_help(stage), allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--config", required=True, metavar="FILE", help="the project's YAML")
    known, rest = parser.parse_known_args(arguments)
    quiet_environment()
    return guarded(lambda: _run_alone(load_project(known.config, field_overrides(stage, rest)), stage))


def _fields_help(stage: str) -> str:
    """The fields that a stage's options set, those of its own class first."""
    paragraphs = []
    for name, fields in reversed(trainer_fields.fields_by_class(stage).items()):
        listed = textwrap.fill(", ".join(fields), 100, initial_indent="  ", subsequent_indent="  ")
        paragraphs.append(f"fields of {name} (python -m pydoc {name}):\n{listed}")
    return "Any field of its trainer's config is an option, such as --learning_rate 1e-5.\n\n" + "\n\n".join(paragraphs)


def _run_alone(project: ProjectConfig, name: str) -> None:
    """A stage by itself; the main process holds the run's lock.

    Raises:
        UserError: The project has no such stage, or it refuses its input.
    """
    if name not in planned(project):
        raise UserError(f"{project.path}: there is no stage {name!r}; add it under stages:, with {name}: {{}}")
    if int(os.environ.get("RANK", "0")) != 0:
        attempt(run_stage, project, name)
        return
    gatekeeper.hold(project, name)
    with folder.locked(project) as hold:
        hold.note_overrides()
        try:
            attempt(run_stage, project, name)
        except UserError:
            if not folder.partial_dir(project, name).exists():  # refused before it began
                hold.withdraw()
            raise


def attempt(function: Callable[[ProjectConfig, str], None], project: ProjectConfig, name: str) -> None:
    """Run or prepare a stage; whatever a library raises becomes a line, with its traceback in the run's folder.

    A run of which no stage has begun leaves no folder: then the file is among the temporary ones.

    Raises:
        UserError: The stage refuses its input, or a library cannot do what the settings ask for.
        Defect: Our own code raised something.
    """
    begun = function is run_stage and stage_of(name).leaves != "base"
    with explained_stage(project, name, project.run_dir if begun else None):
        check_library_names()
        function(project, name)


def join_stage(stage: Callable[[ProjectConfig, str], None], project: ProjectConfig, name: str, key: str) -> None:
    """A stage as part of a run, with which it ends.

    Args:
        stage: `run_stage`, or `prepare_stage`.
        project: The project.
        name: The stage.
        key: Of the run that holds the folder.
    """
    with folder.joined(project.run_dir, key):
        attempt(stage, project, name)


def field_overrides(stage: str, words: Sequence[str]) -> list[str]:
    """`--beta 0.2 --bf16 --loss_type=ipo` as overrides of the stage's section.

    Raises:
        UserError: A word is no option, or names no field of the stage's trainer.
    """
    fields = trainer_fields.trainer_fields(stage)
    overrides: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            raise UserError(f"unexpected argument {word!r}: options look like --learning_rate 1e-5")
        name, separator, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name not in fields:
            raise UserError(f"unknown option --{name}; {trainer_fields.unknown_field(stage, name)}")
        if not separator:
            value = queue.pop(0) if queue and not queue[0].startswith("--") else "true"
        overrides.append(f"stages.{stage}.{name}={value}")
    return overrides


def guarded(action: Callable[[], None]) -> int:
    """Run something; what goes wrong becomes one line on stderr.

    Returns:
        0 where nothing did; 1 for a defect of ours, 2 for what the user gave us, 3 for a shut gate, 130 where the user
        ended it.
    """
    try:
        with explained("rlhf"):
            action()
    except (UserError, Defect) as error:
        if int(os.environ.get("RANK", "0")) != 0:
            time.sleep(_GRACE)
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except GateClosed as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def quiet_environment() -> None:
    """No telemetry, no chatter: set before the libraries are imported."""
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
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


def _stage_name(name: str) -> str:
    if not is_stage(name):
        raise argparse.ArgumentTypeError(f"no stage {name!r}; there are {', '.join(stages())}")
    return name


def main() -> int:
    """`python -m rlhf.pipeline.stage CONFIG STAGE [key=value …]`."""
    parser = argparse.ArgumentParser(description="Run one stage of a project in this process.")
    parser.add_argument("config")
    parser.add_argument("stage", type=_stage_name)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--run", help="key of the run that starts it; without one it holds the run's folder itself")
    parser.add_argument("--tell", type=Path, metavar="FILE", help="where it writes an exit code other than 0")
    args = parser.parse_args()
    quiet_environment()

    def work() -> None:
        project = load_project(args.config, args.overrides)
        if args.run is None:
            _run_alone(project, args.stage)
        else:
            join_stage(run_stage, project, args.stage, args.run)

    code = guarded(work)
    if code and args.tell is not None and int(os.environ.get("RANK", "0")) == 0:
        args.tell.write_text(str(code), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
