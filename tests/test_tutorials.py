"""The tutorials do what they say: each command runs, at a small size, or is parsed where it needs other machines."""

import json
import re
import shutil

import pytest
import yaml

from tests.support.hub_server import TOKEN, HubServer
from tests.support.pages import ROOT, blocks, check_command, commands_of, examples, lay, shell

TUTORIALS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs/tutorials").glob("*.md"))
SMALL = ["stages.sft.max_steps=2", "stages.reward.max_steps=2", "evaluate.prompts=6", "evaluate.samples=1",
         "evaluate.max_new_tokens=8", "data.preferences.limit=60", "data.demonstrations.limit=60"]  # fmt: skip
"""Overrides that make a run short."""


def commands(page: str) -> list[str]:
    """The lines of a page's bash blocks."""
    return [line for _, block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines() if line]


def shortened(line: str, overrides: list[str]) -> str:
    """`rlhf run` with overrides, before its options; other lines as they are."""
    words = line.partition("#")[0].split()
    if words[:2] not in (["rlhf", "run"], ["rlhf", "check"]):
        return line + "\n"
    return " ".join([*words[:3], *overrides, *words[3:]]) + "\n"


def test_the_examples_of_the_teacher_give_what_is_printed():
    result = examples("docs/tutorials/teacher.md")
    assert result.attempted > 35
    assert not result.failed


@pytest.mark.parametrize("page", TUTORIALS)
def test_every_command_in_a_sentence_exists(page):
    prose = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for line in commands_of(prose):
        check_command(re.sub(r"desk(-\w+)?\.yaml", "mine.yaml", line))


@pytest.mark.slow
def test_a_support_team_gets_from_two_tables_to_an_adapter(tmp_path):
    page = "docs/tutorials/support-team.md"
    lay(page, tmp_path)
    lines = [line for line in commands(page) if not line.startswith("rlhf arena")]  # waits for people
    script = "".join(shortened(line, [*SMALL, "stages.dpo.max_steps=2"]) for line in lines)
    with HubServer() as server:
        environment = {
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path),
        }
        for place in ("data/support", "data/base"):
            script = script.replace(place, str(ROOT / place))
        done = shell([script], tmp_path, environment)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "adapter_config.json" in server.repositories["your-name/desk"].files
    rows = (tmp_path / "choices.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "question,better,worse"
    report = json.loads((tmp_path / "runs/desk/report.json").read_text(encoding="utf-8"))
    assert set(report["evaluation"]["policies"]) == {"base", "sft", "dpo"}
    assert set(report["evaluation"]["judges"]) == {"short", "reward"}


@pytest.fixture
def checkout(tmp_path):
    """A folder with what a command of a checkout reads, to be changed."""
    for name in ("rlhf", "recipes", "data", "tests/objectives", "tests/support"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests/__init__.py", "tests/conftest.py", "pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def append(checkout, function):
    """Add a function to the estimators of a copy."""
    path = checkout / "rlhf/objectives/advantages.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n\n" + function, encoding="utf-8")


SHORT_PPO = [*SMALL, "gate=warn", "stages.dpo.max_steps=1", "stages.ppo.total_episodes=8",
             "stages.ppo.per_device_train_batch_size=8",
             "stages.ppo.gradient_accumulation_steps=1", "stages.ppo.max_new_tokens=8",
             "stages.ppo.normalize_samples=8", "stages.ppo.critic_warmup_rollouts=0",
             "data.prompts.limit=8"]  # fmt: skip


@pytest.mark.slow
def test_a_researcher_adds_an_estimator_and_compares_it(checkout):
    page = "docs/tutorials/researcher.md"
    lay(page, checkout)
    append(checkout, (checkout / "median.py").read_text(encoding="utf-8"))
    (needs,) = re.findall(r'`("median": .*?,)`', (ROOT / page).read_text(encoding="utf-8"))
    tests, last = checkout / "tests/objectives/test_advantages.py", '"exact": (False, 1),'
    assert last in tests.read_text(encoding="utf-8")
    tests.write_text(tests.read_text(encoding="utf-8").replace(last, f"{last}\n{needs}"), encoding="utf-8")
    lines = [line.replace("ppo.seeds=3", "ppo.seeds=1") for line in commands(page)]
    done = shell([shortened(line, SHORT_PPO) for line in lines], checkout, {"PYTHONPATH": str(checkout)})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
    assert "stages.ppo.advantage" in done.stdout  # what `rlhf diff` names
    manifest = json.loads((checkout / "runs/median/ppo/stage.json").read_text(encoding="utf-8"))
    assert manifest["config"]["trainer"]["advantage"] == "median"


def test_the_tests_of_the_researcher_find_another_sign(checkout):
    page = "docs/tutorials/researcher.md"
    lay(page, checkout)
    added = (checkout / "median.py").read_text(encoding="utf-8").replace("totals_GS - middle", "middle - totals_GS")
    append(checkout, added)
    done = shell(["python -m pytest tests/objectives/test_median.py"], checkout, {"PYTHONPATH": str(checkout)})
    assert done.returncode == 1
    assert "2 failed" in done.stdout


@pytest.fixture
def eight(checkout, tiny_llama, monkeypatch):
    """The engineer's project on a small model, and rows for it; the current folder is the checkout's."""
    lay(
        "docs/tutorials/engineer.md",
        checkout,
        {"Qwen/Qwen3-8B": str(tiny_llama), "max_new_tokens: 512": "max_new_tokens: 32"},
    )
    for name in ("demonstrations.jsonl", "preferences.jsonl"):
        rows = (checkout / "data/support" / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (checkout / name).write_text("".join(rows[:60]), encoding="utf-8")
    monkeypatch.chdir(checkout)
    return checkout


def test_the_engineers_launches_are_what_accelerate_takes(eight):
    """What needs GPUs is parsed: options, projects, overrides, and the files for accelerate with their processes."""
    from rlhf.pipeline.launch_file import find_launch

    page = "docs/tutorials/engineer.md"
    lines = [line.partition("    #")[0] for line in commands(page)]
    assert not shell([line + "\n" for line in lines if line.startswith("sed ")], eight).returncode
    for line in lines:
        if line.startswith(("rlhf ", "accelerate ", "make ")):
            check_command(line, eight)
    launches = [line.partition("--accelerate ")[2].split() for line in lines if "--accelerate " in line]
    assert len(launches) >= 4
    for file, *rest in launches:
        launch = find_launch(file, int(rest[1]) if rest[:1] == ["--node"] else None)
        assert launch.processes == (16 if "nodes" in file else 8), file
    assert yaml.safe_load((eight / "fsdp8.yaml").read_text())["num_processes"] == 8


@pytest.mark.slow
def test_the_engineers_check_runs_without_a_gpu(eight):
    lines = [
        line for line in commands("docs/tutorials/engineer.md") if line.startswith(("sed ", "rlhf check", "rlhf env"))
    ]
    done = shell([line + "\n" for line in lines], eight)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "8 processes" in done.stdout


def test_the_teachers_experiments_are_commands():
    lines = commands("docs/tutorials/teacher.md")
    assert len(lines) == 5
    for line in lines:
        check_command(line)


@pytest.mark.slow
def test_what_the_teacher_says_of_one_pass_is_so(checkout):
    """Of the four experiments the one whose outcome follows from the formulas: a ratio of 1, and nothing clipped."""
    page = "docs/tutorials/teacher.md"
    (line,) = [line for line in commands(page) if "name=once" in line]
    done = shell([shortened(line, SHORT_PPO).strip() + " --only sft,reward,gate,ppo"], checkout)
    assert done.returncode == 0, done.stderr[-3000:]
    logged = [json.loads(line) for line in (checkout / "runs/once/ppo/metrics.jsonl").read_text().splitlines()]
    ratios = [row["policy/ratio"] for row in logged if "policy/ratio" in row]
    assert ratios == pytest.approx([1.0] * len(ratios), abs=1e-4)
    assert not any(row.get("policy/clipfrac") for row in logged)
    named = set(re.findall(r"`((?:objective|value|policy)/\w+)`", (ROOT / page).read_text(encoding="utf-8")))
    assert len(named) > 8
    assert named <= set().union(*logged)
