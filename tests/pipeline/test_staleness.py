"""Each setting changes the identity of a stage that it can affect, or is listed with the reason why it does not."""

import contextlib
import dataclasses
import types
import typing
from dataclasses import replace
from pathlib import Path

import pytest

import rlhf
from rlhf.config import project as schema
from rlhf.config import sets
from rlhf.config.load import load_project
from rlhf.config.trainer_fields import class_defaults, trained_stages, trainer_fields
from rlhf.errors import UserError
from rlhf.pipeline.identity import NOT_DECIDING, TRAINER_NOT_DECIDING, as_recorded, identity
from rlhf.pipeline.plan import _why as why
from rlhf.workflow import planned
from tests.support.projects import pairs, write_project, write_rows

JUDGE = "def score(prompts, completions, **columns):\n    return [0.0] * len(prompts)\n\nother = score\n"
GPT2 = {"architecture": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}
VALUES = {
    "SourceConfig.source": "more.jsonl", "SourceConfig.format": "preference", "RetainConfig.source": "more.jsonl",
    "RewardConfig.function": "judge.py:other", "RewardConfig.model": ["elsewhere", "other"],
    "RewardConfig.endpoint": "http://127.0.0.1:9/v1", "StageConfig.checkpoint_judge": "ensemble",
    "StageConfig.parent": "base", "StageConfig.adapter": None, "ModelConfig.name_or_path": "elsewhere",
    "ModelConfig.scratch": GPT2, "ModelConfig.adapter": {"r": 2}, "RetainConfig.judge": "long",
    "DatasetConfig.holdout": 0.5, "SourceConfig.values": {"label": {"up": True}},
}  # fmt: skip
"""Another value of a setting, where its type does not say one that can be looked at."""


def type_of(config, field):
    """The type of a setting that is not null."""
    kind = typing.get_type_hints(type(config))[field.name]
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
    return next(kind for kind in kinds if kind is not types.NoneType)


def leaves(config, path=()):
    """Every setting in which a project's sections end, those left out aside: its path, its section and its field."""
    for field in dataclasses.fields(config):
        value, here = getattr(config, field.name), (*path, field.name)
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
        sections = {key: item for key, item in inner if dataclasses.is_dataclass(item)}
        if dataclasses.is_dataclass(value):
            yield from leaves(value, here)
        elif sections:
            for key, section in sections.items():
                yield from leaves(section, (*here, key))
        elif not dataclasses.is_dataclass(type_of(config, field)):
            yield here, config, field


def changed(config, path, value):
    """A copy of a section in which the setting at a path is another."""
    head, *rest = path
    if isinstance(config, dict):
        return {**config, head: changed(config[head], rest, value) if rest else value}
    if isinstance(config, tuple):
        return tuple(changed(item, rest, value) if at == head else item for at, item in enumerate(config))
    return replace(config, **{head: changed(getattr(config, head), rest, value) if rest else value})


def another(config, field):
    """A value that a setting does not have."""
    name, value = f"{type(config).__name__}.{field.name}", getattr(config, field.name)
    if name in VALUES:
        return VALUES[name]
    kind = type_of(config, field)
    if typing.get_origin(kind) is typing.Literal:
        return next(word for word in typing.get_args(kind) if word != value)
    if typing.get_origin(kind) is list:
        words = typing.get_args(typing.get_args(kind)[0])
        return [words[0] if words else "other"]
    kind = typing.get_origin(kind) or kind
    if kind is bool:
        return not value
    if kind in (int, float):
        return (value or 0) + 1 if kind is int or value is None else value / 2 + 0.01
    return value.with_name("other.yaml") if kind is Path else {str: "other", dict: {"k": "v"}, tuple: ("other",)}[kind]


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_llama):
    """A project that sets something in every section of the schema."""
    folder = tmp_path_factory.mktemp("stale")
    (folder / "judge.py").write_text(JUDGE)
    write_rows(folder / "more.jsonl", pairs(5))
    rows = {"source": str(folder / "pairs.jsonl"), "holdout": 0.2}
    sets = ("demonstrations", "preferences", "prompts", "rollouts")
    path = write_project(
        folder, tiny_llama,
        data={**dict.fromkeys(sets, rows), "prompts": [rows, {"source": "someone/set"}], "limits": {"dropped": 0.5}},
        rewards={
            "plain": {"function": "judge.py:score", "arguments": {"k": 1}}, "long": {"function": "judge.py:score"},
            "ensemble": {"model": ["one", "two"], "label": 1}, "server": {"endpoint": "http://127.0.0.1:8/v1",
            "judge_model": "j", "criteria": "kind"},
        },
        stages={
            "sft": {}, "reward": {"model": {"name_or_path": str(tiny_llama)}}, "gold_reward": {},
            "dpo": {"checkpoint_judge": "long"}, "ppo": {"rewards": {"plain": 1.0, "reward": 1.0}},
        },
        evaluate={"retain": {"kept": {"source": str(folder / "pairs.jsonl")}, "hub": {"source": "someone/set"}}},
    )  # fmt: skip
    return load_project(path)


def identities(project, names):
    return {name: identity(project, name) for name in names}


@pytest.fixture(scope="module")
def before(project):
    return identities(project, planned(project))


def test_every_setting_decides_or_is_listed(project, before):
    """A field may stand in several places: it decides if it does in one of them."""
    deciding, seen = set(), set()
    for path, config, field in leaves(project):
        name = f"{type(config).__name__}.{field.name}"
        seen.add(name)
        with contextlib.suppress(UserError):  # a file has no split
            if identities(changed(project, path, another(config, field)), before) != before:
                deciding.add(name)
    assert seen - deciding == NOT_DECIDING.keys()
    classes = {**vars(schema), **vars(sets)}
    assert {name.partition(".")[0] for name in seen} == {
        name for name, kind in classes.items() if dataclasses.is_dataclass(kind) and name.endswith("Config")
    } - {"DataConfig"}, "a section that the project above does not have"


@pytest.mark.parametrize("stage", trained_stages())
def test_every_field_of_a_trainer_decides_or_is_listed(project, stage):
    """Those that are listed do not decide, and each entry of the list is of some field."""
    apart = tuple(TRAINER_NOT_DECIDING)
    name = stage if stage in project.stages else None
    base = project if name else replace(project, stages={**project.stages, stage: schema.StageConfig()})
    quiet = changed(base, ("stages", stage, "checkpoint_judge"), None)
    before = identity(quiet, stage)
    wrong = []
    for field in trainer_fields(stage):
        default = class_defaults(stage).get(field)
        given = {**quiet.stages[stage].trainer, field: 7 if default != 7 else 8}
        if field == "rewards":
            given[field] = {"long": 2.0}
        decides = identity(changed(quiet, ("stages", stage, "trainer"), given), stage) != before
        if decides == field.startswith(apart):
            wrong.append(field)
    assert not wrong


def test_no_entry_of_the_list_is_of_nothing():
    fields = {field for stage in trained_stages() for field in trainer_fields(stage)}
    for beginning, reason in TRAINER_NOT_DECIDING.items():
        assert any(field.startswith(beginning) for field in fields), beginning
        assert reason


def test_with_a_checkpoint_judge_its_prompts_and_the_checkpoints_decide(project):
    before = identity(project, "dpo")
    for path, value in (
        (("stages", "dpo", "trainer"), {"save_steps": 3}),
        (("evaluate", "prompts"), 7),
        (("data", "prompts", "sources", 0, "limit"), 3),
    ):
        assert identity(changed(project, path, value), "dpo") != before, path


def test_a_run_of_another_version_is_said_to_be_one(project, monkeypatch):
    record = {"identity": {"package": "0.0.9"}, "hash": "x", "versions": {}}
    monkeypatch.setattr("rlhf.pipeline.plan.read_manifest", lambda folder: record)
    assert why(project, "sft", set(), forced=False) == f"made by rlhf 0.0.9, and this is {rlhf.__version__}"


@pytest.mark.parametrize(("weight", "reason"), [(1, None), (1.0, None), (2, "changed: trainer.rewards.plain")])
def test_a_whole_number_is_the_same_with_and_without_its_point(project, monkeypatch, weight, reason):
    record = {"identity": as_recorded(identity(project, "ppo")), "hash": "x", "versions": {}}
    monkeypatch.setattr("rlhf.pipeline.plan.read_manifest", lambda folder: record)
    rewards = {"plain": weight, "reward": 1.0}
    now = changed(project, ("stages", "ppo", "trainer"), {**project.stages["ppo"].trainer, "rewards": rewards})
    assert why(now, "ppo", set(), forced=False) == reason
