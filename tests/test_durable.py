"""Files are there whole or as they were; every name that counts is synced, contents before names."""

import os

import pytest

from rlhf import durable
from rlhf.artifacts.json_files import write_json


@pytest.fixture
def calls(monkeypatch):
    """What was synced and renamed, in order."""
    made = []
    sync, replace = durable._sync, os.replace

    def noted_sync(path, flags):
        made.append(("sync", path.name))
        sync(path, flags)

    def noted_replace(source, target):
        made.append(("rename", source.name, target.name))
        replace(source, target)

    monkeypatch.setattr(durable, "_sync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    return made


def test_contents_are_synced_before_the_name_and_the_name_after_it(tmp_path, calls):
    with durable.written_whole(tmp_path / "a.json") as partial:
        partial.write_text("new")
    assert calls == [("sync", "a.json.partial"), ("rename", "a.json.partial", "a.json"), ("sync", tmp_path.name)]
    assert (tmp_path / "a.json").read_text() == "new"


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    write_json(tmp_path / "a.json", {"value": 1})

    def write():
        with durable.written_whole(tmp_path / "a.json") as partial:
            partial.write_text("{")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == '{\n  "value": 1\n}\n'


def test_a_tree_is_synced_from_the_inside_and_links_are_not_followed(tmp_path, calls):
    (tmp_path / "tree/inner").mkdir(parents=True)
    (tmp_path / "tree/inner/file").write_text("x")
    (tmp_path / "tree/link").symlink_to("/etc/hostname")
    durable.sync_tree(tmp_path / "tree")
    assert calls == [("sync", "file"), ("sync", "inner"), ("sync", "tree")]


def test_a_folder_is_renamed_and_both_parents_are_synced(tmp_path, calls):
    (tmp_path / "from/a").mkdir(parents=True)
    (tmp_path / "to").mkdir()
    durable.rename_durably(tmp_path / "from/a", tmp_path / "to/b")
    assert calls[0] == ("rename", "a", "b")
    assert {name for _, name in calls[1:]} == {"from", "to"}
    assert (tmp_path / "to/b").is_dir()
