import pytest

from rlhf.config.load import load_project
from rlhf.config.sets import LimitsConfig
from rlhf.data.checks import check_limits, fault, row_key
from rlhf.data.findings import Finding, Findings
from rlhf.data.ledger import Ledger
from rlhf.data.records import Demonstration, Feedback, Image, Labelled, Preference, Prompt, Spanned
from rlhf.errors import UserError

USER = {"role": "user", "content": "hi"}


def reply(content):
    return [{"role": "assistant", "content": content}]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Preference("p", "a", "b"), None),
        (Preference("p", "a", " \n"), "empty side"),
        (Preference("p", "", ""), "empty side"),
        (Preference([USER], reply("a"), []), "empty side"),
        (Preference([USER], reply("a"), reply(" ")), "empty side"),
        (Preference("p", "a", "a "), "identical"),
        (Preference([USER], reply("a"), reply("a")), "identical"),
        (Preference(" ", "a", "b"), "empty prompt"),
        (Preference([{"role": "system", "content": "s"}], reply("a"), reply("b")), "empty prompt"),
        (Preference("p", "a", "\ud800"), "broken Unicode"),
        (Demonstration("", "text"), None),
        (Demonstration("p", ""), "empty side"),
        (Demonstration([USER], []), "empty side"),
        (Demonstration([USER], [*reply("a"), USER, *reply("")]), "empty side"),
        (Demonstration([USER], [*reply("a"), {"role": "user", "content": ""}, *reply("b")]), None),
        (Demonstration([USER], [USER]), "empty side"),
        (Demonstration([], reply("a")), "empty prompt"),
        (Feedback([USER], [USER], True), "empty side"),
        (Feedback("p", " ", True), "empty side"),
        (Feedback("", "c", True), "empty prompt"),
        (Prompt("p"), None),
        (Prompt([]), "empty prompt"),
        (Labelled("t", ("a",)), None),
        (Labelled("t", (), multi=True), None),
        (Labelled(" ", ("a",)), "empty text"),
        (Labelled("t", ()), "no label"),
        (Labelled("t", (" ",)), "no label"),
        (Labelled("t", ("\ud800",)), "broken Unicode"),
        (Labelled(Image("a.png"), ("a",)), None),
        (Spanned("c", "q", ()), None),
        (Spanned(" ", "q", ()), "empty text"),
        (Spanned("c", " ", ()), "empty question"),
        (Spanned("c\ud800", "q", ()), "broken Unicode"),
    ],
)
def test_fault(record, reason):
    assert fault(record) == reason


def test_rows_are_the_same_by_what_is_learned_from_them():
    assert row_key(Preference("p", "a", "b", {"x": 1}, "f:1")) == row_key(Preference("p ", "a", "b\n", {}, "g:2"))
    different = [
        Preference("p", "a", "b"),
        Preference("p", "b", "a"),
        Demonstration("p", "a"),
        Prompt("p"),
        Feedback("p", "a", True),
        Feedback("p", "a", False),
        Labelled("p", ("0",)),
        Labelled("p", ("1",)),
        Labelled("p", ("0", "1"), multi=True),
        Spanned("p", "q", ()),
        Spanned("p", "r", ()),
        Spanned("p", "q", ((0, 1),)),
    ]
    keys = {row_key(record) for record in different}
    assert len(keys) == len(different)
    assert {len(key) for key in keys} == {16}


def flawed():
    """Of 5,000 rows 400 have an empty side, 200 are identical, 50 cut (10 of them at the end); 500 are left out."""
    ledger = Ledger("preferences")
    ledger.read, ledger.truncated, ledger.eos_lost = 5000, 50, 10
    for reason, count in {
        "empty side": 400, "identical": 200, "duplicate": 250, "prompt held out": 150, "sampled out": 90,
        "negative feedback": 10,
    }.items():  # fmt: skip
        for number in range(count):
            ledger.drop(reason, f"demo.jsonl:{number + 12}", {})
    kinds = ("near_duplicates", "contradictory", "conflicting", "leaked", "markers", "undecodable", "other_language")
    return ledger, Findings("preferences", tuple(Finding(kind, 3, 300, f"are {kind}", (("a:1",),)) for kind in kinds))


def test_a_set_within_its_limits_passes():
    ledger, findings = flawed()
    check_limits(LimitsConfig(), "preferences", ledger, findings)
    exactly = LimitsConfig(dropped=0.12, truncated=0.01, eos_lost=0.002, duplicates=0.05, near_duplicates=0.01,
                           contradictory=0.01, conflicting=0.01, leaked=0.01, markers=0.01, undecodable=0.01,
                           other_language=0.01)  # fmt: skip
    check_limits(exactly, "preferences", ledger, findings)
    check_limits(LimitsConfig(leaked=0), "prompts", Ledger("prompts"), Findings("prompts"))
    with pytest.raises(UserError) as caught:
        check_limits(LimitsConfig(dropped=0.1), "preferences", ledger, findings)
    assert str(caught.value) == (
        "data.preferences: 12.0% of 5,000 rows were dropped (empty side 400, first demo.jsonl:12, identical 200, first "
        "demo.jsonl:12), data.limits.dropped allows 10%"
    )


@pytest.mark.parametrize(
    ("key", "limit", "says"),
    [
        ("truncated", 0.009, "1.0% of 5,000 rows were cut"),
        ("eos_lost", 0.001, "0.2% of 5,000 rows lost their end-of-sequence token"),
        ("duplicates", 0, r"5.0% of 5,000 rows are duplicates \(first demo.jsonl:12\)"),
        *[
            (kind, 0.009, rf"3 of 300 \(1.0%\) are {kind} \(first: a:1\)")
            for kind in ("near_duplicates", "contradictory", "conflicting", "leaked", "markers", "undecodable",
                         "other_language")
        ],
    ],
)  # fmt: skip
def test_each_limit_is_held(key, limit, says):
    with pytest.raises(UserError, match=rf"^data.preferences: {says}.*, data.limits.{key} allows {100 * limit:g}%$"):
        check_limits(LimitsConfig(**{key: limit}), "preferences", *flawed())


def test_all_limits_that_are_exceeded_are_named():
    with pytest.raises(UserError, match=r"limits.dropped allows 0%; .*limits.leaked allows 0%$"):
        check_limits(LimitsConfig(dropped=0, leaked=0), "preferences", *flawed())


def test_limits_are_keys_of_the_data(tmp_path):
    path = tmp_path / "p.yaml"

    def load(limits):
        path.write_text(f"name: n\nmodel: {{name_or_path: m}}\ndata: {{limits: {limits}}}\n")
        return load_project(path).data.limits

    assert load("{dropped: 0.1, leaked: 0}") == LimitsConfig(dropped=0.1, leaked=0)
    assert load("null") == LimitsConfig()
    with pytest.raises(UserError, match=r"data.limits.dropped: must be at most 1, not 5"):
        load("{dropped: 5}")
    with pytest.raises(UserError, match=r"unknown key 'data.limits.droped'; did you mean 'dropped'"):
        load("{droped: 0.1}")
