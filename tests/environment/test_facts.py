"""The environment is told whatever state it is in, and holds nobody's name or token."""

import getpass
import json
from pathlib import Path

import pytest

from rlhf.config.versions import TESTED
from rlhf.environment import facts
from rlhf.environment.lines import lines

BROKEN = {
    "raises_here": "raise ImportError('libcudart.so.13: cannot open shared object file')",
    "exits_here": "import os; os._exit(3)",
    "dies_here": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "says_much": "print('{\"package\": not JSON')\nprint('hello')",
    "sound": "",
}


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Packages that cannot be imported, and a sound one, on the path of this process and of others."""
    for name, code in BROKEN.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(facts.__file__).parents[2]}")


def test_a_library_that_ends_the_process_hides_no_other(broken):
    found = facts.gather((*BROKEN, "not_there"))
    problems = {name: library["problem"] for name, library in found["packages"].items()}
    assert problems == {
        "raises_here": "ImportError: libcudart.so.13: cannot open shared object file",
        "exits_here": "the import ended the process (exit code 3)",
        "dies_here": "the import ended the process (SIGSEGV)",
        "says_much": None, "sound": None, "not_there": None,
    }  # fmt: skip
    assert json.loads(json.dumps(found)) == found
    told = lines(found)
    assert "dies_here cannot be imported: the import ended the process (SIGSEGV)" in told
    assert "not_there is not installed: pip install not_there" in told


def test_versions_beside_those_that_were_tested(monkeypatch):
    monkeypatch.setattr(facts, "_probed", lambda libraries: {})
    monkeypatch.setattr(facts.importlib.metadata, "version", lambda name: "0.0.1")
    found = facts.gather()
    assert found["packages"]["trl"] == {"version": "0.0.1", "tested": TESTED["trl"], "problem": None}
    assert f"trl 0.0.1 was not tested, {TESTED['trl']} was" in lines(found)


def test_extras_come_from_what_is_installed(monkeypatch):
    requires = [
        "typer>=0.15", 'starlette>=1.3.1; extra == "serve"', 'no-such[x]>=1 ; extra == "serve"', 'gone; extra == "dev"',
    ]  # fmt: skip
    monkeypatch.setattr(facts.importlib.metadata, "requires", lambda name: requires)
    assert facts.missing_extras() == {"serve": ["no-such"]}

    def unknown(name):
        raise facts.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(facts.importlib.metadata, "requires", unknown)
    assert facts.missing_extras() == {}


def test_nobody_is_named(monkeypatch, tmp_path):
    name = "augusta"
    home = tmp_path / "home" / name
    for variable, value in (
        ("HOME", home), ("LOGNAME", name), ("HF_HOME", f"/scratch/{name}/cache"), ("HF_TOKEN", "hf_" + "a" * 30),
        ("PYTHONPATH", f"{home}/lib:/opt/{name}-tools"), ("HF_ENDPOINT", f"https://{name}:lovelace@mirror.org"),
    ):  # fmt: skip
        monkeypatch.setenv(variable, str(value))
    assert getpass.getuser() == name
    monkeypatch.setattr(facts, "_probed", lambda libraries: {})
    found = facts.gather()
    assert found["caches"]["hub"] == "/scratch/USER/cache/hub"
    assert found["variables"]["PYTHONPATH"] == f"~/lib:/opt/{name}-tools"  # a name within another is no user's
    text = json.dumps(found) + "\n".join(lines(found))
    assert f"/{name}/" not in text
    assert "lovelace" not in text
    assert "hf_a" not in text


def test_a_checkout_has_a_commit_and_an_installed_package_none(monkeypatch, tmp_path):
    monkeypatch.setattr(facts, "_probed", lambda libraries: {})
    assert facts.gather()["rlhf"]["checkout"]
    monkeypatch.setattr(facts, "origin", lambda: tmp_path)
    assert facts.gather()["rlhf"]["commit"] is None
