import json

import pytest

from rlhf.data.findings import Findings
from rlhf.data.ledger import Ledger
from rlhf.errors import UserError


def test_the_ledger_writes_counts_and_rows_and_reads_them_back(tmp_path):
    with Ledger("preferences", tmp_path) as ledger:
        ledger.read, ledger.trained, ledger.evaluated, ledger.repeated = 6, 2, 1, 3
        ledger.truncated = 2
        ledger.drop("empty side", "f:1", {"chosen": "", "n": 1})
        ledger.drop("duplicate", "f:2", {"chosen": "\ud800"})
        ledger.drop("sampled out", "f:3", {"chosen": "c"})
    written = json.loads((tmp_path / "ledger.json").read_text())["sets"]["preferences"]
    assert written["dropped"] == {"empty side": 1, "duplicate": 1, "sampled out": 1}
    assert written["read"] == written["trained"] + written["evaluated"] + sum(written["dropped"].values())
    assert (written["duplicates"], written["truncated"], written["repeated"]) == (1, 2, 3)
    assert written["rows"] == [{"origin": "f:1", "reason": "empty side"}, {"origin": "f:2", "reason": "duplicate"}]
    dropped = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert dropped[0] == {"origin": "f:1", "reason": "empty side", "row": {"chosen": "", "n": 1}}
    loaded = Ledger.load(tmp_path)
    assert loaded.as_dict() == ledger.as_dict()
    assert loaded.first["duplicate"] == "f:2"


def test_a_clean_ledger_is_valid_json(tmp_path):
    with Ledger("prompts", tmp_path) as ledger:
        ledger.read = ledger.evaluated = 1
    assert json.loads((tmp_path / "ledger.json").read_text())["sets"]["prompts"]["rows"] == []
    assert (tmp_path / "dropped.jsonl").read_text() == ""


def test_a_row_that_is_not_accounted_for_is_an_error(tmp_path):
    with (
        pytest.raises(AssertionError, match="3 rows read, but 2 accounted for"),
        Ledger("preferences", tmp_path) as ledger,
    ):
        ledger.read, ledger.trained = 3, 2
    assert not (tmp_path / "ledger.json").exists()


def test_an_error_leaves_nothing_behind(tmp_path):
    def fail():
        with Ledger("preferences", tmp_path) as ledger:
            ledger.drop("empty side", "f:1", {})
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_summary_and_line():
    ledger = Ledger("preferences")
    ledger.read, ledger.trained, ledger.evaluated, ledger.truncated = 5, 2, 1, 1
    ledger.drop("identical", "f:1", {})
    ledger.drop("identical", "f:2", {})
    assert ledger.summary() == [
        ("read", 5),
        ("to train on", 2),
        ("held out to evaluate on", 1),
        ("dropped: identical", 2),
        ("cut to the limit", 1),
    ]
    assert ledger.line() == "preferences: 5 rows read, 2 to train on, 1 held out, 2 dropped (2 × identical)"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"sets": {}}', '{"sets": {"prompts": 3}}', '{"set": "x", "findings": [3]}', "[" * 9999]
)
@pytest.mark.parametrize(("kind", "name"), [(Ledger, "ledger.json"), (Findings, "findings.json")])
def test_a_damaged_file_is_named(tmp_path, kind, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}: not a file of .*; delete .* to prepare the data again"):
        kind.load(tmp_path)
