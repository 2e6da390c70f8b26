"""Commands that use a trained policy: chat, serve, arena, publish, export."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Annotated

import typer

from rlhf.cli.options import Run, split
from rlhf.errors import UserError, require

commands = typer.Typer()
command = functools.partial(commands.command, rich_help_panel="Use a policy")


@command()
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


@command()
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


@command()
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

    wishes = Wishes(split(policies), prompts, against or [], api_key_env, split(judges))
    names = chosen_policies(project, wishes.policies, len(wishes.against))
    judging = chosen_judges(project, wishes.judges)
    with only_arena(folder):
        opened, address = open_address(host, port)  # before anything heavy is imported
        quiet_libraries()
        from rlhf.arena.start import start

        start(project, wishes, names, judging, opened, address, typer.echo)


@command()
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


@command()
def export(
    run: Run,
    to: Annotated[Path, typer.Option(help="Folder to write.")],
    format_: Annotated[
        str, typer.Option("--format", help="merged, int8, nf4, gguf-f16, gguf-q8_0 or gguf-q4_0.")
    ] = "merged",
    prune: Annotated[str | None, typer.Option(help="Set weights to zero first: magnitude or wanda.")] = None,
    sparsity: Annotated[str | None, typer.Option(help="Share of zeros, or 2:4. By default 0.5.")] = None,
    evaluate: Annotated[
        bool | None, typer.Option(help="Compare it with the stage on held-out data; by default where there is any.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write a stage for where it is served: quantised, pruned, as GGUF; and measure what that costs."""
    from rlhf.pipeline.execute import quiet_environment, quiet_libraries
    from rlhf.pipeline.folder import project_of
    from rlhf.pipeline.runs import find_run, pick_stage

    run_dir, stage = find_run(run)
    folder, project = pick_stage(run_dir, stage, policies_only=False), project_of(run_dir)
    quiet_environment()
    quiet_libraries()
    from rlhf.export.run import export as write
    from rlhf.export.run import settings_of
    from rlhf.export.terminal import show

    settings = settings_of(format_, prune, sparsity, evaluate)
    show(write(project, run_dir, folder.name, to, settings, force, typer.echo), to)
