"""The rank stage: a policy replies to prompts several times, rewards score the replies, the best and worst are kept.

As pairs they are what dpo and other stages on pairs train on (iterative DPO), the best alone is what rft imitates
(rejection sampling).
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf import processes
from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError
from rlhf.stages._rewards import check as check_judges
from rlhf.stages._rewards import check_rewards, reward_models, rewards
from rlhf.stages._sampling import settle_sampler
from rlhf.workflow import ROWS_FILES, Metrics, Stage, StageContext, base_of, rewards_of, rows_from, stages
from rlhf.workload import POLICY, Circumstances, Held, Pass, Workload

if TYPE_CHECKING:
    from rlhf.training.ready import Ready

SAMPLES = "samples.jsonl"
"""Every prompt with all replies and scores."""
_BATCHES = 4
"""Batches of the sampler between two writes."""


def prepare(context: StageContext) -> Ready:
    """Read and tokenise the prompts, and check that there is something to rank by."""
    from rlhf.evaluation.ranking import RankSettings
    from rlhf.models.tasks import CAUSAL_LM, SEQ2SEQ
    from rlhf.policies.kinds import policy_kind
    from rlhf.training.ready import Ready, prepared_data
    from rlhf.training.starting_point import starting_point

    start = starting_point(context)
    settings = RankSettings(**context.settings.trainer)
    if start.task not in (CAUSAL_LM, SEQ2SEQ):
        raise UserError(
            f"stages.{context.name}: {start.source.base} is a {start.task.policy} policy and writes no text"
        )
    limits = [limit for limit in (settings.max_length, start.context_length) if limit is not None]
    settings.max_length = min(limits, default=None)
    check_rewards(context.project, context.name)
    kind = policy_kind(start.opened)
    try:
        encoder = kind.prompts(settings)
    except UserError as error:
        raise UserError(f"stages.{context.name}.{error}") from None
    settle_sampler(context, settings, None, kind.config)

    data = prepared_data(context, start, encoder, keep_columns=True)
    kind.check_columns(map(json.loads, data.train["extra"]), context.project, f"data.{context.stage.data}")
    return Ready(start, settings, data)


def run(context: StageContext) -> Metrics:
    """Sample and score, which several processes share, and choose, which the main one does.

    Writes `samples.jsonl` with every reply and score (`evaluation.replies.Replies`), and `pairs.jsonl` or
    `demonstrations.jsonl` with what is kept.
    """
    from rlhf.evaluation.replies import sample_replies
    from rlhf.models.roles import Roles
    from rlhf.policies.kinds import policy_kind
    from rlhf.rewards.load import load_rewards

    project, ready = context.project, prepare(context)
    settings, kind = ready.args, policy_kind(ready.start.opened)
    seed, weights = project.stage_seed(context.name), rewards_of(project, context.name)
    count = len(ready.data.train)
    draw = random.Random(seed + project.round - 1).sample  # each round replies to others
    asked = sorted(draw(range(count), min(count, settings.prompts or count)))
    rows = ready.data.train.select(asked)
    policy: Any = kind.policy(Roles(ready.start.opened.policy().requires_grad_(False)), settings, context.settings.fold)
    policy.folder = context.directory
    with contextlib.closing(policy):
        sample_replies(
            context.directory / SAMPLES, policy, kind.inputs(rows), [ready.data.origins[row] for row in asked],
            load_rewards(project, context.parents, weights), samples=settings.samples,
            at_once=max(1, _BATCHES * settings.sampling_batch_size // settings.samples), seed=seed,
        )  # fmt: skip
    return _keep(context, settings, weights, count - len(asked)) if processes.is_main() else {}


def _keep(context: StageContext, settings: Any, weights: dict[str, float], not_asked: int) -> Metrics:
    """Choose among the replies of each prompt, write what is kept and what became of every prompt.

    Raises:
        UserError: Nothing is kept.
    """
    from rlhf.data.ledger import NOT_ASKED, Ledger
    from rlhf.evaluation.ranking import Kept, Measures, choose
    from rlhf.evaluation.replies import read_replies, total_scores

    samples, measures = context.directory / SAMPLES, Measures([*weights])
    totals = total_scores(samples, weights)
    name, _ = ROWS_FILES[leaves_rows(context.project, context.name)]
    ledger = Ledger(str(context.stage.data), context.directory)
    with ledger, (context.directory / name).open("w", encoding="utf-8") as file:
        ledger.take_over(context.directory / "data")
        ledger.dropped.update([NOT_ASKED] * not_asked)
        for line, scores in zip(read_replies(samples), totals, strict=True):
            kept = choose(line["replies"], scores, settings)
            measures.add(line["replies"], scores, kept)
            if isinstance(kept, Kept):
                ledger.trained += 1
                row = _row(line, scores, kept, settings.keep)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            else:
                ledger.drop(kept, line["origin"], {"prompt": line["prompt"], **line["columns"]})
    if not measures.kept:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in measures.refused.most_common(3))
        raise UserError(f"stages.{context.name}: nothing is kept of {measures.prompts} prompts: {reasons}")
    return {"ranked": {"keep": settings.keep, **measures.report()}, "warning": measures.warning()}


def _row(line: Any, scores: list[float], kept: Any, keep: str) -> dict[str, Any]:
    """A preference or a demonstration, with the columns of the prompt's row and the scores that decided."""
    from rlhf.data.records import as_completion

    prompt = line["prompt"]
    best = as_completion(prompt, line["replies"][kept.best]["text"])
    if keep == "best":
        return {**line["columns"], "prompt": prompt, "completion": best, "score": scores[kept.best]}
    return {
        **line["columns"],
        "prompt": prompt,
        "chosen": best,
        "rejected": as_completion(prompt, line["replies"][kept.worst]["text"]),
        "score_chosen": scores[kept.best],
        "score_rejected": scores[kept.worst],
    }


def leaves_rows(project: ProjectConfig, name: str) -> str:
    """Which set its rows are of."""
    return "demonstrations" if project.stage(name).trainer.get("keep") == "best" else "preferences"


def check(project: ProjectConfig, name: str) -> str | None:
    """Something trains on what is kept, and nothing is set that this stage has no use for."""
    settings, key = project.stage(name), f"stages.{name}"
    if not any(rows_from(project, other) == name for other in project.stages):
        takers = [stage.name for stage in stages().values() if name in stage.rows_of]
        fitting = ["rft"] if leaves_rows(project, name) == "demonstrations" else [t for t in takers if t != "rft"]
        return f"{key}: nothing trains on what it keeps; add {' or '.join(fitting)} to stages:, or change {key}.keep"
    for field, given in (
        ("adapter", settings.adapter != "inherit"),
        ("freeze", settings.freeze),
        ("seeds", settings.seeds > 1),
    ):
        if given:
            return f"{key}.{field}: this stage trains nothing; leave it out"
    return check_judges(project, name)


def launch_problem(project: ProjectConfig, name: str, processes: int, asked: Mapping[str, str]) -> str | None:
    """Why it cannot run as it is launched; None where it can."""
    if project.stage(name).trainer.get("sampler") != "vllm" or processes == 1:
        return None  # of several processes, each replies to its share whenever it gets there
    return f"stages.{name}.sampler: a vllm server is asked by one process, not by {processes}"


def workload(project: ProjectConfig, name: str, given: Circumstances) -> Workload:
    """A policy that writes, and the models that score."""
    get, scorers = given.settings.__getitem__, reward_models(project, name, rewards(project, name))
    rows = None if get("prompts") is None else float(get("prompts") * get("samples"))
    writing = Pass(
        "sampling", (POLICY,), (("prompt_ids",),), get("sampling_batch_size"), "whole", writes=get("max_new_tokens"),
        samples=get("samples"), sampling=True, epochs=get("samples"), rows=rows,
    )  # fmt: skip
    scoring = replace(
        writing, name="scoring", roles=tuple(model.role for model in scorers), head="score", sampling=False
    )
    policy = Held(POLICY, replace(base_of(project, name), adapter=None))
    return Workload((policy, *scorers), (writing, scoring), saves=False)


STAGE = Stage(
    name="rank",
    order=35,
    label="Rank",
    leaves="rows",
    run=run,
    prepare=prepare,
    workload=workload,
    data="rollouts",
    leaves_rows=leaves_rows,
    follows=("sft",),
    uses=("reward",),
    rewards=rewards,
    trainer=("rlhf.policies.settings:SamplingSettings", "rlhf.evaluation.ranking:RankSettings"),
    intervals={
        "max_new_tokens": "[1, 1e9]", "min_margin": "[0, inf)", "min_score": "(-inf, inf)", "prompts": "[1, 1e9]",
        "rewards": "(-inf, inf)", "samples": "[2, 1e6]", "sampling_batch_size": "[1, 1e6]", "temperature": "(0, inf)",
        "vllm_memory": "(0, 1]",
    },
    choices={
        "keep": ("pairs", "best"), "sampler": ("transformers", "vllm"), "truncated": ("reject", "drop", "score"),
    },
    check=check,
    launch_problem=launch_problem,
)  # fmt: skip
