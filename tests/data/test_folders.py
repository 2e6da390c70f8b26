"""Folders of images by class."""

from pathlib import Path

import pytest

from rlhf.config.sets import SourceConfig
from rlhf.data.images import image_bytes
from rlhf.data.prepare import iter_records
from rlhf.data.sources import fingerprint, read_rows
from rlhf.errors import UserError
from tests.support.pictures import digits, picture


def rows_of(base, **fields):
    return list(read_rows(SourceConfig(**fields), base))


def test_a_folder_by_class(write, tmp_path, project):
    digits(write)
    write("digits/README.md", "Ten fingers.")
    write("digits/.cache/a.png", b"")
    write("digits/0/notes.txt", "none")
    rows = rows_of(tmp_path, source="digits/")
    assert [origin for _, origin in rows[:4]] == [
        "digits/0/0000.png",
        "digits/1/0000.png",
        "digits/7/0000.png",
        "digits/0/0001.png",
    ]
    records = [
        record for record, _ in iter_records(project(demonstrations=tmp_path / "digits", holdout=0.0), "demonstrations")
    ]
    assert sorted((record.labels, image_bytes(record.text)) for record in records) == sorted(
        ((label,), picture(20 * number + index)) for number, label in enumerate("017") for index in range(4)
    )
    assert all(Path(record.text).is_absolute() for record in records)
    limited = rows_of(tmp_path, source="digits", limit=3)
    assert {row["label"] for row, _ in limited} == {"0", "1", "7"}, "a limit leaves out no class"


def test_a_folder_of_splits_by_class(write, tmp_path):
    digits(write, "digits/train")
    digits(write, "digits/test", each=1)
    assert len(rows_of(tmp_path, source="digits", split="train")) == 12
    (row, origin), *_ = rows_of(tmp_path, source="digits", split="test")
    assert (row["label"], origin) == ("0", "digits/test/0/0000.png")
    for options, message in (
        ({"source": "digits"}, r"folders of images in splits \(test, train\): name one with split"),
        ({"source": "digits", "split": "dev"}, r"no folder of split 'dev' \(found: test, train\)"),
        ({"source": "digits/train", "split": "dev"}, r"no folder of split 'dev' \(found: classes, not splits\)"),
        ({"source": "digits/train/0"}, "no data file in this folder .* no folders of images"),
    ):
        with pytest.raises(UserError, match=message):
            rows_of(tmp_path, **options)


def test_a_table_beside_its_images_is_the_source(write, tmp_path):
    digits(write)
    write("digits/train.csv", "image,label\n0/0000.png,zero\n")
    ((row, origin),) = rows_of(tmp_path, source="digits")
    assert (row["label"], image_bytes(row["image"]), origin) == ("zero", picture(0), "digits/train.csv:2")


def test_the_fingerprint_of_a_folder_follows_names_and_bytes(write, tmp_path):
    def mark():
        return fingerprint(SourceConfig("digits"), tmp_path)["sha256"]

    digits(write)
    marks = [mark()]
    write("digits/7/0003.png", picture(99))
    marks.append(mark())
    (tmp_path / "digits/7/0003.png").rename(tmp_path / "digits/1/0009.png")
    marks.append(mark())
    write("digits/LICENSE", "free")
    assert marks[2] == mark()
    assert len(set(marks)) == 3
