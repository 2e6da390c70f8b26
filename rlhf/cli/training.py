"""Commands that train and evaluate a project: run, check, evaluate."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from rlhf.cli.options import Config, Json, LaunchFile, Node, Overrides, Run, announce, print_report, split, stopping
from rlhf.errors import GateClosed, UserError

commands = typer.Typer()
command = functools.partial(commands.command, rich_help_panel="Train and evaluate")


@command()
def run(
    config: Config,
    overrides: Overrides = None,
    only: Annotated[str | None, typer.Option(help="Stages to consider, comma-separated.")] = None,
    force: Annotated[str | None, typer.Option(help="Stages to run again, comma-separated.")] = None,
    accelerate: LaunchFile = None,
    node: Node = None,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long nodes wait for each other to begin.")
    ] = 600,
    gate: Annotated[str | None, typer.Option(help="What to do if a reward model fails its gate: stop or warn.")] = None,
    round_: Annotated[
        int | None, typer.Option("--round", metavar="N", help="A later round, from 2 on: trains on the votes so far.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show only warnings, errors and the report.")] = False,
) -> None:
    """Run every stage that is not already done, then write the report."""
    from rlhf.config.load import load_project
    from rlhf.pipeline import rounds, runner
    from rlhf.pipeline.launch_file import find_launch
    from rlhf.pipeline.live import view_for

    project = load_project(config, [*(overrides or []), *([f"gate={gate}"] if gate else [])])
    launch = None if accelerate is None else find_launch(accelerate, node)
    if launch is None and node is not None:
        raise UserError("--node: names a node of a launch file; name the file with --accelerate")
    if launch is not None and launch.node > 0:
        with stopping():
            raise typer.Exit(runner.follow(project, launch, wait, typer.echo))
    if round_ is not None:
        project = rounds.begin(project, round_)
    try:
        with stopping():
            plans = runner.run(project, split(only), split(force), launch, typer.echo, wait, view_for(quiet))
    except GateClosed:
        print_report(project.run_dir)
        raise
    page = project.run_dir / "report.html"
    if any(plan.reason for plan in plans) or not page.is_file():
        print_report(project.run_dir)
    else:
        typer.echo(f"report: {page}")


@command()
def check(
    config: Config,
    overrides: Overrides = None,
    accelerate: LaunchFile = None,
    node: Node = None,
    devices: Annotated[int | None, typer.Option(min=1, help="How many GPUs to answer for.")] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e6, metavar="GB", help="Memory of a GPU to answer for, which need not be here."),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Run two steps of each stage here, for the time.")] = False,
    json_: Json = False,
) -> None:
    """Read all data and settings, print what misleads training, and what memory and time it takes; train nothing."""
    import json

    from rich.console import Console

    from rlhf.config.load import load_project
    from rlhf.pipeline import runner
    from rlhf.pipeline.launch_file import find_launch
    from rlhf.pipeline.ledger_table import findings_lines, ledger_table
    from rlhf.preflight.command import Asked, as_json, look, tables
    from rlhf.workflow import rows_from

    project = load_project(config, overrides or [])
    launch = None if accelerate is None else find_launch(accelerate, node)
    if measure and (memory or launch or (devices or 1) > 1):
        raise UserError("--measure: runs on one device of this machine; leave out --memory, --devices and --accelerate")
    asked, preflight = Asked.of(devices, memory, launch), []
    announce("reading the data, and estimating memory and time")
    with stopping():
        checked = runner.check(project, launch, lambda scratch: preflight.append(look(scratch, asked, measure)))
    if json_:
        typer.echo(json.dumps(as_json(preflight[0]), indent=1))
        return
    Console().print(ledger_table({name: prepared.ledger for name, prepared in checked.items()}))
    Console().print(findings_lines({name: prepared.findings for name, prepared in checked.items()}))
    Console().print(tables(preflight[0]))
    for name in project.stages:
        if (source := rows_from(project, name)) is not None:
            typer.echo(f"{name} trains on what {source} keeps, which is there once {source} has run")
    if launch is not None:
        typer.echo(launch.line())


@command()
def evaluate(run: Run) -> None:
    """Compare the policies of a run, unless that is already done, then write the report."""
    from rlhf.pipeline import runner
    from rlhf.pipeline.folder import project_of
    from rlhf.pipeline.live import view_for
    from rlhf.pipeline.runs import find_run

    folder, _ = find_run(run)
    project = project_of(folder)
    with stopping():
        runner.run(project, only=["evaluate"], say=typer.echo, view=view_for(quiet=False))
    print_report(folder)
