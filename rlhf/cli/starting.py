"""Commands to start with: quickstart, init, env."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from rlhf.cli.options import Json, Overrides, announce, split
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
    from rlhf.shipped import QUICKSTART, copy_recipes, laid_base, purpose

    if "=" in str(folder):
        raise UserError(f"{folder}: is no folder; write rlhf quickstart FOLDER KEY=VALUE")
    recipes = copy_recipes(folder)
    if no_run:
        width = max(len(str(path)) for path in recipes)
        for path in recipes:
            typer.echo(f"{str(path).ljust(width)}  {purpose(path)}")
        typer.echo(f"run one with rlhf run {folder / QUICKSTART}")
    else:
        run_project(folder / QUICKSTART, overrides)
    typer.echo(f"start on your own files with rlhf init FILES --model {laid_base(folder)}")


@command()
def init(
    files: Annotated[list[str], typer.Argument(help="Files or folders of rows, or hub ids.", metavar="FILES...")],
    model: Annotated[str | None, typer.Option(help="Base model: a folder, or an id on the hub.")] = None,
    to: Annotated[
        str | None, typer.Option(metavar="STAGES", help="What to train: sft, reward, dpo, kto, ppo, comma-separated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="Where the YAML goes.")] = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="What columns are: prompt=question,completion=reply; repeatable.")
    ] = None,
    good: Annotated[
        str | None, typer.Option(help="Ratings that are good: the lowest (4), or words (up,fine); `none`: no ratings.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(metavar="FILE.py:FUNCTION", help="A function that scores replies.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of LoRA.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Use so many rows of each file, for a first try.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a YAML that is there.")] = False,
) -> None:
    """Write the YAML of a project for your own files, each line with its reason."""
    announce(f"looking at {', '.join(files)}")
    from rlhf.init.command import Options
    from rlhf.init.command import init as write
    from rlhf.pipeline.execute import quiet_environment, quiet_libraries

    quiet_environment()
    quiet_libraries()
    stages = split(to) if to is not None else None
    write(Options(files, model, stages, out, columns or (), split(good), reward, full, limit, force), typer.echo)


@command()
def env(as_json: Json = False) -> None:
    """Print versions, devices and what is missing, for a bug report; no tokens and no user name are in it."""
    import json

    from rlhf.environment.facts import gather
    from rlhf.environment.lines import lines

    facts = gather()
    typer.echo(json.dumps(facts, indent=2) if as_json else "\n".join(lines(facts)))
