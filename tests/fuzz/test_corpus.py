"""The worst inputs that were found: each is refused with its line, or read."""

from pathlib import Path

import pytest
import yaml

from tests.fuzz.inputs import Content, Input, Special

CORPUS = Path(__file__).parent / "corpus"
CASES = yaml.safe_load((CORPUS / "cases.yaml").read_text(encoding="utf-8"))
STAGES = {"demonstrations": "sft", "preferences": "reward", "feedback": "kto"}


def made(case) -> Input:
    """The input of a case."""
    files: dict[str, Content] = {name: (CORPUS / file).read_bytes() for name, file in case.get("files", {}).items()}
    files |= {name: Special(what) for name, what in case.get("special", {}).items()}
    command = case.get("command")
    if command is None:
        source = Path(case["file"]).name
        files[source] = (CORPUS / case["file"]).read_bytes()
        data, stages = {case["set"]: {"source": source}}, {STAGES[case["set"]]: {"max_steps": 1}}
        command = ["check", "project.yaml", f"data={data}", f"stages={stages}", "rewards={}", "evaluate=false"]
    run, trains = case.get("run", False), case.get("trains", False)
    return Input("corpus", case["id"], tuple(command), files, run, trains)


def _marked(case):
    """Cases that train, or that need a finished run, take longer."""
    return pytest.param(case, id=case["id"], marks=[pytest.mark.slow] if case.get("run") else [])


@pytest.mark.parametrize("case", map(_marked, CASES))
def test_the_worst_inputs(run, case):
    ended, line, wrong = run(made(case))
    assert (ended.code, wrong) == (case.get("code", 0), []), line
    assert case["line"] in line


def test_every_file_of_the_corpus_is_read():
    there = {str(path.relative_to(CORPUS)) for path in CORPUS.rglob("*") if path.is_file()}
    read = {file for case in CASES for file in (case.get("file"), *case.get("files", {}).values()) if file}
    assert {file for file in there if "__pycache__" not in file} == {*read, "cases.yaml"}
