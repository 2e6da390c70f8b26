"""Status files: what a reader knows of who writes them."""

import json
import time

from rlhf.pipeline.status import StatusFile, StatusReader


def test_keys_change_one_by_one_and_a_reader_knows_since_when_it_has_read_each(tmp_path):
    file = StatusFile(tmp_path / "status.json", stage="sft")
    reader = StatusReader(file.path)
    assert reader.read() == {"stage": "sft", "writes": 1}
    first = reader.last_change
    time.sleep(0.01)
    file.write(step=3)
    assert reader.read() == {"stage": "sft", "step": 3, "writes": 2}
    assert reader.first_read["stage"] == first < reader.first_read["step"] == reader.last_change


def test_a_file_that_is_refreshed_is_live_until_it_is_stopped(tmp_path):
    file = StatusFile(tmp_path / "status.json", every=0.02, stage="sft")
    reader = StatusReader(file.path)
    reader.read()
    assert not reader.is_live  # it may be one that an earlier run left
    end = time.monotonic() + 60
    while not reader.is_live and time.monotonic() < end:
        reader.read()
    assert reader.is_live
    assert not reader.is_stale(60)
    file.stop()
    reader.read()
    time.sleep(0.1)
    reader.read()
    assert reader.is_stale(0.1)


def test_a_file_that_is_missing_or_broken_leaves_the_last_status(tmp_path):
    reader = StatusReader(tmp_path / "status.json")
    assert reader.read() == {}
    StatusFile(reader.path, stage="sft")
    reader.read()
    reader.path.write_text("{")
    assert reader.read()["stage"] == "sft"
    reader.path.unlink()
    assert reader.read()["stage"] == "sft"


def test_a_folder_that_is_gone_for_a_moment_loses_no_change(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    file = StatusFile(folder / "status.json", stage="sft")
    file.path.unlink()
    folder.rmdir()
    file.write(step=3)
    folder.mkdir()
    file.write()
    assert json.loads(file.path.read_text()) == {"stage": "sft", "step": 3, "writes": 3}
