"""Values that nobody expects, and ways to spoil bytes; every kind of input draws from these."""

from __future__ import annotations

import codecs
import datetime
from typing import Any

from hypothesis import strategies as st

TEXTS = [
    "", " ", "\n", "\t", "a", "null", "true", "nan", "-1", "1e999", "0x10", "..", ".", "/", "~", "~nobody/x", "//",
    "a/b", "../../outside", "/dev/null", "/dev/zero", "/dev/stdin", "/proc/self/mem", "file:///etc/passwd",
    "http://[::1", "http://127.0.0.1:1/v1", "hf://a/b", "a" * 300, "a" * 70_000, "é", "e\u0301", "日本語",
    "👩\u200d👩\u200d👧", "\u202eevil", "\ufeff", "\u2028", "\x00", "\x1b[31mred", "\x7f", "\r\n", "%s%n", "{0}",
    "{{ 1/0 }}", "$HOME", "`id`", "a:b", "a=b", "votes:tiny", "votes:", "judge.py:score", "judge.py:", ":",
    "os:system", "rlhf.rewards.length:length", "base", "sft", "dpo@1", "sft@-1", "inherit", "project.yaml",
    "pairs.jsonl", "model", "images",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 3, 0.5, -0.0, 1e-300, 1e300, -1e300, 1.0, 2**31, 2**63, -(2**63) - 1, 2**64, 10**30, 10**400,
    float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
OTHERS: list[Any] = [
    None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"b": {"c": 1}}}, ["a", "a"], [0, -1], {1: 2},
    b"\xff\x00", datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1, 12), {"a", "b"}, {None: 1}, {True: 1},
]  # fmt: skip
SPLICED = [
    b"\x00", b"\n", b"\r", b"\xff", b'"', b"'", b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\ud800", b"\\u0000",
    b"\t", b"#", codecs.BOM_UTF8, b"\xed\xa0\xbd", b"\xc3", b"\xe2\x80\xa8", b"\x1f\x8b", b"PAR1", b"NaN", b"1e999",
    b"9" * 5000, b"- ", b"[" * 3000, b'{"a":' * 3000,
]  # fmt: skip
ENCODINGS = ["utf-16", "utf-32", "latin-1", "utf-8-sig", "utf-7", "cp037"]


def nested(depth: int) -> Any:
    """Lists within lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def values() -> st.SearchStrategy[Any]:
    """Any value that JSON or YAML can say, the odd ones as often as the rest."""
    simple = st.one_of(
        st.sampled_from(TEXTS), st.sampled_from(NUMBERS), st.sampled_from(OTHERS),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.integers(), st.floats(),
    )  # fmt: skip
    return st.one_of(
        simple, simple, st.lists(simple, max_size=3), st.dictionaries(st.text(max_size=3), simple, max_size=3)
    )


@st.composite
def spoilt(draw: st.DrawFn, content: bytes, most: int = 3) -> bytes:
    """Bytes with a few places changed, cut out, repeated or cut off, or in another encoding."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["cut off", "cut out", "splice", "splice", "flip", "repeat", "encode"])):
            case "cut off":
                del data[place:]
            case "cut out":
                del data[place : place + draw(st.integers(1, 40))]
            case "splice":
                data[place:place] = draw(st.sampled_from(SPLICED))
            case "flip":
                if data:
                    data[min(place, len(data) - 1)] ^= 1 << draw(st.integers(0, 7))
            case "repeat":
                piece = data[place : place + draw(st.integers(1, 200))]
                data[place:place] = piece * draw(st.integers(1, 3))
            case "encode":
                text = data.decode("utf-8", "replace")
                data = bytearray(text.encode(draw(st.sampled_from(ENCODINGS)), "replace"))
    return bytes(data)
