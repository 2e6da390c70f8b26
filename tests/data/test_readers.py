import gzip
import json
import random

import pytest

from rlhf.data import readers
from rlhf.data.readers import read_file, reader_of
from rlhf.errors import UserError

ROWS = [{"prompt": "ä\nb", "n": 1}, {"prompt": 'quote " [ { ,', "n": 2}]


def read(path, name=None):
    return list(read_file(path, name or path.name))


def error_of(path):
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_kind_of_file_gives_the_same_rows(write, tmp_path):
    import pyarrow
    from pyarrow import parquet

    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    table = 'prompt,n\n"ä\nb",1\n"quote "" [ { ,",2\n'
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name, content in {
        "a.jsonl": lines,
        "a.ndjson": lines,
        "b.json": lines,
        "a.json": json.dumps(ROWS, indent=2),
        "a.jsonl.gz": lines,
        "a.json.gz": json.dumps(ROWS),
        "bom.jsonl": "\ufeff" + lines,
        "bom.json": "\ufeff" + json.dumps(ROWS),
        "crlf.jsonl": lines.replace("\n", "\r\n"),
        "unpacked.jsonl": gzip.compress(lines.encode()),  # gzip by content, not by name
    }.items():
        assert [row for row, _ in read(write(name, content))] == ROWS, name
    text_rows = [{**row, "n": str(row["n"])} for row in ROWS]
    for name, content in {
        "a.csv": table,
        "a.csv.gz": table,
        "a.tsv": table.replace(",", "\t", 1).replace('",', '"\t'),
    }.items():
        assert [row for row, _ in read(write(name, content))] == text_rows, name
    assert [row for row, _ in read(tmp_path / "a.parquet")] == ROWS


def test_origins_name_the_line_or_the_number_of_the_row(write, tmp_path):
    import pyarrow
    from pyarrow import parquet

    assert [origin for _, origin in read(write("a.jsonl", '{"a":1}\n\n{"a":2}\n'))] == ["a.jsonl:1", "a.jsonl:3"]
    assert [origin for _, origin in read(write("a.csv", 'a,b\n1,"x\ny"\n\n3,4\n'))] == ["a.csv:2", "a.csv:5"]
    assert [origin for _, origin in read(write("a.json", '[\n{"a":1},\n{"a":2}]'))] == ["a.json#1", "a.json#2"]
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert [origin for _, origin in read(tmp_path / "a.parquet")] == ["a.parquet#1", "a.parquet#2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": }\n', "a.jsonl:2:7: not valid JSON: expecting value"),
        ("a.jsonl", '{"a": 1}\n{"a": 1\n', "a.jsonl:2:8: not valid JSON: expecting ',' delimiter"),
        ("a.jsonl", '{"a": 1} {"a": 2}\n', "a.jsonl:1:10: not valid JSON: extra data"),
        ("a.jsonl", '{"a": 1}\n[1, 2]\n', "a.jsonl:2: expected an object with named columns, not [1, 2]"),
        ("a.jsonl.gz", '{"a": 1}\nnope\n', "a.jsonl.gz:2:1: not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xc3\xa4\xff"}\n', "a.jsonl:2:9: not text in UTF-8 (byte 0xff)"),
        ("a.jsonl", "", "a.jsonl: the file is empty"),
        ("a.jsonl", "\n\n", "a.jsonl: no rows in the file"),
        ("a.json", "", "a.json: the file is empty"),
        ("a.json", "[]", "a.json: no rows in the file"),
        ("a.json", '[{"a": 1},\n {"a": }]', "a.json:2:8: not valid JSON: expecting value"),
        ("a.json", '[{"a": 1},\n 5]', "a.json:2:2: not valid JSON: expected an object with named columns"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', "a.json:2:1: not valid JSON: expected ',' or ']'"),
        ("a.json", '[{"a": 1},\n]', "a.json:2:1: not valid JSON: a comma before the closing bracket"),
        ("a.json", '[{"a": 1},\n{"a": 2}', "a.json:2:9: not valid JSON: the array is never closed"),
        ("a.json", '[{"a": 1},\n{"a": "x', "a.json:2:7: not valid JSON: unterminated string"),
        ("a.json", '[{"a": 1}]\n{"a": 2}', "a.json:2:1: not valid JSON: something follows the array"),
        ("a.json", b'[{"a": 1},\n{"a": "\xff"}]', "a.json:2:8: not text in UTF-8 (byte 0xff)"),
        ("a.csv", "", "a.csv: the file is empty"),
        ("a.csv", "a,b\n", "a.csv: no rows in the file"),
        ("a.csv", "a,a\n1,2\n", "a.csv:1: the header names column 'a' twice"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", "a.csv:3: 3 cells in a table of 2 columns (a, b)"),
        ("a.csv", "a,b\n1\n", "a.csv:2: 1 cells in a table of 2 columns (a, b)"),
        ("a.csv", 'a,b\n1,2\n3,"open\n4,5\n', "a.csv:3: not valid CSV: unexpected end of data"),
        ("a.csv", b"a,b\n1,\xff\n", "a.csv:2:3: not text in UTF-8 (byte 0xff)"),
        ("a.parquet", "no parquet", "a.parquet: not a readable Parquet file (after row 0)"),
        ("a.txt", "hello", "a.txt: unknown kind of file (known: .jsonl"),
        ("a.jsonl", '{"a": 1}\n\n' + "\x00" * 9, "a.jsonl:3:1: not valid JSON: expecting value"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), "a.jsonl:1:1: not text in UTF-8 (byte 0xff)"),
        ("a.csv", "a,\x1b[31m\n1\n", "a.csv:2: 1 cells in a table of 2 columns (a, \\x1b[31m)"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(write, name, content, message):
    assert error_of(write(name, content)).startswith(message)


def test_gzip_that_is_cut_short_or_damaged(write):
    rows = [{"a": random.Random(0).random()} for _ in range(2000)]
    whole = write("a.jsonl.gz", rows).read_bytes()
    assert error_of(write("cut.jsonl", whole[: len(whole) // 2])).startswith("cut.jsonl: the gzip file is cut short")
    damaged = whole[:-8] + bytes(8)
    assert error_of(write("bad.jsonl", damaged)).startswith("bad.jsonl: the gzip file is cut short or damaged")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": "' + "x" * 5000, "a.jsonl:2: a line of more than 0 MiB"),
        ("a.json", '[{"a": 1},\n{"a": "' + "x" * 5000, "a.json:2:1: not valid JSON: an object of more than 0 MiB"),
        ("a.csv", "a,b\n1,2\n3," + '"' + "\n" * 1001, "a.csv:3: not valid CSV: field larger than field limit (1000)"),
        ("a.jsonl.gz", '{"a": 1}\n' + "\n" * 500_000, "a.jsonl.gz: unpacks to more than 200 times its size"),
        ("a.json.gz", "[" + " " * 500_000 + "]", "a.json.gz: unpacks to more than 200 times its size"),
    ],
)
def test_what_has_no_end_is_not_read_to_it(write, monkeypatch, name, content, message):
    monkeypatch.setattr(readers, "_CHUNK", 512)
    monkeypatch.setattr(readers, "_LONGEST_ROW", 1000)
    monkeypatch.setattr(readers, "_UNPACKED", 100_000)
    assert error_of(write(name, content)).startswith(message)


def test_text_that_packs_well_is_no_bomb(write, monkeypatch):
    monkeypatch.setattr(readers, "_UNPACKED", 1000)
    rows = [{"prompt": f"Where is order {number}?", "reply": "On its way."} for number in range(5000)]
    path = write("a.jsonl.gz", rows)
    assert sum(len(json.dumps(row)) for row in rows) > 8 * path.stat().st_size
    assert len(read(path)) == 5000


def test_parquet_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    def error_with(table):
        parquet.write_table(table, tmp_path / "a.parquet")
        return error_of(tmp_path / "a.parquet")

    def column(value, kind):
        return pyarrow.table({"a": pyarrow.array([value], kind)})

    raw = pyarrow.array([b"\xff"]).view(pyarrow.binary()).cast(pyarrow.string(), safe=False)
    assert "(after row 0): 'utf-8' codec can't decode" in error_with(pyarrow.table({"a": raw}))
    assert "(after row 0): " in error_with(column(2**60, pyarrow.timestamp("us")))
    twice = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 2, names=["a", "a"])
    assert error_with(twice) == "a.parquet: the header names column 'a' twice"
    monkeypatch.setattr(readers, "_UNPACKED", 1000)
    bomb = pyarrow.table({"a": ["x" * 1000] * 20_000})
    assert error_with(bomb).startswith("a.parquet: unpacks to more than 200 times its size")


def test_an_array_is_read_in_pieces_of_any_size(write, monkeypatch):
    rng = random.Random(0)
    rows = [{"text": 'x\n"\\u00e4ä€😀[]{},' * rng.randrange(30), "n": rng.random()} for _ in range(40)]
    path = write("a.json", json.dumps(rows, ensure_ascii=False, indent=1))
    broken = write("b.json", json.dumps(rows, ensure_ascii=False, indent=1)[:-2] + ', {"a" 1}]')
    expected = error_of(broken)
    for size in (1, 7, 64, 1000):
        monkeypatch.setattr(readers, "_CHUNK", size)
        assert [row for row, _ in read(path)] == rows
        assert error_of(broken) == expected


def test_a_long_array_is_not_held_in_memory(write):
    import tracemalloc

    path = write("a.json", json.dumps([{"text": "x" * 1000}] * 20_000))  # 20 MB
    tracemalloc.start()
    assert sum(1 for _ in read_file(path, "a")) == 20_000
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_deep_nesting_is_no_traceback(write):
    assert "a.jsonl:1: not valid JSON" in error_of(write("a.jsonl", '{"a":' + "[" * 100_000))


def test_reader_of():
    assert reader_of("x.JSONL.GZ") is readers.read_jsonl
    assert reader_of("x.gz") is None
    assert reader_of("README.md") is None
