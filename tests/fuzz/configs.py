"""Configs: the trees of real projects with wrong keys, values and shapes, YAML that is spoilt, and overrides."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import yaml
from hypothesis import strategies as st

from rlhf.config import project as config
from rlhf.config import sets
from rlhf.config.trainer_fields import trained_stages, trainer_fields
from tests.fuzz.inputs import Input
from tests.fuzz.values import nested, spoilt, values
from tests.fuzz.world import ONLINE, PROJECT, STEP, write_yaml

RICH: dict[str, Any] = {
    **PROJECT,
    "seed": 3,
    "output_dir": "runs",
    "data": {
        "demonstrations": [
            {"source": "pairs.jsonl", "weight": 2.0, "limit": 12}, {"source": "pairs.jsonl", "holdout": 0.2},
        ],
        "preferences": {"source": "pairs.jsonl", "format": "preference", "columns": {"prompt": "prompt"}},
        "prompts": {"source": "pairs.jsonl", "format": "prompt_only", "limit": 4},
        "limits": {"dropped": 0.5, "leaked": 1.0},
    },
    "rewards": {
        "long": {"function": "judge.py:score"},
        "rm": {"model": ["scorer", "scorer"], "std_weight": 1.0},
        "llm": {"endpoint": "http://127.0.0.1:1/v1", "judge_model": "m", "criteria": "Short.", "max_tokens": 64},
    },
    "stages": {
        "sft": {**STEP, "adapter": {"r": 4}, "seeds": 2, "freeze": ["embed_tokens"]},
        "ppo": {**ONLINE, "rewards": {"long": 1.0}, "parent": "sft", "checkpoint_judge": "rm", "select": "best"},
    },
    "evaluate": {
        "prompts": 2, "samples": 1, "max_new_tokens": 4, "temperature": 1.0, "group_by": "prompt",
        "retain": {"old": {"source": "pairs.jsonl", "judge": "long", "limit": 2}}, "perturb": ["typos"],
    },
    "rounds": {"start": "ppo", "stages": ["ppo"], "votes": 2.0, "earlier": 0.5},
    "publish": {"to": "me/it", "merge": True},
    "gate": "warn",
}  # fmt: skip
CLASSES: dict[str, Any] = {
    "name": "classes",
    "model": {"name_or_path": "classifier", "policy": "label", "adapter": None},
    "data": {
        "demonstrations": {
            "source": "pairs.jsonl",
            "format": "labelled",
            "columns": {"text": "prompt", "label": "chosen"},
        }
    },
    "stages": {"sft": {**STEP, "class_weights": "balanced"}},
    "evaluate": False,
}
PLAIN: dict[str, Any] = {**PROJECT, "stages": {"sft": STEP}}
OTHERS: dict[str, Any] = {**PROJECT, "stages": {"kto": STEP, "dpo": {**STEP, "parent": "base"}}}
TREES = [PLAIN, PLAIN, RICH, CLASSES, OTHERS]

_SECTIONS = {
    "": config.ProjectConfig, "model": config.ModelConfig, "evaluate": config.EvaluateConfig,
    "rounds": config.RoundsConfig, "publish": config.PublishConfig, "data.limits": sets.LimitsConfig,
    "data.demonstrations": sets.SourceConfig, "data.preferences": sets.SourceConfig,
    "data.prompts": sets.SourceConfig, "data": sets.DataConfig, "rewards.long": config.RewardConfig,
    "rewards.rm": config.RewardConfig, "rewards.llm": config.RewardConfig, "evaluate.retain.old": config.RetainConfig,
}  # fmt: skip


def known_keys() -> list[str]:
    """Every key that a project may have, those of the trainers too."""
    ours = [
        f"{section}.{field.name}".lstrip(".")
        for section, owner in _SECTIONS.items()
        for field in dataclasses.fields(owner)
    ]
    stage = [field.name for field in dataclasses.fields(config.StageConfig)]
    theirs = [f"stages.{name}.{key}" for name in trained_stages() for key in (*trainer_fields(name), *stage)]
    more = [
        f"model.adapter.{key}" for key in ("r", "target_modules", "lora_alpha", "lora_dropout", "bias", "task_type")
    ]
    scratch = [
        f"model.scratch.{key}"
        for key in ("architecture", "hidden_size", "num_hidden_layers", "tokenizer", "vocab_size")
    ]
    return [*ours * 4, *theirs, *more * 4, *scratch * 2]


KEYS = known_keys()
_WORDS = [
    "no",
    "steps",
    "epoch",
    "best",
    "sum",
    "all",
    "none",
    "adamw_torch",
    "constant",
    "keep_end",
    "sft",
    "long",
    "rm",
    "prompt",
    "base",
]


def plausible(key: str) -> st.SearchStrategy[Any]:
    """Values of a key's own type, so that what refuses them is not the first check of types."""
    _, _, rest = key.partition("stages.")
    stage, _, name = rest.partition(".")
    kind = trainer_fields(stage).get(name, "int | float | bool | str") if stage else "int | float | bool | str"
    kinds = [
        ("int", st.sampled_from([0, 1, 2, 3, 8, 100, 10**6])),
        ("float", st.sampled_from([0.0, 1e-3, 0.5, 1.0, 2.0, 1e3])),
        ("bool", st.booleans()),
        ("str", st.sampled_from(_WORDS)),
        ("list", st.lists(st.sampled_from(_WORDS), max_size=2)),
        ("dict", st.dictionaries(st.sampled_from(_WORDS), st.sampled_from([0, 1.0, "a", True]), max_size=2)),
        ("None", st.none()),
    ]
    return st.one_of([made for word, made in kinds if word in kind] or [values()])


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all entries of a tree."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in entries for place in ((*path, key), *places(value, (*path, key)))]


def _parent(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        tree = tree[key]
    return tree


@st.composite
def trees(draw: st.DrawFn) -> tuple[Any, str]:
    """A project's tree with one to three things wrong, and what they are."""
    tree, done = copy.deepcopy(draw(st.sampled_from(TREES))), []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        how = draw(st.sampled_from(["value", "value", "set", "set", "set", "key", "gone", "wrap", "move", "root"]))
        there = places(tree)
        if how == "root":
            if draw(st.integers(0, 9)):
                continue
            tree = draw(values())
        elif how == "set" and isinstance(tree, dict):
            key = draw(st.sampled_from(KEYS))
            _set(tree, key.split("."), draw(st.one_of(values(), plausible(key), plausible(key))))
        elif there:
            path = draw(st.sampled_from(there))
            parent, key = _parent(tree, path), path[-1]
            if how == "value":
                parent[key] = draw(values())
            elif how == "gone":
                del parent[key]
            elif how == "wrap":
                parent[key] = draw(st.sampled_from([[parent[key]], {key: parent[key]}, nested(60), str(parent[key])]))
            elif how == "key" and isinstance(parent, dict):
                parent[draw(st.one_of(st.text(max_size=4), st.sampled_from([f"{key}s", None, 1, f" {key}", ""])))] = (
                    parent.pop(key)
                )
            elif how == "move":
                taken = copy.deepcopy(parent[key])
                _set(tree, [str(step) for step in draw(st.sampled_from(there))], taken)
        done.append(how)
        if not isinstance(tree, dict):
            break
    return tree, done[0] if done else "value"


def _set(tree: Any, path: list[str], value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[path[-1]] = value


LINES = [
    "name: &a [*a]", "x: &x {<<: *x}", "<<: {name: b}", "<<: 3", "name: tiny", "stages: {sft: {}}", "? [a, b]\n: 1",
    "? {a: b}\n: c", "name: !!python/object/apply:os.system ['true']", "name: !!binary 'é'", "name: !!timestamp x",
    "name: !!set {a}", "name: !!int abc", "name: !!float x", "name: !unknown x", "%YAML 9.9\n---", "---\na: 1", "...",
    "\tname: x", "- a", "seed: 0o7", "seed: 190:20:30", "seed: 1_000", "seed: 2020-02-30", "seed: 2020-01-01",
    "seed: .nan", "seed: " + "9" * 5000, "seed: =", 'name: "\\ud800"', 'name: "\\0"', 'name: "\\x1b[2J"',
    "name: |\n  a\n  b", "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]",
    "a: &l [lol,lol]\n" + "".join(f"a{n}: &l{n} [{','.join([f'*l{n - 1}' if n else '*l'] * 9)}]\n" for n in range(30)),
    "{" * 2000, "[" * 2000, "k: " + "{a: " * 500 + "1" + "}" * 500, "# \x00", "name: \x85", "&a : *a", "*a : 1",
    "!!str : 1", "? : ", "seed: !!null ''",
]  # fmt: skip


@st.composite
def texts(draw: st.DrawFn) -> tuple[bytes, str]:
    """A YAML file with lines of YAML's odder kinds, or with bytes that are spoilt."""
    content = write_yaml(draw(st.sampled_from(TREES)))
    if draw(st.booleans()):
        return draw(spoilt(content)), "bytes"
    lines = content.decode().splitlines()
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(lines)))
        indent = draw(st.sampled_from(["", "", "  ", "    "]))
        lines[at:at] = [indent + line for line in draw(st.sampled_from(LINES)).splitlines()]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"), "lines"


@st.composite
def overrides(draw: st.DrawFn) -> str:
    """`KEY=VALUE`, as a command line can hold it."""
    key = draw(st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), st.text(max_size=6)))
    value = draw(st.one_of(values().map(_flow), st.text(max_size=6), st.sampled_from(LINES)))
    word = draw(
        st.sampled_from(
            [
                f"{key}={value}",
                f"{key}={value}",
                f"{key}={value}",
                key,
                f"{key}.={value}",
                f"={value}",
                f"{key}.x={value}",
            ]
        )
    )
    return word.replace("\0", "").encode("utf-8", "replace").decode()[:100_000]


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("...").strip()


@st.composite
def configs(draw: st.DrawFn) -> Input:
    """A config, read by `rlhf check` or by `rlhf run` up to its training."""
    command = draw(st.sampled_from(["check"] * 3 + ["run"] * 2))
    words: list[str] = []
    how = draw(st.sampled_from(["tree"] * 6 + ["text"] * 2 + ["override"] * 2))
    if how == "tree":
        tree, what = draw(trees())
        content = write_yaml(tree)
    elif how == "text":
        content, what = draw(texts())
    else:
        content, what = write_yaml(draw(st.sampled_from(TREES))), "override"
        words = draw(st.lists(overrides(), min_size=1, max_size=2))
        words = [word for word in words if word and not word.startswith("-")]
    return Input("config", what, (command, "project.yaml", *words), {"project.yaml": content})
