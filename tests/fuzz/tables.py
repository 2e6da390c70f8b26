"""Data files: rows of every known format with wrong columns and values, in every kind of file, spoilt or not there."""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from hypothesis import strategies as st
from pyarrow import parquet

from tests.fuzz.inputs import Content, Input, Special
from tests.fuzz.values import nested, spoilt, values
from tests.fuzz.world import JUDGE, ONLINE, STEP, write_yaml


class Setting(NamedTuple):
    """What reads a set."""

    model: str
    policy: str | None
    role: str
    stage: str


TEXT = Setting("model", None, "demonstrations", "sft")
PAIRS = Setting("model", None, "preferences", "reward")
LABELS = Setting("classifier", "label", "demonstrations", "sft")
SPANS = Setting("bert", "span", "demonstrations", "sft")
FOUR = {"startIndex": 4, "endIndex": 5}
USER, REPLY = {"role": "user", "content": "Ask {n}"}, {"role": "assistant", "content": "Reply {n}"}
NO = {**REPLY, "content": "no {n}"}
TURN = "\n\nHuman: Ask {n}\n\nAssistant: "

FORMATS: list[tuple[str, Setting, dict[str, Any]]] = [
    ("messages", TEXT, {"messages": [USER, REPLY]}),
    ("prompt_completion", TEXT, {"prompt": "Ask {n}", "completion": " reply {n}"}),
    ("prompt_completion", TEXT, {"prompt": [USER], "completion": [REPLY]}),
    ("alpaca", TEXT, {"instruction": "Do {n}", "input": "it", "output": "done {n}"}),
    ("sharegpt", TEXT, {"conversations": [{"from": "human", "value": "a {n}"}, {"from": "gpt", "value": "b {n}"}]}),
    ("gsm8k", TEXT, {"question": "How many {n}?", "answer": "So many. #### {n}"}),
    ("text", TEXT, {"text": "A text {n}"}),
    ("text_to_text", Setting("t5", None, "demonstrations", "sft"), {"source": "a {n}", "target": "b {n}"}),
    ("preference", PAIRS, {"prompt": "Ask {n}", "chosen": " good {n}", "rejected": " bad {n}"}),
    ("preference", PAIRS, {"prompt": [USER], "chosen": [REPLY], "rejected": [NO]}),
    ("hh", PAIRS, {"chosen": TURN + "good {n}", "rejected": TURN + "bad {n}"}),
    ("ultrafeedback", PAIRS, {"prompt": "Ask {n}", "chosen": [USER, REPLY], "rejected": [USER, NO]}),
    ("llmbar", PAIRS, {"input": "Ask {n}", "output_1": "good {n}", "output_2": "bad {n}", "label": 1}),
    ("helpsteer3", PAIRS, {"context": [USER], "response1": "a {n}", "response2": "b {n}", "overall_preference": -2}),
    ("kto", Setting("model", None, "feedback", "kto"), {"prompt": "Ask {n}", "completion": " b {n}", "label": True}),
    ("prompt_only", Setting("model", None, "rollouts", "ppo"), {"prompt": "Ask {n}"}),
    ("labelled", LABELS, {"text": "A text {n}", "label": "{class}"}),
    ("images", Setting("vit", "label", "demonstrations", "sft"), {"image": "images/0/0.png", "label": "{class}"}),
    ("squad", SPANS, {"context": "it {n}", "question": "What?", "answers": {"text": ["it"], "answer_start": [0]}}),
    ("restaurant8k", SPANS, {"userInput": {"text": "for 4 at {n}"}, "labels": [{"slot": "people", "valueSpan": FOUR}]}),
]  # fmt: skip
SUFFIXES = ["jsonl"] * 8 + ["json", "csv", "parquet"] * 4 + ["tsv", "tsv", "ndjson", "JSONL", "txt", "arrow"]


def filled(value: Any, number: int) -> Any:
    """A row's template with its number in every text."""
    if isinstance(value, str):
        return value.replace("{n}", str(number)).replace("{class}", ("bad", "good")[number % 2])
    if isinstance(value, list):
        return [filled(item, number) for item in value]
    return {key: filled(item, number) for key, item in value.items()} if isinstance(value, dict) else value


@st.composite
def rows(draw: st.DrawFn, template: dict[str, Any]) -> list[Any]:
    """Rows of a format, some of them wrong."""
    made = [filled(template, number) for number in range(draw(st.sampled_from([6, 12, 2, 1, 6, 6, 12, 12, 0])))]
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        if not made:
            break
        number = draw(st.integers(0, len(made) - 1))
        everywhere = draw(st.booleans())
        change = draw(_changes(template))
        for place in range(len(made)) if everywhere else [number]:
            made[place] = change(made[place])
    return made


@st.composite
def _changes(draw: st.DrawFn, template: dict[str, Any]) -> Callable[[Any], Any]:
    column = draw(st.sampled_from([*template, *template, "extra", "", "label", "prompt", "images"]))
    value = draw(
        st.one_of(values(), values(), st.sampled_from(["\ud800", "a\udfffb", nested(40), 10**4000, "x" * 30_000]))
    )
    how = draw(st.sampled_from(["value", "value", "value", "inner", "inner", "gone", "renamed", "row"]))

    def change(row: Any) -> Any:
        row = copy.deepcopy(row)
        if not isinstance(row, dict):
            return row
        if how == "row":
            return value
        if how == "value":
            row[column] = value
        elif how == "gone":
            row.pop(column, None)
        elif how == "renamed" and column in row:
            row[f"{column} "] = row.pop(column)
        elif how == "inner":
            inner = row.get(column)
            if isinstance(inner, list) and inner:
                first = inner[0]
                if isinstance(first, dict) and first:
                    first[next(iter(first))] = value
                else:
                    inner.append(value)
            elif isinstance(inner, dict) and inner:
                inner[next(iter(inner))] = value
        return row

    return change


def written(suffix: str, table: list[Any]) -> bytes | None:
    """A file of these rows; None where such a file cannot hold them."""
    try:
        if suffix == "parquet":
            out = io.BytesIO()
            parquet.write_table(pyarrow.Table.from_pylist(table), out)
            return out.getvalue()
        if suffix == "json":
            return _json(table)
        if suffix in ("csv", "tsv"):
            text = io.StringIO()
            writer = csv.writer(text, delimiter="\t" if suffix == "tsv" else ",")
            writer.writerow(table[0] if table and isinstance(table[0], dict) else [])
            writer.writerows(row.values() if isinstance(row, dict) else [row] for row in table)
            return text.getvalue().encode("utf-8", "surrogatepass")
        return b"".join(_json(row) + b"\n" for row in table)
    except (pyarrow.ArrowException, OverflowError, ValueError, TypeError, AttributeError, csv.Error):
        return None


def _json(value: Any) -> bytes:
    return json.dumps(value, default=str).encode()


def project_on(setting: Setting, source: Any) -> dict[str, Any]:
    """A project whose one stage reads that source."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "model": {"name_or_path": setting.model, "adapter": None},
        "data": {setting.role: source},
        "stages": {setting.stage: STEP},
        "evaluate": False,
    }
    if setting.policy is not None:
        tree["model"]["policy"] = setting.policy
    if setting.stage == "ppo":
        tree["rewards"] = {"long": {"function": "judge.py:score"}}
        tree["stages"] = {"ppo": {**ONLINE, "rewards": {"long": 1.0}}}
    return tree


@st.composite
def tables(draw: st.DrawFn, world: Path) -> Input:
    """A data file, or what stands in its place, read by `rlhf check` or by `rlhf run` up to its training."""
    name, setting, template = draw(st.sampled_from(FORMATS))
    suffix = draw(st.sampled_from(SUFFIXES))
    content, what = written(suffix, draw(rows(template))), f"{name}: rows"
    if content is None:
        suffix, content = "jsonl", b"".join(_json(filled(template, number)) + b"\n" for number in range(6))
    if draw(st.integers(0, 3)) == 3:
        content, what = draw(spoilt(content)), f"{name}: bytes"
    if draw(st.integers(0, 7)) == 7:
        packed = gzip.compress(content, mtime=0)
        content = draw(spoilt(packed, 1)) if draw(st.booleans()) else packed
        suffix += draw(st.sampled_from([".gz", "", ".GZ"]))
    file = (
        draw(st.sampled_from(["rows"] * 12 + ["ro ws", "röws", "-rows", "a=b", "rows:x", "train", "r\nows"]))
        + f".{suffix}"
    )
    files: dict[str, Content] = {file: content}
    source: dict[str, Any] = {"source": file}
    if draw(st.integers(0, 14)) == 14:
        files, source["source"], what = draw(_places(file, content))
    if draw(st.integers(0, 5)) == 5:
        source["format"] = draw(st.sampled_from([name, *(other for other, _, _ in FORMATS)]))
    if draw(st.integers(0, 9)) == 9:
        columns = st.sampled_from([*template, "extra", "answers.text", "x.y.z", "", " "])
        source["columns"] = draw(st.dictionaries(columns, columns, max_size=2))
    if draw(st.integers(0, 9)) == 9:
        source["weight"] = draw(st.sampled_from([0.5, 2.0, 1e-9, 1e9, 3.7]))
    files["project.yaml"] = write_yaml(project_on(setting, source))
    files.setdefault("judge.py", JUDGE)
    command = draw(st.sampled_from(["check", "check", "run"]))
    return Input("data", what, (command, "project.yaml"), files)


@st.composite
def _places(draw: st.DrawFn, file: str, content: bytes) -> tuple[dict[str, Content], str, str]:
    """What stands where a file should: its files, the source and the kind of place."""
    kind = draw(st.sampled_from([
        "fifo", "socket", "unreadable", "folder", "gone", "link gone", "link loop", "link device", "folder of files",
        "folder of images", "hidden", "device", "inside a file", "unreadable folder",
    ]))  # fmt: skip
    png = b"\x89PNG\r\n\x1a\n" + content[:60]
    match kind:
        case "link gone":
            return {file: Special("link nowhere.jsonl")}, file, kind
        case "link loop":
            return {file: Special(f"link {file}")}, file, kind
        case "link device":
            return {file: Special("link /dev/zero")}, file, kind
        case "folder of files":
            more = draw(st.sampled_from(["train.jsonl", "test.jsonl", "a.csv", "b.parquet", "README.md", "state.json"]))
            return (
                {f"set/{file}": content, f"set/{more}": draw(spoilt(content))},
                draw(st.sampled_from(["set", "set/", "./set"])),
                kind,
            )
        case "folder of images":
            return (
                {f"set/0/{n}.png": png for n in range(3)} | {"set/1/a.jpg": b"", "set/é/b.png": Special("folder")},
                "set",
                kind,
            )
        case "hidden":
            return {f"set/.{file}": content}, "set", kind
        case "device":
            return (
                {},
                draw(st.sampled_from(["/dev/null", "/dev/zero", "/dev/stdin", "/dev/full", "/proc/self/mem"])),
                kind,
            )
        case "inside a file":
            return {file: content}, f"{file}/{file}", kind
        case "unreadable folder":
            return (
                {"set/x/rows.jsonl": content, "set/x": Special("unreadable")},
                draw(st.sampled_from(["set", "set/x", "set/x/rows.jsonl"])),
                kind,
            )
    return {file: Special(kind)}, file, kind
