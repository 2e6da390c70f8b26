"""The gate stage: what online training will maximise is held against held-out pairs, length and chance first."""

from __future__ import annotations

from typing import Any

from rlhf import processes
from rlhf.config.project import ProjectConfig
from rlhf.workflow import Metrics, Stage, StageContext, gated_models, guarded_by, parent_of, stages


def prepare(context: StageContext) -> None:
    """Check, before anything trains, that there will be pairs and prompts to judge by."""
    from rlhf.data.ledger import Ledger
    from rlhf.data.prepare import evaluation_prompts, iter_records
    from rlhf.evaluation.pairs import no_pairs

    ledger = Ledger("preferences")
    if not any(side == "eval" for _, side in iter_records(context.project, "preferences", ledger)):
        raise no_pairs(context.project, ledger.trained)
    evaluation_prompts(context.project, 1)


def run(context: StageContext) -> Metrics:
    """Measure every reward model that will be maximised, decide, and write `pairs.jsonl`: each pair with its margins.

    Returns:
        A `gate.GateResult`.

    Raises:
        UserError: No pair is held out.
    """
    from rlhf.evaluation.completions import held_out_completions
    from rlhf.evaluation.gate import TRIED, measure, verdict
    from rlhf.evaluation.pairs import held_out_pairs, write_pairs
    from rlhf.rewards.load import load_rewards

    project = context.project
    pairs = held_out_pairs(project)
    policy = parent_of(project, context.name) or "base"
    folder, (first, *others) = context.parents.get(policy), guarded_by(project, context.name)
    prompts, completions = held_out_completions(project, policy, folder, first, TRIED)
    models: dict[str, Any] = {}
    margins: dict[str, Any] = {}
    for name, judge in load_rewards(project, context.parents, gated_models(project, context.name)).items():
        measures, margins[name] = measure(judge, pairs, prompts, completions)
        models[name] = {**measures, **verdict(measures)}
    if processes.is_main():
        write_pairs(context.directory, pairs, margins)
    passed = all(model["passed"] for model in models.values())
    also = {"also_gates": others} if others else {}
    return {"passed": passed, "models": models, "policy": policy, "gates": first, **also}


def absent(project: ProjectConfig) -> str | None:
    """Why a project has no such stage."""
    if gated_models(project, "gate"):
        return None
    online = [name for name, stage in stages().items() if stage.online and name in project.stages] or ["ppo"]
    return f"{' and '.join(online)} maximises no reward model that data.preferences could judge"


STAGE = Stage(
    name="gate",
    order=50,
    label="Gate",
    leaves="verdict",
    run=run,
    prepare=prepare,
    reads=("preferences", "prompts"),
    ignores=("enabled", "group_by", "retain", "prompts", "samples"),
    gates=True,
    absent=absent,
)
