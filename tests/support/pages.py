"""The blocks of a page of the documentation, and running them."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import typer

from rlhf.config.load import load_project
from rlhf.pipeline.stage import field_overrides

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[tuple[str, str]]:
    """(file name or "", content) of the fenced blocks in a language; the name follows the language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    matches = re.findall(r"^```(\w+)[ ]?(\S*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(name, content) for kind, name, content in matches if kind == language]


def lay(page: str, folder: Path, changes: Mapping[str, str] | None = None) -> None:
    """Write every block that has a file's name into a folder.

    Args:
        page: The page.
        folder: Where the files go.
        changes: What is written in place of what; each has to be on the page.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not [old for old in changes or {} if old not in text]
    for language in ("json", "csv", "yaml", "python"):
        for name, content in blocks(page, language):
            if name:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(changed(content, changes), encoding="utf-8")


def changed(content: str, changes: Mapping[str, str] | None) -> str:
    """A text with some parts replaced."""
    for old, new in (changes or {}).items():
        content = content.replace(old, new)
    return content


def shell(
    commands: Iterable[str], folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run bash blocks one after the other in a folder, with the `rlhf` command of this checkout, until one fails."""
    place = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})}
    place["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{place['PATH']}"
    return subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", "".join(commands)], cwd=folder, env=place, capture_output=True, text=True
    )


def examples(page: str) -> doctest.TestResults:
    """Run the interactive examples of a page, in one namespace, and compare what they print."""
    text = "".join(content for _, content in blocks(page, "pycon"))
    test = doctest.DocTestParser().get_doctest(text, {}, page, page, 0)
    return doctest.DocTestRunner(verbose=False).run(test)


def commands_of(text: str) -> list[str]:
    """`rlhf …`, `make …` and `accelerate launch …` in a page: lines of bash blocks, and inline code."""
    shell = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in shell for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [re.sub(r"^.*\| (?=rlhf )", "", line) for line in lines]
    return [line for line in lines if re.match(r"(rlhf|make|accelerate launch) \S", line)]


def check_command(line: str, root: Path = ROOT) -> None:
    """Check that a command line is one that there is, with the files that it names in a folder."""
    words = [word for word in shlex.split(line, comments=True) if word != "…"]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert not [word for word in words[1:] if "=" not in word and word not in targets], line
    elif words[0] == "accelerate":
        check_launch(words, root)
    else:
        check_rlhf(words, root)


def check_rlhf(words: list[str], root: Path) -> None:
    """Check a line of `rlhf`: its options, the project it names, overrides and stages."""
    from rlhf.cli import app

    command = typer.main.get_command(app)
    if words[1].startswith("--"):
        assert words[1] in {"--help", *(option for known in command.params for option in known.opts)}, words
        return
    assert words[1] in command.commands, words
    if len(words) == 2:  # in a sentence
        return
    context = command.commands[words[1]].make_context(words[1], words[2:])
    given = context.params.get("config")
    if given is None:
        return
    if not (root / given).is_file():
        assert str(given) in ("CONFIG", "helpdesk.yaml", "mine.yaml"), words
        return
    project = load_project(root / given, context.params["overrides"] or ())
    for option in ("only", "force"):
        named = (context.params.get(option) or "").split(",")
        assert {name for name in named if name} <= {*project.stages, "gate", "evaluate"}, words


def check_launch(words: list[str], root: Path) -> None:
    """Check a line of `accelerate launch`: its files, and the fields of the trainer."""
    from accelerate.commands.launch import launch_command_parser

    args = launch_command_parser().parse_args(words[2:])
    for file in filter(None, (args.config_file, args.training_script)):
        assert (root / file).is_file(), words
    assert args.training_script_args[0] == "--config"
    rest = [word.strip("[]…") for word in args.training_script_args[2:]]
    field_overrides(Path(args.training_script).stem, [word for word in rest if word])
