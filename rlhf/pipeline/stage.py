"""Run one stage by itself, from a recipe or on many processes.

`accelerate launch -m rlhf.pipeline.stage CONFIG STAGE` starts it on many processes; recipes call `launch`.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf import interrupts, processes
from rlhf.config import trainer_fields
from rlhf.config.load import load_project
from rlhf.config.project import ProjectConfig
from rlhf.errors import Defect, GateClosed, Incident, UserError
from rlhf.failure import explained
from rlhf.interrupts import Interrupted
from rlhf.pipeline import folder, gatekeeper, peers
from rlhf.pipeline.execute import attempt, join_stage, quiet_environment, run_stage
from rlhf.pipeline.rounds import begin, of_round
from rlhf.workflow import is_stage, planned, stages


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
    parser.add_argument("--round", type=int, metavar="N", help="a later round, from 2 on")
    known, rest = parser.parse_known_args(arguments)
    quiet_environment()

    def work() -> None:
        project = load_project(known.config, field_overrides(stage, rest))
        _run_alone(project if known.round is None else begin(project, known.round), stage)

    return guarded(work)


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
    if not processes.is_main():
        attempt(run_stage, project, name)
        return
    gatekeeper.require_passed(project, name)
    with folder.locked(project) as run_lock:
        run_lock.note_overrides()
        try:
            attempt(run_stage, project, name)
        except UserError:
            if not folder.partial_dir(project, name).exists():  # refused before it began
                run_lock.withdraw()
            raise


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


def guarded(action: Callable[[], None], alone: bool = True) -> int:
    """Run something; what goes wrong becomes one line on stderr.

    Of the processes of a distributed launch each calls this. The first to fail is the one that the user reads of, and
    the others end with it.

    Args:
        action: What is run.
        alone: Whether nobody else tells the user of an interrupt.

    Returns:
        0 where nothing did; 1 for a defect of ours, 2 for what the user gave us, 3 for a shut gate, 4 for a number that
        is not finite, 128 and the signal where one ended it.
    """
    others, code = peers.joined(), 0
    try:
        with interrupts.listening(), explained("rlhf"):
            try:
                action()
            except Exception:
                if others is not None and (number := interrupts.asked()):  # then a peer that ended first broke this one
                    raise Interrupted(number) from None
                raise
    except (UserError, Defect, Incident, GateClosed) as error:
        code, line = _said(error)
        if others is not None:
            others.fail(code, line, error)
        print(line, file=sys.stderr)
        return code
    except KeyboardInterrupt as interrupt:
        if others is not None and others.troubled():  # a launcher ends those that are left
            others.end()
        if alone and processes.is_main():
            interrupts.say(interrupts.CONTINUES)
        code = interrupt.exit_code if isinstance(interrupt, Interrupted) else 130
    if others is not None:
        others.done(code)
    return code


def _said(error: UserError | Defect | Incident | GateClosed) -> tuple[int, str]:
    """The exit code and the line of an error."""
    return error.exit_code, f"{'stopped' if isinstance(error, GateClosed) else 'error'}: {error}"


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
    parser.add_argument("--round", type=int, default=1, metavar="N", help="the round that the stage is of")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="how many the launch must have; any number if left out"
    )
    parser.add_argument("--watch", type=Path, metavar="FILE", help="where the main process tells how far it is")
    parser.add_argument("--tell", type=Path, metavar="FILE", help="where it writes an exit code other than 0")
    args = parser.parse_args()
    quiet_environment()
    peers.code_file = args.tell

    def work() -> None:
        if args.processes not in (None, processes.count()):
            raise UserError(
                f"accelerate started {processes.count()} of {args.processes} processes; see its config's num_processes"
            )
        project = of_round(load_project(args.config, args.overrides), args.round)
        if args.run is None:
            _run_alone(project, args.stage)
        else:
            join_stage(run_stage, project, args.stage, args.run, args.watch)

    code = guarded(work, alone=args.run is None)
    if code and args.tell is not None and processes.is_first_on_node():  # each node has such a file
        args.tell.write_text(str(code), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
