"""SQuAD: rows of the hub and articles of the original files; every answer stands where the row says."""

import json

import pytest

from rlhf.data.formats import find
from rlhf.data.ledger import Ledger
from rlhf.data.prepare import evaluation_prompts, iter_records
from rlhf.data.records import Spanned
from rlhf.errors import UserError

SKY = "The sky is blue. In the evening the sky is red."


def row(question="Colour?", texts=("blue",), starts=(11,), **more):
    return {"context": SKY, "question": question, "answers": {"text": [*texts], "answer_start": [*starts]}, **more}


def parse(row):
    return find("squad", row, "f:3").parse(row, "f:3")


def test_several_annotators_may_agree():
    record = parse(row(texts=("blue", "blue", "is blue"), starts=(11, 11, 8), id="a", title="Sky"))
    assert record == Spanned(SKY, "Colour?", ((11, 15), (8, 15)), {"id": "a", "title": "Sky"}, "f:3")


@pytest.mark.parametrize(
    ("texts", "starts", "message"),
    [
        (("blue",), (12,), "the answer 'blue' is not at character 12: there is 'lue.'"),
        (("red.",), (44,), "characters 44 to 48 are no span of a text of 47 characters"),
        (("blue",), (-6,), "characters -6 to -2 are no span"),
        (("",), (3,), "characters 3 to 3 are no span"),
        (("blue",), ("11",), "text holds texts and answer_start whole numbers, not 'blue' and '11'"),
        (("blue",), (True,), "text holds texts and answer_start whole numbers"),
        ((None,), (11,), "text holds texts and answer_start whole numbers"),
        (("blue",), (), "text and answer_start must be lists of equal length"),
    ],
)
def test_an_answer_that_is_not_there_is_an_error_that_names_the_row(texts, starts, message):
    with pytest.raises(UserError, match=rf"^f:3: .*{message}"):
        parse(row(texts=texts, starts=starts))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("blue", "column 'answers' must be an object with text and answer_start"),
        ({"text": []}, "'answer_start' is missing"),
    ],
)
def test_answers_of_another_layout(answers, message):
    with pytest.raises(UserError, match=rf"^f:3: .*{message}"):
        parse({**row(), "answers": answers})


def articles(answer="blue", start=11):
    questions = [
        {
            "question": "Colour?",
            "id": "a",
            "answers": [{"text": answer, "answer_start": start}],
            "is_impossible": False,
        },
        {"question": "Size?", "id": "b", "answers": [], "plausible_answers": [], "is_impossible": True},
    ]
    return [{"title": "Sky", "paragraphs": [{"context": SKY, "qas": questions}]}]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("version_first", [False, True])
def test_the_original_files(write, project, indent, version_first):
    whole = {"data": articles(), "version": "v2.0"}
    whole = dict(reversed(whole.items())) if version_first else whole
    path = write("train-v2.0.json", json.dumps(whole, indent=indent))
    ledger = Ledger("demonstrations")
    first, second = (
        record for record, _ in iter_records(project(demonstrations=path, holdout=0.0), "demonstrations", ledger)
    )
    assert (ledger.read, ledger.trained) == (2, 2)
    assert first.origin == second.origin == f"{path}#1"
    assert (first.answers, second.answers) == (((11, 15),), ())
    assert first.extra == {"title": "Sky", "id": "a", "is_impossible": False}


def test_a_wrong_answer_in_an_original_file(write, project):
    path = write("dev.json", json.dumps({"data": articles(start=10)}))
    with pytest.raises(UserError, match=r"dev.json#1: paragraph 1: the answer 'blue' is not at character 10"):
        list(iter_records(project(demonstrations=path), "demonstrations"))


def test_json_lines_with_a_column_of_that_name_stay_json_lines(write, project):
    lines = "".join(json.dumps({"data": [1], "text": f"Once {number}."}) + "\n" for number in range(2))
    records = iter_records(project(demonstrations=write("a.json", lines), holdout=0.0), "demonstrations")
    assert [record.extra for record, _ in records] == [{"data": [1]}] * 2


def test_a_text_and_its_questions_are_on_one_side_in_every_role(write, project):
    rows = [
        {
            "context": f"Text {text} says {number}.",
            "question": f"What does {number} say?",
            "answers": {"text": [], "answer_start": []},
        }
        for text in range(60)
        for number in range(2)
        for _ in range(2)
    ]
    for entry in rows[1::2]:
        entry["context"] = entry["context"].replace(" 1.", " 0.")  # two questions about each text
    path = write("a.jsonl", rows)
    sides = {}
    for role in ("demonstrations", "rollouts"):
        for record, side in iter_records(project(**{role: path}, holdout=0.3), role):
            sides.setdefault(record.context, set()).add(side)
    assert {side for found in sides.values() for side in found} == {"train", "eval"}
    assert all(len(found) == 1 for found in sides.values())
    prompts = evaluation_prompts(project(demonstrations=path, holdout=0.3), 1000)
    held_out = {context for context, found in sides.items() if found == {"eval"}}
    assert {prompt.context for prompt in prompts} == held_out
    assert len(prompts) > len(held_out), "each question about a text is asked"
    other = [{**rows[0], "question": "Another question?"}]
    made = project(demonstrations=path, prompts=write("q.jsonl", other), holdout=0.0)
    left = {record.context for record, _ in iter_records(made, "demonstrations")}
    assert left == set(sides) - {rows[0]["context"]}
