"""Code of a reward is run from the project's folder and from installed packages, and from nowhere else."""

import json
import os
import sys
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.pipeline.identity import identity
from rlhf.rewards import allowed
from rlhf.rewards.allowed import check_module, code_file, project_folder
from rlhf.rewards.function import function_fingerprint, load_function
from tests.support.projects import make_project

CODE = "import pathlib\npathlib.Path({ran!r}).touch()\ndef score(prompts, completions): return [1.0]\n"


@pytest.fixture
def ran(tmp_path) -> Path:
    """A file that is there once any code below has run."""
    return tmp_path / "ran"


@pytest.fixture
def elsewhere(tmp_path, ran) -> Path:
    """A folder beside the project with code of somebody else, as a module, a package and a file."""
    folder = tmp_path / "elsewhere"
    for name in ("evil.py", "evil_package/__init__.py", "evil_package/inner.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(CODE.format(ran=str(ran)))
    return folder


@pytest.fixture
def project(tmp_path, tiny_llama):
    (tmp_path / "project").mkdir()
    return make_project(tmp_path / "project", tiny_llama)


def refused(spec, project, ran) -> str:
    """The line that refuses a reward, in planning and in loading alike."""
    lines = []
    for use in (function_fingerprint, load_function):
        with pytest.raises(UserError) as caught:
            use(spec, project)
        lines.append(str(caught.value))
    assert lines[0] == lines[1]
    assert "\n" not in lines[0]
    assert not ran.exists()
    return lines[0]


@pytest.mark.parametrize("spec", ["../elsewhere/evil.py", "{0}/elsewhere/evil.py", "./../project/../elsewhere/evil.py"])
def test_a_file_outside_the_projects_folder_is_refused(project, elsewhere, tmp_path, ran, spec):
    line = refused(f"{spec.format(tmp_path)}:score", project, ran)
    assert str(elsewhere / "evil.py") in line
    assert "outside the project's folder" in line


@pytest.mark.parametrize("link", ["file", "folder", "chain"])
def test_a_link_that_leads_outside_is_refused(project, elsewhere, tmp_path, ran, link):
    folder = tmp_path / "project"
    if link == "folder":
        (folder / "code").symlink_to(elsewhere, target_is_directory=True)
    else:
        (folder / "code").mkdir()
        (folder / "code/evil.py").symlink_to(elsewhere / "evil.py" if link == "file" else folder / "next.py")
        (folder / "next.py").symlink_to("../elsewhere/evil.py")
    assert str(elsewhere / "evil.py") in refused("code/evil.py:score", project, ran)


def test_code_that_lies_in_the_run_is_refused(project, elsewhere, tmp_path, ran, monkeypatch):
    """A run's folder may come from somebody else, and its record may name code."""
    elsewhere.rename(project.run_dir.parent.parent / "moved")
    project.run_dir.parent.mkdir()
    (tmp_path / "project/moved").rename(project.run_dir)
    assert "in the folder of the run" in refused("runs/tiny/evil.py:score", project, ran)
    monkeypatch.syspath_prepend(project.run_dir)
    assert "in the folder of the run" in refused("evil:score", project, ran)


def test_a_link_within_the_folder_is_followed(project, tmp_path):
    (tmp_path / "project/other.py").symlink_to("judge.py")
    assert code_file("other.py", project) == (tmp_path / "project/judge.py").resolve()


def test_a_file_in_the_current_folder_does_not_stand_in_for_the_projects_own(project, elsewhere, ran, monkeypatch):
    (elsewhere / "judge.py").write_text((elsewhere / "evil.py").read_text())
    monkeypatch.chdir(elsewhere)
    assert load_function("judge.py:score", project)(["p"], ["ab"]) == [2.0]
    refused("evil.py:score", project, ran)


def test_a_checkout_is_one_folder_and_a_home_is_none(project, tmp_path, monkeypatch):
    own = tmp_path / "project"
    assert project_folder(project) == own.resolve()
    (tmp_path / "pyproject.toml").touch()
    assert project_folder(project) == tmp_path.resolve()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert project_folder(project) == own.resolve()


@pytest.mark.parametrize("spec", ["evil", "evil_package", "evil_package.inner"])
def test_a_module_that_is_merely_on_the_path_is_refused(project, elsewhere, ran, monkeypatch, spec):
    monkeypatch.syspath_prepend(elsewhere)
    line = refused(f"{spec}:score", project, ran)
    assert str(elsewhere) in line
    assert "pip install -e" in line


def test_a_package_of_the_project_with_a_part_from_outside_is_refused(project, elsewhere, tmp_path, ran, monkeypatch):
    own = tmp_path / "project/own_package"
    own.mkdir()
    (own / "__init__.py").touch()
    (own / "part.py").symlink_to(elsewhere / "evil.py")
    (own / "fine.py").write_text("def score(prompts, completions): return [1.0] * len(completions)\n")
    monkeypatch.syspath_prepend(tmp_path / "project")
    assert load_function("own_package.fine:score", project)(["p"], ["a"]) == [1.0]
    assert str(elsewhere / "evil.py") in refused("own_package.part:score", project, ran)


@pytest.mark.parametrize("spec", ["os:system", "builtins:exec", "subprocess:getoutput", "importlib.util:find_spec"])
def test_pythons_own_modules_are_no_rewards(project, ran, spec):
    assert "Python itself" in refused(spec, project, ran)


def test_installed_packages_are_allowed_editable_ones_too(project, elsewhere, ran, tmp_path, monkeypatch):
    check_module("numpy.linalg", project)
    check_module("rlhf.rewards.length", project)
    monkeypatch.syspath_prepend(elsewhere)
    installed = tmp_path / "site/evil-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(installed.parent)
    for editable in (False, True):
        origin = {"url": elsewhere.as_uri(), "dir_info": {"editable": editable}}
        (installed / "direct_url.json").write_text(json.dumps(origin))
        allowed._editable_folders.cache_clear()
        if editable:
            check_module("evil", project)
        else:
            refused("evil:score", project, ran)
    allowed._editable_folders.cache_clear()


def test_a_site_folder_that_is_a_link_is_one(project, elsewhere, tmp_path, monkeypatch):
    """An environment may be reached by a link, and its packages may be links into a cache."""
    (tmp_path / "site").symlink_to(elsewhere, target_is_directory=True)
    monkeypatch.setattr(allowed, "_site_folders", lambda: (tmp_path / "site", (tmp_path / "site").resolve()))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    check_module("evil_package.inner", project)


def test_planning_refuses_too_and_runs_nothing(project, elsewhere, tmp_path, ran, tiny_llama):
    rewards = {"theirs": {"function": os.path.relpath(elsewhere / "evil.py", tmp_path / "project") + ":score"}}
    with pytest.raises(UserError, match="outside the project's folder"):
        identity(make_project(tmp_path / "project", tiny_llama, rewards=rewards), "evaluate")
    assert not ran.exists()
