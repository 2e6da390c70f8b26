"""What is written reads back as it was meant, whatever it is, and a comment is only a comment."""

import pytest
import yaml

from rlhf.init.write import Line, rendered, section

AWKWARD = ["a: b", "# no", "- x", "yes", "1e-5", "null", "a\nb", "ünïcode 東京", "'", '"', "{}", "x" * 300, "\u2028"]


@pytest.mark.parametrize("text", [*AWKWARD, ""])
def test_awkward_texts_are_values_names_and_reasons(text):
    deep = section("deep", [Line("a", {text: [text]})], text)
    lines = [Line("plain", text, text), Line(text or "empty", 1, "why"), deep]
    assert yaml.safe_load(rendered(lines, [text])) == {"plain": text, text or "empty": 1, "deep": {"a": {text: [text]}}}


@pytest.mark.parametrize("value", [2e-5, 4e-3, 1.0, 0, True, None, [1, {"a": None}], {"a": {"4": True, "5": False}}])
def test_values_keep_their_type(value):
    back = yaml.safe_load(rendered([Line("v", value)], []))["v"]
    assert back == value
    assert type(back) is type(value)


def test_reasons_stand_beside_or_above_and_no_line_is_long():
    lines = [Line("short", 1, "because " * 40), Line("source", "folder/" * 10, "because " * 40)]
    written = rendered(lines, ["header " * 40]).splitlines()
    assert max(map(len, written)) <= 120
    assert next(line for line in written if line.startswith("short")).startswith("short: 1      ")
    above = written.index(f"source: {'folder/' * 10}")
    assert written[above - 1].startswith("# because")
