"""Votes as data sets."""

import os

import datasets
import pytest

from rlhf.arena.export import export, export_run
from rlhf.config.sets import SourceConfig
from rlhf.data.sources import read_rows
from rlhf.errors import UserError
from tests.support.votes import vote

CHAT = [{"role": "user", "content": "hello"}]


def test_both_ways_of_datasets_load_what_was_written(tmp_path):
    votes = [
        vote("first", prompt=CHAT, comparison=1, edit="As it should be.", columns={"order": "1"}),
        vote("neither", prompt="plain", comparison=2, annotator="ben"),
        vote("second", prompt=CHAT, comparison=3, columns={"name": "Ada"}),
    ]
    counts = export(votes, tmp_path / "out", "tiny")
    assert counts == {"preferences": 2, "demonstrations": 1, "feedback": 2}
    for name, count in counts.items():
        saved = datasets.load_from_disk(str(tmp_path / "out" / name))
        loaded = datasets.load_dataset(str(tmp_path / "out"), name, cache_dir=str(tmp_path / "cache"))["train"]
        assert len(saved) == len(loaded) == count
        assert saved[0] == loaded[0]
        rows = [row for row, _ in read_rows(SourceConfig(str(tmp_path / "out" / f"{name}.jsonl")), tmp_path)]
        assert len(rows) == count
    pairs = datasets.load_from_disk(str(tmp_path / "out" / "preferences"))
    assert pairs[0]["chosen"] == [{"role": "assistant", "content": "sft says"}]
    assert pairs[1]["chosen"] == [{"role": "assistant", "content": "dpo says"}]


def test_an_export_again_replaces_the_first(tmp_path):
    out = tmp_path / "out"
    export([vote("first"), vote("second", comparison=2)], out, "tiny")
    assert export([vote("neither")], out, "tiny") == {"preferences": 0, "demonstrations": 0, "feedback": 2}
    assert sorted(file.name for file in out.iterdir()) == ["README.md", "feedback", "feedback.jsonl"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kept", ["README.md", "preferences.jsonl", "preferences/mine.txt", "mine.txt", ".git/HEAD"])
def test_what_is_no_export_is_left_as_it_is(tmp_path, kept):
    out = tmp_path / "out"
    (out / kept).parent.mkdir(parents=True)
    (out / kept).write_text("keep", encoding="utf-8")
    with pytest.raises(UserError, match="give another folder"):
        export([vote("first")], out, "tiny")
    assert contents(tmp_path) == {f"out/{kept}": b"keep"}


def test_what_was_added_to_an_export_is_left_too(tmp_path):
    out = tmp_path / "out"
    export([vote("first")], out, "tiny")
    (out / "notes.txt").write_text("keep", encoding="utf-8")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"notes\.txt"):
        export([vote("neither")], out, "tiny")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("failing", ["Dataset.save_to_disk", "os.replace"])
def test_a_failure_leaves_the_earlier_export_whole(tmp_path, monkeypatch, failing):
    out = tmp_path / "out"
    export([vote("first")], out, "tiny")
    before, replace = contents(tmp_path), os.replace

    def fails(source, target):
        if target == out and not source.name.endswith("-before"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    def full(*_):
        raise OSError(28, "No space left on device")

    if failing == "os.replace":
        monkeypatch.setattr(os, "replace", fails)
    else:
        monkeypatch.setattr(datasets.Dataset, "save_to_disk", full)
    with pytest.raises(UserError, match="no space"):
        export([vote("neither"), vote("second", comparison=2)], out, "tiny")
    assert contents(tmp_path) == before


def test_an_empty_folder_and_a_link_to_one_are_taken(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    export([vote("first")], tmp_path / "link", "tiny")
    assert (tmp_path / "real" / "README.md").is_file()
    assert (tmp_path / "link").is_symlink()


def test_a_run_without_votes_has_nothing_to_export(tmp_path):
    with pytest.raises(UserError, match="no votes yet"):
        export_run(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
