"""What the documents say is so: commands run, options and files exist, recipes load, no setting is without a reader."""

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlhf.config import project, sets
from rlhf.config.load import load_project
from rlhf.data.formats import find, formats
from rlhf.errors import UserError
from tests.support.hub_server import TOKEN, HubServer
from tests.support.pages import blocks, check_command, commands_of
from tests.support.projects import pairs
from tests.support.tree import BLOCK, PAGE, tree
from tests.test_imports import ORDER

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for room in ("docs", "data", "examples", "benchmarks") for page in (ROOT / room).rglob("*.md")),
    ]
)
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def guide(tmp_path_factory, tiny_llama) -> tuple[Path, dict[str, str], HubServer]:
    """A folder with the guide's files as they stand, but for its model; the environment of its commands; the hub."""
    folder = tmp_path_factory.mktemp("guide")
    for language in ("json", "yaml", "python"):
        for name, content in blocks("docs/guide.md", language):
            (folder / name).write_text(content.replace(BASE, str(tiny_llama)), encoding="utf-8")
    with HubServer() as server:
        environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
        environment.update(
            HF_ENDPOINT=server.url, HF_TOKEN=TOKEN, HF_HOME=str(folder / "home"), HF_HUB_DISABLE_XET="1",
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", OMP_NUM_THREADS="1",
        )  # fmt: skip
        yield folder, environment, server


def test_every_command_of_the_guide_runs(guide):
    folder, environment, server = guide
    script = "".join(content for _, content in blocks("docs/guide.md", "bash"))
    for command in ("check", "run", "report", "chat", "publish"):
        assert f"rlhf {command} " in script
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    output = done.stdout
    assert "dpo: changed: trainer.beta" in output
    assert output.count("sft: done") == 2  # the second run, and the one with another beta
    published = set(server.repositories["ada/night-train"].files)
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "report.json"} <= published
    assert server.repositories["ada/night-train"].private
    policies = json.loads((folder / "runs/helpdesk/report.json").read_text())["policies"]
    assert {"reward", "concise"} == set(policies[0]["scores"])
    assert "<script" not in (folder / "runs/helpdesk/report.html").read_text()


def test_the_python_of_the_project_page_runs(guide):
    """On the run that the guide left, which this test therefore follows."""
    folder, environment, _ = guide
    ((_, code),) = blocks("docs/project.md", "python")
    assert "recipes/quickstart.yaml" in code
    code = code.replace('"recipes/quickstart.yaml"', '"helpdesk.yaml", ["stages.dpo.beta=0.3"]')
    code = code.replace("runs/quickstart", "runs/helpdesk")
    (folder / "use.py").write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, "use.py"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "concise" in done.stdout


def tree_paths() -> set[str]:
    """The paths of the trees of docs/architecture.md; two spaces of indentation are one folder."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    trees = re.findall(r"```text (?:package|tree)\n(.*?)```", text, re.DOTALL)
    assert len(trees) == 2
    folders: list[str] = []
    paths = set()
    for line in "".join(trees).splitlines():
        depth, names = (len(line) - len(line.lstrip())) // 2, re.split(r"\s{2,}", line.strip())[0].split()
        assert len(re.split(r"\s{2,}", line.strip())) == 2, f"no description: {line}"
        for name in names:
            paths.add("".join(folders[:depth]) + name)
        folders[depth:] = [names[-1]]
    return paths


def test_the_python_of_the_folding_page_runs(tmp_path, tiny_llama, monkeypatch, capfd):
    """TRL's own trainer, with a model and pairs at hand."""
    from datasets import Dataset

    from rlhf.prefix_sharing.fold import is_folded

    ((_, code),) = blocks("docs/folding.md", "python")
    monkeypatch.chdir(tmp_path)
    names = {"pairs": Dataset.from_list(pairs(8))}
    code = code.replace("Qwen/Qwen2.5-0.5B-Instruct", str(tiny_llama))
    exec(code.replace('DPOConfig("out")', 'DPOConfig("out", use_cpu=True, bf16=False)'), names)
    trainer = names["trainer"]
    assert trainer.state.global_step == 3
    assert is_folded(trainer.model)
    assert "unfolded" not in capfd.readouterr().err


def test_every_path_of_the_tree_exists():
    missing = {path for path in tree_paths() if not (ROOT / path).exists()}
    assert not {path for path in missing if not path.startswith("docs/images/")}  # a link is held below


def test_the_tree_of_the_package_says_what_the_files_say():
    """After a file was added or renamed: `python -m tests.support.tree`."""
    assert BLOCK.search(PAGE.read_text(encoding="utf-8"))[0] == tree()


def defined(path: Path, name: str) -> bool:
    """Whether a file defines a function, class or constant, or a class of it a method: `name` or `Class.method`."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        node = next((node for node in body if part in _names(node)), None)
        if node is None:
            return False
        body = getattr(node, "body", [])
    return True


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def test_every_function_on_the_architecture_page_exists():
    named = set(re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE.read_text(encoding="utf-8")))
    assert len(named) > 50
    missing = [
        f"{path}:{name}"
        for path, name in sorted(named)
        if not (ROOT / "rlhf" / path).is_file() or not defined(ROOT / "rlhf" / path, name)
    ]
    assert not missing


def test_the_rooms_are_those_whose_imports_are_checked():
    table = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", row)) for row in table] == ORDER


def test_every_file_is_in_the_tree():
    """A folder's line stands for its `__init__.py`."""
    named, absent = tree_paths(), []
    for room in ("rlhf", "recipes", "data", "docs", "examples", "benchmarks"):
        for path in sorted((ROOT / room).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.is_dir() or "__pycache__" in path.parts or path.name.startswith("."):
                continue
            if path.name == "__init__.py":
                name = path.parent.relative_to(ROOT).as_posix() + "/"
            if name not in named:
                absent.append(name)
    assert not absent


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_within_the_repository_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_in_backticks_exist(page):
    text = page.read_text(encoding="utf-8")
    rooms = "rlhf|recipes|docs|tests|data|examples"
    named = set(re.findall(rf"`((?:{rooms})/[\w./-]+)(?::[\w.]+)?`", text))
    folders = (ROOT, page.parent, *([ROOT / "rlhf"] if page == PAGE else []))
    assert not [name for name in named if not any((folder / name).exists() for folder in folders)]


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        *(f"docs/{name}.md" for name in ("guide", "init", "project", "recipes", "rounds", "serving")),
    ],
)
def test_every_command_on_a_page_exists(page):
    lines = commands_of((ROOT / page).read_text(encoding="utf-8"))
    assert lines
    for line in lines:
        check_command(line)


def test_a_command_that_does_not_exist_is_found():
    wrong = {
        "rlhf train x.yaml": AssertionError,
        "rlhf run recipes/nothing.yaml": AssertionError,
        "rlhf run recipes/hh.yaml stages.dpo.betta=1": UserError,
        "rlhf run recipes/hh.yaml --only sfd": AssertionError,
        "make everything": AssertionError,
        "accelerate launch recipes/orpo.py --config FILE": AssertionError,
        "accelerate launch recipes/dpo.py --config FILE --betta 1": UserError,
    }
    with pytest.raises(Exception, match="No such option: --gates"):  # typer's click is its own
        check_command("rlhf run recipes/hh.yaml --gates warn")
    for line, error in wrong.items():
        with pytest.raises(error):
            check_command(line)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_loads_and_its_header_is_right(recipe):
    assert load_project(recipe).name == recipe.stem
    comments = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    header = "\n".join(line.removeprefix("#").strip() for line in comments).replace("\\\n", " ")
    commands = re.findall(r"\b((?:rlhf \w+|accelerate launch) \S.*)$", header, re.MULTILINE)
    assert commands
    for line in commands:
        check_command(line)


@pytest.mark.parametrize("script", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.name)
def test_a_stage_script_says_how_it_is_started(script):
    (command,) = re.findall(r"^ +(accelerate launch .*)$", script.read_text(), re.MULTILINE)
    check_command(command)


@pytest.mark.parametrize("file", sorted((ROOT / "recipes/accelerate").glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_reads_its_files(file):
    from accelerate.commands.config.config_args import load_config_from_file

    read = load_config_from_file(str(file))
    assert (read.num_machines, read.num_processes) in [(1, 2), (2, 16)]
    assert set(yaml.safe_load(file.read_text())) <= {field.name for field in dataclasses.fields(read)}


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        *(
            f"docs/{name}.md"
            for name in ("guide", "init", "project", "rewards", "evidence", "ppo", "recipes", "rounds", "folding")
        ),
    ],
)
def test_every_project_shown_loads(page, tmp_path):
    for number, (_, content) in enumerate(blocks(page, "yaml")):
        tree = yaml.safe_load(content)
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump({"name": "shown", "model": {"name_or_path": "x"}, **tree}), encoding="utf-8")
        load_project(path)


def test_every_row_of_the_formats_page_is_recognised_as_what_it_is_called():
    examples = blocks("docs/formats.md", "json")
    assert {name for name, _ in examples} == set(formats())
    for name, content in examples:
        for line in content.splitlines():
            row = json.loads(line)
            assert find(None, row, "here").name == name
            find(name, row, "here").parse(row, "here")


def fields_of_config() -> list[tuple[str, str, bool]]:
    """(class, field, whether a docstring stands below it) of every dataclass of a project's sections."""
    fields = []
    bodies = [(module, ast.parse(Path(module.__file__).read_text()).body) for module in (project, sets)]
    for module, node in ((module, node) for module, body in bodies for node in body):
        if isinstance(node, ast.ClassDef) and dataclasses.is_dataclass(getattr(module, node.name)):
            for line, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(line, ast.AnnAssign):
                    documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    fields.append((node.name, line.target.id, documented and isinstance(after.value.value, str)))
    return fields


def test_every_setting_is_documented_and_read():
    read = set()
    for path in (ROOT / "rlhf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    fields = fields_of_config()
    assert len(fields) > 30
    assert not [f"{owner}.{name}" for owner, name, documented in fields if not documented]
    assert not [f"{owner}.{name}" for owner, name, _ in fields if name not in read]
    for owner in {owner for owner, _, _ in fields}:
        assert len([name for kind, name, _ in fields if kind == owner]) <= 25


def test_no_path_of_a_machine_is_in_any_file():
    own = [re.escape(str(place)) for place in {ROOT, Path.home()} if len(place.parts) > 2]
    somebodys = [rf"/{name}/" for name in ("home", "Users", "root", "work", "tmp")]
    rooms = [(room, somebodys) for room in ("rlhf", "recipes", "docs", "examples", "benchmarks")]
    for room, patterns in (*rooms, ("tests", []), (".", [])):
        for path in (ROOT / room).glob("*" if room == "." else "**/*"):
            if not path.is_file() or path.suffix not in (".py", ".md", ".yaml", ".toml", ".txt", ".html", ".css", ""):
                continue
            for pattern in (*own, *patterns):
                match = re.search(rf"(?<![\w.~-]){pattern}", path.read_text(encoding="utf-8", errors="replace"))
                assert not match, f"{path.relative_to(ROOT)}: {match[0]}"


def test_the_changelog_has_this_version():
    from rlhf import __version__

    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{__version__}]" in text or "\n## [Unreleased]" in text


def test_hooks_and_ci_run_what_make_runs():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    makefile = (ROOT / "Makefile").read_text().replace("$(BIN)", ".venv/bin")
    for hook in repo["hooks"]:
        assert hook["entry"].partition(" --")[0] in makefile  # the tools of .venv, which constraints.txt pins
    ((_, job),) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].items()
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert "make lint types audit test slow" in [step.get("run") for step in job["steps"]]


def test_the_examples_for_contributors_work():
    examples = dict(blocks("CONTRIBUTING.md", "python"))
    layout: dict = {}
    exec(examples["rlhf/data/formats/goodbad.py"], layout)
    row = {"q": "Breakfast?", "good": "Yes.", "bad": "No idea.", "n": 1}
    assert layout["matches"](row)
    record = layout["parse"](row, "x.jsonl:1")
    assert (record.chosen[0]["content"], record.rejected[0]["content"]) == ("Yes.", "No idea.")
    assert record.extra == {"n": 1}
    judge: dict = {}
    exec(examples["judges.py"], judge)
    reply = [{"role": "assistant", "content": "Thank you."}]
    assert judge["polite"](["a", "b", "c"], [reply, "No.", ""]) == [1.0, 0.0, None]
