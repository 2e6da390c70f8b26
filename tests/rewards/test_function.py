import os
import signal
import sys

import pytest

from rlhf.errors import UserError
from rlhf.rewards.function import argument_files, function_fingerprint, load_function
from tests.support.projects import make_project


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


def test_by_file_and_by_module(project, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("mine.py", "mine", str(tmp_path / "mine.py")):
        assert load_function(f"{target}:length", project)(["p", "p"], ["ab", "abc"], topic=[1]) == [2.0, 3.0], target


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
        ("none", "mine.py:none: returned a NoneType; expected a list"),
        ("nan", "a score that is not finite; None means that there is none"),
    ],
)
def test_a_function_that_misbehaves_is_told(project, name, message):
    with pytest.raises(UserError, match=message):
        load_function(f"mine.py:{name}", project)(["p"], ["a"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import sys; sys.exit(0)", "failed: SystemExit: 0$"),
        ("raise ValueError('first\\nsecond')", "failed: ValueError: first$"),
        ("raise KeyboardInterrupt", "failed: KeyboardInterrupt$"),
        ("import asyncio; raise asyncio.CancelledError", "failed: CancelledError$"),
        ("return {0: 1.0, 1: 2.0}", "returned a dict; expected a list"),
        ("return '12'", "returned a str; expected a list"),
        ("return {0.5, 1.0}", "returned a set; expected a list"),
        ("return 0.5", "returned a float; expected a list"),
        ("return ['0.5', '1']", "a score that is text, '0.5'"),
        ("return [{'score': 1.0}, 1.0]", "a score that is a dict"),
        ("return [[1.0], [2.0]]", "a score that is a list"),
        ("return [1j, 0.0]", "a score that is a complex"),
        ("import torch; return torch.zeros(2, 3)", "a score that is a Tensor"),
        ("return [1e308, 0.0]", r"a score of 1e\+308, beyond 1e\+15"),
        ("return [10 ** 400, 0.0]", r"a score beyond 1e\+15"),
    ],
)
def test_whatever_a_function_does_is_one_line_that_names_it(project, tmp_path, body, message):
    (tmp_path / "odd.py").write_text(f"def score(prompts, completions, **columns):\n    {body}\n")
    with pytest.raises(UserError, match=rf"^rewards: odd\.py:score:? .*{message}") as caught:
        load_function("odd.py:score", project)(["p", "p"], ["a", "b"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "import numpy as np; return np.array([1, 2], dtype=np.float32)",
        "import numpy as np; return [np.float16(1), np.int64(2)]",
        "import torch; return torch.tensor([1.0, 2.0], dtype=torch.bfloat16)",
        "import torch; return [torch.tensor(1.0), torch.tensor([2.0])]",
        "return (n for n in (True, 2))",
    ],
)
def test_numbers_of_any_library_are_scores(project, tmp_path, body):
    (tmp_path / "fine.py").write_text(f"def score(prompts, completions, **columns):\n    {body}\n")
    assert load_function("fine.py:score", project)(["p", "p"], ["a", "b"]) == [1.0, 2.0]


@pytest.mark.parametrize("instead", ["return [0.0]", "raise ValueError('no score')"])
def test_an_interrupt_by_the_keyboard_is_one(project, tmp_path, instead):
    """Ctrl-C goes on where a function catches everything, and the handler is there again after."""
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\ndef score(prompts, completions, **columns):\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGINT)\n        time.sleep(9)\n"
        f"    except:\n        {instead}\n"
    )
    score, before = load_function("slow.py:score", project), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        score(["p"], ["a"])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_file_or_a_module_that_exits_is_told(project, tmp_path, monkeypatch):
    (tmp_path / "module_that_exits.py").write_text("raise SystemExit('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("module_that_exits.py", "module_that_exits"):
        with pytest.raises(UserError, match="cannot be imported: SystemExit: no licence"):
            load_function(f"{target}:score", project)


def test_one_score_a_completion(project):
    with pytest.raises(UserError, match="returned 1 scores for 2 completions"):
        load_function("mine.py:short", project)(["p", "p"], ["a", "b"])


def test_scores_without_end_are_not_waited_for(project, tmp_path):
    (tmp_path / "endless.py").write_text(
        "import itertools\ndef score(prompts, completions, **columns): return itertools.repeat(1.0)\n"
    )
    with pytest.raises(UserError, match="returned 3 scores for 2 completions"):
        load_function("endless.py:score", project)(["p", "p"], ["a", "b"])


def test_what_it_changes_is_its_own(project, tmp_path):
    (tmp_path / "own.py").write_text(
        "def score(prompts, completions, **columns):\n"
        "    for completion in completions: completion[-1]['content'] = ''\n"
        "    columns['topics'][0].append('new')\n"
        "    prompts.clear(), completions.clear()\n"
        "    return []\n"
    )
    replies, topics = [[{"role": "assistant", "content": "yes"}]], [["old"]]
    with pytest.raises(UserError, match="0 scores for 1 completions"):
        load_function("own.py:score", project)(["why?"], replies, topics=topics)
    assert (replies, topics) == ([[{"role": "assistant", "content": "yes"}]], [["old"]])


def test_it_leaves_the_current_folder_and_says_little(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "away.py").write_text(
        "import os\n"
        "os.chdir('/')\n"
        "def score(prompts, completions, **columns):\n"
        "    os.chdir('/')\n"
        "    raise ValueError('no ' * 1000)\n"
    )
    function = load_function("away.py:score", project)
    assert os.getcwd() == str(tmp_path)
    with pytest.raises(UserError, match=r"away\.py:score failed: ValueError: no no") as caught:
        function(["p"], ["c"])
    assert os.getcwd() == str(tmp_path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("closing", ["os.close(2)", "sys.stderr.close()", "sys.stderr = None"])
def test_it_leaves_the_place_where_errors_are_said(project, tmp_path, capfd, monkeypatch, closing):
    monkeypatch.setattr(sys, "stderr", os.fdopen(2, "w", closefd=False))
    (tmp_path / "quiet.py").write_text(
        f"import os, sys\ndef score(prompts, completions, **columns):\n    {closing}\n    return [1.0]\n"
    )
    load_function("quiet.py:score", project)(["p"], ["c"])
    print("said", file=sys.stderr, flush=True)
    assert capfd.readouterr().err == "said\n"


def test_an_exception_that_cannot_be_shown_is_named(project, tmp_path):
    (tmp_path / "mute.py").write_text(
        "class Mute(Exception):\n"
        "    def __str__(self): raise ValueError\n"
        "def score(prompts, completions, **columns): raise Mute\n"
    )
    with pytest.raises(UserError, match=r"mute\.py:score failed: Mute$"):
        load_function("mute.py:score", project)(["p"], ["c"])


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


def test_a_path_among_the_arguments_is_resolved_by_the_projects_folder(project, tmp_path):
    (tmp_path / "costs.csv").write_text(",a,b\na,0,3\nb,1,0\n")
    (tmp_path / "reader.py").write_text(
        "from pathlib import Path\n"
        "def size(prompts, completions, file: Path, more: Path | None = None, plain: str = 'costs.csv', **columns):\n"
        "    assert more is None and plain == 'costs.csv'\n"
        "    return [len(file.read_text()) for c in completions]\n"
    )
    assert load_function("reader.py:size", project, {"file": "costs.csv"})(["p"], ["a"]) == [17]
    costs = load_function("rlhf.rewards.cost_matrix:cost_matrix", project, {"matrix": "costs.csv"})
    assert costs(["p"], ["b"], label=["a"], matrix=["x"]) == [-3]
    with pytest.raises(UserError, match=r"cost_matrix: nowhere\.csv: no such file"):
        load_function("rlhf.rewards.cost_matrix:cost_matrix", project, {"matrix": "nowhere.csv"})


def test_files_among_the_arguments_count_by_their_content(project, tmp_path):
    arguments = {"matrix": "costs.csv", "factor": 3, "pattern": "~nobody\0" + "a" * 5000, "folder": "."}
    assert argument_files(arguments, project) == {}
    (tmp_path / "costs.csv").write_text("a")
    before = argument_files(arguments, project)
    (tmp_path / "costs.csv").write_text("b")
    assert list(before) == ["matrix"]
    assert argument_files(arguments, project) != before
