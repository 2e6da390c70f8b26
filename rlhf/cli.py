"""The `rlhf` command. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

import rlhf
from rlhf import interrupts
from rlhf.errors import Defect, GateClosed, Incident, UserError, require

app = typer.Typer(
    help="SFT, reward models, DPO, PPO, people's votes, evaluation and publishing, from one YAML file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

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


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(rlhf.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """SFT, reward models, DPO, PPO, people's votes, evaluation and publishing, from one YAML file."""


def _split(names: str | None) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()] if names else []


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a line and an exit code of their own, once what was started has ended."""
    try:
        with interrupts.listening():
            yield
    except interrupts.Interrupted as interrupt:
        interrupts.say(interrupts.CONTINUES)
        raise typer.Exit(interrupt.exit_code) from None


@app.command()
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
) -> None:
    """Run every stage that is not already done, then write the report."""
    from rlhf.config.load import load_project
    from rlhf.pipeline import rounds, runner
    from rlhf.pipeline.launch_file import find_launch

    project = load_project(config, [*(overrides or []), *([f"gate={gate}"] if gate else [])])
    launch = None if accelerate is None else find_launch(accelerate, node)
    if launch is None and node is not None:
        raise UserError("--node: names a node of a launch file; name the file with --accelerate")
    if launch is not None and launch.node > 0:
        with _stopping():
            raise typer.Exit(runner.follow(project, launch, wait, typer.echo))
    if round_ is not None:
        project = rounds.begin(project, round_)
    try:
        with _stopping():
            plans = runner.run(project, _split(only), _split(force), launch, typer.echo, wait)
    except GateClosed:
        _report(project.run_dir)
        raise
    page = project.run_dir / "report.html"
    if any(plan.reason for plan in plans) or not page.is_file():
        _report(project.run_dir)
    else:
        typer.echo(f"report: {page}")


@app.command()
def check(config: Config, overrides: Overrides = None, accelerate: LaunchFile = None, node: Node = None) -> None:
    """Read all data and settings, print what becomes of every row and what misleads training, train nothing."""
    from rich.console import Console

    from rlhf.config.load import load_project
    from rlhf.pipeline import runner
    from rlhf.pipeline.launch_file import find_launch
    from rlhf.pipeline.ledger_table import findings_lines, ledger_table
    from rlhf.workflow import rows_from

    project = load_project(config, overrides or [])
    launch = None if accelerate is None else find_launch(accelerate, node)
    with _stopping():
        checked = runner.check(project, launch)
    Console().print(ledger_table({name: prepared.ledger for name, prepared in checked.items()}))
    Console().print(findings_lines({name: prepared.findings for name, prepared in checked.items()}))
    for name in project.stages:
        if (source := rows_from(project, name)) is not None:
            typer.echo(f"{name} trains on what {source} keeps, which is there once {source} has run")
    if launch is not None:
        typer.echo(launch.line())


@app.command()
def evaluate(run: Run) -> None:
    """Compare the policies of a run, unless that is already done, then write the report."""
    from rlhf.pipeline import runner
    from rlhf.pipeline.folder import project_of
    from rlhf.pipeline.runs import find_run

    folder, _ = find_run(run)
    project = project_of(folder)
    with _stopping():
        runner.run(project, only=["evaluate"], say=typer.echo)
    _report(folder)


@app.command()
def chat(
    run: Run,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 is greedy decoding.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
) -> None:
    """Talk to a stage in the terminal."""
    from rlhf.pipeline.execute import quiet_environment, quiet_libraries
    from rlhf.pipeline.runs import find_run, pick_stage

    folder = pick_stage(*find_run(run))
    quiet_environment()
    quiet_libraries()
    from rlhf.serving.chat import chat as talk

    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    talk(folder, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)


@app.command()
def serve(
    run: Run,
    host: Annotated[
        str, typer.Option(help="Address to listen at; beyond this machine, clients need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8000,
) -> None:
    """Serve a stage as an OpenAI-compatible endpoint."""
    from rlhf.pipeline.execute import quiet_environment, quiet_libraries
    from rlhf.pipeline.runs import find_run, pick_stage

    folder = pick_stage(*find_run(run))
    require("serve", "anyio", "limits", "starlette", "uvicorn")
    from rlhf.serving.listen import open_address

    opened, address = open_address(host, port)  # before anything heavy is imported
    quiet_environment()
    quiet_libraries()
    from rlhf.serving.server import serve_stage

    serve_stage(folder, opened, address, typer.echo)


@app.command()
def arena(
    run: Run,
    policies: Annotated[str | None, typer.Option(help="Stages to compare, comma-separated; base too.")] = None,
    prompts: Annotated[str | None, typer.Option(help="File of prompts, instead of the run's held-out ones.")] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="OpenAI-compatible server to compare with, URL or URL#model; repeatable.")
    ] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with the key of --against.")] = None,
    judges: Annotated[
        str | None, typer.Option(help="Judges that score the replies, comma-separated; by default all but endpoints.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; beyond loopback, a token is required.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8001,
    export: Annotated[Path | None, typer.Option(help="Write the votes as data sets into this folder, and end.")] = None,
) -> None:
    """Compare replies blindly on a web page, and keep the votes; --export writes them as data sets."""
    from rlhf.pipeline.execute import quiet_environment, quiet_libraries
    from rlhf.pipeline.folder import project_of
    from rlhf.pipeline.runs import find_run

    folder, stage = find_run(run)
    if stage is not None:
        raise UserError(f"{run}: the arena compares stages: name them with --policies")
    quiet_environment()
    if export is not None:
        from rlhf.arena.export import export_run

        for name, rows in export_run(folder, export).items():
            typer.echo(f"{rows:>8,}  {name}")
        typer.echo(f"written to {export}")
        return
    project = project_of(folder)
    require(
        "arena", "evalica", "krippendorff", "limits", "sklearn", "sse_starlette", "starlette", "statsmodels", "uvicorn"
    )  # fmt: skip
    from rlhf.arena.choices import Wishes, chosen_judges, chosen_policies
    from rlhf.arena.lock import only_arena
    from rlhf.serving.listen import open_address

    wishes = Wishes(_split(policies), prompts, against or [], api_key_env, _split(judges))
    names = chosen_policies(project, wishes.policies, len(wishes.against))
    judging = chosen_judges(project, wishes.judges)
    with only_arena(folder):
        opened, address = open_address(host, port)  # before anything heavy is imported
        quiet_libraries()
        from rlhf.arena.start import start

        start(project, wishes, names, judging, opened, address, typer.echo)


@app.command()
def publish(
    run: Run,
    to: Annotated[str | None, typer.Option(help="Hub id, user/name; by default publish.to of the YAML.")] = None,
    merge: Annotated[
        bool | None, typer.Option("--merge/--adapter", help="Push merged weights instead of the adapter.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Create the repository as public.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build the folder, show it, push nothing.")] = False,
) -> None:
    """Push a stage's adapter, or its merged weights, with a model card."""
    from rlhf.pipeline.execute import quiet_environment, quiet_libraries
    from rlhf.pipeline.folder import project_of
    from rlhf.pipeline.runs import find_run, pick_stage

    run_dir, stage = find_run(run)
    folder = pick_stage(run_dir, stage, policies_only=False)
    settings = project_of(run_dir).publish
    quiet_environment()
    quiet_libraries()
    from rlhf.publish.hub import publish as push

    result = push(
        run_dir, folder.name, to or settings.to, merge=settings.merge if merge is None else merge,
        private=settings.private and not public, dry_run=dry_run,
    )  # fmt: skip
    for name, size in result.files:
        typer.echo(f"{size:>12,}  {name}")
    where = result.url or to or settings.to or "the repository that --to names"
    typer.echo(f"{'would go to' if dry_run else 'published:'} {where}, from {result.folder}")


@app.command()
def report(
    run: Run, browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False
) -> None:
    """Write the report of what a run has so far, and print its table."""
    from rlhf.pipeline.runs import find_run

    page = _report(find_run(run)[0])
    if browser:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


def _report(folder: Path) -> Path:
    from rich.console import Console

    from rlhf.report.build import read_report, write_report
    from rlhf.report.terminal import terminal_report

    page = write_report(folder)
    Console().print(terminal_report(read_report(folder)))
    typer.echo(f"report: {page}")
    return page


def _terminated(number: int, frame: object) -> None:
    raise interrupts.Interrupted(number)


def main() -> None:
    """Run the command; an error becomes one line and an exit code.

    1 is a defect of this package, 2 a mistake of the user (or of a library), 3 a closed gate, 4 a number that is not
    finite, 130 SIGINT and 143 SIGTERM.
    """
    from rlhf.failure import explained
    from rlhf.pipeline.launch_file import with_own
    from rlhf.pipeline.runner import StageFailed

    signal.signal(signal.SIGTERM, _terminated)  # so that what it started ends with it
    try:
        with explained("rlhf", passed=(StageFailed,)):
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
        if not error.said:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
