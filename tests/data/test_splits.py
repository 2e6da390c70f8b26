import itertools
import random

import pytest

from rlhf.data.records import Demonstration, Feedback, Image, Labelled, Preference, Prompt, Spanned, as_role
from rlhf.data.splits import canonical, completions, content_key, contexts, copies, own_prompt, side

PROMPTS = [f"prompt {index}" for index in range(5000)]


def turn(role, content):
    return {"role": role, "content": content}


def test_canonical_is_the_same_in_plain_and_conversational_sets():
    assert canonical(" hi\n") == canonical("hi") == canonical([turn("user", "hi ")])
    assert canonical([turn("system", "hi")]) != canonical("hi")
    assert canonical([turn("user", "a"), turn("user", "b")]) != canonical([turn("user", "ab")])
    assert canonical('["user", "a"]') != canonical("a")


def test_the_share_held_out_is_the_share_asked_for():
    for holdout in (0.0, 0.05, 0.5, 1.0):
        share = sum(side(prompt, holdout, 0) == "eval" for prompt in PROMPTS) / len(PROMPTS)
        assert share == pytest.approx(holdout, abs=4 * (holdout * (1 - holdout) / len(PROMPTS)) ** 0.5)


def test_what_is_held_out_at_a_share_is_held_out_at_every_larger_one():
    shares = (0.01, 0.05, 0.1, 0.3)
    held_out = [{prompt for prompt in PROMPTS if side(prompt, share, 0) == "eval"} for share in shares]
    for smaller, larger in itertools.pairwise(held_out):
        assert smaller < larger


def test_seeds_hold_out_different_prompts():
    first, second = ({prompt for prompt in PROMPTS if side(prompt, 0.1, seed) == "eval"} for seed in (0, 1))
    assert len(first & second) < len(first) / 3


def test_the_later_turns_of_a_conversation_stay_on_its_side():
    rng = random.Random(0)
    for prompt in PROMPTS[:300]:
        conversation = [turn("user", prompt)]
        expected = side(prompt, 0.3, 0)
        for _ in range(3):
            conversation += [turn("assistant", str(rng.random())), turn("user", str(rng.random()))]
            assert side(conversation, 0.3, 0) == expected
    assert side([], 0.3, 0) in ("train", "eval")
    assert side([turn("system", "s")], 1.0, 0) == "eval"


def test_copies_average_to_the_weight_and_never_change():
    keys = [bytes([index % 256, index // 256]) for index in range(4000)]
    for weight in (0.25, 1.0, 2.0, 2.5):
        counts = [copies(key, weight, 0) for key in keys]
        assert set(counts) <= {int(weight), int(weight) + 1}
        assert sum(counts) / len(keys) == pytest.approx(weight, abs=0.03)
        assert counts == [copies(key, weight, 0) for key in keys]
    assert {copies(key, 1.0, 0) for key in keys} == {1}
    assert {copies(key, 2.0, 0) for key in keys} == {2}
    # what a weight keeps, a larger one keeps too
    assert all(copies(key, 0.5, 0) >= copies(key, 0.25, 0) for key in keys)


def test_contexts_are_all_prompts_a_record_replies_to():
    user, reply, again = turn("user", "a"), turn("assistant", "b"), turn("user", "c")
    record = Demonstration([user], [reply, again, reply])
    assert contexts(record) == [[user], [user, reply, again]]
    assert contexts(Demonstration("p", "c")) == ["p"]
    assert contexts(Labelled("t", ("a",))) == contexts(Demonstration("", "t")) == ["t"]
    assert contexts(Preference([user, reply, again], [reply], [])) == [[user, reply, again]]


def test_questions_about_a_text_are_on_its_side_as_records_and_as_prompts():
    record = Spanned("It is blue.", "Colour?", ((6, 10),))
    assert own_prompt(record) == "Colour?\n\nIt is blue."
    assert contexts(record) == contexts(as_role(record, "prompts")) == ["It is blue.", "Colour?\n\nIt is blue."]
    assert own_prompt(as_role(record, "prompts")) == own_prompt(record)


def test_images_are_equal_by_their_bytes(tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for path in (first, second):
        path.write_bytes(b"bytes of an image")
    uri = Image("data:image/png;base64,Ynl0ZXMgb2YgYW4gaW1hZ2U=")
    keys = {content_key(ref) for ref in (Image(str(first)), Image(str(second)), uri)}
    assert len(keys) == 1
    assert {side(ref, 0.5, 3) for ref in (Image(str(first)), uri)} == {side(Image(str(second)), 0.5, 3)}
    second.write_bytes(b"other bytes")
    assert content_key(Image(str(second))) not in keys | {content_key(str(second))}


def test_completions():
    assert completions(Preference("p", "a", "b")) == ["a", "b"]
    assert completions(Feedback("p", "a", True)) == completions(Demonstration("p", "a")) == ["a"]
    assert completions(Prompt("p")) == completions(Labelled("t", ("a",))) == completions(Spanned("c", "q", ())) == []
