"""The evaluate stage: every policy replies to the same held-out prompts, and every judge scores the replies.

Where a project has no judge, policies are measured by what needs none (`rlhf.evaluation.unjudged`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf import processes, progress
from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError, unknown_name
from rlhf.stages._rewards import reward_models
from rlhf.workflow import BASE, Metrics, Stage, StageContext, base_of, is_base, policies_of, scorers, stage_of
from rlhf.workload import POLICY, REFERENCE, Circumstances, Held, Pass, Workload

if TYPE_CHECKING:
    from rlhf.evaluation.kept import Kept


def prepare(context: StageContext) -> None:
    """Check, before anything trains, that there will be prompts to reply to and that what judges the replies works."""
    from rlhf.data.prepare import evaluation_prompts
    from rlhf.evaluation.completions import check_prompts
    from rlhf.evaluation.judges import try_functions
    from rlhf.evaluation.perturb import perturbed_prompts
    from rlhf.evaluation.retain import read_retained
    from rlhf.rewards.load import load_judges, load_rewards

    project = context.project
    prompts = evaluation_prompts(project, project.evaluate.prompts)
    check_prompts(project, prompts, context.parents.get(BASE))
    column = project.evaluate.group_by
    if column is not None and not any(column in prompt.extra for prompt in prompts):
        names = {name for prompt in prompts for name in prompt.extra}
        raise UserError(f"evaluate.group_by: no prompt has a column {column!r}; {unknown_name(column, names)}")
    load_rewards(project)
    for judge in load_judges(project).values():
        judge.check()
    if unjudged(project):
        print(
            "evaluate: nothing judges replies (no reward stage, nothing under rewards:): policies will be measured "
            "without a verdict on their quality",
            file=sys.stderr,
        )
    try_functions(project, prompts[:2])
    perturbed_prompts(prompts, project.evaluate.perturb)
    read_retained(project)


def run(context: StageContext) -> Metrics:
    """Write `samples.jsonl`: a line per prompt with each policy's completions, their scores, lengths and KL (`Row`).

    `retained.jsonl` has the values on the sets of `evaluate.retain` (`RetainedRow`), `perturbed.jsonl` the answers to
    perturbed prompts (`PerturbedRow`), `attributions.jsonl` the tokens that scores rest on (`Attribution`), and, of a
    project without a judge, `likelihoods.jsonl` how likely policies find held-out rows (`LikelihoodRow`). What was
    sampled and judged before an interruption is used, and the files become what they would have been. Several
    processes share the prompts, and each loads every model whole.
    """
    from rlhf.data.prepare import evaluation_prompts
    from rlhf.evaluation.attributed import ATTRIBUTIONS
    from rlhf.evaluation.compare import comparison_pairs
    from rlhf.evaluation.held_out import held_out_sets, likelihood_rows
    from rlhf.evaluation.judges import CachedScores, note, prefer
    from rlhf.evaluation.kept import KEPT, Kept
    from rlhf.evaluation.perturb import perturbed_prompts
    from rlhf.evaluation.policy import measure_policy, started_from
    from rlhf.evaluation.regressions import RETAINED
    from rlhf.evaluation.retain import read_retained, retained_rows
    from rlhf.evaluation.robustness import PERTURBED, perturbed_rows
    from rlhf.evaluation.samples import Row
    from rlhf.evaluation.shares import by_all
    from rlhf.evaluation.unjudged import LIKELIHOODS
    from rlhf.rewards.load import load_judges, load_rewards

    project = context.project
    kept, scoring = Kept(context.directory / KEPT), load_rewards(project, context.parents)
    judges = {name: CachedScores(by_all(judge), kept.path(f"scores {name}")) for name, judge in scoring.items()}
    comparing = load_judges(project)
    references = {name: started_from(project, name) for name in policies_of(project)}
    policies = _compared(context, references)
    prompts = evaluation_prompts(project, project.evaluate.prompts)
    rows = [Row(index=n, prompt=prompt.prompt, columns=prompt.extra, replies={}) for n, prompt in enumerate(prompts)]
    sets, held_out = read_retained(project), held_out_sets(project) if unjudged(project) else []
    changed = perturbed_prompts(prompts, project.evaluate.perturb)
    again = perturbed_rows(rows, changed)
    cut, kinds, retained, attributions = 0, {}, {}, []
    for name in progress.each(policies, "policies", ""):
        measures = measure_policy(
            project, context.parents, name, references.get(name), prompts, [*sets, *held_out], judges,
            [each.prompt for each in changed], kept,
        )  # fmt: skip
        note(rows, prompts, name, measures.completions, judges)
        note(again, [prompts[each.place] for each in changed], name, measures.perturbed, judges)
        cut, kinds[name], retained[name] = measures.cut, measures.kind, measures.retained
        attributions += measures.decisions
    attributions += _explained(scoring, rows[: project.evaluate.attributions], policies[-1], kept)
    for name, judge in comparing.items():
        prefer(rows, comparison_pairs(policies, references), name, judge, kept)
    if processes.is_main():
        files: dict[str, Any] = {PERTURBED: again, ATTRIBUTIONS: attributions, RETAINED: retained_rows(sets, retained),
                 LIKELIHOODS: likelihood_rows(held_out, retained), "samples.jsonl": rows}  # fmt: skip
        for name, lines in files.items():
            write_lines(context.directory / name, lines)
    return {
        "policies": policies, "kinds": kinds, "judges": [*judges, *comparing],
        "parents": references, "references": references,
        "prompts": len(prompts), "prompts_cut": cut, "samples": len(rows[0]["replies"][policies[-1]]),
        "group_by": project.evaluate.group_by,
        "comparing": {name: judge.report() for name, judge in comparing.items()},
    }  # fmt: skip


def _compared(context: StageContext, references: Mapping[str, str]) -> list[str]:
    """The policies that are compared: the base models that can answer, and the stages, given what each started from."""
    from rlhf.evaluation.policy import answers

    names = dict.fromkeys([BASE, *(start for start in references.values() if is_base(start)), *references])
    return [name for name in names if answers(context.project, context.parents, name)]


def _explained(scoring: dict[str, Any], rows: Sequence[Any], policy: str, kept: Kept) -> list[Any]:
    """What the scores of these rows rest on, judge by judge; processes share the rows."""
    from rlhf.evaluation.attribution import of_reward_models

    def explain(first: int, last: int) -> list[list[Any]]:
        return [of_reward_models(scoring, [row], policy) for row in rows[first:last]]

    parts = kept.lines("attributions", len(rows), len(rows), explain)
    return [part for name in scoring for of_row in parts for part in of_row if part["scorer"] == name]


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    """Write JSON objects, one a line; no file for none."""
    if not rows:
        return
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def unjudged(project: ProjectConfig) -> bool:
    """Whether a project has nothing that judges replies: no reward model of its own, and nothing under `rewards:`."""
    return not project.rewards and not any(name in project.stages for name in scorers())


def absent(project: ProjectConfig) -> str | None:
    """Why a project has no such stage."""
    if not project.evaluate.enabled:
        return "evaluate: false switches the comparison off"
    if not any(stage_of(name).leaves == "policy" for name in project.stages):
        return "there is no policy to compare"
    return None


def identity(project: ProjectConfig, name: str) -> dict[str, Any]:
    """The contents of the retained sets, and of what is measured on without a judge; how they are read are settings."""
    from rlhf.config.sets import SourceConfig
    from rlhf.data.prepare import fingerprints
    from rlhf.data.sources import fingerprint

    sets = project.evaluate.retain.items()
    sources = {name: SourceConfig(source=retained.source, split=retained.split) for name, retained in sets}
    parts: dict[str, Any] = {
        "retain": {name: fingerprint(source, project.path.parent) for name, source in sources.items()}
    }
    if unjudged(project):
        roles = [role for role in ("demonstrations", "preferences") if getattr(project.data, role) is not None]
        parts["held_out"] = {role: fingerprints(project, role) for role in roles}
    return parts


def rewards(project: ProjectConfig, name: str) -> dict[str, float]:
    """Everything under `rewards:` judges."""
    return dict.fromkeys(project.rewards, 1.0)


def workload(project: ProjectConfig, name: str, given: Circumstances) -> Workload:
    """A policy that writes, the one it started from, and the models that score; policies come one after the other."""
    policies, settings = policies_of(project), project.evaluate
    base = replace(base_of(project, policies[-1]), adapter=None)
    judges = reward_models(project, name, [*rewards(project, name), *scorers()])
    writing = Pass(
        "sampling", (POLICY,), (("prompt_ids",),), settings.batch_size, "whole", writes=settings.max_new_tokens,
        samples=settings.samples, sampling=True,
        rows=float((1 + len(policies)) * settings.prompts * settings.samples),
    )  # fmt: skip
    measuring = replace(writing, name="measuring", roles=(POLICY, REFERENCE), sampling=False)
    scoring = replace(measuring, name="scoring", roles=tuple(judge.role for judge in judges), head="score")
    return Workload((Held(POLICY, base), Held(REFERENCE, base), *judges), (writing, measuring, scoring), saves=False)


STAGE = Stage(
    name="evaluate",
    order=70,
    label="Evaluation",
    leaves="comparison",
    run=run,
    prepare=prepare,
    workload=workload,
    reads=("prompts",),
    compares=True,
    rewards=rewards,
    absent=absent,
    identity=identity,
)
