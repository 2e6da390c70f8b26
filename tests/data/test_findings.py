"""What misleads although each row can be used, on rows made to show it."""

import json
import random

import pytest

from rlhf.data.findings import Finding, Findings, ordered
from rlhf.data.index import Index
from rlhf.data.inspector import Inspector, contents, letters
from rlhf.data.ledger import Ledger
from rlhf.data.prepare import load_prepared, prepare
from rlhf.data.records import (
    Demonstration,
    Encoded,
    Feedback,
    Image,
    Labelled,
    Preference,
    Prompt,
    Spanned,
    as_role,
)


def inspect(*records, sides=None, name="preferences", held_out=()):
    """The findings of records, each at place `f:N`."""
    with Index() as index:
        inspector = Inspector(name, index)
        for number, prompt in enumerate(held_out, 1):
            inspector.hold_out(Prompt(prompt, {}, f"q:{number}"))
        for number, record in enumerate(records, 1):
            placed = type(record)(
                **{**{slot: getattr(record, slot) for slot in record.__slots__}, "origin": f"f:{number}"}
            )
            inspector.read(placed)
            inspector.keep(placed, sides[number - 1] if sides else "train")
        return inspector.findings()


def talk(content, role="user"):
    return [{"role": role, "content": content}]


def sentence(seed, count=40):
    rng = random.Random(seed)
    return [f"w{rng.randrange(10**6)}" for _ in range(count)]


def test_a_set_of_a_few_rows_is_said(project, write, tmp_path):
    rows = [{"prompt": f"p{number}", "completion": "r"} for number in range(9)]
    made = project(demonstrations=write("a.jsonl", rows), holdout=1e-9)
    few, none = prepare(made, "demonstrations", lambda _: Encoded({"n": 1}), tmp_path / "o").findings.lines()[:2]
    assert few.startswith("9 of 9 (100.0%) rows are left to train on")
    assert none.startswith("9 of 9 (100.0%) rows are trained on and none is held out")
    more = project(demonstrations=write("a.jsonl", [*rows, {"prompt": "x", "completion": "r"}]), holdout=0.0)
    findings = prepare(more, "demonstrations", lambda _: Encoded({"n": 1}), tmp_path / "o").findings
    assert not [line for line in findings.lines() if "left to train" in line or "none is held out" in line]


def test_a_finding_is_one_sentence():
    finding = Finding("length", 599, 1000, "pairs are so", (("a:1", "b:2"), ("a:3",)), (0.568, 0.6289))
    assert finding.share == 0.599
    assert finding.line() == "599 of 1,000 (59.9% [56.8%, 62.9%]) pairs are so (first: a:1 and b:2)"
    assert Finding("markers", 1, 100_000, "rows").line() == "1 of 100,000 (<0.1%) rows"
    assert Finding("markers", 0, 0, "rows").share == 0


def test_findings_say_what_was_found_most_severe_first_and_survive_a_file(tmp_path):
    entries = [
        Finding("length", 6, 10, "long", ci=(0.3, 0.8), values={"mean_chosen": 1.5}, said=False),
        Finding("near_duplicates", 2, 10, "near", (("a:1", "a:2"),)),
        Finding("leaked", 0, 3, "leaked"),
        Finding("contradictory", 1, 10, "contradict"),
    ]
    findings = ordered("preferences", entries)
    assert findings.lines() == ["1 of 10 (10.0%) contradict", "2 of 10 (20.0%) near (first: a:1 and a:2)"]
    findings.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["findings.json"]
    assert Findings.load(tmp_path) == findings
    written = json.loads((tmp_path / "findings.json").read_text())
    assert written["set"] == "preferences"
    assert written["findings"][0] == {
        "kind": "contradictory", "count": 1, "n": 10, "share": 0.1, "ci": None, "values": {}, "examples": [],
        "said": True, "text": "contradict",
    }  # fmt: skip
    assert findings.get("near_duplicates").count == 2
    assert findings.get("markers") is None


def test_a_clean_set_says_nothing():
    rng = random.Random(0)
    records = [
        Preference(" ".join(sentence(f"p{index}")), "a" * rng.randrange(5, 9), "b" * rng.randrange(5, 9))
        for index in range(60)
    ]
    assert inspect(*records).lines() == []


def test_length_is_counted_by_characters_without_white_space_around():
    records = [
        Preference("p", "longer", "short  \n\n\n"),
        Preference("p", "no", "longer"),
        Preference("p", "same", "four"),
    ]
    finding = inspect(*records).get("length")
    assert (finding.count, finding.n, finding.values["shorter"]) == (1, 3, 1)
    assert finding.values["mean_chosen"] == (6 + 2 + 4) / 3
    assert finding.values["mean_rejected"] == (5 + 6 + 4) / 3
    # Wilson's interval of 1 in 3, by hand: (1/3 + z²/6 ± z·sqrt(2/27 + z²/36)) / (1 + z²/3), z = 1.959964
    assert finding.ci == pytest.approx((0.0615, 0.7923), abs=1e-4)
    assert not finding.said


@pytest.mark.parametrize(("longer", "shorter", "same", "said"), [
    (59, 41, 0, False), (61, 39, 0, True), (39, 61, 0, True), (30, 30, 100, False), (0, 0, 9, False),
])  # fmt: skip
def test_a_length_bias_is_told_where_length_alone_would_tell_the_sides(longer, shorter, same, said):
    records = [Preference("p", "aaa", "b")] * longer + [Preference("p", "a", "bbb")] * shorter
    records += [Preference("p", "aa", "bb")] * same
    finding = inspect(*records).get("length")
    assert finding.said == said
    assert finding.n == longer + shorter + same
    assert finding.ci[0] <= finding.share <= finding.ci[1]


def test_a_pair_both_ways_round_contradicts_itself_wherever_its_white_space():
    records = [
        Preference(talk("p"), talk("a", "assistant"), talk("b", "assistant")),
        Preference(talk("q"), talk("b", "assistant"), talk("a", "assistant")),  # another prompt
        Preference("p ", " b", "a\n"),
        Preference("p", "a", "c"),
        Preference("p", "d", "b"),
    ]
    plain_first = Preference("p", "a", "b")
    findings = inspect(plain_first, *records[1:])
    finding = findings.get("contradictory")
    assert (finding.count, finding.n, finding.examples) == (1, 5, (("f:1", "f:3"),))
    assert "contradict an earlier one" in findings.lines()[0]


def test_a_reply_that_one_row_prefers_and_another_rejects_is_a_conflict_but_no_contradiction():
    findings = inspect(
        Preference("p", "a", "b"),
        Preference("p", "b", "c"),  # b was rejected
        Preference("q", "c", "b"),  # another prompt
        Preference("p", "d", "e"),
        Preference("p", "f", "d"),  # d was chosen
        Preference("p", "a", "g"),  # chosen both times
        Preference("p", "b", "a"),  # contradicts the first, and is counted there
    )
    assert findings.get("conflicting").examples == (("f:1", "f:2"), ("f:4", "f:5"))
    assert findings.get("conflicting").count == 2
    assert findings.get("contradictory").examples == (("f:1", "f:7"),)
    assert inspect(Demonstration("p", "a"), name="demonstrations").get("contradictory") is None


@pytest.mark.parametrize("reply", [
    "Yes.<|im_end|>", "<|eot_id|>", "a</s>", "[INST] b [/INST]", "x\n\nHuman: y", "<end_of_turn>", "### Response: a",
    "<|start_header_id|>", "<｜Assistant｜>", "<<SYS>>",
])  # fmt: skip
def test_markers_of_templates_in_a_reply(reply):
    finding = inspect(Preference("p", "a fine reply", reply)).get("markers")
    assert (finding.count, finding.n, finding.examples) == (1, 1, (("f:1",),))
    assert inspect(Demonstration("p", reply), name="demonstrations").get("markers").count == 1
    assert inspect(Demonstration(reply, "p"), name="demonstrations").get("markers").count == 0  # the prompt may


@pytest.mark.parametrize(
    "reply", ["a < b |x|", "<b>bold</b>", "# Response", "Human: first", "array[INSTANCE]", "s > t"]
)
def test_what_looks_like_a_marker_and_is_none(reply):
    assert inspect(Preference("p", "a", reply)).get("markers").count == 0


@pytest.mark.parametrize(("text", "count"), [
    ("caf\ufffd", 1), ("a\x07b", 1), ("&amp;", 1), ("&#39;", 1), ("donâ€™t", 1), ("CafÃ©", 1), ("\x93quoted\x94", 1),
    ("tab\tand\r\nline", 0), ("AT&T; R&D", 0), ("São Paulo, ÃO", 0), ("naïve – “fine” 🙂", 0),
])  # fmt: skip
def test_signs_of_broken_decoding(text, count):
    assert inspect(Preference("p", "a", text)).get("undecodable").count == count
    assert inspect(Preference(talk(text), "a", "b")).get("undecodable").count == count


@pytest.mark.parametrize(("text", "counts"), [
    ("abc 123 été", {"LATIN": 6}), ("привет ok", {"CYRILLIC": 6, "LATIN": 2}), ("漢字かなカナ", {"HAN": 6}),
    ("한국어", {"HANGUL": 3}), ("ＡＢ", {"LATIN": 2}), ("12 + 3!", {}), ("", {}), ("𝐱ʰµª", {}), ("ไทย", {"THAI": 3}),
])  # fmt: skip
def test_letters_by_script(text, counts):
    assert letters(text) == counts


def test_another_language_is_a_reply_with_more_than_a_fifth_of_letters_of_another_script():
    english = [Preference("p", "an english reply", f"another {index}") for index in range(5)]
    findings = inspect(
        Preference("p", "привет", "hello"),  # before it is known what most are
        *english,
        Preference("p", "abcdefgh яя", "x"),  # a fifth exactly
        Preference("p", "abcdefg яя", "x"),
        Preference("p", "42", "17"),  # no letters
    )
    finding = findings.get("other_language")
    assert (finding.count, finding.n, finding.examples) == (2, 8, (("f:1",), ("f:8",)))
    assert "not Latin" in finding.text
    russian = inspect(*[Preference("p", "да, конечно", "нет")] * 3, english[0]).get("other_language")
    assert (russian.count, russian.n, russian.examples) == (1, 4, (("f:4",),))
    assert inspect(Preference("p", "1", "2")).get("other_language").share == 0


def test_near_duplicates_are_of_prompts_or_of_whole_demonstrations():
    prompt = sentence(0)
    near = [*prompt[:20], "other", *prompt[21:]]
    first, other = " ".join(prompt), " ".join(near)
    pairs = inspect(Preference(first, "a", "b"), Preference(first, "c", "d"), Preference(other, "e", "f")).get(
        "near_duplicates"
    )
    assert (pairs.count, pairs.n, pairs.examples) == (1, 2, (("f:1", "f:3"),))  # two prompts, the second like the first
    reply = " ".join(sentence(1))
    shown = inspect(
        Demonstration(first, reply), Demonstration(first, " ".join(sentence(2))), Demonstration(other, reply),
        name="demonstrations",
    ).get("near_duplicates")  # fmt: skip
    assert (shown.count, shown.n, shown.examples) == (1, 3, (("f:1", "f:3"),))


@pytest.mark.parametrize("kind", [Preference, Demonstration])
def test_leaks_are_held_out_prompts_nearly_trained_on(kind):
    prompt = sentence(0)
    near = " ".join([*prompt[:20], "other", *prompt[21:]])
    replies = ("a", "b") if kind is Preference else ("a",)
    name = "preferences" if kind is Preference else "demonstrations"
    records = [kind(near, *replies), kind(" ".join(prompt), *replies), kind(" ".join(sentence(1)), *replies)]
    finding = inspect(*records, sides=["eval", "train", "eval"], name=name).get("leaked")
    assert (finding.count, finding.n, finding.examples) == (1, 2, (("f:2", "f:1"),))
    assert inspect(*records, name=name).get("leaked") is None
    given = inspect(*records, name=name, held_out=[near + " more", "another"]).get("leaked")
    assert (given.count, given.n, given.examples) == (1, 2, (("f:1", "q:1"),))


def test_sets_of_other_kinds_are_looked_at_too():
    for record in (Labelled("a text</s>", ("1",)), Feedback("p", "</s>", True), Prompt("a prompt")):
        findings = inspect(record, name="demonstrations")
        assert findings.get("length") is None
        assert findings.get("markers").count == (not isinstance(record, Prompt))
    assert contents([*talk("a"), *talk("b", "assistant")]) == "a\nb"


def test_images_have_no_text_to_look_at(tmp_path):
    paths = [tmp_path / f"{name} <s>&amp;" for name in ("a", "b")]
    for path in paths:
        path.write_bytes(path.name.encode())
    findings = inspect(*(Labelled(Image(str(path)), ("a",)) for path in paths), name="demonstrations")
    assert not any(entry.count for entry in findings.entries)


@pytest.mark.parametrize("as_prompts", [False, True])
def test_questions_about_one_text_do_not_nearly_repeat_one_another(as_prompts):
    def about(text):
        records = [Spanned(text, question, ()) for question in ("Who?", "When?", "Where?")]
        return [as_role(record, "prompts") for record in records] if as_prompts else records

    text = "The night train to Vienna leaves at ten and arrives on the next morning"
    assert inspect(*about(text), name="prompts").get("near_duplicates").count == 0
    assert inspect(*about(text), *about(text + " at seven"), name="prompts").get("near_duplicates").count == 1


def encode(record):
    return Encoded({"chosen_ids": [1] * len(record.chosen), "rejected_ids": [1] * len(record.rejected)},
                   truncated=len(record.chosen) > 50)  # fmt: skip


def test_a_prepared_set_carries_its_findings(write, project, tmp_path):
    rows = [{"prompt": f"prompt {index}", "chosen": "long" * (index % 7 + 1), "rejected": "no"} for index in range(40)]
    rows += [
        {"prompt": "prompt 3", "chosen": "no", "rejected": "long" * 4},  # contradicts
        {"prompt": "prompt 4", "chosen": "same", "rejected": "same "},  # identical: dropped, its length counted
        {"prompt": "prompt 3", "chosen": "no", "rejected": "long" * 4},  # duplicate: dropped, its length counted
        {"prompt": "prompt 5", "chosen": "", "rejected": "b"},  # dropped, counted nowhere
        {"prompt": "cut", "chosen": "x" * 51, "rejected": "no"},  # its tokens are not whole
    ]
    made = project(preferences=write("a.jsonl", rows), holdout=0.3)
    prepared = prepare(made, "preferences", encode, tmp_path / "out", key="k")
    findings = prepared.findings
    length, tokens = findings.get("length"), findings.get("length_tokens")
    assert (length.count, length.n, length.values["shorter"]) == (41, 44, 2)
    assert (tokens.count, tokens.n, tokens.values["shorter"]) == (40, 41, 1)
    assert findings.get("contradictory").examples[0][0].endswith("a.jsonl:4")
    assert findings.get("contradictory").examples[0][1].endswith("a.jsonl:41")
    assert findings.get("contradictory").n == prepared.ledger.trained + prepared.ledger.evaluated
    again = prepare(made, "preferences", None, tmp_path / "out", key="k")  # reused: nothing is encoded
    assert again.findings == findings == load_prepared(tmp_path / "out").findings
    assert isinstance(again.ledger, Ledger)
