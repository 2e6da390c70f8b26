"""The settings of online training: few, each with a word on what more and less of it does, and derived values."""

import ast

import pytest

from rlhf.objectives.advantages import ESTIMATORS
from rlhf.ppo.config import PPOConfig


def documented(path) -> dict[str, str | None]:
    """The fields of the dataclasses of a file, with the string below each."""
    fields = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            for field, below in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign):
                    said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                    fields[field.target.id] = below.value.value if said else None
    return fields


def test_the_settings_are_few_and_each_is_documented(root):
    own = documented(root / "rlhf/ppo/config.py")
    sampling = documented(root / "rlhf/policies/settings.py")
    assert len(own) + len(sampling) <= 39
    assert not own.keys() & sampling.keys()
    assert [name for name, text in {**own, **sampling}.items() if not text] == []
    numbers = [name for name, text in {**own, **sampling}.items() if isinstance(getattr(PPOConfig, name), float)]
    assert [name for name in numbers if "sually" not in {**own, **sampling}[name]] == []


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_a_critic_is_there_where_the_estimator_needs_it(tmp_path, name):
    args = PPOConfig(str(tmp_path), advantage=name, samples_per_prompt=2, critic_from="policy", use_cpu=True)
    needs = ESTIMATORS[name].needs_values
    assert args.critic_start == ("policy" if needs else None)
    assert args.bootstraps == needs
    args.truncated = "score"
    assert not args.bootstraps


def test_an_estimator_that_compares_needs_something_to_compare(tmp_path):
    for name, estimator in ESTIMATORS.items():
        problems = PPOConfig(str(tmp_path), advantage=name, samples_per_prompt=1, use_cpu=True).check()
        assert bool(problems) == (estimator.min_group > 1), name
    assert "advantage: unknown 'rlo'" in PPOConfig(str(tmp_path), advantage="rlo", use_cpu=True).check()[0]
