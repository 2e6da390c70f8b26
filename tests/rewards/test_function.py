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
        "def times(prompts, completions, factor, offset=0, **columns):\n"
        "    return [factor * len(c) + offset for c in completions]\n"
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


def test_arguments_are_bound_and_no_column_replaces_them(project):
    times = load_function("mine.py:times", project, {"factor": 3})
    assert times(["p"], ["ab"]) == [6.0]
    assert times(["p"], ["ab"], factor=[7], spec=["s"], function=["f"], arguments=["a"]) == [6.0]


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        ("mine.py:times", {"factr": 3}, "mine.py:times has no argument 'factr'; did you mean 'factor'"),
        ("mine.py:times", {}, "mine.py:times cannot be called .*missing a required argument: 'factor'"),
        ("mine.py:length", {"unit": 3}, "mine.py:length has no argument 'unit'; it has none"),
        ("mine.py:times", {"prompts": [], "factor": 1}, "has no argument 'prompts'"),
        ("rlhf.rewards.regex:regex", {}, "missing a required argument: 'pattern'"),
        ("rlhf.rewards.regex:regex", {"pattern": "("}, r"rlhf.rewards.regex:regex: pattern '\(' is no regular"),
        ("rlhf.rewards.length:length", {"unit": "lines"}, "rlhf.rewards.length:length: unknown unit 'lines'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_when_it_is_loaded(project, spec, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        load_function(spec, project, arguments)
    assert "\n" not in str(error.value)


def test_a_column_named_as_an_option_of_a_built_in_is_no_option(project):
    plain = load_function("rlhf.rewards.length:length", project)
    assert plain(["p"], ["one two"], target=["ten"], unit=["km"]) == [2.0]
