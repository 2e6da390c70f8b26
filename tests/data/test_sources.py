import os
import subprocess
import sys

import pytest

from rlhf.config.sets import SourceConfig
from rlhf.data.sources import fingerprint, locate, read_rows
from rlhf.errors import UserError

ROWS = [{"prompt": "p1", "reply": "r1"}, {"prompt": "p2", "reply": "r2"}]


def rows_of(base, **fields):
    return list(read_rows(SourceConfig(**fields), base))


def error_of(base, **fields):
    with pytest.raises(UserError) as caught:
        rows_of(base, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_paths_go_from_the_current_folder_then_from_the_base(write, tmp_path, monkeypatch):
    write("base/a.jsonl", [{"where": "base"}])
    monkeypatch.chdir(tmp_path)
    assert rows_of(tmp_path / "base", source="a.jsonl") == [({"where": "base"}, "a.jsonl:1")]
    write("a.jsonl", [{"where": "here"}])
    assert rows_of(tmp_path / "base", source="a.jsonl") == [({"where": "here"}, "a.jsonl:1")]


def test_columns_are_renamed(write, tmp_path):
    write("a.jsonl", ROWS)
    read = rows_of(tmp_path, source="a.jsonl", columns={"completion": "reply"})
    assert read[0] == ({"prompt": "p1", "completion": "r1"}, "a.jsonl:1")
    swapped = rows_of(tmp_path, source="a.jsonl", columns={"prompt": "reply", "reply": "prompt"})
    assert swapped[0][0] == {"prompt": "r1", "reply": "p1"}
    message = error_of(tmp_path, source="a.jsonl", columns={"completion": "answer"})
    assert message == "a.jsonl:1: column 'answer' is missing (found: prompt, reply)"


def test_values_stand_for_others(write, tmp_path):
    stars = [4, "4", 4.0, "4.0", " 4 ", 3, None]
    write("a.jsonl", [{"stars": value} for value in stars])
    values = {"label": {4: True, "3": None}}
    read = rows_of(tmp_path, source="a.jsonl", columns={"label": "stars"}, values=values)
    assert [row["label"] for row, _ in read] == [True] * 5 + [None] * 2
    message = error_of(tmp_path, source="a.jsonl", columns={"label": "stars"}, values={"label": {4: True}})
    assert message == "a.jsonl:6: column 'label' is 3, but `values` lists 4"
    message = error_of(tmp_path, source="a.jsonl", values={"label": {4: True}})
    assert message == "a.jsonl:1: column 'label' is missing (found: stars)"


def test_flags_are_values(write, tmp_path):
    write("a.jsonl", [{"up": True}, {"up": "False"}])
    read = rows_of(tmp_path, source="a.jsonl", values={"up": {True: 1, "false": 0}})
    assert [row["up"] for row, _ in read] == [1, 0]


def test_a_part_of_an_object_is_a_column_too(write, tmp_path):
    rows = [{"translation": {"de": "Zug", "en": {"gb": "train"}}, "a.b": 1}]
    write("a.jsonl", rows)
    columns = {"source": "translation.de", "target": "translation.en.gb", "n": "a.b"}
    ((row, _),) = rows_of(tmp_path, source="a.jsonl", columns=columns)
    assert row == {"translation": rows[0]["translation"], "source": "Zug", "target": "train", "n": 1}
    for absent in ("translation.fr", "translation.de.x", "translation.", ".de"):
        assert f"column {absent!r} is missing" in error_of(tmp_path, source="a.jsonl", columns={"source": absent})


def test_classes_that_datasets_numbered_have_their_names(tmp_path, monkeypatch):
    import datasets

    names = ["neg", "pos"]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features)
    data.to_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr("rlhf.network.hub_resolves", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: data)
    for source in ("a.parquet", "org/reviews"):
        assert [row["label"] for row, _ in rows_of(tmp_path, source=source)] == ["pos", "neg", None]


@pytest.mark.parametrize(
    "metadata", [b"{", b"[]", b'{"info": 3}', b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}']
)
def test_what_else_stands_in_a_files_metadata_is_left_alone(tmp_path, metadata):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"text": ["a"], "label": [1]}).replace_schema_metadata({b"huggingface": metadata})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert rows_of(tmp_path, source="a.parquet") == [({"text": "a", "label": 1}, "a.parquet#1")]


def test_a_renamed_column_replaces_no_other(write, tmp_path):
    write("a.jsonl", [{"instruction": "Add."}, {"instruction": "Translate.", "input": "le train"}])
    message = error_of(tmp_path, source="a.jsonl", columns={"input": "instruction"})
    assert message.startswith("a.jsonl:2: columns: input: instruction would replace the row's own column 'input'")
    kept = rows_of(tmp_path, source="a.jsonl", columns={"text": "instruction", "instruction": "instruction"})
    assert kept[1][0] == {"text": "Translate.", "instruction": "Translate.", "input": "le train"}
    (tmp_path / "a.jsonl").write_text('{"instruction": "Translate.", "input": "le train"}')
    named = rows_of(tmp_path, source="a.jsonl", columns={"input": "instruction", "other_input": "input"})
    assert named[0][0] == {"input": "Translate.", "other_input": "le train"}


def test_limit_stops_before_what_follows_is_read(write, tmp_path):
    write("a.jsonl", '{"a": 1}\nbroken')
    assert rows_of(tmp_path, source="a.jsonl", limit=1) == [({"a": 1}, "a.jsonl:1")]


def test_a_folder_is_its_data_files_in_the_order_of_their_names(write, tmp_path):
    write("set/b.jsonl.gz", [{"n": 2}])
    write("set/a.csv", "n\n1\n")
    for name in ("README.md", "LICENSE", ".hidden.jsonl", "dataset_info.json"):
        write(f"set/{name}", "{}")
    assert rows_of(tmp_path, source="set/") == [({"n": "1"}, "set/a.csv:2"), ({"n": 2}, "set/b.jsonl.gz:1")]
    (tmp_path / "none").mkdir()
    assert error_of(tmp_path, source="./none").startswith("./none: no data file in this folder")


def test_a_folder_of_several_splits_is_never_mixed(write, tmp_path):
    write("set/train-00.jsonl", [{"n": 1}])
    write("set/train-01.jsonl", [{"n": 2}])
    write("set/test.jsonl", [{"n": 3}])
    assert error_of(tmp_path, source="set") == "set: files of several splits (test, train): name one with split"
    assert [row["n"] for row, _ in rows_of(tmp_path, source="set", split="train")] == [1, 2]
    assert "no file of split 'dev'" in error_of(tmp_path, source="set", split="dev")
    assert "this is a single file" in error_of(tmp_path, source="set/test.jsonl", split="test")


def test_a_missing_file_is_named_with_its_nearest_neighbour(write, tmp_path):
    write("data/preferences.jsonl", ROWS)
    message = error_of(tmp_path, source="data/preference.jsonl")
    assert message == "data/preference.jsonl: no such file or folder (did you mean 'data/preferences.jsonl'?)"
    assert error_of(tmp_path, source="./nothing") == "./nothing: no such file or folder"
    assert error_of(tmp_path, source="x/y/z") == "x/y/z: no such file or folder"


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, write):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    assert error_of(tmp_path, source="pipe.jsonl").startswith("pipe.jsonl: a pipe or a device")
    assert error_of(tmp_path, source="/dev/zero").startswith("/dev/zero: a pipe or a device")
    with pytest.raises(UserError, match="a pipe or a device"):
        fingerprint(SourceConfig(source="pipe.jsonl"), tmp_path)
    assert error_of(tmp_path, source="loop.jsonl").startswith("loop.jsonl: a link that leads nowhere")
    assert "cannot be read: file name too long" in error_of(tmp_path, source="x" * 300 + ".jsonl")
    write("set/a.jsonl", ROWS)
    os.mkfifo(tmp_path / "set/b.jsonl")
    assert len(rows_of(tmp_path, source="./set")) == 2


def test_a_hub_id_that_cannot_be_reached(tmp_path, monkeypatch, write):
    monkeypatch.setattr("rlhf.network.hub_resolves", lambda: False)
    assert error_of(tmp_path, source="org/name") == "'org/name' is neither a file here nor a reachable hub dataset"
    write("data/support/a.jsonl", ROWS)
    assert error_of(tmp_path, source="data/suport").endswith("(did you mean 'data/support'?)")


def test_hub_rows(tmp_path, monkeypatch):
    import datasets

    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        if args[0] == "gone/gone":
            raise datasets.exceptions.DatasetNotFoundError("no such dataset")
        if kwargs["split"] == "tain":
            raise ValueError('Unknown split "tain".\nShould be one of ["train"].')
        if args[0] == "old/script":
            raise RuntimeError("Dataset scripts are no longer supported, but found script.py")
        if args[0] == "with/images":
            return (row if row is ROWS[0] else 1 / 0 for row in ROWS)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr("rlhf.network.hub_resolves", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert rows_of(tmp_path, source="org/name", limit=1) == [(ROWS[0], "org/name/train#1")]
    rows_of(tmp_path, source="org/name:main@abc", split="test", streaming=True)
    assert calls == [
        (("org/name", None), {"split": "train", "revision": None, "streaming": False}),
        (("org/name", "main"), {"split": "test", "revision": "abc", "streaming": True}),
    ]
    assert error_of(tmp_path, source="gone/gone").startswith("'gone/gone' is neither a file here")
    assert error_of(tmp_path, source="old/script") == (
        "old/script: datasets cannot load it: Dataset scripts are no longer supported, but found script.py"
    )
    assert error_of(tmp_path, source="with/images").startswith("with/images: row 2 cannot be read: division by zero")
    assert error_of(tmp_path, source="org/name", split="tain").startswith('org/name: Unknown split "tain". Should be')


def test_fingerprints_follow_the_content_and_what_is_read_of_it(write, tmp_path):
    def mark(**fields):
        return fingerprint(SourceConfig(**fields), tmp_path)

    write("a.jsonl", ROWS)
    write("moved/a.jsonl", ROWS)
    first = mark(source="a.jsonl")
    assert first["file"] == "a.jsonl"
    assert len(first["sha256"]) == 64
    assert mark(source="moved/a.jsonl") == first  # where it lies does not matter
    for change in ({"limit": 1}, {"weight": 2.0}, {"format": "kto"}, {"columns": {"a": "b"}}):
        assert mark(source="a.jsonl", **change) != first
    folder = mark(source="moved")
    write("moved/b.jsonl", ROWS)
    assert mark(source="moved")["sha256"] != folder["sha256"]
    write("a.jsonl", ROWS[:1])
    assert mark(source="a.jsonl")["sha256"] != first["sha256"]
    assert mark(source="org/name@abc") == {"hub": "org/name", "split": "train", "revision": "abc"}
    with pytest.raises(UserError, match="no such file"):
        mark(source="gone.jsonl")


def test_locate(write, tmp_path):
    path = write("a.jsonl", ROWS)
    assert locate("a.jsonl", tmp_path) == path
    assert locate("org/name", tmp_path) is None


def test_fingerprints_import_nothing_heavy():
    code = (
        "import sys, rlhf.data.prepare; "
        "print([m for m in ('torch', 'datasets', 'transformers', 'trl', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
