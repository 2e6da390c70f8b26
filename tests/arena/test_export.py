"""Votes as data sets."""

import datasets
import pytest

from rlhf.arena.export import export, export_run
from rlhf.config.project import SourceConfig
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
    export([vote("first"), vote("second", comparison=2)], tmp_path, "tiny")
    assert export([vote("neither")], tmp_path, "tiny") == {"preferences": 0, "demonstrations": 0, "feedback": 2}
    assert not (tmp_path / "preferences").exists()
    assert not (tmp_path / "preferences.jsonl").exists()


def test_what_is_no_data_set_is_not_deleted(tmp_path):
    (tmp_path / "preferences").mkdir()
    (tmp_path / "preferences" / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(UserError, match="no data set"):
        export([vote("first")], tmp_path, "tiny")
    assert (tmp_path / "preferences" / "mine.txt").is_file()


def test_a_run_without_votes_has_nothing_to_export(tmp_path):
    with pytest.raises(UserError, match="no votes yet"):
        export_run(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
