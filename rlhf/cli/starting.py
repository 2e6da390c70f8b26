"""Commands to start with: quickstart, env."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from rlhf.cli.options import Json, Overrides
from rlhf.cli.training import run as run_project

commands = typer.Typer()
command = functools.partial(commands.command, rich_help_panel="Start")


@command()
def quickstart(
    folder: Annotated[Path, typer.Argument(help="Where the recipes and their data go.")] = Path("recipes"),
    overrides: Overrides = None,
    no_run: Annotated[bool, typer.Option("--no-run", help="List the recipes, run none.")] = False,
) -> None:
    """Copy the recipes that ship, with their model and data, into FOLDER, and run the smallest; needs no network."""
    from rlhf.errors import UserError
    from rlhf.shipped import QUICKSTART, lay, purpose

    if "=" in str(folder):
        raise UserError(f"{folder}: is no folder; write rlhf quickstart FOLDER KEY=VALUE")
    recipes = lay(folder)
    if no_run:
        width = max(len(str(path)) for path in recipes)
        for path in recipes:
            typer.echo(f"{str(path).ljust(width)}  {purpose(path)}")
        typer.echo(f"run one with rlhf run {folder / QUICKSTART}")
    else:
        run_project(folder / QUICKSTART, overrides)


@command()
def env(as_json: Json = False) -> None:
    """Print versions, devices and what is missing, for a bug report; no tokens and no user name are in it."""
    import json

    from rlhf.environment.facts import gather
    from rlhf.environment.lines import lines

    found = gather()
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))
