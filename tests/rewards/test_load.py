from pathlib import Path

import pytest

from rlhf.artifacts.hashing import digest
from rlhf.config.project import RewardConfig
from rlhf.errors import UserError
from rlhf.pipeline import identity
from rlhf.rewards.load import load_reward, load_rewards
from rlhf.rewards.model import RewardModel
from tests.support.models import save_classifier
from tests.support.projects import make_project

REWARDS = {
    "polite": {"function": "rlhf.rewards.regex:regex", "arguments": {"pattern": "(?i)please"}},
    "short": {"function": "rlhf.rewards.length:length", "arguments": {"target": 2}},
}
ASKED = (["Hello "] * 2, ["please", "no no"])


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_bert):
    folder = tmp_path_factory.mktemp("models")
    return [str(save_classifier(tiny_bert, folder / str(seed), ("score",), seed)) for seed in (1, 2)]


@pytest.fixture
def project(tmp_path, tiny_llama):
    return make_project(tmp_path, tiny_llama, rewards=REWARDS)


def test_all_of_them_or_those_that_are_named(project, models, tmp_path):
    loaded = load_rewards(project)
    assert list(loaded) == ["polite", "short"]
    assert loaded["polite"](*ASKED) == [1.0, 0.0]
    assert loaded["short"](*ASKED) == [-0.5, 0.0]
    own = RewardModel(models[0])(*ASKED)
    with_own = load_rewards(project, {"reward": Path(models[0])}, names=["short", "reward"])
    assert list(with_own) == ["short", "reward"]
    assert with_own["reward"](*ASKED) == own
    assert list(load_rewards(project, {"sft": tmp_path, "reward": Path(models[0])})) == ["reward", "polite", "short"]


def test_an_unknown_name_is_refused_with_the_nearest(project):
    with pytest.raises(UserError, match=r"rewards: there is no 'pollite'; did you mean 'polite'\?"):
        load_rewards(project, names=["pollite"])
    with pytest.raises(UserError, match="there is no 'reward'"):
        load_rewards(project, names=["reward"])


def test_only_what_is_named_is_loaded(tmp_path, tiny_llama):
    broken = {**REWARDS, "broken": {"model": "no/such/folder"}}
    project = make_project(tmp_path, tiny_llama, rewards=broken)
    assert list(load_rewards(project, names=["polite"])) == ["polite"]
    with pytest.raises(UserError, match="no/such/folder"):
        load_rewards(project)


def test_a_list_of_models_is_an_ensemble(project, models):
    one, other = (RewardModel(name)(*ASKED) for name in models)
    assert one != pytest.approx(other)
    careful = load_reward(RewardConfig(model=models), project)(*ASKED)
    assert careful == pytest.approx([min(pair) for pair in zip(one, other, strict=True)])
    bold = load_reward(RewardConfig(model=models, std_weight=0), project)(*ASKED)
    assert bold == pytest.approx([sum(pair) / 2 for pair in zip(one, other, strict=True)])


def test_a_label_reaches_the_model(project, tiny_bert, tmp_path):
    folder = str(save_classifier(tiny_bert, tmp_path / "sentiment", ("negative", "positive")))
    good, bad = (load_reward(RewardConfig(model=folder, label=label), project)(*ASKED) for label in ("positive", 0))
    assert good == pytest.approx([-score for score in bad], abs=1e-5)


def test_what_decides_a_judge_makes_the_evaluation_stale(tmp_path, tiny_llama, models):
    def hash_with(reward):
        project = make_project(tmp_path, tiny_llama, rewards={"judge": reward})
        return digest(identity.identity(project, "evaluate"))

    single = {"model": models[0]}
    function = {"function": "rlhf.rewards.regex:regex", "arguments": {"pattern": "a"}}
    several = [
        function, {**function, "arguments": {"pattern": "b"}}, single, {**single, "label": 0}, {**single, "label": 1},
        {"model": models}, {"model": models[::-1]}, {"model": models, "std_weight": 0.5},
    ]  # fmt: skip
    assert len({hash_with(reward) for reward in several}) == len(several)
    assert hash_with(function) == hash_with(dict(function))


def test_an_edited_cost_matrix_makes_the_evaluation_stale(tmp_path, tiny_llama):
    costs = {"function": "rlhf.rewards.cost_matrix:cost_matrix", "arguments": {"matrix": "costs.csv"}}
    hashes = []
    for cost in (1, 2):
        (tmp_path / "costs.csv").write_text(f",a,b\na,0,{cost}\nb,1,0\n")
        project = make_project(tmp_path, tiny_llama, rewards={"costs": costs})
        hashes.append(digest(identity.identity(project, "evaluate")))
    assert hashes[0] != hashes[1]
