"""What the commands share: their arguments and options, and how they stop and report."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from rlhf import interrupts

Config = Annotated[Path, typer.Argument(help="The project's YAML file.", metavar="CONFIG")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Such as stages.dpo.beta=0.2", metavar="[KEY=VALUE]...")]
Run = Annotated[
    str, typer.Argument(help="A run's folder, name or YAML; `:stage` picks a stage.", metavar="RUN[:STAGE]")
]

LaunchFile = Annotated[
    str | None,
    typer.Option(
        "--accelerate", metavar="[FILE]", help="Run stages on many processes, with this accelerate config; without "
        "FILE, the one that `accelerate config` wrote on this machine. Put it after CONFIG.",
    ),
]  # fmt: skip
Node = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="Number of this node, where the accelerate config has several; 0 leads."),
]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def split(names: str | None) -> list[str]:
    """The names of a comma-separated list."""
    return [name.strip() for name in names.split(",") if name.strip()] if names else []


def announce(work: str) -> None:
    """Say in a terminal what takes seconds before it prints anything; the stderr of a script has errors alone."""
    if sys.stderr.isatty():
        typer.echo(work, err=True)


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a line and an exit code of their own, once what was started has ended."""
    try:
        with interrupts.listening():
            yield
    except interrupts.Interrupted as interrupt:
        interrupts.say(interrupts.CONTINUES)
        raise typer.Exit(interrupt.exit_code) from None


def print_report(folder: Path) -> Path:
    """Write a run's report, print its table and return its page."""
    from rich.console import Console

    from rlhf.report.build import read_report, write_report
    from rlhf.report.terminal import terminal_report

    page = write_report(folder)
    Console().print(terminal_report(read_report(folder)))
    typer.echo(f"report: {page}")
    return page
