import pytest

from rlhf.errors import UserError
from rlhf.rewards.function import function_fingerprint, load_function
from tests.projects import make_project


@pytest.fixture
def project(tmp_path, tiny_llama):
    (tmp_path / "mine.py").write_text(
        "def length(prompts, completions, **columns):\n    return [len(c) for c in completions]\n"
        "def other(text):\n    return [1.0]\n"
        "def broken(prompts, completions, **columns):\n    raise RuntimeError('boo')\n"
        "def nan(prompts, completions, **columns):\n    return [float('nan') for _ in completions]\n"
        "def none(prompts, completions, **columns):\n    return None\n"
        "def short(prompts, completions, **columns):\n    return [1.0]\n"
    )
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    return make_project(tmp_path, tiny_llama)


def test_by_file_and_by_module(project):
    assert load_function("mine.py:length", project)(["p", "p"], ["ab", "abc"]) == [2.0, 3.0]
    assert load_function("tests.rewards.judge:one", project)(["p"], ["ab"], topic=[1]) == [1.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine.py:lenght", "has no function 'lenght'; did you mean 'length'"),
        ("theirs.py:length", r"theirs\.py: no such file"),
        ("broken.py:length", "broken.py cannot be imported: ModuleNotFoundError"),
        ("no.such.module:f", "module 'no.such.module' cannot be imported"),
        ("length", "expected package.module:function or path/to/file.py:function"),
    ],
)
def test_what_is_wrong_is_said(project, spec, message):
    with pytest.raises(UserError, match=message):
        load_function(spec, project)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", r"cannot be called as f\(prompts, completions, \*\*columns\)"),
        ("broken", "mine.py:broken failed: RuntimeError: boo"),
        ("none", "mine.py:none failed: TypeError"),
        ("nan", "a score that is not finite; None means that there is none"),
    ],
)
def test_a_function_that_misbehaves_is_told(project, name, message):
    with pytest.raises(UserError, match=message):
        load_function(f"mine.py:{name}", project)(["p"], ["a"])


def test_one_score_a_completion(project):
    with pytest.raises(UserError, match="returned 1 scores for 2 completions"):
        load_function("mine.py:short", project)(["p", "p"], ["a", "b"])


def test_the_fingerprint_follows_the_content(project, tmp_path):
    before = function_fingerprint("mine.py:length", project)
    (tmp_path / "mine.py").write_text("def length(prompts, completions):\n    return [0.0 for _ in completions]\n")
    assert function_fingerprint("mine.py:length", project) != before
