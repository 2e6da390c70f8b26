"""Which prompts are shown, and which comparisons first."""

import math

import pytest

from rlhf.arena.prompts import (
    Candidate,
    Pool,
    candidates_of,
    difference,
    file_pool,
    held_out_pool,
    most_informative,
    uncertainty,
)
from rlhf.data.prepare import evaluation_prompts, iter_records
from rlhf.data.records import Prompt
from rlhf.data.votes import Reply
from rlhf.errors import UserError
from tests.support.projects import chats, make_project, pairs, write_rows


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path, tmp_path / "no-model", pairs(80))


def held_out(project):
    return {record.prompt for record, side in iter_records(project, "preferences") if side == "eval"}


def test_the_pool_is_what_is_held_out_without_the_final_comparison(project):
    pool = held_out_pool(project)
    shown = {prompt.prompt for prompt in pool.prompts}
    compared = {prompt.prompt for prompt in evaluation_prompts(project, project.evaluate.prompts)}
    assert len(compared) == 6 == pool.compared
    assert shown == held_out(project) - compared
    assert len(shown) == len(pool.prompts) > 6


def test_data_prompts_are_for_the_comparison_alone(tmp_path):
    rows = pairs(80)
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in rows[:70]])
    data = {name: {"source": str(tmp_path / "pairs.jsonl")} for name in ("demonstrations", "preferences")}
    data["preferences"]["holdout"] = 0.5
    project = make_project(tmp_path, tmp_path / "no-model", rows, data={**data, "prompts": {"source": str(prompts)}})
    named = {row["prompt"] for row in rows[:70]}
    pool = held_out_pool(project)
    assert pool.prompts
    assert not {prompt.prompt for prompt in pool.prompts} & named


def test_a_file_leaves_out_the_final_comparison_and_counts(project, tmp_path):
    compared = evaluation_prompts(project, project.evaluate.prompts)
    rows = [{"prompt": compared[0].prompt}, {"prompt": "A new one"}, {"prompt": "A new one"}, {"prompt": " "}]
    rows.append({"prompt": [{"role": "user", "content": compared[1].prompt}, {"role": "assistant", "content": "Yes."},
                            {"role": "user", "content": "And?"}]})  # fmt: skip
    later = file_pool(project, str(write_rows(tmp_path / "later.jsonl", [rows[4], {"prompt": "A new one"}])))
    assert (len(later.prompts), later.compared) == (1, 1)  # a later turn of a conversation that is compared
    pool = file_pool(project, str(write_rows(tmp_path / "mine.jsonl", rows[:4])))
    assert [prompt.prompt for prompt in pool.prompts] == ["A new one"]
    assert (pool.compared, pool.unusable, pool.origin) == (1, 1, "file")
    with pytest.raises(UserError, match="no prompt to show"):
        file_pool(project, str(write_rows(tmp_path / "theirs.jsonl", rows[:1])))
    with pytest.raises(UserError):
        file_pool(project, str(tmp_path / "missing.jsonl"))
    with pytest.raises(UserError):
        file_pool(project, str(write_rows(tmp_path / "empty.jsonl", [])))


def test_a_system_message_hides_no_prompt_of_the_comparison(project, tmp_path):
    compared = evaluation_prompts(project, project.evaluate.prompts)[0].prompt
    system, user = {"role": "system", "content": "Be kind."}, {"role": "user", "content": compared}
    example = [{"role": "user", "content": "An example"}, {"role": "assistant", "content": "So."}]
    rows = [{"prompt": turns} for turns in ([system, user], [*example, user], [system, *example, user])]
    pool = file_pool(project, str(write_rows(tmp_path / "mine.jsonl", [*rows, {"prompt": [system, example[0]]}])))
    assert [prompt.prompt for prompt in pool.prompts] == [[system, example[0]]]
    assert pool.compared == 3


def test_a_comparison_behind_a_system_message_is_not_shown_without_it(tmp_path):
    rows = chats(80)
    for row in rows:
        row["prompt"] = [{"role": "system", "content": "Be kind."}, *row["prompt"]]
    project = make_project(tmp_path, tmp_path / "no-model", rows)
    compared = evaluation_prompts(project, project.evaluate.prompts)[0].prompt
    mine = write_rows(tmp_path / "mine.jsonl", [{"prompt": compared[-1]["content"]}, {"prompt": "A new one"}])
    pool = file_pool(project, str(mine))
    assert [prompt.prompt for prompt in pool.prompts] == ["A new one"]


def test_plain_text_is_what_a_user_says():
    said = [{"role": "user", "content": "Q?"}]
    pool = Pool([Prompt("Q?", {"name": "Ada"}), Prompt(said)], "file", 2, 1).in_messages()
    assert [prompt.prompt for prompt in pool.prompts] == [said, said]
    assert pool.prompts[0].extra == {"name": "Ada"}
    assert (pool.origin, pool.compared, pool.unusable) == ("file", 2, 1)


def test_a_conversation_file_is_read(tmp_path):
    project = make_project(tmp_path, tmp_path / "no-model", chats(80))
    pool = file_pool(project, str(write_rows(tmp_path / "mine.jsonl", [{"question": "Q?", "answer": "A."}])))
    assert "Q?" in str(pool.prompts[0].prompt)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("a b c d", "a b c d", 0.0), ("a b", "c d", 1.0), ("a b c d", "a b", 1 - 4 / 6), ("", "", 0.0)],
)
def test_difference(first, second, expected):
    assert difference(first, second) == pytest.approx(expected)


def test_uncertainty_is_twice_the_smaller_probability():
    assert uncertainty({"r": 1.0}, {"r": 1.0}, "r") == 1.0
    assert uncertainty({"r": math.log(3)}, {"r": 0.0}, "r") == pytest.approx(0.5)
    assert uncertainty({"r": 0.0}, {"r": math.log(3)}, "r") == pytest.approx(0.5)
    assert uncertainty({"r": -1e9}, {"r": 1e9}, "r") < 1e-9
    assert uncertainty({"r": None}, {"r": 1.0}, "r") == uncertainty({}, {}, "r") == uncertainty({}, {}, None) == 0.0


def candidate(prompt, first, second, scores=(0.0, 0.0), pair=("sft", "dpo")):
    texts = zip(pair, (first, second), scores, strict=True)
    return Candidate(prompt, tuple(Reply(name, text, scores={"r": score}) for name, text, score in texts))


def test_the_most_different_and_the_least_certain_come_first():
    different = candidate(0, "a b c", "x y z", (9.0, 0.0))
    middling = candidate(1, "a b c d e f", "a b c x y z", (4.0, 0.0))
    unsure = candidate(2, "a b c d e f g h", "a b c d e f g i", (1.0, 1.0))
    dull = candidate(3, "a b c d e f g h", "a b c d e f g i", (8.0, 0.0))
    chosen = most_informative([dull, middling, unsure, different], "r")
    assert [each.prompt for each in chosen[:2]] in ([0, 2], [2, 0])
    assert chosen[-1].prompt == 3
    assert [each.prompt for each in most_informative([dull, middling, different], None)] == [0, 1, 3]


def test_equal_replies_are_left_out():
    assert not most_informative([candidate(0, "the same", "the same ")], "r")


def test_pairs_take_turns_and_a_prompt_is_taken_once():
    names = ("sft", "dpo", "ppo")
    candidates = [
        each
        for number in range(9)
        for each in candidates_of(number, {name: Reply(name, f"{name} {number}") for name in names}, [])
    ]
    assert len(candidates) == 27
    chosen = most_informative(candidates, None)
    assert sorted(each.prompt for each in chosen) == list(range(9))
    assert all(len({each.pair for each in chosen[start : start + 3]}) == 3 for start in (0, 3, 6))


def test_a_pair_that_was_compared_is_no_candidate():
    replies = {name: Reply(name, name) for name in ("sft", "dpo", "ppo")}
    left = candidates_of(0, replies, [frozenset(("dpo", "sft"))])
    assert {each.pair for each in left} == {frozenset(("sft", "ppo")), frozenset(("dpo", "ppo"))}
