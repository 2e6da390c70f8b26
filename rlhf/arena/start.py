"""Starts the arena of a run: checks what is asked for, loads the policies and judges, and serves the pages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf.arena.app import application
from rlhf.arena.contestants import Contestant
from rlhf.arena.context import CSP, Arena
from rlhf.arena.live import Live
from rlhf.arena.prepare import Preparer
from rlhf.arena.prompts import Pool, file_pool, held_out_pool
from rlhf.arena.scores import Judges
from rlhf.arena.sessions import Sessions, session_key
from rlhf.arena.store import ArenaVotes
from rlhf.artifacts.manifest import is_finished
from rlhf.config.project import ProjectConfig
from rlhf.data.votes import votes_file
from rlhf.errors import UserError, unknown_name
from rlhf.workflow import BASE, kind_of, policies_of, scorers

_RATE = "12000/minute"
"""Requests of one address: many annotators may share it, and a page is a handful of requests."""


@dataclass(frozen=True)
class Wishes:
    """What was asked for on the command line."""

    policies: Sequence[str] = ()
    """Stages to compare; none for all that are finished."""
    prompts: str | None = None
    """A file of prompts; None for the run's held-out ones."""
    against: Sequence[str] = ()
    """Servers to compare with, `URL` or `URL#model`."""
    api_key_env: str | None = None
    """Name of the variable with their key."""
    judges: Sequence[str] = ()
    """Who scores; none for the run's reward models, and the functions and models under `rewards:`."""
    host: str = "127.0.0.1"
    port: int = 8001


def start(project: ProjectConfig, wishes: Wishes, say: Callable[[str], None]) -> None:
    """Serve the arena of a run until it is interrupted.

    Args:
        project: The run's project.
        wishes: What was asked for.
        say: Is told what happens, and where the page is.

    Raises:
        UserError: Something of what was asked for is not there, or cannot be loaded.
    """
    names = chosen_policies(project, wishes.policies, len(wishes.against))
    scoring, comparing = chosen_judges(project, wishes.judges)
    pool = _pool(project, wishes.prompts, say)
    with ArenaVotes(votes_file(project.run_dir)) as store:
        sessions = Sessions(session_key(store.file.parent))
        from rlhf.serving.guard import Guard, Rules
        from rlhf.serving.listen import open_address, serve

        opened, address = open_address(wishes.host, wishes.port)
        with opened:
            contestants = [*_servers(wishes), *_load(project, names, say)]
            contestants.sort(key=lambda contestant: contestant.kind is None)
            judges = _judges(project, scoring, comparing, say)
            live = Live(store, contestants, judges, project.evaluate)
            preparer = Preparer(
                store, pool, contestants, judges, project.evaluate, project.seed, live.people_first
            )  # fmt: skip
            arena = Arena(
                name=project.run_dir.name, policies=preparer.names, store=store, live=live, sessions=sessions,
                preparer=preparer, as_messages=all(getattr(each.replier, "as_messages", True) for each in contestants),
            )  # fmt: skip
            link = address.url + (f"/?token={address.token}" if address.token else "/")
            say(f"{', '.join(arena.policies)}: judge them at {link} (Ctrl-C ends)")
            preparer.start()
            try:
                rules = Rules(rate=_RATE, policy=CSP, cookie=True)
                serve(Guard(application(arena), address, rules), opened, threading.Event())
            finally:
                live.stop()
                preparer.stop()
                preparer.join()


def chosen_policies(project: ProjectConfig, wanted: Sequence[str], others: int) -> list[str]:
    """The policies of the run that are compared.

    Args:
        project: The project.
        wanted: Their names; none for the last finished ones, and the base model where that leaves nothing to compare.
        others: Policies that are compared besides.

    Raises:
        UserError: There is no such policy, it is not finished, or there are not two.
    """
    known = [BASE, *policies_of(project)]
    finished = [BASE, *(name for name in known[1:] if is_finished(project.run_dir / name))]
    for name in wanted:
        if name not in known:
            raise UserError(f"{project.run_dir}: no policy {name!r}; {unknown_name(name, known)}")
        if name not in finished:
            raise UserError(f"{project.run_dir}: {name} is not finished; there is {', '.join(finished)}")
    names = list(dict.fromkeys(wanted)) or [name for name in finished[1:] if name == kind_of(name)]
    if not wanted and len(names) + others < 2:
        names = [BASE, *names]
    if len(names) + others < 2:
        raise UserError(
            f"{project.run_dir}: there is only {names[0]}: name two with --policies, or a server with --against"
        )
    return names


def chosen_judges(project: ProjectConfig, wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """The judges that score replies, and those that compare them.

    Args:
        project: The project.
        wanted: Their names; none for all that score, since those that compare cost money.

    Raises:
        UserError: There is no such judge.
    """
    own = [name for name in scorers() if is_finished(project.run_dir / name)]
    scoring = [*own, *(name for name, reward in project.rewards.items() if reward.endpoint is None)]
    comparing = [name for name, reward in project.rewards.items() if reward.endpoint is not None]
    for name in wanted:
        if name not in (*scoring, *comparing):
            raise UserError(f"{project.run_dir}: no judge {name!r}; {unknown_name(name, [*scoring, *comparing])}")
    if not wanted:
        return scoring, []
    return [name for name in scoring if name in wanted], [name for name in comparing if name in wanted]


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
    from rlhf.serving.replies import Sampling

    found = []
    for each in dict.fromkeys(wishes.against):
        url, _, model = each.partition("#")
        replier = EndpointReplier(url, model or None, wishes.api_key_env)
        replier.stream("Say hello.", Sampling(temperature=0.0, max_new_tokens=1)).text()
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
