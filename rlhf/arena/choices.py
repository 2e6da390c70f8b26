"""What was asked of the arena, checked against the run before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.artifacts.manifest import is_finished
from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError, unknown_name
from rlhf.workflow import BASE, kind_of, policies_of, scorers


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
