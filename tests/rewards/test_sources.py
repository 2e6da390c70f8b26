import pytest

from rlhf.rewards.function import function_fingerprint
from rlhf.rewards.sources import code_behind
from tests.support.projects import make_project

FILES = {
    "judge.py": "import json, numpy as np\nfrom mine_h2.words import good\nimport beside_h2\nraise SystemExit\n",
    "beside_h2.py": "def f():\n    from mine_h2 import late\n",
    "mine_h2/__init__.py": "raise RuntimeError('executed')\n",
    "mine_h2/words.py": "from . import lists\nfrom .deep.inner import x\n",
    "mine_h2/lists.py": "from mine_h2 import words  # a circle\n",
    "mine_h2/late.py": "this is no Python\n",
    "mine_h2/deep/inner.py": "from ..unused_name import y\n",
    "mine_h2/not_imported.py": "",
}
USED = set(FILES) - {"mine_h2/not_imported.py"}


@pytest.fixture
def code(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_users_own_files_are_followed_and_none_is_executed(code):
    code = code_behind(code / "judge.py")
    assert set(code["files"]) == USED
    assert set(code["packages"]) == {"numpy"}
    assert code["packages"]["numpy"]


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("target", ["judge.py", "judge"])
def test_a_change_in_any_of_them_is_named(code, target, name):
    start = code / target if target.endswith(".py") else target
    before = code_behind(start)["files"]
    (code / name).write_text(FILES[name] + "# turned round\n")
    after = code_behind(start)["files"]
    changed = {file for file in before if before[file] != after[file]}
    assert changed == ({name} if name in USED else set())


def test_files_beside_a_file_are_seen_although_they_are_not_on_the_path_yet(code, monkeypatch):
    monkeypatch.undo()
    assert set(code_behind(code / "judge.py")["files"]) == USED


def test_what_is_installed_has_a_version_and_what_is_not_there_nothing():
    assert code_behind("yaml.nodes") == {"files": {}, "packages": {"yaml": code_behind("yaml")["packages"]["yaml"]}}
    assert code_behind("yaml")["packages"]["yaml"].startswith("6")
    assert code_behind("nothing_of_that_name.f") == {"files": {}, "packages": {}}


def test_a_module_and_a_file_are_fingerprinted_by_their_code(code, tiny_llama):
    project = make_project(code, tiny_llama)
    (code / "judge.py").write_text(FILES["judge.py"])
    for spec in ("mine_h2.words:good", "mine_h2/words.py:good", "judge.py:score"):
        before = function_fingerprint(spec, project)
        (code / "mine_h2/words.py").write_text(FILES["mine_h2/words.py"] + f"# {spec}\n")
        assert function_fingerprint(spec, project) != before, spec
    assert function_fingerprint("rlhf.rewards.length:length", project) == {
        "function": "length", "module": "rlhf.rewards.length",
    }  # fmt: skip
