"""The `rlhf` command. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

import rlhf
from rlhf import interrupts
from rlhf.cli import policies, results, starting, training
from rlhf.cli.training import run
from rlhf.errors import Defect, GateClosed, Incident, UserError

__all__ = ["app", "main", "run"]

app = typer.Typer(
    help="SFT, reward models, DPO, PPO, people's votes, evaluation and publishing, from one YAML file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for group in (starting, training, results, policies):  # in the order of --help
    app.add_typer(group.commands)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(rlhf.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """SFT, reward models, DPO, PPO, people's votes, evaluation and publishing, from one YAML file."""


def _terminated(number: int, frame: object) -> None:
    raise interrupts.Interrupted(number)


def _check_text(words: list[str]) -> None:
    """Check that words are text: a file's name can be any bytes, and no YAML or JSON could name it.

    Raises:
        UserError: One is not.
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"{word}: is no text in UTF-8; rename the file") from None


def main() -> None:
    """Run the command; an error becomes one line and an exit code.

    1 is a defect of this package, 2 a mistake of the user (or of a library), 3 a closed gate, 4 a number that is not
    finite, 130 SIGINT and 143 SIGTERM.
    """
    from rlhf.failure import explained
    from rlhf.pipeline.launch_file import with_own
    from rlhf.pipeline.start import StageFailed

    signal.signal(signal.SIGTERM, _terminated)  # so that what it started ends with it
    try:
        with explained("rlhf", passed=(StageFailed,)):
            _check_text(sys.argv[1:])
            sys.argv[1:] = with_own(sys.argv[1:])
            app()
    except SystemExit as end:  # typer ends with 130 whatever signal it was
        cause = end.__context__.__cause__ if end.__context__ is not None else None
        if isinstance(cause, interrupts.Interrupted):
            sys.exit(cause.exit_code)
        raise
    except (UserError, Defect, Incident) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except GateClosed as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except StageFailed as error:
        if not error.explained:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
