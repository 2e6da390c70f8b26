"""A stage that maximises a reward model runs only if that model has passed its gate."""

from __future__ import annotations

import sys

from rlhf.artifacts.manifest import read_manifest
from rlhf.config.project import ProjectConfig
from rlhf.errors import GateClosed
from rlhf.pipeline import identity
from rlhf.workflow import gates_of, rewards_of, ungated_models


def require_passed(project: ProjectConfig, name: str) -> None:
    """Stop before a stage whose gate is shut; with `gate: warn` say so and go on.

    A stage launched by itself, whose gate has not been asked about the models as they are now, is told so.

    Raises:
        GateClosed: A reward model did not pass; the message says why and what to look at next.
    """
    for model in ungated_models(project, name):
        _say(f"{name}: nothing shows that {model} is a reward model: there are no data.preferences to judge it by")
    for gate in gates_of(project, name):
        record = read_manifest(project.run_dir / gate)
        if record is None or not identity.is_current(record, project, gate):
            _say(f"{name}: its reward model has not passed the gate; ask it: rlhf run {project.path} --only {gate}")
            continue
        decisions, maximised = record["metrics"]["models"], rewards_of(project, name)
        shut = {model: said for model, said in decisions.items() if model in maximised and not said["passed"]}
        if not shut:
            continue
        lines = [f"the gate is shut: {name} would maximise a reward model that is not shown to be one"]
        for model, decision in shut.items():
            lines += [f"  {model}: {reason}" for reason in decision["reasons"]]
            lines += [f"  look at: {advice}" for advice in decision["advice"]]
        if project.gate == "warn":
            _say("\n".join(["warning: " + lines[0], *lines[1:]]))
            continue
        raise GateClosed("\n".join([*lines, "  or go on all the same, which the report will say: --gate warn"]))


def _say(line: str) -> None:
    print(line, file=sys.stderr)
