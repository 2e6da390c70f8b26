"""Run what is not done: decide which stages are stale, check all data first, start each stage as its own process.

Imports no torch: a finished run is recognised in well under two seconds.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import multiprocessing
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

from rlhf.config.project import ProjectConfig
from rlhf.config.trainer_fields import trained_stages
from rlhf.data.findings import Findings
from rlhf.data.ledger import Ledger
from rlhf.errors import UserError
from rlhf.pipeline import folder, gatekeeper, nodes, partial
from rlhf.pipeline.execute import prepare_stage, quiet_environment, run_stage
from rlhf.pipeline.launch_file import Launch
from rlhf.pipeline.plan import Plan, plan
from rlhf.pipeline.start import StageFailed, check_interrupted, launched, start
from rlhf.pipeline.view import View
from rlhf.workflow import kind_of, planned, rows_from, stage_of, stages


def run(
    project: ProjectConfig,
    only: Sequence[str] = (),
    force: Sequence[str] = (),
    launch: Launch | None = None,
    say: Callable[[str], None] = print,
    wait: float = 600.0,
    view: View | None = None,
) -> list[Plan]:
    """Run every stage that is not done.

    The data of all of them is read, checked and tokenised before the first one trains.

    Args:
        project: The project.
        only: Stages to consider; all if empty.
        force: Stages to run again.
        launch: Starts stages on many processes, by `accelerate launch`; of several nodes this one leads.
        say: Told what happens, a line at a time.
        wait: Seconds that other nodes are waited for.
        view: Shows the run instead; None has `say` told all there is to show.

    Raises:
        UserError: Something is wrong with config, data or folder.
        StageFailed: A stage failed; it has said why.
        GateClosed: A reward model is not shown to be one.
    """
    shown = View(say) if view is None else view
    with folder.locked(project) as run_lock, nodes.leading(project, launch) as leader, shown:
        try:
            if leader is not None:
                leader.gather(wait, shown.say)
            for name in planned(project):
                partial.settle(project, name)
            plans = plan(project, only, force)
            _check_launch(project, [stage_plan.stage for stage_plan in plans if stage_plan.reason], launch)
            _check_data(project, plans, run_lock.key, shown)
        except (UserError, StageFailed):
            run_lock.withdraw()
            raise
        run_lock.note_overrides()
        _run(project, plans, run_lock.key, launch, leader, shown)
    return plans


def _check_launch(project: ProjectConfig, names: Sequence[str], launch: Launch | None) -> None:
    """Check that what starts the stages suits those that are to run.

    Raises:
        UserError: One cannot run on these processes, or with what accelerate is asked for.
    """
    if launch is None:
        return
    for name in names:
        problem = stage_of(name).launch_problem
        if problem is not None and (why := problem(project, name, launch.processes, launch.variables)):
            raise UserError(f"{launch.file}: {why}")


def _check_data(project: ProjectConfig, plans: list[Plan], key: str, view: View) -> None:
    """Read, check and tokenise the data of the stages that are to run."""
    todo = [stage_plan for stage_plan in plans if stage_plan.reason]
    view.planned(plans)
    if not todo:
        return
    with view.starting():
        server = _fork_server()
    if _makes_base(todo[0].stage):  # with the tokenizer that all data is prepared with
        view.begins(todo[0].stage)
        start(server, run_stage, project, todo[0].stage, key, view)
        view.ended(todo[0].stage)
        todo = todo[1:]
    view.checks()
    prepare = functools.partial(prepare_stage, running=frozenset(stage_plan.stage for stage_plan in todo))
    for stage_plan in todo:
        view.checks(stage_plan.stage)
        start(server, prepare, project, stage_plan.stage, key, view)
    view.checked()


def _run(
    project: ProjectConfig,
    plans: list[Plan],
    key: str,
    launch: Launch | None,
    leader: nodes.Leader | None,
    view: View,
) -> None:
    """Run the stages that are to run."""
    for stage_plan in plans:
        if stage_plan.reason is None or _makes_base(stage_plan.stage):
            continue
        gatekeeper.require_passed(project, stage_plan.stage)
        view.begins(stage_plan.stage)
        if launch is not None:
            _accelerate(project, stage_plan.stage, key, launch, leader, view)
        else:
            start(_fork_server(), run_stage, project, stage_plan.stage, key, view)
        if folder.partial_dir(project, stage_plan.stage).exists():
            raise UserError(
                f"{stage_plan.stage}: its process ended before the stage was done, and says that all is well; "
                "does a reward of yours call os._exit?"
            )
        view.ended(stage_plan.stage)


class Checked(NamedTuple):
    """What a check says of a stage's data."""

    ledger: Ledger
    findings: Findings


class Scratch(NamedTuple):
    """A copy of a project whose folder is thrown away."""

    project: ProjectConfig
    start: Callable[[Callable[[ProjectConfig, str], None], str], None]
    """Runs a function of the project and a stage in a process of its own."""

    def data(self, name: str) -> Path:
        """Where the prepared data of a stage is."""
        return folder.partial_dir(self.project, name) / "data"


@contextlib.contextmanager
def scratch(project: ProjectConfig) -> Iterator[Scratch]:
    """A copy of a project, in a folder that is there within."""
    server = _fork_server()
    with tempfile.TemporaryDirectory() as place:
        copy = replace(project, output_dir=place)
        with folder.locked(copy) as run_lock:
            yield Scratch(copy, lambda function, name: start(server, function, copy, name, run_lock.key))


def check(
    project: ProjectConfig, launch: Launch | None = None, look: Callable[[Scratch], None] | None = None
) -> dict[str, Checked]:
    """Read, check and tokenise the data of every stage in a folder that is thrown away; load what judges.

    Repetitions of a stage have its data and are not read again.

    Args:
        project: The project.
        launch: What would start its stages; None for one process.
        look: Is given the folder once all is prepared.

    Returns:
        For each stage with data its ledger, and what was found in the rows that are used.

    Raises:
        UserError: The project has no stages, or one that cannot run as it would be launched.
        StageFailed: A stage refuses its data or its settings; it has said why.
    """
    if not project.stages:
        raise UserError(f"{project.path}: stages: nothing to check; name {', '.join(trained_stages())}")
    _check_launch(project, planned(project), launch)
    checked = {}
    with scratch(project) as copy:
        for name in planned(project):
            if name != kind_of(name):
                continue
            copy.start(run_stage if _makes_base(name) else prepare_stage, name)
            prepared = copy.data(name)
            if prepared.is_dir() and rows_from(project, name) is None:  # else another set stood for its own
                checked[name] = Checked(Ledger.load(prepared), Findings.load(prepared))
        if look is not None:
            look(copy)
    return checked


def _fork_server() -> Any:
    """A process that has imported the trainers once and computed nothing; each stage is a fork of it.

    A stage still has its own process: its memory is returned, and a crash names it.
    """
    quiet_environment()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_heavy_modules())
    resource_tracker.ensure_running()  # which would unblock the signal again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:  # Ctrl-C reaches this process, which ends the others; they need not say a word
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return context


def _makes_base(stage: str) -> bool:
    """Whether a stage makes the base model, which other stages need before their data can be prepared."""
    return stage_of(stage).leaves == "base"


def _heavy_modules() -> list[str]:
    """What the stage files import inside their functions, so that nobody need keep a list of it."""
    names: dict[str, None] = {}
    for module in {stage.run.__module__ for stage in stages().values()}:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
        functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
        imports = (node for function in functions for node in ast.walk(function) if isinstance(node, ast.ImportFrom))
        names |= dict.fromkeys(str(node.module) for node in imports)
    return sorted(names)


def follow(project: ProjectConfig, launch: Launch, wait: float, say: Callable[[str], None] = print) -> int:
    """Take part in a run as a node that does not lead: start each stage's processes as node 0 does.

    Args:
        project: The run, as this node was told of it; its folder counts, and node 0 has all else.
        launch: Which node this is.
        wait: Seconds that node 0 is waited for.
        say: Told what happens, a line at a time.

    Returns:
        The exit code of the run.

    Raises:
        UserError: Node 0 is not heard of, or no more.
    """
    quiet_environment()
    with nodes.following(project, launch, wait) as follower:
        for order in follower.orders():
            say(f"running {order['stage']}")
            words = ["--run", order["run"], "--round", str(order["round"])]
            words += [str(project.path), order["stage"], *order["overrides"]]
            with contextlib.suppress(nodes.Ended):
                code, own = launched(launch, words, follower.check)
                if code:
                    follower.failed(int(own or code))
    return follower.code


def _accelerate(
    project: ProjectConfig, name: str, key: str, launch: Launch, leader: nodes.Leader | None, view: View
) -> None:
    watch = view.watch()
    words = ["--watch", str(watch.progress), "--run", key, "--round", str(project.round)]
    words += [str(project.path), name, *project.overrides]
    if leader is not None:
        leader.start(name, key)

    def look() -> None:
        view.look()
        if leader is not None:
            leader.check()

    code, own = launched(launch, words, look, watch)
    view.look()
    if code:
        check_interrupted(int(own or code))
        raise StageFailed(name, int(own or code), explained=bool(own))
