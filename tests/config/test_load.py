import pytest

from rlhf.config import trainer_fields
from rlhf.config.load import load_project
from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError

YAML = """
name: demo
model: {name_or_path: base}
data:
  demonstrations: {source: a.jsonl}
  preferences:
    - {source: b.jsonl, weight: 2, holdout: 0.2}
    - {source: org/name, split: train, holdout: 0.1}
rewards:
  gold: {function: "gold.py:score"}
stages:
  sft: {learning_rate: 1e-3, adapter: null}
  dpo:
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "demo.yaml"
    file.write_text(YAML)
    return file


def test_a_project_is_read(path):
    project = load_project(path)
    assert isinstance(project, ProjectConfig)
    assert project.model.adapter == {"r": 16}
    assert project.stages["sft"].trainer == {"learning_rate": 0.001}, "1e-3 is a number"
    assert project.stage_model("sft").adapter is None
    assert project.stage_model("dpo").adapter == {"r": 16}
    assert [source.weight for source in project.data.preferences.sources] == [2, 1]
    assert project.holdout == 0.2, "the largest holds for all sets"
    assert str(project.run_dir) == "runs/demo"


def test_a_reward_is_a_function_with_arguments_a_model_or_several(path):
    given = ["rewards.gold.arguments.pattern=a+", "rewards.one.model=x", "rewards.two.model=[x, y]"]
    project = load_project(path, given)
    assert project.rewards["gold"].arguments == {"pattern": "a+"}
    assert [project.rewards[name].models for name in ("gold", "one", "two")] == [[], ["x"], ["x", "y"]]


JUDGE = "rewards.j={endpoint: 'https://x.org/v1', judge_model: y}"


def test_a_judge_behind_an_endpoint(path):
    local = "{endpoint: 'http://%s:8000/v1', judge_model: y, api_key_env: KEY}"
    hosts = ["127.0.0.1", "localhost", "10.1.2.3", "[::1]", "gpu-box", "judge.localhost"]
    project = load_project(path, [JUDGE, *(f"rewards.j{i}={local % host}" for i, host in enumerate(hosts))])
    assert project.rewards["j"].judge_model == "y"
    for host in ("8.8.8.8", "134744072", "x.org"):
        with pytest.raises(UserError, match="not sent over plain http"):
            load_project(path, [f"rewards.j={local % host}"])


@pytest.mark.parametrize(
    "secret",
    ["rewards.j.api_key=sk-s3cret", "rewards.j.api_key_env=sk-s3cret", "rewards.j.api_key_env=hf_s3cret",
     "rewards.j.endpoint=https://me:s3cret@x.org/v1", "rewards.j.endpoint=https://x.org/v1?key=s3cret"],
)  # fmt: skip
def test_a_key_in_the_project_is_refused_and_not_repeated(path, secret):
    with pytest.raises(UserError, match="api_key_env") as error:
        load_project(path, [JUDGE, secret])
    assert "s3cret" not in str(error.value)


def test_a_judge_that_compares_is_no_reward_to_train_on(path):
    assert load_project(path, [JUDGE, "stages.reward={}", "stages.ppo={}"]).stages["ppo"]
    assert load_project(path, [JUDGE, "stages.ppo.rewards={gold: 1}"]).stages["ppo"]
    for given in (["stages.ppo.rewards={j: 1}"], ["stages.ppo={}"]):
        with pytest.raises(UserError, match=r"stages\.ppo\.rewards: 'j' compares two replies and scores none"):
            load_project(path, [JUDGE, *given])


def test_words_that_yaml_once_took_for_booleans_are_words(path):
    project = load_project(path, ["stages.dpo.save_strategy=no", "stages.dpo.bf16=false"])
    assert project.stages["dpo"].trainer == {"save_strategy": "no", "bf16": False}


def test_an_override_changes_one_stage_where_an_alias_names_the_settings_of_two(tmp_path):
    file = tmp_path / "alias.yaml"
    file.write_text("name: a\nmodel: {name_or_path: x}\nstages: {sft: &same {max_steps: 2}, dpo: *same}")
    stages = load_project(file, ["stages.dpo.beta=0.3"]).stages
    assert (stages["sft"].trainer, stages["dpo"].trainer) == ({"max_steps": 2}, {"max_steps": 2, "beta": 0.3})


def test_overrides_come_last(path):
    project = load_project(path, ["stages.dpo.beta=0.3", "seed=7", "stages.reward.max_steps=2", "model.adapter=null"])
    assert project.stages["dpo"].trainer == {"beta": 0.3}
    assert project.stages["reward"].trainer == {"max_steps": 2}
    assert project.seed == 7
    assert project.model.adapter is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.dpo.betta=1", "stages.dpo: unknown key 'betta'; did you mean 'beta'?"),
        ("stages.gold.max_steps=1", "stages: unknown key 'gold'; it is called 'gold_reward' now"),
        ("stages.dpo.gold=x", "stages.dpo: unknown key 'gold'; it is called 'checkpoint_judge' now"),
        ("stages.dpo.select=gold", "stages.dpo.select: it is called 'best' now"),
        ("stages.dpoo.beta=1", "stages: unknown key 'dpoo'; did you mean 'dpo'?"),
        ("model.adaptr=1", "unknown key 'model.adaptr'; did you mean 'adapter'?"),
        ("nam=x", "unknown key 'nam'; did you mean 'name'?"),
        ("evaluate.sample=1", "unknown key 'evaluate.sample'; did you mean 'samples'?"),
        ("data.demonstrations.sorce=x", "did you mean 'source'?"),
        ("data.prefs.source=x", "unknown key 'data.prefs'; did you mean 'preferences'?"),
        ("stages.dpo.beta=high", "stages.dpo.beta: expected float, not 'high'"),
        ("stages.dpo.beta=true", "stages.dpo.beta: expected float, not True"),
        ("stages.dpo.output_dir=x", "stages.dpo: unknown key 'output_dir'; the stage writes to"),
        ("stages.dpo.parent=sfd", "no stage 'sfd'; did you mean 'sft'?"),
        ("stages={reward: {}, dpo: {parent: reward}}", "stages.dpo.parent: 'reward' is a reward model"),
        ("evaluate.max_new_tokens=0", "evaluate.max_new_tokens: must be at least 1, not 0"),
        ("evaluate.temperature=-1", "evaluate.temperature: must be at least 0, not -1"),
        ("seed=-1", "seed: must be at least 0, not -1"),
        ("stages.dpo.push_to_hub=true", "stages.dpo: unknown key 'push_to_hub'"),
        ("evaluate.samples=0", "evaluate.samples: must be at least 1, not 0"),
        ("evaluate.samples=many", "evaluate.samples: input should be a valid integer"),
        ("rewards.gold=null", "rewards.gold"),
        ("rewards.gold.model=x", "rewards.gold: give one of function, model and endpoint, not function and model"),
        ("rewards.gold={}", "rewards.gold: give one of function, model and endpoint, not none"),
        ("rewards.gold.endpoint=http://x/v1", "one of function, model and endpoint, not function and endpoint"),
        ("rewards.gold.criteria=kind", "rewards.gold: criteria belongs to an endpoint, not to a function"),
        ("rewards={../../x: {model: x}}", "rewards: '../../x' must be letters, digits"),
        ("rewards={'': {model: x}}", "rewards: '' must be letters, digits"),
        (f"rewards={{{'x' * 300}: {{model: x}}}}", "at most 100"),
        ("rewards.gold={model: x, judge_model: y}", "judge_model belongs to an endpoint, not to a model"),
        ("rewards.gold={model: x, api_key_env: Y}", "api_key_env belongs to an endpoint, not to a model"),
        ("rewards.j={endpoint: 'http://x/v1'}", "rewards.j: judge_model is missing"),
        (
            "rewards.j={endpoint: 'http://x/v1', judge_model: y, label: 1}",
            "label belongs to a model, not to an endpoint",
        ),
        ("rewards.j={endpoint: x, judge_model: y, std_weight: 1}", "rewards.j: std_weight belongs to an ensemble"),
        ("rewards.j={endpoint: x, judge_model: y, criteria: ''}", "rewards.j: criteria is empty"),
        ("rewards.j={endpoint: 127.0.0.1/v1, judge_model: y}", "rewards.j: endpoint: expected a base URL such as"),
        ("rewards.j={endpoint: 'http://x:port/v1', judge_model: y}", "rewards.j: endpoint: not a URL"),
        (
            "rewards.j={endpoint: 'http://x.org/v1', judge_model: y, api_key_env: K}",
            "is not sent over plain http to x.org",
        ),
        ("rewards.j.api_key=x", "unknown key 'rewards.j.api_key'; did you mean 'api_key_env'?"),
        ("rewards.gold.label=1", "rewards.gold: label belongs to a model, not to a function"),
        ("rewards.gold.std_weight=1", "rewards.gold: std_weight belongs to an ensemble: give a list of models"),
        ("rewards.gold.argument.k=1", "unknown key 'rewards.gold.argument'; did you mean 'arguments'?"),
        ("rewards.gold.arguments=5", "rewards.gold.arguments: input should be a valid dictionary"),
        ("rewards.gold={model: x, arguments: {k: 1}}", "arguments belong to a function, not to a model"),
        ("rewards.gold={model: x, std_weight: 1}", "rewards.gold: std_weight belongs to an ensemble"),
        ("rewards.gold={model: [x]}", "rewards.gold: an ensemble needs at least two models"),
        ("rewards.gold={model: []}", "rewards.gold: an ensemble needs at least two models"),
        ("rewards.gold={model: [x, y], std_weight: -1}", "std_weight: must be at least 0, not -1"),
        ("rewards.gold={model: 5}", "rewards.gold.model: input should be a valid string, not 5"),
        ("rewards.gold={model: x, label: 1.5}", "rewards.gold.label: input should be a valid"),
        ("name=a/b", "'a/b' must be letters, digits"),
        ("data.demonstrations.holdout=1.5", "data.demonstrations.holdout: must be below 1, not 1.5"),
        ("model.name_or_path=null", "give one of name_or_path and scratch"),
        ("model.attn_implementation=kernels-community/flash-attn", "model.attn_implementation: 'kernels-community/"),
        (
            "stages.dpo.model={name_or_path: x, attn_implementation: a/b}",
            "stages.dpo.model.attn_implementation: 'a/b' is code from the hub",
        ),
        ("path=x", "unknown key 'path'"),
        ("Seed=1", "unknown key 'Seed'; did you mean 'seed'?"),
        ("str=1", "unknown key 'str'; known: "),
        ("rewards.Gold.function=5", "rewards.Gold.function: input should be a valid string, not 5"),
        ("rewards={1: {model: x}}", "rewards.1: input should be a valid string, not 1"),
        ("seed", "override 'seed': expected key=value"),
        ("x" * 1000, "xxx': expected key=value"),
        ("name.x=1", "'name' is not a section"),
        ("data=5", "data"),
        ("stages=5", "stages: expected a mapping"),
    ],
)
def test_a_mistake_is_named(path, override, message):
    with pytest.raises(UserError) as error:
        load_project(path, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    if "=" in override and not override.startswith("name."):
        assert str(path) in str(error.value)


BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
"""Ten lines that stand for a billion values."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", ":1:8: not valid YAML"),
        ("name: a\nname: b\nmodel: {}", ":2:1: not valid YAML: the key 'name' is there twice"),
        ('name: "a\\0b"\nmodel: {}', ":1:7: not valid YAML: NUL"),
        ('name: a\nmodel: {name_or_path: "\\ud800"}', ":2:23: not valid YAML"),
        ("name: &a [*a]\nmodel: {}", "nested too deeply"),
        ("name: !!timestamp soon", ":1:7: not valid YAML: not a value of kind timestamp"),
        ("seed: !!bool perhaps", ":1:7: not valid YAML: not a value of kind bool"),
        ("name: a\nmodel: !!map [1]", ":2:8: not valid YAML: expected a mapping"),
        ("? !!set {a}\n: 1", ":1:3: not valid YAML: a key must be a word"),
        (BOMB, "more than 100,000 values once its aliases are written out"),
        ("just words", "expected a mapping"),
        ("model: {name_or_path: x}", "'name' is missing"),
        ("name: a", "'model' is missing"),
        ("name: a\nmodel: {name_or_path: x, scratch: {architecture: gpt2}}", "give one of name_or_path and scratch"),
    ],
)
def test_a_file_that_is_no_project(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_project(file)
    assert message in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: no such file or directory"):
        load_project(tmp_path / "none.yaml")


def test_paths_are_found_beside_the_yaml(tmp_path, path, monkeypatch):
    (tmp_path / "data.jsonl").touch()
    project = load_project(path)
    assert project.resolve("data.jsonl") == tmp_path / "data.jsonl"
    assert str(project.resolve("org/name")) == "org/name"
    monkeypatch.chdir(tmp_path)
    assert str(project.resolve("data.jsonl")) == "data.jsonl"


def test_the_fields_read_from_source_are_those_of_the_classes():
    """Parsing the class bodies finds what importing them would."""
    import dataclasses

    import trl

    from rlhf.trl_trainers.sft import SFTSettings

    for stage, config in (("sft", SFTSettings), ("reward", trl.RewardConfig), ("dpo", trl.DPOConfig)):
        real = {field.name for field in dataclasses.fields(config) if field.init}
        found = set(trainer_fields.trainer_fields(stage))
        assert found <= real
        assert real - found - set(trainer_fields.RESERVED) <= {name for name in real if name.startswith("_")}


@pytest.mark.parametrize(
    ("value", "annotation", "fits"),
    [
        (1, "float", True), (0.5, "int", False), (True, "int", False), (None, "int | None", True), (None, "int", False),
        ("x", "str | None", True), ({"a": 1}, "dict[str, Any] | str | None", True), ("yes", "bool", False),
    ],
)  # fmt: skip
def test_types_are_checked_as_far_as_they_are_plain(value, annotation, fits):
    assert (trainer_fields.type_problem(value, annotation) is None) == fits
