"""What the types of a config cannot say: names, shares, and what goes together."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from urllib.parse import urlsplit

from rlhf.config.project import SEEDS, ProjectConfig, RewardConfig, StageId
from rlhf.config.ranges import shown
from rlhf.config.trainer_fields import reporters_problem
from rlhf.errors import UserError, unknown_name
from rlhf.workflow import BASE, later_stages, rewards_of, scorers, stage_of, stages

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAMED = "must be letters, digits, '.', '_' or '-', at most 100 (it names a folder)"
"""What names a folder of a run: of the project, or of a judge, whose answers are kept."""
_SHORTEST_ANSWER = 16
"""Tokens in which a judge can say which reply is better, with a word or two around it."""


def check(project: ProjectConfig) -> None:
    """Check a project's names, shares and the model's origin.

    Raises:
        UserError: One is wrong.
    """
    where = project.path
    if not _NAME.fullmatch(project.name):
        raise UserError(f"{where}: name: {shown(project.name)} {_NAMED}")
    if (file := _file_in_the_way(project.run_dir)) is not None:
        raise UserError(f"{where}: output_dir: {file} is a file; the run is to be a folder at {project.run_dir}")
    if (project.model.name_or_path is None) == (project.model.scratch is None):
        raise UserError(f"{where}: model: give one of name_or_path and scratch")
    if problem := reporters_problem(project.report_to):
        raise UserError(f"{where}: report_to: {problem}")
    models = {"model": project.model, **{f"stages.{name}.model": stage.model for name, stage in project.stages.items()}}
    for key, model in models.items():
        if model is not None and "/" in (model.attn_implementation or ""):
            raise UserError(
                f"{where}: {key}.attn_implementation: {shown(model.attn_implementation)} is code from the hub, and no "
                "code from the hub is run; take eager, sdpa, flex_attention or flash_attention_2"
            )
    for name, reward in project.rewards.items():
        if not _NAME.fullmatch(name):
            raise UserError(f"{where}: rewards: {shown(name)} {_NAMED}")
        if problem := _reward_problem(reward):
            raise UserError(f"{where}: rewards.{name}: {problem}")
        if name in project.stages:
            raise UserError(f"{where}: rewards.{name}: {name!r} is a stage; give the judge another name")
    for name, stage in project.stages.items():
        if (check := stage_of(name).check) is not None and (problem := check(project, name)):
            raise UserError(f"{where}: {problem}")
        last = StageId(name, stage.seeds - 1)
        if problem := SEEDS.problem(seed := project.stage_seed(str(last))):
            raise UserError(f"{where}: seed: {problem}, and stages.{last} would have {seed}")
        model = project.stage_model(name)
        if model.quantization is not None and model.adapter is None and stage_of(name).trainer:
            raise UserError(
                f"{where}: stages.{name}: adapter: null trains all weights, and weights in 4 bits (model.quantization) "
                "cannot be trained; give an adapter, or leave quantization out"
            )
        if stage.model is not None and stage.model.name_or_path is None:
            raise UserError(f"{where}: stages.{name}.model: name_or_path is missing")
        others = {BASE, *project.stage_names} - {name}
        if stage.parent is not None and stage.parent not in others:
            hint = unknown_name(stage.parent, others)
            raise UserError(f"{where}: stages.{name}.parent: no stage {stage.parent!r}; {hint}")
        if stage.parent in scorers() and stage_of(name).leaves != "scorer":
            raise UserError(f"{where}: stages.{name}.parent: {stage.parent!r} is a reward model and writes no replies")
        if stage.parent not in (None, BASE) and not stage_of(stage.parent).leaves_model:
            raise UserError(f"{where}: stages.{name}.parent: {stage.parent!r} leaves no model")
    _check_judges(project)
    _check_prompts(project)
    _check_rounds(project)


def _check_prompts(project: ProjectConfig) -> None:
    """Check that no source of the prompts to evaluate on is to be trained on.

    Raises:
        UserError: One is.
    """
    for source in project.data.prompts.sources if project.data.prompts is not None else ():
        if source.all_trained:
            raise UserError(f"{project.path}: data.prompts: {source.source}: nothing trains on prompts to evaluate on")


def _check_rounds(project: ProjectConfig) -> None:
    """Check that the stages that `rounds:` names are the project's, and that a round leaves what the next starts from.

    Raises:
        UserError: One is not, or it does not.
    """
    where, rounds = f"{project.path}: rounds", project.rounds
    for name in rounds.stages or ():
        if name not in project.stages:
            raise UserError(f"{where}.stages: the project has no stage {name!r}; {unknown_name(name, project.stages)}")
    if rounds.stages == []:
        raise UserError(f"{where}.stages: names none; leave it out for all but sft")
    later = later_stages(project)
    for name in later:
        for other in (*rewards_of(project, name), project.stages[name].checkpoint_judge):
            if other in project.stages and other not in later:  # else the round would maximise something else
                raise UserError(f"{where}.stages: {name} needs {other}, which is not among them; add it")
    if rounds.start is None:
        return
    policies = [name for name in project.stages if stage_of(name).leaves == "policy"]
    if rounds.start not in policies:
        hint = unknown_name(rounds.start, policies)
        raise UserError(f"{where}.start: {rounds.start!r} is no policy of the project; {hint}")
    if rounds.start not in later:
        raise UserError(f"{where}.start: {rounds.start} does not run in later rounds, so that round 3 could not start")


def _file_in_the_way(folder: Path) -> Path | None:
    """A file where a folder or one of those above it is to be."""
    return next((path for path in (folder, *folder.parents) if path.is_file()), None)


def _check_judges(project: ProjectConfig) -> None:
    """Check that a stage's checkpoint judge is there, scores single completions, and is not what the stage maximises.

    Raises:
        UserError: It is not.
    """
    for name, stage in project.stages.items():
        where, judge = f"{project.path}: stages.{name}", stage.checkpoint_judge
        if judge is None:
            if stage.select == "best":
                raise UserError(
                    f"{where}.select: best needs a judge that training does not see: checkpoint_judge: NAME"
                )
            continue
        if not stage_of(name).checkpoint_judge:
            able = ", ".join(other for other, declared in stages().items() if declared.checkpoint_judge)
            raise UserError(f"{where}.checkpoint_judge: a judge scores checkpoints of {able}")
        if judge in project.stages and stage_of(judge).own_half:
            continue  # a reward model trained on the other half of the preferences
        if judge not in project.rewards:
            hint = unknown_name(judge, project.rewards)
            raise UserError(f"{where}.checkpoint_judge: there is no {judge!r} under rewards:; {hint}")
        if project.rewards[judge].endpoint is not None:
            raise UserError(f"{where}.checkpoint_judge: {judge!r} compares two replies; a checkpoint judge scores one")
        if judge in (stage.trainer.get("rewards") or {}):
            raise UserError(
                f"{where}.checkpoint_judge: {judge!r} is what the stage maximises; the judge must be another"
            )


def _reward_problem(reward: RewardConfig) -> str | None:
    """What is wrong with the settings of a reward, if anything."""
    given = [key for key in ("function", "model", "endpoint") if getattr(reward, key) is not None]
    if len(given) != 1:
        return f"give one of function, model and endpoint, not {' and '.join(given) or 'none'}"
    kind = given[0]
    if reward.arguments and kind != "function":
        return f"arguments belong to a function, not to {_a(kind)}"
    if reward.label is not None and kind != "model":
        return f"label belongs to a model, not to {_a(kind)}"
    for key in ("judge_model", "criteria", "max_tokens", "api_key_env"):
        if getattr(reward, key) is not None and kind != "endpoint":
            return f"{key} belongs to an endpoint, not to {_a(kind)}"
    if reward.endpoint is not None:
        return _judge_problem(reward, reward.endpoint)
    if isinstance(reward.model, list) and len(reward.model) < 2:
        return "an ensemble needs at least two models"
    if reward.std_weight is not None and not isinstance(reward.model, list):
        return "std_weight belongs to an ensemble: give a list of models"
    return None


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "endpoint" else f"a {kind}"


def _judge_problem(reward: RewardConfig, endpoint: str) -> str | None:
    """What is wrong with the settings of a judge behind an endpoint; a key in the wrong place is not repeated."""
    if reward.std_weight is not None:
        return "std_weight belongs to an ensemble: give a list of models"
    if not (reward.judge_model or "").strip():
        return "judge_model is missing: the name of the model, as the server knows it"
    if reward.criteria is not None and not reward.criteria.strip():
        return "criteria is empty: say what better means, or leave it out"
    if reward.max_tokens is not None and reward.max_tokens < _SHORTEST_ANSWER:
        return f"max_tokens must be at least {_SHORTEST_ANSWER}, not {reward.max_tokens}: a verdict has to fit"
    if reward.api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", reward.api_key_env):
        return "api_key_env takes the name of an environment variable, in capitals; the key itself stands in no file"
    problem = endpoint_problem(endpoint, with_key=reward.api_key_env is not None)
    return f"endpoint: {problem}" if problem else None


def endpoint_problem(
    url: str,
    with_key: bool,
    example: str = "http://127.0.0.1:8000/v1",
    key: str = "the variable that api_key_env names",
) -> str | None:
    """What is wrong with the base URL of a server, if anything.

    A key goes over plain http to this machine, a private address or a name without a dot only. A URL that could itself
    hold a secret (a user, a query) is not repeated.

    Args:
        url: The base URL.
        with_key: Whether a key will be sent to it.
        example: A URL of its kind.
        key: What names its key.
    """
    if not url.isprintable():
        return "a base URL has no control characters"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return f"not a URL; expected one such as {example}"
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        return f"a base URL has no user, query or fragment; a key comes from {key}"
    if parts.scheme not in ("http", "https") or not host:
        return f"expected a base URL such as {example}, not {url!r}"
    if with_key and parts.scheme == "http" and not _near(host):
        return f"a key is not sent over plain http to {host}; use https"
    return None


def _near(host: str) -> bool:
    """Whether a host is this machine or stands in a private network."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host.endswith(".localhost") or ("." not in host and not host[0].isdigit())
