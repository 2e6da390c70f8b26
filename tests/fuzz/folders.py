"""Folders of models and of finished runs with files that are damaged, missing or lie."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.fuzz.configs import places
from tests.fuzz.inputs import Content, Input, Special
from tests.fuzz.tables import LABELS, PAIRS, TEXT, Setting, project_on
from tests.fuzz.values import spoilt, values
from tests.fuzz.world import PROJECT, STEP, write_yaml

TEMPLATES = [
    "", "{{", "{% for %}", "{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ messages[99].content }}",
    "{{ undefined_name.x }}", "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{% for _ in range(10 ** 9) %}{% endfor %}", "{{ ''.__class__.__mro__ }}", "constant", "{{ messages }}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{{ 'a' * 10 ** 7 }}", "{% include 'x' %}",
    "{{ messages | tojson }}", "{{ messages[0].role.upper() }}{{ add_generation_prompt }}", "\x00", "{# #}",
    "{% generation %}x{% endgeneration %}",
]  # fmt: skip
RULES: dict[str, dict[str, list[Any]]] = yaml.safe_load((Path(__file__).parent / "lies.yaml").read_text("utf-8"))
RULES["tokenizer_config.json"]["chat_template"] = TEMPLATES


@st.composite
def _json_lies(draw: st.DrawFn, name: str, content: bytes) -> bytes:
    """A JSON file with one to two entries that are wrong; those that matter more often."""
    tree = json.loads(content)
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        there = places(tree)
        rules = RULES.get(name)
        if rules and isinstance(tree, dict) and draw(st.integers(0, 3)):
            key = draw(st.sampled_from(sorted(rules)))
            tree[key] = draw(st.sampled_from(rules[key]))
        elif there:
            path = draw(st.sampled_from(there[:400]))
            parent = tree
            for key in path[:-1]:
                parent = parent[key]
            if draw(st.integers(0, 3)):
                parent[path[-1]] = draw(values())
            else:
                del parent[path[-1]]
        if not isinstance(tree, dict):
            break
    return json.dumps(tree, default=str, skipkeys=True).encode()


@st.composite
def _tensor_lies(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file whose header or numbers are wrong."""
    size = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    names = [name for name in header if name != "__metadata__"]
    name = draw(st.sampled_from(names))
    start, end = header[name]["data_offsets"]
    match draw(
        st.sampled_from(
            [
                "nan",
                "inf",
                "zero",
                "huge",
                "shape",
                "dtype",
                "offsets",
                "gone",
                "renamed",
                "size",
                "metadata",
                "all nan",
            ]
        )
    ):
        case "nan":
            body[start : start + 4] = struct.pack("<f", float("nan"))
        case "all nan":
            body[:] = struct.pack("<f", float("nan")) * (len(body) // 4)
        case "inf":
            body[start : start + 4] = struct.pack("<f", float("inf"))
        case "huge":
            body[start:end] = struct.pack("<f", 3e38) * ((end - start) // 4)
        case "zero":
            body[start:end] = bytes(end - start)
        case "shape":
            header[name]["shape"] = draw(
                st.sampled_from([[], [1], header[name]["shape"][::-1], [0], [-1], [10**12], "a"])
            )
        case "dtype":
            header[name]["dtype"] = draw(st.sampled_from(["F16", "I32", "BOOL", "X", 1]))
        case "offsets":
            header[name]["data_offsets"] = draw(st.sampled_from([[0, 0], [0, 10**12], [-1, 4], [end, start], "a"]))
        case "gone":
            del header[name]
        case "renamed":
            header[f"{name}.x"] = header.pop(name)
        case "size":
            return struct.pack("<Q", draw(st.sampled_from([0, 1, size - 1, size + 1, 2**63, 2**64 - 1]))) + content[8:]
        case "metadata":
            header["__metadata__"] = draw(st.sampled_from([{}, {"format": "tf"}, {"format": "x"}, 1, None]))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(body)


@st.composite
def damaged(draw: st.DrawFn, name: str, content: bytes) -> tuple[Content, str]:
    """A file of a model or a run that is no longer what it was, and what happened to it."""
    lies: Callable[[], bytes] | None = None
    if name.endswith(".json"):
        lies = lambda: draw(_json_lies(name, content))  # noqa: E731
    elif name.endswith(".safetensors"):
        lies = lambda: draw(_tensor_lies(content))  # noqa: E731
    elif name.endswith(".jinja"):
        lies = lambda: draw(st.sampled_from(TEMPLATES)).encode()  # noqa: E731
    elif name.endswith(".jsonl"):
        lies = lambda: draw(_line_lies(content))  # noqa: E731
    how = draw(
        st.sampled_from(
            ["lies"] * 6
            + ["bytes"] * 2
            + ["empty", "gone", "folder", "unreadable", "link nowhere", "text", "null"]
            + ["fifo"] * (not name.startswith("."))
        )
    )
    if how == "lies" and lies is not None:
        return lies(), "lies"
    if how in ("lies", "bytes"):
        return draw(spoilt(content)), "bytes"
    if how in ("empty", "text", "null"):
        return {"empty": b"", "text": b"hello\n", "null": b"null"}[how], how
    return Special(how), how


@st.composite
def _line_lies(draw: st.DrawFn, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    if not lines:
        return b"{}\n"
    number = draw(st.integers(0, len(lines) - 1))
    wrong = st.sampled_from([b"\n", b"{}\n", b"[]\n", b"null\n", b"{", lines[number] * 2, b""])
    lies = _json_lies("", lines[number]).map(lambda line: line + b"\n")
    lines[number] = draw(st.one_of(wrong, lies))
    return b"".join(lines)


@st.composite
def models(draw: st.DrawFn, world: Path) -> Input:
    """A model with damaged files: what a run starts from, or what scores in it."""
    project = world / "project"
    use = draw(st.sampled_from(["base"] * 5 + ["adapter"] * 3 + ["classifier", "t5", "vit", "scorer", "scorer"]))
    base = {"base": "model", "adapter": "adapter"}.get(use, use)
    folder = world / "run/tiny/dpo" if use == "adapter" else project / base
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.name in (*RULES, "model.safetensors", "adapter_model.safetensors", "chat_template.jinja")
    )
    files: dict[str, Content] = {}
    if use == "adapter":
        files = {f"adapter/{name}": (folder / name).read_bytes() for name in names}
    what = ""
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        name = draw(st.sampled_from(names))
        files[f"{base}/{name}"], how = draw(damaged(name, (folder / name).read_bytes()))
        what = what or f"{name}: {how}"
    if use in ("classifier", "vit"):
        tree = project_on(
            LABELS._replace(model=base), {"source": "images"} if use == "vit" else {"source": "classes.jsonl"}
        )
        files["classes.jsonl"] = b"".join(
            json.dumps({"text": f"a {n}", "label": ["bad", "good"][n % 2]}).encode() + b"\n" for n in range(12)
        )
    elif use == "scorer":
        tree = {**PROJECT, "rewards": {"rm": {"model": "scorer"}}, "stages": {"sft": STEP}}
    elif use == "t5":
        tree = project_on(Setting("t5", None, "demonstrations", "sft"), {"source": "pairs.jsonl"})
    else:
        tree = project_on(
            draw(st.sampled_from([TEXT, PAIRS]))._replace(model=base),
            {"source": draw(st.sampled_from(["pairs.jsonl", "chats.jsonl"]))},
        )
    files["project.yaml"] = write_yaml(tree)
    return Input(
        "model", what, (draw(st.sampled_from(["check", "run", "run"])), "project.yaml"), files, trains=True, limit=90
    )


COMMANDS = [
    ("report", "tiny"), ("report", "tiny"), ("evaluate", "tiny"), ("evaluate", "project.yaml"), ("chat", "tiny"),
    ("chat", "tiny:sft"), ("publish", "tiny", "--dry-run"), ("publish", "tiny:reward", "--dry-run", "--merge"),
    ("arena", "tiny", "--export", "runs/votes"), ("run", "project.yaml"), ("run", "project.yaml"),
    ("run", "project.yaml", "--only", "evaluate", "--force", "evaluate"),
    ("run", "project.yaml", "--only", "dpo", "--force", "dpo"), ("run", "project.yaml", "--round", "2"),
    ("check", "project.yaml", "data.feedback.source=votes:tiny"),
]  # fmt: skip


@st.composite
def runs(draw: st.DrawFn, world: Path) -> Input:
    """A finished run with damaged files, opened by a command."""
    root = world / "run"
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    records = [name for name in names if name.endswith((".json", ".jsonl", ".sqlite", ".db", ".html", ".lock"))]
    files: dict[str, Content] = {}
    what = ""
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        name = draw(st.sampled_from([*names, *records, *records]))
        files[f"runs/{name}"], how = draw(damaged(Path(name).name, (root / name).read_bytes()))
        what = what or f"{Path(name).name}: {how}"
    return Input("artefact", what, draw(st.sampled_from(COMMANDS)), files, run=True, trains=True, limit=90)
