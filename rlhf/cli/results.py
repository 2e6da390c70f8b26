"""Commands that show what runs have resulted in: report."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from rlhf.cli.options import Run, print_report

commands = typer.Typer()
command = functools.partial(commands.command, rich_help_panel="Look at results")


@command()
def report(
    run: Run, browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False
) -> None:
    """Write the report of what a run has so far, and print its table."""
    from rlhf.pipeline.runs import find_run

    page = print_report(find_run(run)[0])
    if browser:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
