"""Files that nobody wrote on purpose: each is prepared, every row accounted for, or refused with one line."""

import gzip
import io
import json
import random
from base64 import b64decode

import pytest

from rlhf.data.prepare import evaluation_prompts, prepare
from rlhf.data.records import Encoded
from rlhf.data.splits import completions
from rlhf.errors import UserError

Q, A, B = (
    {"role": role, "content": content} for role, content in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)
HH, GPT = "\n\nHuman: a\n\nAssistant: ", {"from": "gpt", "value": "b"}
DOT = {
    "bytes": b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="),
    "path": None,
}
ROWS = [
    {"prompt": "p", "completion": "c"}, {"messages": [Q, A]}, {"prompt": "p", "chosen": "c", "rejected": "r"},
    {"chosen": [Q, A], "rejected": [Q, B]}, {"chosen": HH + "b", "rejected": HH + "c"}, {"text": "t", "label": 1},
    {"prompt": "p", "completion": "c", "label": True}, {"prompt": "p"}, {"text": "t"},
    {"instruction": "i", "input": "x", "output": "o"}, {"conversations": [{"from": "human", "value": "a"}, GPT]},
    {"prompt": "p", "chosen": [Q, A], "rejected": [Q, B]}, {"input": "i", "output_1": "a", "output_2": "b", "label": 1},
    {"question": "q", "answer": "#### 3"}, {"source": "s", "target": "t"}, {"image": DOT, "label": 1},
    {"context": "c", "question": "q", "answers": {"text": ["c"], "answer_start": [0]}},
    {"userInput": {"text": "we are 4"}, "labels": [{"slot": "people", "valueSpan": {"startIndex": 7, "endIndex": 8}}]},
]  # fmt: skip
FILES = 80
COLUMNS = [*sorted({column for row in ROWS for column in row}), "n", ""]
VALUES = [
    None, True, -1, 2.0, float("nan"), float("inf"), 10**30, "", "\ud83d", "\x00\x1b\u2028", [], {}, [[[]]], Q, [Q, A],
    [Q, None], {"role": "user"}, {"": [1]}, [{"role": None, "content": 5}], b"\xff",
]  # fmt: skip
SPLICED = [b"\x00", b"\n", b"\xff", b'"', b"{", b"]", b",", b"\\ud800", b"\r", b"\xef\xbb\xbf", b"\xed\xa0\xbd"]


def table(rng):
    """Rows of one layout, a few with a value that does not belong there."""
    shape, rows = rng.choice(ROWS), []
    for number in range(rng.choice([0, 1, 2, 12])):
        row = {column: f"{value}{number}" if isinstance(value, str) else value for column, value in shape.items()}
        if rng.random() < 0.1:
            row[rng.choice([*COLUMNS, *row, *row])] = rng.choice(VALUES)
        rows.append(row)
    return rows


def written(rng, kind, rows):
    """A file of such rows; None where Parquet cannot hold them."""
    import pyarrow
    from pyarrow import parquet

    if kind == "parquet":
        out = io.BytesIO()
        try:
            parquet.write_table(pyarrow.Table.from_pylist(rows), out)
        except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError, AttributeError):
            return None
        return out.getvalue()
    if kind.startswith("json."):
        return json.dumps(rows, default=str).encode()
    if kind.startswith("jsonl"):
        return "".join(json.dumps(row, default=str) + rng.choice(["\n", "\r\n", "\n\n"]) for row in rows).encode()
    lines = [list(rows[0]) if rows else [], *([str(value) for value in row.values()] for row in rows)]
    return "".join(",".join(f'"{cell}"' for cell in line) + "\n" for line in lines).encode("utf-8", "surrogatepass")


def spoilt(rng, content):
    """A few bytes changed, spliced in or cut off, as often as not."""
    data = bytearray(content)
    for _ in range(rng.choice([0, 0, 1, 3])):
        place = rng.randrange(len(data) + 1)
        how = rng.randrange(4)
        if how == 0:
            del data[place:]
        elif how == 1:
            del data[place : place + rng.randrange(20)]
        else:
            data[place:place] = rng.choice(SPLICED)
    return bytes(data)


def encode(record):
    texts = [record.text] if hasattr(record, "text") else [record.prompt, *completions(record)]
    return Encoded({"bytes": len(json.dumps(texts, ensure_ascii=False).encode())})


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "jsonl.gz", "json.gz"])
def test_every_row_is_accounted_for_or_one_line_says_why_not(project, tmp_path, kind):
    rng = random.Random(kind)
    outcomes = {"prepared": 0, "refused": 0}
    for number in range(FILES):
        content = written(rng, kind if kind.startswith("jsonl") else kind.replace("json", "json."), table(rng))
        if content is None:
            outcomes["refused"] += 1
            continue
        path = tmp_path / f"a.{kind}"
        path.write_bytes(spoilt(rng, gzip.compress(content) if kind.endswith(".gz") else content))
        role = rng.choice(["demonstrations", "preferences", "rollouts"])
        made, out = project(**{role: path}, holdout=0.3), tmp_path / f"out{number}"
        try:
            prepared = prepare(made, role, encode, out, keep_columns=True)
            prompts = evaluation_prompts(made, 5) if prepared.ledger.evaluated else []
        except UserError as error:
            outcomes["refused"] += str(error).isprintable() and not out.exists()
            continue
        outcomes["prepared"] += 1
        prepared.ledger.check()
        for extra in (
            *prepared.train["extra"],
            *prepared.eval["extra"],
            *(json.dumps(record.extra) for record in prompts),
        ):
            json.dumps(json.loads(extra), ensure_ascii=False, allow_nan=False).encode()
        assert len((out / "dropped.jsonl").read_text().splitlines()) <= prepared.ledger.dropped.total()
    assert sum(outcomes.values()) == FILES
    assert min(outcomes.values()) >= 5
