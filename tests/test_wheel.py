"""The wheel, built and installed into an environment of its own, needs no checkout."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from rlhf import shipped
from rlhf.errors import UserError

SMALL = [
    *(f"stages.{stage}.max_steps=1" for stage in ("sft", "reward", "dpo", "ppo")),
    *(f"data.{name}.limit=100" for name in ("demonstrations", "preferences", "prompts")),
    "stages.ppo={max_steps: 1, total_episodes: 8, per_device_train_batch_size: 4, max_new_tokens: 8}",
    "gate=warn", "evaluate={prompts: 8, samples: 1, max_new_tokens: 8}",
]  # fmt: skip


def names_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_quickstart_lays_a_folder_that_stands_alone(root, tmp_path):
    recipes = shipped.copy_recipes(tmp_path / "mine")
    laid = tmp_path / "mine"
    assert [path.name for path in recipes] == sorted(path.name for path in (root / "recipes").glob("*.yaml"))
    for name in ("accelerate/fsdp2.yaml", "dpo.py", "data/base/model.safetensors", "data/support/gold.py"):
        assert (laid / name).is_file()
    assert shipped.laid_base(laid) == laid / "data/base"
    assert shipped.laid_base(root / "recipes") == root / "data/base"
    for recipe in recipes:  # what a recipe names by a path is beside it
        text = recipe.read_text()
        for word in text.replace('"', " ").replace(",", " ").replace("}", " ").split():
            if word.startswith("data/"):
                assert (laid / word.partition(":")[0]).exists(), (recipe, word)
    before = {name: (laid / name).stat().st_mtime_ns for name in names_of(laid)}
    shipped.copy_recipes(laid)
    assert {name: (laid / name).stat().st_mtime_ns for name in names_of(laid)} == before


def test_what_a_user_changed_is_kept(tmp_path):
    shipped.copy_recipes(tmp_path)
    (tmp_path / "data/README.md").unlink()
    (tmp_path / "quickstart.yaml").write_text("name: mine\n")
    with pytest.raises(UserError, match=r"quickstart\.yaml: is there already and differs"):
        shipped.copy_recipes(tmp_path)
    assert (tmp_path / "quickstart.yaml").read_text() == "name: mine\n"
    assert not (tmp_path / "data/README.md").exists()  # nothing is copied where something is in the way


@pytest.mark.parametrize("name", ["a file", "below/a file/folder"])
def test_no_folder_can_be_made(tmp_path, name):
    (tmp_path / "below").mkdir()
    for file in (tmp_path / "a file", tmp_path / "below/a file"):
        file.touch()
    with pytest.raises(UserError):
        shipped.copy_recipes(tmp_path / name)
    assert (tmp_path / "a file").is_file()


def test_every_recipe_says_what_it_is_for(root):
    for recipe in (root / "recipes").glob("*.yaml"):
        assert 20 < len(shipped.purpose(recipe)) < 160, recipe


@pytest.fixture(scope="module")
def source(root, tmp_path_factory) -> Path:
    """A copy of what is in version control: building writes beside the sources."""
    folder = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard", "-z"], check=True, capture_output=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((root / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    """The wheel, built from the source distribution, as an index has both."""
    built = tmp_path_factory.mktemp("dist")
    code = (
        "import os, sys; os.chdir(sys.argv[1])\n"
        "from setuptools import build_meta\n"
        "print(build_meta.build_sdist(sys.argv[2]))"
    )
    made = subprocess.run([sys.executable, "-c", code, source, built], check=True, capture_output=True, text=True)
    archive = built / made.stdout.split()[-1]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(built)]
    subprocess.run([*command, str(archive)], check=True, capture_output=True)
    (path,) = built.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_what_the_checkout_does(source, wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name: hashlib.sha256(archive.read(name)).digest() for name in archive.namelist()}
    expected = {
        f"{prefix}{name}": hashlib.sha256((source / folder / name).read_bytes()).digest()
        for folder, prefix in (("rlhf", "rlhf/"), ("recipes", "rlhf/share/recipes/"), ("data", "rlhf/share/data/"))
        for name in names_of(source / folder)
        if "__pycache__" not in name
    }
    assert {name: held.get(name) for name in expected} == expected
    others = {name for name in held if name not in expected and ".dist-info/" not in name}
    assert not others
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held)


@pytest.mark.slow
def test_an_empty_environment_is_enough(root, wheel, tmp_path):
    """Installed with the pinned versions, in a folder that holds nothing."""
    python = tmp_path / "env/bin/python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "-c", str(root / "constraints.txt")]
    for what in ("torch", str(wheel)):  # torch first: pip's config may name a build of it for CPUs
        subprocess.run([*install, what], check=True, capture_output=True)
    work = tmp_path / "empty"
    work.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def rlhf(*arguments: str) -> str:
        command = [str(tmp_path / "env/bin/rlhf"), *arguments]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "quickstart" in rlhf("--help")
    found = json.loads(rlhf("env", "--json"))
    assert found["rlhf"]["commit"] is None
    assert {library["problem"] for library in found["packages"].values()} == {None}
    assert {"starlette", "uvicorn"} <= set(found["extras"]["serve"])
    assert not list(work.iterdir())

    assert "runs/quickstart/report.html" in rlhf("quickstart", "recipes", *SMALL)
    for stage in ("sft", "reward", "dpo", "ppo", "evaluate"):
        assert (work / "runs/quickstart" / stage / "stage.json").is_file()
    assert yaml.safe_load((work / "recipes/accelerate/fsdp2.yaml").read_text())["distributed_type"] == "FSDP"
