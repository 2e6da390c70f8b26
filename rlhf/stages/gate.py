"""The gate stage: what online training will maximise is held against held-out pairs, a ruler and chance first."""

from __future__ import annotations

from typing import Any

from rlhf.workflow import Metrics, Stage, StageContext, judged, parent_of, stage_of


def prepare(context: StageContext) -> None:
    """Hold, before anything trains, that there will be pairs and prompts to judge by."""
    from rlhf.data.ledger import Ledger
    from rlhf.data.prepare import evaluation_prompts, iter_records
    from rlhf.evaluation.gate import no_pairs

    ledger = Ledger("preferences")
    if not any(side == "eval" for _, side in iter_records(context.project, "preferences", ledger)):
        raise no_pairs(context.project, ledger.trained)
    evaluation_prompts(context.project, 1)


def run(context: StageContext) -> Metrics:
    """Measure every reward model that PPO maximises, decide, and write `pairs.jsonl`: each pair with its margins.

    Returns:
        `passed`; `models`: of each reward model what `examine` and `gate_verdict.verdict` give; `policy`, whose replies
        were scored beside the pairs; `gates`, the stage that may run only if this one passed.

    Raises:
        UserError: No pair is held out.
    """
    from rlhf.evaluation.gate import full_examination, held_out_pairs, policy_replies, write_pairs
    from rlhf.evaluation.gate_verdict import verdict
    from rlhf.rewards.load import load_rewards

    project = context.project
    pairs = held_out_pairs(project)
    policy = parent_of(project, context.name) or "base"
    prompts, replies = policy_replies(project, policy, context.parents.get(policy), stage_of(context.name).guards)
    models: dict[str, Any] = {}
    margins: dict[str, Any] = {}
    for name, judge in load_rewards(project, context.parents, judged(project, context.name)).items():
        found, margins[name] = full_examination(judge, pairs, prompts, replies)
        models[name] = {**found, **verdict(found)}
    write_pairs(context.directory, pairs, margins)
    return {"passed": all(one["passed"] for one in models.values()), "models": models, "policy": policy,
            "gates": stage_of(context.name).guards}  # fmt: skip


STAGE = Stage("gate", order=50, run=run, prepare=prepare, policy=False, reads=("preferences", "prompts"), guards="ppo")
