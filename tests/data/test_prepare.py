import dataclasses
import itertools
import json
import random
import shutil

import pytest

from rlhf.config.sets import LimitsConfig
from rlhf.data.ledger import Ledger
from rlhf.data.prepare import evaluation_prompts, fingerprints, iter_records, load_prepared, prepare
from rlhf.data.records import Encoded, Feedback, Unusable
from rlhf.data.sets import source_set
from rlhf.data.splits import canonical
from rlhf.errors import UserError
from tests.support.kill import at_every_change


def encode(record):
    """The letters of the reply as ids, cut at 8; a `long` prompt is refused."""
    if "long" in record.prompt:
        raise Unusable("prompt longer than max_length")
    ids = [ord(letter) for letter in record.completion]
    return Encoded({"input_ids": ids[:8], "prompt": record.prompt}, truncated=len(ids) > 8, eos_lost=len(ids) > 8)


def rows(count, prefix="p"):
    return [{"prompt": f"{prefix}{index}", "completion": f"r{index}", "n": index} for index in range(count)]


def balanced(ledger):
    return ledger.read == ledger.trained + ledger.evaluated + sum(ledger.dropped.values())


def test_every_row_goes_somewhere_and_the_sides_share_no_prompt(write, project, tmp_path):
    content = [
        *rows(200),
        {"prompt": "p1", "completion": "r1"},  # the same as above but for its number
        {"prompt": "p1", "completion": "another"},
        {"prompt": "x", "completion": " "},
        {"prompt": "long", "completion": "r"},
        {"prompt": "y", "completion": "much too long"},
    ]
    made = project(demonstrations=write("a.jsonl", content), holdout=0.2)
    prepared = prepare(made, "demonstrations", encode, tmp_path / "out")
    ledger = prepared.ledger
    assert ledger.read == len(content)
    assert balanced(ledger)
    assert ledger.dropped == {"duplicate": 1, "empty side": 1, "prompt longer than max_length": 1}
    assert (ledger.truncated, ledger.eos_lost) == (1, 1)
    assert (len(prepared.train), len(prepared.eval)) == (ledger.trained, ledger.evaluated)
    assert 20 < len(prepared.eval) < 60
    assert not set(prepared.train["prompt"]) & set(prepared.eval["prompt"])
    assert {"r7"} <= {"".join(map(chr, ids)) for ids in [*prepared.train["input_ids"], *prepared.eval["input_ids"]]}
    dropped = [json.loads(line) for line in (tmp_path / "out/dropped.jsonl").read_text().splitlines()]
    assert [(row["origin"].rpartition(":")[2], row["reason"]) for row in dropped] == [
        ("201", "duplicate"), ("203", "empty side"), ("204", "prompt longer than max_length")
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dropped.jsonl", "eval", "findings.json", "ledger.json", "prepared.json", "train"
    ]  # fmt: skip


def both_sides(record):
    """A row for each judgement of a record."""
    if isinstance(record, Feedback):
        return [Encoded({"ids": [len(record.completion)], "label": record.label})]
    sides = [(record.chosen, True), (record.rejected, False)]
    return [Encoded({"ids": [len(side)], "label": label}, truncated=label) for side, label in sides]


def test_a_record_may_become_several_rows_and_counts_once(write, project, tmp_path):
    """Without feedback of its own a project takes its preferences apart."""
    pairs = [{"prompt": f"p{n}", "chosen": "ab", "rejected": "c"} for n in range(5)]
    pairs.append(pairs[0])
    made = project(preferences={"source": str(write("pairs.jsonl", pairs)), "weight": 2}, holdout=0.0)
    prepared = prepare(made, "feedback", both_sides, tmp_path / "pairs")
    assert prepared.train["label"][:] == [True, False] * 10
    assert prepared.train["ids"][:2] == [[2], [1]]
    ledger = prepared.ledger
    assert balanced(ledger)
    assert (ledger.trained, ledger.repeated, ledger.truncated) == (5, 5, 5)
    assert ledger.dropped == {"duplicate": 1}

    single = [{"prompt": f"q{n}", "completion": "abc", "label": n % 2 == 0} for n in range(4)]
    own = project(preferences=write("pairs.jsonl", pairs), feedback=write("single.jsonl", single), holdout=0.0)
    assert prepare(own, "feedback", both_sides, tmp_path / "own").train["label"][:] == [True, False, True, False]


def test_the_accounts_balance_whatever_comes(write, project, tmp_path):
    rng = random.Random(0)
    for trial in range(20):
        content = [
            {"prompt": rng.choice(["", "p", "q", "long", f"{rng.random()}"]), "completion": rng.choice(["", "a", "b"])}
            for _ in range(60)
        ] + [{"prompt": f"sure{index}", "completion": "c"} for index in range(20)]
        path = write("a.jsonl", content)
        sources = [{"source": str(path), "weight": rng.choice([0.5, 1, 2.3])}]
        made = project(demonstrations=sources, holdout=rng.choice([0.0, 0.1, 0.5]), seed=trial)
        prepared = prepare(made, "demonstrations", encode, tmp_path / "out")
        assert balanced(prepared.ledger)
        assert len(prepared.train) == prepared.ledger.trained + prepared.ledger.repeated
        assert len(prepared.eval) == prepared.ledger.evaluated
        assert set(prepared.train["prompt"]) & set(prepared.eval["prompt"]) <= {""}  # text alone goes by itself


def test_texts_without_a_prompt_are_split_too(write, project):
    made = project(demonstrations=write("a.jsonl", [{"text": f"t{index}"} for index in range(300)]), holdout=0.2)
    sides = [side for _, side in iter_records(made, "demonstrations")]
    assert 40 < sides.count("eval") < 80


def test_weights_repeat_or_thin_out_training_rows_only(write, project, tmp_path):
    first, second = write("a.jsonl", rows(300, "a")), write("b.jsonl", rows(300, "b"))
    sources = [{"source": str(first), "weight": 2.5}, {"source": str(second), "weight": 0.5}]
    prepared = prepare(project(demonstrations=sources, holdout=0.2), "demonstrations", encode, tmp_path / "out")
    ledger = prepared.ledger
    train = list(prepared.train["prompt"])
    held_out = list(prepared.eval["prompt"])
    often = [train.count(f"a{index}") for index in range(300) if f"a{index}" not in held_out]
    assert set(often) == {2, 3}
    assert 2.3 < sum(often) / len(often) < 2.7
    assert sum(1 for prompt in train if prompt.startswith("b")) == pytest.approx(120, abs=25)
    assert len(set(held_out)) == len(held_out)
    assert sum(1 for prompt in held_out if prompt.startswith("b")) > 30  # not thinned out
    assert len(train) == ledger.trained + ledger.repeated
    assert ledger.dropped["sampled out"] > 90
    assert balanced(ledger)
    assert (tmp_path / "out/dropped.jsonl").read_text() == ""  # nothing is wrong with them


def test_no_prompt_held_out_of_one_set_trains_in_another(write, project):
    """The conversations of the demonstrations hold the prompts of the preferences as their openings."""

    def turn(index, depth):
        return [
            {"role": role, "content": f"{role}{index}.{level}"}
            for level in range(depth)
            for role in ("user", "assistant")
        ]

    talks = [{"messages": turn(index, 3)} for index in range(200)]
    pairs = [
        {"chosen": talk, "rejected": [*talk[:-1], {"role": "assistant", "content": "no"}]}
        for index in range(200)
        for talk in [turn(index, index % 3 + 1)]
    ]
    made = project(demonstrations=write("d.jsonl", talks), preferences=write("p.jsonl", pairs), holdout=0.3)
    from rlhf.data.splits import contexts

    trained, held_out = set(), set()
    for record, side in itertools.chain(iter_records(made, "demonstrations"), iter_records(made, "preferences")):
        (trained if side == "train" else held_out).update(map(canonical, contexts(record)))
    assert held_out
    assert not trained & held_out


def test_a_weight_cannot_fill_the_disk(write, project, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf.data.prepare._REPEATED", 1000)
    light, heavy = ({"source": str(write("a.jsonl", rows(3))), "weight": weight} for weight in (300, 500))
    made = prepare(project(demonstrations=light, holdout=0.0), "demonstrations", encode, tmp_path / "light")
    assert len(made.train) == 900
    with pytest.raises(
        UserError, match=r"a.jsonl:3: its source's weight makes data.demonstrations more than 100 times"
    ):
        prepare(project(demonstrations=heavy, holdout=0.0), "demonstrations", encode, tmp_path / "heavy")
    assert not (tmp_path / "heavy").exists()


def test_all_pairs_of_a_prompt_that_only_their_texts_have_are_on_its_side(write, project):
    """However far two replies go together; and on the side of the same prompt in the other sets."""
    replies = ["It is blue.", "It is green.", "It was.", "No."]
    pairs = [
        {"chosen": f"Q: {index}?\nA: {one}", "rejected": f"Q: {index}?\nA: {other}"}
        for index in range(60)
        for one, other in itertools.pairwise(replies)
    ]
    demonstrations = [{"prompt": f"Q: {index}?\nA:", "completion": " It is."} for index in range(60)]
    asked = [{"prompt": f"Q: {index}?\nA:"} for index in range(5)]
    paths = {"preferences": write("p.jsonl", pairs), "demonstrations": write("d.jsonl", demonstrations)}
    sides: dict = {}
    for role in paths:
        for record, side in iter_records(project(**paths, holdout=0.3), role):
            sides.setdefault(record.prompt, set()).add(side)
    assert len(sides) == 60
    assert all(len(found) == 1 for found in sides.values())
    ledger = Ledger("preferences")
    made = project(**paths, prompts=write("q.jsonl", asked), holdout=0.0)
    assert len(list(iter_records(made, "preferences", ledger))) == 55 * 3
    assert ledger.dropped == {"prompt held out": 5 * 3}


def test_prompts_given_for_evaluation_train_nowhere(write, project):
    asked = [{"prompt": f" p{index} ", "slot": index} for index in range(20)]
    made = project(demonstrations=write("d.jsonl", rows(100)), prompts=write("q.jsonl", asked), holdout=0.1)
    ledger = Ledger("demonstrations")
    trained = {record.prompt for record, side in iter_records(made, "demonstrations", ledger) if side == "train"}
    assert not trained & {f"p{index}" for index in range(20)}
    assert ledger.dropped["prompt held out"] == pytest.approx(18, abs=2)
    assert ledger.held_out == ledger.evaluated + ledger.dropped["prompt held out"]
    assert balanced(ledger)
    assert {side for _, side in iter_records(made, "prompts")} == {"eval"}
    assert [prompt.extra for prompt in evaluation_prompts(made, 100)] == [{"slot": index} for index in range(20)]


def test_later_turns_that_are_evaluation_prompts_are_held_out(write, project):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rest = [{"role": "assistant", "content": "d"}]
    made = project(
        demonstrations=write("d.jsonl", [{"messages": talk + rest}, {"messages": talk[:2]}]),
        prompts=write("q.jsonl", [{"prompt": talk}]),
        holdout=0.0,
    )
    ledger = Ledger("demonstrations")
    assert [record.origin[-1] for record, _ in iter_records(made, "demonstrations", ledger)] == ["2"]
    assert ledger.dropped == {"prompt held out": 1}


def test_evaluation_prompts_come_from_held_out_rows_and_do_not_depend_on_their_order(write, project):
    pairs = [
        {"prompt": f"p{index % 150}", "chosen": f"a{index}", "rejected": "b", "n": index % 150} for index in range(300)
    ]
    made = project(preferences=write("p.jsonl", pairs), demonstrations=write("d.jsonl", rows(50)), holdout=0.3)
    assert source_set(made, "prompts") == "preferences"
    held_out = {record.prompt for record, side in iter_records(made, "preferences") if side == "eval"}
    every = evaluation_prompts(made, 1000)
    assert sorted(prompt.prompt for prompt in every) == sorted(held_out)
    assert all(prompt.extra == {"n": int(prompt.prompt[1:])} for prompt in every)
    few = evaluation_prompts(made, 10)
    assert len(few) == 10
    places = [every.index(prompt) for prompt in few]
    assert places == sorted(places)
    assert places[-1] > 15  # a choice from all, not the first ten
    random.Random(1).shuffle(pairs)
    write("p.jsonl", pairs)
    assert {prompt.prompt for prompt in evaluation_prompts(made, 10)} == {prompt.prompt for prompt in few}
    only = project(demonstrations=write("d.jsonl", rows(50)), holdout=0.3)
    assert source_set(only, "prompts") == "demonstrations"
    assert evaluation_prompts(only, 5)
    with pytest.raises(UserError, match=r"no prompts to evaluate on: holdout 0.1 keeps none of the 3 .*takes about 30"):
        evaluation_prompts(project(demonstrations=write("few.jsonl", rows(3)), holdout=0.1), 5)
    with pytest.raises(UserError, match=r"no prompts to evaluate on: holdout is 0, so data.demonstrations holds none"):
        evaluation_prompts(project(demonstrations=write("d.jsonl", rows(50)), holdout=0.0), 5)
    with pytest.raises(UserError, match=r"data.prompts \(or rollouts, preferences, feedback, demonstrations\)"):
        evaluation_prompts(project(), 5)


def test_an_identical_preparation_is_reused(write, project, tmp_path, capsys):
    path = write("a.jsonl", rows(50))
    calls = []

    def counting(record):
        calls.append(record)
        return encode(record)

    def again(key="k", **options):
        calls.clear()
        seed = options.pop("seed", 0)
        made = project(demonstrations=path, seed=seed)
        prepared = prepare(made, "demonstrations", counting, tmp_path / "out", key=key, **options)
        return bool(calls), prepared

    assert again()[0]
    assert "demonstrations: 50 rows read" in capsys.readouterr().err
    fresh, prepared = again()
    assert not fresh
    assert prepared.ledger.read == 50
    assert again(key="other")[0]
    assert again(key="other", seed=1)[0]
    assert again(key="other", seed=1, keep_columns=True)[0]
    assert not again(key="other", seed=1, keep_columns=True)[0]
    write("a.jsonl", rows(51))
    assert again(key="other", seed=1, keep_columns=True)[0]
    assert again(key=None)[0]
    assert again(key=None)[0]


def test_a_preparation_that_is_killed_is_not_taken_for_a_whole_one(write, project, tmp_path):
    out = tmp_path / "out"
    older, made = (project(demonstrations=write(f"{count}.jsonl", rows(count)), holdout=0.2) for count in (20, 30))

    def reset():
        shutil.rmtree(out, ignore_errors=True)
        prepare(older, "demonstrations", encode, out, key="k")

    def again():
        return prepare(made, "demonstrations", encode, out, key="k")

    for where in at_every_change(out, reset, again):
        assert len(again().train) + len(again().eval) == 30, where
        assert sorted(path.name for path in out.iterdir()) == [
            "dropped.jsonl", "eval", "findings.json", "ledger.json", "prepared.json", "train"
        ], where  # fmt: skip


def test_limits_are_held_on_every_call_and_leave_a_folder_to_look_into(write, project, tmp_path):
    content = [*rows(18), {"prompt": "x", "completion": ""}, {"prompt": "y", "completion": " "}]
    made = project(demonstrations=write("a.jsonl", content), holdout=0.0)

    def limited(**limits):
        return dataclasses.replace(made, data=dataclasses.replace(made.data, limits=LimitsConfig(**limits)))

    for _ in range(2):  # prepared, and used again
        with pytest.raises(
            UserError, match=r"^data.demonstrations: 10.0% of 20 rows were dropped \(empty side 2, first "
        ):
            prepare(limited(dropped=0.09), "demonstrations", encode, tmp_path / "out", key="k")
    dropped = (tmp_path / "out/dropped.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in dropped] == ["empty side"] * 2
    refuse = None  # the folder is whole: nothing is encoded again
    assert len(prepare(limited(dropped=0.1), "demonstrations", refuse, tmp_path / "out", key="k").train) == 18


def test_several_pairs_of_a_prompt_are_no_duplicates_where_prompts_are_wanted(write, project, tmp_path):
    pairs = [{"prompt": f"p{index % 10}", "chosen": f"a{index}", "rejected": "b"} for index in range(30)]
    made = project(preferences=write("p.jsonl", pairs), holdout=0.0)
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, limits=LimitsConfig(duplicates=0.0)))

    def ids(record):
        return Encoded({"prompt_ids": [1], "prompt": record.prompt})

    prepared = prepare(made, "rollouts", ids, tmp_path / "out")
    assert len(prepared.train) == 10
    assert prepared.ledger.dropped == {"prompt of an earlier row": 20}
    assert (tmp_path / "out/dropped.jsonl").read_text() == ""
    own = dataclasses.replace(made, data=dataclasses.replace(made.data, rollouts=made.data.preferences))
    with pytest.raises(UserError, match=r"data.rollouts: 66.7% of 30 rows are duplicates"):
        prepare(own, "rollouts", ids, tmp_path / "own")


def test_work_ahead_changes_nothing_but_when_it_is_done(write, project, tmp_path):
    content = [*rows(600), {"prompt": "p1", "completion": "r1"}, {"prompt": "long", "completion": "r"}]
    made = project(demonstrations=write("a.jsonl", content), holdout=0.2)
    had = []

    def look(record):
        assert record.prompt in had
        return encode(record)

    first = prepare(made, "demonstrations", encode, tmp_path / "one")
    second = prepare(
        made, "demonstrations", look, tmp_path / "two", ahead=lambda rows: had.extend(row.prompt for row in rows)
    )
    assert len(had) == 601
    assert second.ledger.as_dict() == first.ledger.as_dict()
    assert second.findings == first.findings
    assert list(second.train) == list(first.train)
    assert list(second.eval) == list(first.eval)

    def fail(records):
        raise UserError("no")

    with pytest.raises(UserError, match=r"^no$"):
        prepare(made, "demonstrations", encode, tmp_path / "three", ahead=fail)
    assert not (tmp_path / "three").exists()


def test_what_is_remembered_of_rows_lies_on_disk_and_goes(write, project, tmp_path):
    seen = []

    def look(record):
        seen.append({path.name for path in (tmp_path / "out").iterdir()})
        return encode(record)

    made = project(demonstrations=write("a.jsonl", rows(20)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/index.partial").write_bytes(b"left by a killed process")
    prepare(made, "demonstrations", look, tmp_path / "out")
    assert all("index.partial" in names for names in seen)
    assert not (tmp_path / "out/index.partial").exists()


def test_a_folder_without_findings_is_not_whole(write, project, tmp_path):
    made = project(demonstrations=write("a.jsonl", rows(20)))
    prepare(made, "demonstrations", encode, tmp_path / "out", key="k")
    (tmp_path / "out/findings.json").unlink()
    with pytest.raises(UserError, match=r"no prepared data here \(findings.json is missing\)"):
        load_prepared(tmp_path / "out")


def test_other_columns_are_kept_where_asked_for(write, project, tmp_path):
    content = [{**row, "slots": {"a": [1]} if row["n"] else None} for row in rows(20)]
    made = project(demonstrations=write("a.jsonl", content), holdout=0.0)
    prepared = prepare(made, "demonstrations", encode, tmp_path / "out", keep_columns=True)
    assert [json.loads(extra)["n"] for extra in prepared.train["extra"]] == list(range(20))
    assert json.loads(prepared.train[3]["extra"]) == {"n": 3, "slots": {"a": [1]}}
    assert len(prepared.eval) == 0
    assert prepared.eval.column_names == prepared.train.column_names


def test_more_rows_than_a_batch(write, project, tmp_path):
    made = project(demonstrations=write("a.jsonl", rows(2500)))
    prepared = prepare(made, "demonstrations", encode, tmp_path / "out")
    assert len(prepared.train) + len(prepared.eval) == 2500
    numbers = [int(prompt[1:]) for prompt in prepared.train["prompt"]]
    assert numbers == sorted(numbers)
    assert prepared.train.cache_files  # on disk, not in memory


def test_nothing_left_is_an_error_with_the_reasons_and_leaves_nothing(write, project, tmp_path):
    content = [{"prompt": f"long{index}", "completion": "r"} for index in range(12)] + [
        {"prompt": "p", "completion": ""}
    ]
    made = project(demonstrations=write("a.jsonl", content), holdout=0.0)
    with pytest.raises(UserError) as caught:
        prepare(made, "demonstrations", encode, tmp_path / "out")
    assert str(caught.value).startswith(
        "every row of data.demonstrations was dropped: 12 × prompt longer than max_length (first: "
    )
    assert "1 × empty side" in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="left to train on: 3 held out"):
        prepare(
            project(demonstrations=write("b.jsonl", rows(3)), holdout=0.999), "demonstrations", encode, tmp_path / "o"
        )
    with pytest.raises(UserError, match="no prepared data here"):
        load_prepared(tmp_path / "out")
    with pytest.raises(UserError, match=r"data.preferences is missing"):
        prepare(made, "preferences", encode, tmp_path / "out")


def test_a_mistake_on_the_way_leaves_nothing_half_written(write, project, tmp_path):
    content = "".join(json.dumps(row) + "\n" for row in rows(1500)) + '{"prompt": "x", "completion": 5}\n'
    made = project(demonstrations=write("a.jsonl", content))
    with pytest.raises(UserError, match=r"a.jsonl:1501: column 'completion' must be text"):
        prepare(made, "demonstrations", encode, tmp_path / "out", key="k")
    assert not (tmp_path / "out").exists()


def test_a_mistake_does_not_leave_an_older_preparation_that_looks_whole(write, project, tmp_path):
    path = write("a.jsonl", rows(30))
    prepare(project(demonstrations=path), "demonstrations", encode, tmp_path / "out", key="k")
    write("a.jsonl", "broken")
    with pytest.raises(UserError, match="not valid JSON"):
        prepare(project(demonstrations=path), "demonstrations", encode, tmp_path / "out", key="k")
    with pytest.raises(UserError, match="no prepared data here"):
        load_prepared(tmp_path / "out")


def test_feedback_serves_as_demonstrations_but_not_as_preferences(write, project):
    content = [{"prompt": f"p{index}", "completion": "c", "label": index % 2 == 0} for index in range(10)]
    path = write("a.jsonl", content)
    ledger = Ledger("demonstrations")
    assert len(list(iter_records(project(demonstrations=path), "demonstrations", ledger))) == 5
    assert ledger.dropped == {"negative feedback": 5}
    with pytest.raises(UserError, match=r"a.jsonl:1: data.preferences got binary feedback"):
        list(iter_records(project(preferences=path), "preferences"))


def test_rows_without_a_class_may_come_first(write, project, tmp_path):
    """A column of empty lists does not tell its type yet."""
    content = [{"text": f"t{index}", "label": ["a"] if index > 2100 else []} for index in range(2200)]
    made = project(demonstrations=write("a.jsonl", content), holdout=0.0)
    prepared = prepare(
        made, "demonstrations", lambda record: Encoded({"classes": list(record.labels)}), tmp_path / "out"
    )
    assert prepared.train["classes"][:] == [row["label"] for row in content]
    none = project(demonstrations=write("b.jsonl", content[:1200]), holdout=0.0)
    prepared = prepare(
        none, "demonstrations", lambda record: Encoded({"classes": list(record.labels)}), tmp_path / "none"
    )
    assert prepared.train["classes"][:] == [[]] * 1200


def test_sources_of_a_mixture_may_have_different_formats(write, project):
    made = project(
        demonstrations=[
            write("a.csv", "instruction,output\nDo,Done\n"),
            {
                "source": str(write("b.jsonl", [{"q": "Why?", "a": "So."}])),
                "columns": {"prompt": "q", "completion": "a"},
            },
            {"source": str(write("c.jsonl", [{"text": "t", "label": 1}])), "format": "text"},
        ],
        holdout=0.0,
    )
    assert [type(record.prompt) for record, _ in iter_records(made, "demonstrations")] == [list, str, str]


def test_fingerprints_name_all_that_decides_which_rows_train(write, project):
    path, prompts = write("a.jsonl", rows(5)), write("q.jsonl", [{"prompt": "p1"}])
    first = fingerprints(project(demonstrations=path), "demonstrations")
    assert first["sources"][0]["file"] == "a.jsonl"
    assert fingerprints(project(demonstrations=path, holdout=0.5), "demonstrations") != first
    assert fingerprints(project(demonstrations=path, seed=1), "demonstrations") != first
    assert fingerprints(project(demonstrations=path, prompts=prompts), "demonstrations") != first
    assert fingerprints(project(demonstrations=path), "prompts") == first  # what evaluation would read
    asked = fingerprints(project(demonstrations=path, prompts=prompts), "prompts")
    assert asked == fingerprints(project(demonstrations=path, prompts=prompts, holdout=0.5, seed=1), "prompts")
    json.dumps(first)


def test_columns_that_json_cannot_hold_are_text_or_left_out_and_counted(project, tmp_path):
    """Parquet has types that JSON lacks; a set prepared at noon must not end the evaluation at night."""
    import datetime
    import decimal

    import pyarrow
    from pyarrow import parquet

    day = datetime.date(2026, 11, 21)
    content = [
        {**row, "day": day, "price": decimal.Decimal("1.10"), "nested": {"when": [day]}, "picture": b"\xff\xd8",
         "score": float("nan"), "n": 1 if row["n"] % 2 else None}
        for row in rows(20)
    ]  # fmt: skip
    content.append({**content[0], "completion": "", "picture": None})
    table = pyarrow.Table.from_pylist(content)
    nanoseconds = pyarrow.array([1] * 21, pyarrow.timestamp("ns"))
    parquet.write_table(table.append_column("ns", nanoseconds), tmp_path / "a.parquet")
    made = project(demonstrations=tmp_path / "a.parquet", holdout=0.4)
    prepared = prepare(made, "demonstrations", encode, tmp_path / "out", keep_columns=True)
    extra = json.loads(prepared.train[0]["extra"])
    assert extra | {"n": None} == {
        "day": "2026-11-21", "price": "1.10", "nested": {"when": ["2026-11-21"]}, "score": None, "n": None,
        "ns": "1970-01-01T00:00:00.000000001",
    }  # fmt: skip
    for prompt in evaluation_prompts(made, 100):
        json.dumps(prompt.extra, allow_nan=False)
    (dropped,) = map(json.loads, (tmp_path / "out/dropped.jsonl").read_text().splitlines())
    assert (dropped["reason"], dropped["row"]["day"]) == ("empty side", "2026-11-21")
    ledger = load_prepared(tmp_path / "out").ledger
    what = "column 'picture' left out: bytes"
    assert (what, 20) in ledger.summary()
    assert ledger.first[what] == f"{tmp_path}/a.parquet#1"
    assert balanced(ledger)


def test_a_column_that_a_file_cannot_hold_drops_its_row(write, project):
    content = [*rows(3), {"prompt": "p", "completion": "c", "tag": "\ud800"}]
    ledger = Ledger("demonstrations")
    made = project(demonstrations=write("a.jsonl", content), holdout=0.0)
    assert len(list(iter_records(made, "demonstrations", ledger))) == 3
    assert ledger.dropped == {"broken Unicode": 1}
