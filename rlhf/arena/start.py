"""Starts the arena of a run: checks what is asked for, loads the policies and judges, and serves the pages."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence

from rlhf.arena.app import application
from rlhf.arena.choices import Wishes
from rlhf.arena.contestants import Contestant
from rlhf.arena.context import CSP, Arena
from rlhf.arena.live import Live
from rlhf.arena.prepare import Preparer
from rlhf.arena.prompts import Pool, file_pool, held_out_pool
from rlhf.arena.results import base_label
from rlhf.arena.scores import Judges
from rlhf.arena.sessions import Sessions, session_key
from rlhf.arena.store import ArenaVotes
from rlhf.artifacts.manifest import is_finished
from rlhf.artifacts.rounds import run_name
from rlhf.config.project import ProjectConfig
from rlhf.data.votes import votes_file
from rlhf.serving.guard import Guard, Rules
from rlhf.serving.listen import Address, serve
from rlhf.workflow import BASE, scorers

_RATE = "12000/minute"
"""Requests of one address: many annotators may share it, and a page is a handful of requests."""
_PATIENCE = 2.0
"""Seconds that replies under way have when the server has ended."""


def start(
    project: ProjectConfig,
    wishes: Wishes,
    policies: Sequence[str],
    judging: tuple[Sequence[str], Sequence[str]],
    opened: socket.socket,
    address: Address,
    say: Callable[[str], None],
) -> None:
    """Serve the arena of a run until it is interrupted.

    Args:
        project: The run's project.
        wishes: What was asked for.
        policies: Those of the run that are compared (`choices.chosen_policies`).
        judging: The judges that score, and those that compare (`choices.chosen_judges`).
        opened: The socket, which is closed in the end.
        address: Where it listens.
        say: Is told what happens, and where the page is.

    Raises:
        UserError: A file of prompts, a server or a model is not there or cannot be used.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(opened)
        pool = _pool(project, wishes.prompts, say)
        servers = _servers(wishes)
        contestants = [*_load(project, policies, say), *servers]
        as_messages = all(getattr(each.replier, "as_messages", True) for each in contestants)
        pool = pool.in_messages() if as_messages else pool
        judges = _judges(project, *judging, say)
        store = ArenaVotes(votes_file(project.run_dir))
        stack.callback(store.close)
        sessions = Sessions(session_key(store.file.parent))
        live = Live(store, contestants, judges, project.evaluate)
        preparer = Preparer(
            store, pool, contestants, judges, project.evaluate, project.seed, live.people_first
        )  # fmt: skip
        arena = Arena(
            name=run_name(project.run_dir), base=base_label(project.run_dir), policies=preparer.names, store=store,
            live=live, sessions=sessions, preparer=preparer, as_messages=as_messages,
        )  # fmt: skip
        link = address.url + (f"/?token={address.token}" if address.token else "/")
        say(f"{', '.join(arena.policies)}: judge them at {link} (Ctrl-C ends)")
        preparer.start()
        try:
            rules = Rules(rate=_RATE, policy=CSP, cookie=True)
            serve(Guard(application(arena), address, rules), opened)
        finally:
            live.stop()
            preparer.stop()
            end_within(_PATIENCE)
            preparer.join()


def end_within(seconds: float) -> None:
    """End this process after a while, whatever its threads still wait for; every vote is on disk by then.

    Python itself waits for the threads that ask servers, and a thread that is computing can crash it on the way out.

    Args:
        seconds: How long it may take to end by itself.
    """
    status = 0 if sys.exc_info()[0] is None else 1
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()


def _pool(project: ProjectConfig, file: str | None, say: Callable[[str], None]) -> Pool:
    pool = held_out_pool(project) if file is None else file_pool(project, file)
    where = "held-out prompts" if file is None else f"prompts of {file}"
    left = f"; {pool.compared} of the final comparison are left out" if pool.compared else ""
    unusable = f"; {pool.unusable} rows hold no prompt" if pool.unusable else ""
    say(f"{len(pool.prompts)} {where}{left}{unusable}")
    if not pool.prompts:
        say("annotators write prompts of their own; --prompts FILE gives others")
    return pool


def _servers(wishes: Wishes) -> list[Contestant]:
    """Policies behind servers, each asked once, so that one that does not reply is known before anything is loaded."""
    from rlhf.serving.endpoint import EndpointReplier

    found = []
    for each in dict.fromkeys(wishes.against):
        url, _, model = each.partition("#")
        replier = EndpointReplier(url, model or None, wishes.api_key_env)
        replier.check()
        found.append(Contestant(replier))
    return found


def _load(project: ProjectConfig, names: Sequence[str], say: Callable[[str], None]) -> list[Contestant]:
    from rlhf.evaluation.completions import open_policy
    from rlhf.policies.kinds import policy_kind
    from rlhf.serving.replies import replier_of

    plain = False
    found = []
    for name in sorted(names, key=lambda name: name == BASE):  # which is asked in the form that the others learned
        folder = project.run_dir / name
        say(f"loading {name}")
        opened = open_policy(project, folder if is_finished(folder) else None, None if name == BASE else name)
        replier = replier_of(opened, name, as_messages=not plain)
        plain = plain or not replier.as_messages
        found.append(Contestant(replier, policy_kind(opened)))
    return sorted(found, key=lambda contestant: names.index(contestant.name))


def _judges(
    project: ProjectConfig, scoring: Sequence[str], comparing: Sequence[str], say: Callable[[str], None]
) -> Judges:
    from rlhf.rewards.endpoint import load_judge
    from rlhf.rewards.load import ANSWERS, load_rewards

    for name in (*scoring, *comparing):
        say(f"loading {name}")
    folders = {name: project.run_dir / name for name in scorers() if is_finished(project.run_dir / name)}
    certain = next((name for name in scoring if name in folders or project.rewards[name].models), None)
    judges = {name: load_judge(name, project.rewards[name], project.run_dir / ANSWERS / name) for name in comparing}
    for judge in judges.values():
        judge.check()
    return Judges(load_rewards(project, folders, scoring), judges, certain)
