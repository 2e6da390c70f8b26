"""Commands that show what runs have resulted in: report, runs, diff."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from rlhf.cli.options import Json, Run, print_report

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


@command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Folder of runs, or a run.")] = Path("runs"), as_json: Json = False
) -> None:
    """List the runs of a folder: how far each stage is, what the report says, when and how large."""
    import json

    from rich.console import Console

    from rlhf.history.listing import list_runs, runs_table

    listed = list_runs(folder)
    if as_json:
        typer.echo(json.dumps(listed, indent=2))
    else:
        Console().print(runs_table(listed))


@command()
def diff(
    first: Annotated[str, typer.Argument(help="A run's folder, name or YAML.", metavar="RUN")],
    second: Annotated[str, typer.Argument(help="Another's.", metavar="RUN")],
    as_json: Json = False,
) -> None:
    """Print in what two runs differ: settings, data, packages, results."""
    import json

    from rich.console import Console

    from rlhf.history.difference_table import difference_table
    from rlhf.history.differences import run_difference

    difference = run_difference(first, second)
    if as_json:
        typer.echo(json.dumps(difference, indent=2))
    else:
        Console().print(difference_table(difference))
