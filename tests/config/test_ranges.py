"""Settings that no library could use are refused when the YAML is read, in one line that names them."""

import dataclasses
import importlib
import math

import pytest

from rlhf.config import ranges, trainer_fields
from rlhf.config.load import load_project
from rlhf.config.ranges import Interval
from rlhf.errors import UserError
from rlhf.workflow import stage_of

YAML = """
name: demo
model: {name_or_path: base}
data:
  demonstrations: {source: a.jsonl}
  preferences: [{source: b.jsonl}, {source: c.jsonl, holdout: 0.1}]
rewards: {long: {function: "f.py:score"}, many: {model: [x, y]}}
stages: {sft: {}, reward: {}, dpo: {}, ppo: {}}
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "demo.yaml"
    file.write_text(YAML)
    return file


def refusal(path, *overrides) -> str:
    with pytest.raises(UserError) as error:
        load_project(path, overrides)
    line = str(error.value)
    assert line.startswith(f"{path}")
    assert "\n" not in line
    assert len(line) < 600
    return line.removeprefix(f"{path}: ")


TRAINERS = {
    "learning_rate": {".nan": "above 0", "-1e-5": "above 0", "0": "above 0", ".inf": "finite", "true": "float"},
    "gradient_accumulation_steps": {"0": "at least 1", "1.5": "int", "10000000": "at most 1,000,000"},
    "per_device_train_batch_size": {"0": "at least 1", "true": "int"},
    "warmup_steps": {".nan": "at least 0", "-1": "at least 0"},
    "adam_beta1": {"2": "below 1", "1": "below 1", "-0.1": "at least 0"},
    "max_steps": {"0": "or -1", "-5": "at least 1", "100000000000000000": "at most 1,000,000,000", "1.0": "int"},
    "num_train_epochs": {"-1": "above 0", "0": "above 0", ".nan": "above 0", ".inf": "at most 1,000,000"},
    "save_steps": {".nan": "above 0", "0": "above 0"},
    "logging_steps": {"-1": "above 0"},
    "max_grad_norm": {".nan": "at least 0", "-1": "at least 0"},
    "weight_decay": {".inf": "finite"},
    "save_strategy": {"bset": "did you mean 'best'", "5": "expected str"},
    "eval_strategy": {"best": "known: epoch, no, steps"},
    "lr_scheduler_type": {"cosin": "did you mean 'cosine'"},
    "optim": {"adamm": "unknown 'adamm'"},
    "report_to": {"wandbb": "did you mean 'wandb'", "[tensorboard, nothing]": "unknown 'nothing'", "5": "list or str"},
    "train_sampling_strategy": {"groups": "unknown 'groups'"},
    "gradient_checkpointing_kwargs": {"5": "expected dict or str"},
    "lr_scheduler_kwargs": {"[1]": "expected dict or str"},
    "seed": {"3": "stands at the top"},
    "output_dir": {"x": "output_dir/name/STAGE"},
}
ONE_STAGE = {
    "sft.loss_type": {"ipo": "known: chunked_nll, dft, nll"},
    "sft.truncation_mode": {"keep_middle": "unknown"},
    "sft.packing_strategy": {"bdf": "did you mean 'bfd'"},
    "sft.dataset_num_proc": {"-1": "at least 1"},
    "sft.max_length": {"0": "at least 1"},
    "sft.assistant_only_loss": {"true": "in any case"},
    "sft.completion_only_loss": {"false": "format: text"},
    "sft.chat_template_path": {"x.jinja": "model.chat_template"},
    "sft.eos_token": {"<e>": "model.eos_token"},
    "dpo.pad_token": {"<p>": "model.pad_token"},
    "sft.fsdp": {"full_shard": "--accelerate"},
    "dpo.beta": {"-1": "above 0", "1" + "0" * 400: "finite", ".inf": "finite", ".nan": "above 0"},
    "dpo.loss_type": {"sigmoidal": "did you mean 'sigmoid'", "[ipo, foo]": "unknown 'foo'"},
    "dpo.loss_weights": {"[1, .nan]": "finite"},
    "dpo.f_divergence_type": {"forward": "did you mean 'forward_kl'"},
    "dpo.label_smoothing": {"0.7": "at most 0.5"},
    "dpo.seeds": {"0": "at least 1", "1000000000": "at most 100"},
    "dpo.fold": {"1": "boolean"},
    "reward.center_rewards_coefficient": {"-1": "at least 0"},
    "ppo.temperature": {".inf": "finite", "0": "above 0"},
    "ppo.gamma": {"1.5": "at most 1", ".nan": "at least 0"},
    "ppo.advantage": {"gea": "did you mean 'gae'"},
    "ppo.rewards": {"{long: .nan}": "finite", "[long]": "expected dict"},
    "ppo.vllm_memory": {"2": "at most 1"},
    "ppo.num_ppo_epochs": {"0": "at least 1"},
}
OURS = {
    "seed": {"-1": "at least 0", "4294967296": "at most 4,294,967,295", "true": "integer", "1.5": "integer"},
    "evaluate.samples": {"0": "at least 1", "true": "integer", "10000000000": "at most"},
    "evaluate.temperature": {".inf": "finite", ".nan": "at least 0", "-1": "at least 0"},
    "evaluate.enabled": {"1": "boolean"},
    "evaluate.retain.x": {"{source: a, limit: 0}": "at least 1"},
    "data.demonstrations.weight": {"0": "above 0", "1000000000": "at most 1,000", ".nan": "above 0"},
    "data.demonstrations.limit": {"0": "at least 1", "-3": "at least 1"},
    "data.demonstrations.holdout": {"1": "below 1", ".nan": "at least 0", "x": "number", "true": "number"},
    "data.limits.dropped": {"2": "at most 1", ".nan": "at least 0"},
    "rewards.many.std_weight": {"-1": "at least 0", ".inf": "finite"},
    "name": {"x" * 300: "at most 100", "..": "letters"},
    "output_dir": {"{file}": "is a file", "{file}/runs": "is a file"},
    "publish.private": {"1": "boolean"},
}
CASES = [
    *((f"stages.dpo.{name}", value, words) for name, values in TRAINERS.items() for value, words in values.items()),
    *((f"stages.{name}", value, words) for name, values in ONE_STAGE.items() for value, words in values.items()),
    *((name, value, words) for name, values in OURS.items() for value, words in values.items()),
]


@pytest.mark.parametrize(("name", "value", "words"), CASES, ids=[f"{name}={value[:30]}" for name, value, _ in CASES])
def test_a_value_that_cannot_be_used(path, name, value, words):
    value = value.replace("{file}", str(path))
    line = refusal(path, f"{name}={value}")
    assert words in line
    assert name.rpartition(".")[2] in line


def test_values_at_the_edge_are_taken(path):
    taken = {
        "max_steps": -1, "max_grad_norm": math.inf, "warmup_steps": 0, "save_steps": 0.2, "report_to": ["wandb"],
        "loss_type": "ipo", "optim": "sgd", "label_smoothing": 0.5, "precompute_ref_batch_size": None,
    }  # fmt: skip
    given = [f"stages.dpo.{name}={'.inf' if value == math.inf else value}" for name, value in taken.items()]
    given = [one.replace("None", "null") for one in given]
    assert load_project(path, [*given, "seed=4294967295"]).stages["dpo"].trainer == taken


def test_a_repetitions_seed_has_the_same_bound(path):
    assert "stages.dpo@1 would have" in refusal(path, "seed=4294967295", "stages.dpo.seeds=2")


def test_holdouts_of_a_mixture_may_be_of_any_type_and_are_refused(path):
    assert "holdout" in refusal(path, "data.preferences=[{source: a, holdout: 0.1}, {source: b, holdout: x}]")
    assert "holdout" in refusal(path, "data.preferences=[{source: a, holdout: 0.1}, {source: b, holdout: .nan}]")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("? [a, b]\n: 1\n", ":1:3: not valid YAML: a key must be a word"),
        ("? {a: b}\n: 1\n", "a key must be a word"),
        ("name: " + "[" * 2000, "nested too deeply"),
        ("name: " + "[" * 2000 + "]" * 2000, "nested too deeply"),
        ("name: a\nseed: " + "9" * 5000, "not valid YAML"),
        ("name: a\nday: 2001-99-99", "not valid YAML"),
        ("name: \0", "not valid YAML"),
        ("name: !!python/object:os.system x", "not valid YAML"),
        ("1: x\nname: a\nmodel: {name_or_path: x}", "keys should be strings, not 1"),
        ("name: a\nmodel: {name_or_path: x}\nstages: {1: {}}", "unknown key 1"),
        ("name: a\nmodel: {name_or_path: x}\nstages: {sft: {1: 2}}", "unknown key 1"),
        ("name: a\nmodel: {name_or_path: x}\nstages: {sft: {[a]: 2}}", "a key must be a word"),
    ],
)
def test_text_that_is_no_project(tmp_path, text, words):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_project(file)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_text_in_another_encoding(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_bytes("name: Zoë".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        load_project(file)


def test_a_value_that_repeats_itself_without_end_is_cut(tmp_path):
    """Nine levels of ten references each would be a billion words in a message."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    file = tmp_path / "bad.yaml"
    file.write_text("name: a\nmodel: {name_or_path: x}\ndata:\n" + "\n".join(f"  {line}" for line in lines))
    with pytest.raises(UserError) as error:
        load_project(file)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("(0, inf)", [1e-30, 10**300], [0, -1, math.inf, math.nan, 10**400]),
        ("[0, inf]", [0, math.inf], [-1e-9, math.nan]),
        ("[0, 1)", [0, 0.999], [1, -0.1, math.nan]),
        ("[1, 1e9] or -1", [1, 10**9, -1], [0, -2, 10**9 + 1]),
        ("(-inf, inf)", [-5, 5], [math.inf, -math.inf, math.nan, -(10**400)]),
    ],
)
def test_an_interval_is_what_its_brackets_say(text, inside, outside):
    interval = Interval.of(text)
    assert [interval.problem(value) for value in inside] == [None] * len(inside)
    assert all(interval.problem(value) for value in outside)


def test_every_number_of_a_trainer_has_an_interval_and_no_interval_is_of_nothing():
    """A library that adds a numeric setting is met here, and one that renames it too."""
    known = set()
    for stage in trainer_fields.trained_stages():
        fields, declared = trainer_fields.trainer_fields(stage), stage_of(stage)
        numeric = {
            name for name, kind in fields.items() if {"int", "float"} & {part.strip() for part in kind.split("|")}
        }
        assert numeric <= {*ranges.INTERVALS, *declared.intervals}, stage
        assert {*declared.intervals, *declared.choices, *declared.defaults} <= fields.keys(), stage
        assert not ranges.INTERVALS.keys() & declared.intervals.keys(), stage
        known |= fields.keys()
    assert {*ranges.INTERVALS, *ranges.CHOICES} <= known


def test_the_defaults_of_the_libraries_lie_inside():
    from rlhf.training.defaults import DEFAULTS

    for stage in trainer_fields.trained_stages():
        module, _, name = stage_of(stage).trainer[-1].partition(":")
        kind = getattr(importlib.import_module(module), name)
        fields = {field.name: field.default for field in dataclasses.fields(kind)} | DEFAULTS | stage_of(stage).defaults
        for name in trainer_fields.trainer_fields(stage):
            value = fields[name]
            if value is not None and value is not dataclasses.MISSING:
                assert trainer_fields.range_problem(stage, name, getattr(value, "value", value)) is None, name


def test_the_words_of_advantage_are_the_estimators_there_are():
    from rlhf.objectives.advantages import ESTIMATORS

    assert trainer_fields._estimators() == tuple(ESTIMATORS)
    assert trainer_fields.problem("ppo", "advantage", "rloo") is None
