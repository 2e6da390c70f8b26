"""Restaurant-8k: a row is a question a slot."""

import json

import pytest

from rlhf.data.formats import find
from rlhf.data.formats.restaurant8k import SLOTS
from rlhf.data.ledger import Ledger
from rlhf.data.prepare import iter_records, prepare
from rlhf.data.records import Encoded
from rlhf.errors import UserError

TEXT = "4 people at 8:15 please"


def row(*labels, **more):
    spans = [{"slot": slot, "valueSpan": span} for slot, span in labels]
    return {"userInput": {"text": TEXT}, **({"labels": spans} if spans else {}), **more}


PEOPLE, TIME = ("people", {"endIndex": 8}), ("time", {"startIndex": 12, "endIndex": 16})


def test_a_row_is_a_question_a_slot():
    booking = row(PEOPLE, TIME, context={"requestedSlots": ["people"]}, n=3)
    layout = find(None, booking, "f#1")
    assert layout.name == "restaurant8k"
    records = layout.parse(booking, "f#1")
    assert [record.question for record in records] == ["people", "time", "date", "first name", "last name"]
    assert [[TEXT[start:end] for start, end in record.answers] for record in records] == [
        ["4 people"],
        ["8:15"],
        [],
        [],
        [],
    ]
    assert {(record.context, record.origin) for record in records} == {(TEXT, "f#1")}
    assert records[3].extra == {"n": 3, "requested_slots": ["people"], "slot": "first_name"}
    for bare in (row(), row(context={}), row(context=None, labels=None)):
        assert [(record.answers, record.extra["requested_slots"]) for record in layout.parse(bare, "")] == [
            ((), [])
        ] * 5


@pytest.mark.parametrize(
    ("booking", "message"),
    [
        (row(("people", {"endIndex": 24})), "slot people: characters 0 to 24 are no span of a text of 23 characters"),
        (row(("people", {"startIndex": 4})), "slot people: characters 4 to None are no span"),
        (row(("people", {"startIndex": 4, "endIndex": 4})), "slot people: characters 4 to 4 are no span"),
        (row(("dogs", {"endIndex": 2})), "unknown slot 'dogs' .known: people, time"),
        (row(("people", None)), "column 'valueSpan' must be an object with startIndex and endIndex, not null"),
        (row(labels=[3]), "column 'labels' must be a list of objects"),
        (row(context=3), "column 'context' must be an object with requestedSlots"),
        ({"userInput": {"text": 3}}, "userInput: column 'text' must be text, not 3"),
        ({"text": "t"}, "column 'userInput' is missing"),
    ],
)
def test_a_wrong_row_is_an_error(booking, message):
    with pytest.raises(UserError, match=f"^f#1: {message}"):
        find("restaurant8k", {}, "").parse(booking, "f#1")


def test_the_ledger_counts_records_and_keeps_those_it_drops(write, project, tmp_path):
    path = write("a.json", json.dumps([row(PEOPLE), row(TIME), row(PEOPLE)]))
    out = tmp_path / "out"
    made = project(demonstrations=path, holdout=0.0)
    ledger = prepare(made, "demonstrations", lambda record: Encoded({"n": len(record.answers)}), out).ledger
    assert (ledger.read, ledger.trained, dict(ledger.dropped)) == (15, 7, {"duplicate": 8})
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert {entry["origin"] for entry in dropped} == {f"{path}#2", f"{path}#3"}
    assert [entry["row"]["question"] for entry in dropped[-5:]] == [slot.replace("_", " ") for slot in SLOTS]
    unusable = write("b.json", json.dumps([row(PEOPLE), {**row(), "userInput": {"text": None}}]))
    ledger = Ledger("demonstrations")
    list(iter_records(project(demonstrations=unusable, holdout=0.0), "demonstrations", ledger))
    assert dict(ledger.dropped) == {"empty text": 5}


# records, and those with an answer
COUNTS = {"train": (8198, 7635), "test": (1861, 1720)}


@pytest.mark.parametrize("part", COUNTS)
def test_the_real_set(real, project, part):
    rows, answered = COUNTS[part]
    path = real / f"restaurant8k/{part}.json.gz"
    made, ledger = project(demonstrations=path, holdout=0.2), Ledger("demonstrations")
    sides, questions = {}, 0
    for record, side in iter_records(made, "demonstrations", ledger):
        sides.setdefault(record.context.strip(), set()).add(side)
        questions += 1
    assert ledger.read == 5 * rows == questions + ledger.dropped.total()
    assert set(ledger.dropped) == {"duplicate"}
    assert all(len(found) == 1 for found in sides.values())
    from rlhf.config.sets import SourceConfig
    from rlhf.data.sources import read_rows

    layout = find("restaurant8k", {}, "")
    read = [
        record for row, origin in read_rows(SourceConfig(str(path)), path) for record in layout.records(row, origin)
    ]
    assert sum(len(record.answers) for record in read) == answered
