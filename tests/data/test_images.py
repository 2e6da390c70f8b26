"""Images: by path, as data, by folder, in tables; read once, and kept by their content."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow

from rlhf.config.sets import SourceConfig
from rlhf.data.formats import find
from rlhf.data.images import as_image, image_bytes, load_image
from rlhf.data.ledger import Ledger
from rlhf.data.prepare import evaluation_prompts, iter_records, prepare
from rlhf.data.records import Encoded, Image, Labelled, Unusable
from rlhf.data.sources import read_rows
from rlhf.errors import UserError
from tests.support.pictures import digits, picture


def rows_of(base, **fields):
    return list(read_rows(SourceConfig(**fields), base))


def records_of(made, role="demonstrations"):
    ledger = Ledger(role)
    records = [record for record, _ in iter_records(made, role, ledger)]
    ledger.check()
    return records


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_an_image_is_the_same_from_a_file_and_from_data(tmp_path, kind):
    content = picture(200, kind)
    path = tmp_path / "a.image"
    path.write_bytes(content)
    uri = as_image({"bytes": content, "path": None})
    assert uri.startswith(f"data:image/{kind.lower()};base64,")
    assert image_bytes(uri) == image_bytes(str(path)) == content
    pixels = [np.asarray(load_image(ref).convert("L")) for ref in (uri, str(path))]
    assert (pixels[0] == pixels[1]).all()
    assert np.abs(pixels[0].astype(int) - np.asarray(pillow.open(io.BytesIO(picture(200))), int)).max() <= 4


def test_bytes_of_something_else_are_no_image():
    for value in (
        b"RIFF....WAVE",
        {"bytes": b"RIFF....WAVE", "path": "a.wav"},
        {"bytes": None, "path": "a.png"},
        "BM",
        3,
    ):
        assert as_image(value) is None


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("{0}/none.png", "{0}/none.png: the image cannot be read: no such file or directory"),
        ("{0}", "{0}: the image cannot be read: is a directory"),
        ("{0}/text.png", "{0}/text.png: the image cannot be read: no known kind of image"),
        ("{0}/cut.png", "{0}/cut.png: the image cannot be read: "),
        ("{0}/cut.jpg", "{0}/cut.jpg: the image cannot be read: image file is truncated"),
        ("{0}/a\0.png", "{0}/a\\x00.png: the image cannot be read: "),
        ("data:image/png;base64,####", "data:image/png;base64,####: not a data URI of an image"),
        ("data:image/png", "data:image/png: not a data URI of an image: it has no comma"),
        ("data:image/png;base64," + "A" * 400, "data:image/png;base64," + "A" * 18 + "…: the image cannot be read"),
    ],
)
def test_an_image_that_cannot_be_read_is_one_line_with_its_name(tmp_path, ref, message):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes(picture(9, side=64)[:-30])
    (tmp_path / "cut.jpg").write_bytes(picture(9, "JPEG", side=64)[:-30])
    with pytest.raises(UserError) as caught:
        load_image(ref.format(tmp_path))
    assert str(caught.value).startswith(message.format(tmp_path))


def test_a_path_is_relative_to_the_file_that_names_it(write, tmp_path, project, monkeypatch):
    write("set/pictures/a.png", picture(1))
    write("b.png", picture(2))
    absolute = write("elsewhere/c.png", picture(3))
    rows = [{"image": "pictures/a.png", "label": "cat"}, {"image": "../b.png", "label": "dog", "n": 4}]
    write("set/train.jsonl", [*rows, {"image": str(absolute), "label": None}, {"image": None, "label": "cat"}])
    monkeypatch.chdir(tmp_path / "elsewhere")
    ledger = Ledger("demonstrations")
    made = project(demonstrations=[{"source": "set/train.jsonl"}], holdout=0.0)
    records = [record for record, _ in iter_records(made, "demonstrations", ledger)]
    assert [image_bytes(record.text) for record in records] == [picture(1), picture(2)]
    assert [record.labels for record in records] == [("cat",), ("dog",)]
    assert records[1].extra == {"n": 4}
    assert all(isinstance(record.text, Image) for record in records)
    assert all(Path(record.text).is_absolute() for record in records), "training may start in another folder"
    assert ledger.dropped == {"no label": 1, "no image": 1}


@pytest.mark.parametrize("name", ["c.png", "", "\0", "x" * 5000, "https://example.org/a.png"])
def test_a_file_that_is_not_there_is_not_looked_for_elsewhere(write, tmp_path, project, monkeypatch, name):
    write("elsewhere/c.png", picture(3))
    write("a.jsonl", [{"image": name or "none/", "label": 1}])
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"^\.\./a.jsonl:1: image .* no such file"):
        records_of(project(demonstrations=[{"source": "../a.jsonl"}]))


def test_a_damaged_image_stops_the_preparation_and_names_row_and_file(write, project, tmp_path):
    write("a.png", picture(1))
    write("b.png", picture(1, side=64)[:-30])
    path = write("a.jsonl", [{"image": "a.png", "label": 1}, {"image": "b.png", "label": 1}])
    with pytest.raises(UserError, match=r"a.jsonl:2: .*b.png: the image cannot be read"):
        prepare(project(demonstrations=path), "demonstrations", lambda record: Encoded({}), tmp_path / "out")


@pytest.mark.parametrize("stored", ["datasets", "bytes", "path"])
def test_images_in_parquet(write, tmp_path, project, stored):
    import pyarrow
    from pyarrow import parquet

    contents = [picture(value) for value in (1, 2, 3)]
    for number, content in enumerate(contents):
        write(f"{number}.png", content)
    cells = {
        "datasets": [{"bytes": content, "path": "a.png"} for content in contents],
        "path": [{"bytes": None, "path": f"{number}.png"} for number in range(3)],
        "bytes": contents,
    }[stored]
    rows = [
        {"image": cell, "label": number, "thumbnail": {"bytes": contents[0], "path": None}}
        for number, cell in enumerate(cells)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    records = records_of(project(demonstrations=tmp_path / "a.parquet", holdout=0.0))
    assert [image_bytes(record.text) for record in records] == contents
    assert [record.labels for record in records] == [("0",), ("1",), ("2",)]
    assert {tuple(record.extra) for record in records} == {()}, "an image that is data goes to no reward"


def test_images_of_datasets_files(tmp_path, project):
    """What `Dataset.to_parquet` writes is what is read."""
    import datasets

    pictures = [pillow.open(io.BytesIO(picture(value))) for value in (5, 6)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": pictures, "label": [0, 1]}, features).to_parquet(tmp_path / "a.parquet")
    records = records_of(project(demonstrations=tmp_path / "a.parquet", holdout=0.0))
    for record, original in zip(records, pictures, strict=True):
        assert (np.asarray(load_image(record.text)) == np.asarray(original)).all()


def test_images_of_the_hub_come_undecoded(tmp_path, monkeypatch):
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"img": [pillow.open(io.BytesIO(picture(5)))], "label": [1]}
    data = datasets.Dataset.from_dict(rows, features)
    monkeypatch.setattr("rlhf.network.hub_resolves", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: data)
    ((row, origin),) = rows_of(tmp_path, source="org/digits", columns={"image": "img"})
    assert find(None, row, origin).name == "images"
    assert np.asarray(load_image(row["image"])).tolist() == np.asarray(rows["img"][0]).tolist()


def test_equal_images_are_one_row_and_on_one_side(write, tmp_path, project):
    digits(write, each=30)
    for index in range(30):
        write(f"again/1/{index}.png", picture(20 + index))  # the same pictures of class 1, under other names
    made = project(demonstrations=[tmp_path / "digits", tmp_path / "again"], holdout=0.3)
    prepared = prepare(
        made, "demonstrations", lambda record: Encoded({"classes": list(record.labels)}), tmp_path / "out"
    )
    assert prepared.ledger.dropped["duplicate"] >= 30
    kept = {role: set() for role in ("train", "eval")}
    for record, side in iter_records(made, "demonstrations"):
        kept[side].add(image_bytes(record.text))
    assert kept["train"]
    assert kept["eval"]
    assert not kept["train"] & kept["eval"]
    prompts = evaluation_prompts(made, 100)
    assert {image_bytes(prompt.prompt) for prompt in prompts} == kept["eval"]
    assert all(isinstance(prompt.prompt, Image) for prompt in prompts)
    held = project(demonstrations=tmp_path / "digits", prompts=tmp_path / "again", holdout=0.0)
    assert {record.labels for record in records_of(held)} == {("0",), ("7",)}


def test_rows_without_an_image_or_a_label(tmp_path):
    layout = find("images", {}, "")
    ref = Image("data:image/png;base64," + base64.b64encode(picture(1)).decode())
    assert layout.parse({"image": ref, "label": []}, "f:1") == Labelled(ref, (), True, {}, "f:1")
    for row, why in (({"image": None, "label": 1}, "no image"), ({"image": ref, "label": None}, "no label")):
        with pytest.raises(Unusable) as caught:
            layout.parse(row, "f:1")
        assert caught.value.reason == why
    with pytest.raises(
        UserError, match="f:1: column 'image' must be a path, a data URI or an image of `datasets`, not 3"
    ):
        layout.parse({"image": 3, "label": 1}, "f:1")
    assert json.dumps(ref)
