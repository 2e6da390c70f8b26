"""The worst files that fuzzing found end in a proposal that loads, or in one line."""

import os
from pathlib import Path

import pytest

from rlhf.config.load import load_project
from rlhf.init.look import measure

FILES = sorted((Path(__file__).parents[1] / "fuzz/corpus/data").iterdir())
READABLE = {
    "column-with-a-line-break.jsonl", "column-with-a-space.jsonl", "control-characters.jsonl", "duplicate-keys.jsonl",
    "line-separators.jsonl", "lines-under-the-name-json.json", "not-a-number.jsonl", "utf-8-with-bom.csv",
}  # fmt: skip
"""Files of pairs with oddities that are none for a reader."""


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_proposal_or_one_line(rlhf, tmp_path, tiny_llama, path):
    (tmp_path / path.name).write_bytes(path.read_bytes())
    done = rlhf("init", path.name, "--model", tiny_llama, "--out", "x.yaml")
    there = {each.name for each in tmp_path.iterdir()} - {path.name}
    assert done.code in (0, 2), done.err
    if done.code == 0:
        assert there == {"x.yaml"}
        load_project(tmp_path / "x.yaml")
        return
    assert path.name not in READABLE
    assert not there
    assert done.error.isprintable()
    assert len(done.error) <= 1500


@pytest.mark.parametrize("special", ["fifo", "folder", "link", "bytes"])
def test_what_is_no_file(rlhf, tmp_path, special):
    path = tmp_path / "rows.jsonl"
    match special:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to("nowhere")
        case "bytes":
            path.write_bytes(bytes(range(256)))
    done = rlhf("init", path.name, "--model", "x", "--out", "x.yaml")
    assert done.code == 2
    assert done.error
    assert not (tmp_path / "x.yaml").exists()


def test_a_name_that_is_no_text(rlhf, tmp_path):
    name = os.fsdecode(b"rows\xff.jsonl")
    (tmp_path / name).write_text('{"prompt": "a", "completion": "b"}\n')
    done = rlhf("init", name, "--model", "x", "--out", "x.yaml")
    assert (done.code, done.error) == (2, r"rows\udcff.jsonl: is no text in UTF-8; rename the file")


def test_rows_are_measured_once(rlhf, put, monkeypatch):
    """However many stages learn from a file, and however often its YAML is drafted."""
    calls = []
    monkeypatch.setattr("rlhf.network.hub_resolves", lambda: False)
    monkeypatch.setattr("rlhf.init.command.measure", lambda *given: calls.append(given) or measure(*given))
    pairs = put("pairs.jsonl", [{"prompt": "Sky?", "chosen": f"Blue {n}.", "rejected": "Green."} for n in range(9)])
    done = rlhf("init", pairs, "--model", "nobody/Quite-7B", "--to", "sft,reward,dpo", "--out", "x.yaml")
    assert (done.code, len(calls)) == (0, 1)
