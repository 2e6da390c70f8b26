"""What bears a checkpoint's name is whole; what was damaged since is named and passed over."""

import json
import os
import shutil
from collections import namedtuple

import pytest

from rlhf.errors import UserError
from rlhf.training.checkpoints import (
    MANIFEST,
    check_space,
    drop_old,
    good_checkpoint,
    partial_folder,
    read_checkpoint,
    seal,
)


def write(folder, step, scheduled=True):
    partial = partial_folder(folder, step)
    (partial / "weights.safetensors").write_bytes(bytes(range(256)) * 4)
    (partial / "inner").mkdir()
    (partial / "inner/trainer_state.json").write_text(json.dumps({"global_step": step}))
    return seal(partial, step, scheduled)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_gets_its_name_once_it_is_whole(tmp_path, monkeypatch):
    final = write(tmp_path, 10, scheduled=False)
    assert names(tmp_path) == ["checkpoint-10"]
    manifest = read_checkpoint(final)
    assert (manifest["step"], manifest["scheduled"], list(manifest["files"])) == (
        10, False, ["inner/trainer_state.json", "weights.safetensors"],
    )  # fmt: skip

    def cut_short(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", cut_short)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 20)
    assert good_checkpoint(tmp_path) == final
    monkeypatch.undo()
    assert write(tmp_path, 20) == good_checkpoint(tmp_path)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-20"], "nothing is left of the attempt"


def damages(size):
    yield "emptied", lambda path: path.write_bytes(b"")
    yield "removed", lambda path: path.unlink()
    for cut in (1, size // 2, size - 1):
        yield f"cut by {cut}", lambda path, cut=cut: os.truncate(path, size - cut)
    for place in (0, size // 2, size - 1):

        def flip(path, place=place):
            content = bytearray(path.read_bytes())
            content[place] ^= 1
            path.write_bytes(content)

        yield f"flipped at {place}", flip
    yield "lengthened", lambda path: path.write_bytes(path.read_bytes() + b" ")

    def link(path):
        elsewhere = path.parents[1] / "elsewhere"
        shutil.copy(path, elsewhere)
        path.unlink()
        path.symlink_to(elsewhere)

    yield "a link", link


@pytest.mark.parametrize("name", [MANIFEST, "weights.safetensors", "inner/trainer_state.json"])
def test_every_damage_of_every_file_is_recognised(tmp_path, capsys, name):
    size = (write(tmp_path / "whole", 20) / name).stat().st_size
    for what, damage in damages(size):
        folder = tmp_path / what.replace(" ", "-")
        before, newest = write(folder, 3), write(folder, 20)
        damage(newest / name)
        assert good_checkpoint(folder) == before, what
        assert capsys.readouterr().err.count("\n") == 1
        assert names(folder) == ["checkpoint-3", "damaged-checkpoint-20"] or what == "a link"


def test_a_file_that_nobody_wrote_is_a_damage(tmp_path):
    (write(tmp_path, 3) / "pytorch_model.bin").write_bytes(b"a pickle")
    assert good_checkpoint(tmp_path) is None


def test_none_is_left(tmp_path, capsys):
    (write(tmp_path, 3) / "weights.safetensors").unlink()
    assert good_checkpoint(tmp_path) is None
    assert "weights.safetensors: is missing" in capsys.readouterr().err
    assert good_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [1, 2, 3, 10]),
        (0, None, [1, 2, 3, 10]),
        (2, None, [3, 10]),
        (1, None, [10]),
        (2, "checkpoint-1", [1, 10]),
        (1, "checkpoint-1", [1, 10]),
        (3, "checkpoint-1", [1, 3, 10]),
    ],
)
def test_the_newest_and_the_best_are_never_dropped(tmp_path, limit, best, left):
    for step in (1, 2, 3, 10):
        write(tmp_path, step)
    drop_old(tmp_path, limit, best and str(tmp_path / best))
    assert names(tmp_path) == sorted(f"checkpoint-{step}" for step in left)


def test_one_that_a_signal_asked_for_goes_with_the_next(tmp_path):
    """And what was being deleted; so those that are left are those of a run that nobody disturbed."""
    for step, scheduled in ((3, True), (6, True), (8, False)):
        write(tmp_path, step, scheduled)
        drop_old(tmp_path, 2, None)
    assert names(tmp_path) == ["checkpoint-6", "checkpoint-8"]
    (tmp_path / ".checkpoint-3").mkdir()
    write(tmp_path, 9)
    drop_old(tmp_path, 2, None)
    assert names(tmp_path) == ["checkpoint-6", "checkpoint-9"]
    write(tmp_path, 10, scheduled=False)
    write(tmp_path, 12)
    drop_old(tmp_path, None, None)
    assert names(tmp_path) == ["checkpoint-12", "checkpoint-6", "checkpoint-9"]


def test_a_checkpoint_that_does_not_fit_is_refused_before_it_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 10**8, 10**8))
    check_space(tmp_path, 10**7)
    with pytest.raises(UserError, match=r"a checkpoint needs 107 MB of free space, and 100 MB are free"):
        check_space(tmp_path, 90 * 10**6)
