"""Bookings as text to text, on a few made-up ones; what is learned there says nothing, how it is learned does."""

import gzip
import json

import pytest

from examples.restaurant8k import text
from examples.restaurant8k.slots import exact, f1
from examples.restaurant8k.text import main, pairs, write_rows
from rlhf.config.load import load_project
from rlhf.pipeline.execute import run_stage

TEXTS = ["a table for {} at {} pm", "{} people please, {} o'clock", "we are {}, and come at {}"]


@pytest.fixture
def data(tmp_path):
    """Sixty bookings with a number of people and a time, twelve to test, and one that says nothing."""
    rows = []
    for number in range(72):
        said = TEXTS[number % 3].format(number % 9 + 1, number % 7 + 3)
        places = [index for index, letter in enumerate(said) if letter.isdigit()]
        labels = [
            {"slot": slot, "valueSpan": {"endIndex": place + 1, **({"startIndex": place} if place else {})}}
            for slot, place in zip(("people", "time"), places, strict=True)
        ]
        rows.append({"userInput": {"text": said}, "labels": labels, "context": {"requestedSlots": ["people"]}})
    rows.append({"userInput": {"text": "Do you serve fish?"}})
    folder = tmp_path / "data"
    folder.mkdir()
    for name, part in (("train", rows[:60]), ("test", rows[60:])):
        with gzip.open(folder / f"{name}.json.gz", "wt", encoding="utf-8") as file:
            json.dump(part, file)
    return folder


def test_rows_are_what_was_said_and_its_slots(data, tmp_path):
    first, *_, last = pairs(data / "test.json.gz")
    assert first == {"source": "people | a table for 7 at 7 pm", "target": "people: 7; time: 7"}
    assert last == {"source": " | Do you serve fish?", "target": "none"}
    assert write_rows(data, tmp_path / "rows", every=4) == {"supervised": 15, "online": 45, "held_out": 13}
    read = [(tmp_path / "rows" / f"{name}.jsonl").read_text().splitlines() for name in ("supervised", "online")]
    assert sorted(map(json.loads, read[0] + read[1]), key=str) == sorted(pairs(data / "train.json.gz"), key=str)


@pytest.mark.parametrize(
    ("written", "right", "score", "same"),
    [
        ("people: 2; time: 7 pm", "people: 2; time: 7 pm", 1.0, 1.0),
        ("time: 7 PM; people: 2", "people: 2; time: 7 pm", 1.0, 1.0),  # in any order and case
        ("people: 2", "people: 2; time: 7 pm", 2 * 1 / (1 + 3), 0.0),
        ("people: 7; time: 7", "people: 2; time: 7 pm", 2 * 1 / (2 + 3), 0.0),  # the 7 of another slot does not count
        ("time: 7 7", "time: 7 pm", 2 * 1 / (2 + 2), 0.0),  # nor does saying it twice
        ("none", "none", 1.0, 1.0),
        ("", "none", 1.0, 1.0),
        ("none", "people: 2", 0.0, 0.0),
        ("people: 2", "none", 0.0, 0.0),
    ],
)
def test_the_reward_is_the_f1_over_all_slots(written, right, score, same):
    assert f1(["?"], [written], reference=[right]) == [pytest.approx(score)]
    assert exact(["?"], [written], reference=[right]) == [same]


def test_a_small_budget_trains_and_compares(data, tmp_path, monkeypatch):
    """In this process, as starting one a stage takes longer than all of them."""

    def run(config, overrides):
        project = load_project(config, overrides)
        for stage in ("base", "sft", "ppo", "evaluate"):
            run_stage(project, stage)

    monkeypatch.setattr(text, "run", run)
    main(["--data", str(data), "--out", str(tmp_path / "out"), "--budget", "small"])
    run = tmp_path / "out" / "restaurant8k-text"
    samples = [json.loads(line) for line in (run / "evaluate" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) > 5
    for row in samples:
        assert {name: len(replies) for name, replies in row["replies"].items()} == {"base": 1, "sft": 1, "ppo": 1}
        assert row["replies"]["ppo"][0]["scores"]["f1"] is not None
