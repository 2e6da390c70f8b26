"""The file of votes: what is written stays, once, and is read as data."""

import signal
import subprocess
import sys
import threading

import pytest

from rlhf.data.votes import (
    AlreadyCast,
    NoSuchBallot,
    Reply,
    Votes,
    read_votes,
    votes_file,
)
from rlhf.errors import UserError

MESSAGES = [{"role": "user", "content": "hello"}]
SAMPLING = {"temperature": 0.7, "max_new_tokens": 8, "seed": 0}


@pytest.fixture
def votes(tmp_path):
    with Votes(tmp_path / "votes.sqlite", seed=0) as opened:
        yield opened


def add(votes, *, policies=("sft", "dpo"), prompt="hello", **more):
    replies = [Reply(policy, f"{policy} says", artifact="abc", scores={"gold": 1.0}) for policy in policies]
    return votes.add(prompt, replies, sampling=SAMPLING, **more)


def test_a_vote_has_everything_that_was_shown(votes):
    number = add(votes, prompt=MESSAGES, columns={"name": "Ann"})
    ballot = votes.show(number, "bo")
    votes.cast(ballot, "second", seconds=3.5, good=(False, None), edit="better", reason="rude")
    (kept,) = votes.votes()
    assert kept.ballot == ballot
    assert (kept.verdict, kept.good, kept.edit, kept.reason, kept.seconds) == (
        "second",
        (False, None),
        "better",
        "rude",
        3.5,
    )
    comparison = kept.ballot.comparison
    assert comparison.prompt == MESSAGES
    assert comparison.columns == {"name": "Ann"}
    assert comparison.sampling == SAMPLING
    assert comparison.replies[1] == Reply("dpo", "dpo says", "abc", True, {"gold": 1.0})


def test_a_ballot_takes_one_vote(votes):
    ballot = votes.show(add(votes), "bo")
    votes.cast(ballot, "first", seconds=1)
    with pytest.raises(AlreadyCast):
        votes.cast(ballot, "second", seconds=1)
    assert [kept.verdict for kept in votes.votes()] == ["first"]


def test_an_annotator_sees_a_comparison_once_and_in_one_order(votes):
    number = add(votes)
    assert votes.show(number, "bo") == votes.show(number, "bo")
    assert votes.show(number, "cy").id != votes.show(number, "bo").id
    assert votes.unseen("bo") == []
    assert votes.unseen("di") == [number]


def test_order_is_random(votes):
    swapped = [votes.show(add(votes), "bo").swapped for _ in range(60)]
    assert 15 < sum(swapped) < 45
    ballot = next(votes.show(number, "bo") for number in range(1, 61) if swapped[number - 1])
    assert [reply.policy for reply in ballot.shown_replies] == ["dpo", "sft"]


def test_the_least_judged_comparison_comes_first(votes):
    first, second, third = add(votes), add(votes), add(votes, policies=("sft", "ppo"))
    votes.cast(votes.show(first, "bo"), "tie", seconds=1)
    assert votes.unseen("cy") == [second, third, first]
    assert votes.unseen("cy", ["sft", "dpo"]) == [second, first]


def test_typed_prompts_and_later_turns_are_their_annotators(votes):
    number = add(votes)
    ballot = votes.show(number, "bo")
    add(votes, origin="typed")
    add(votes, parent=ballot.id)
    assert votes.unseen("cy") == [number]


def test_the_open_ballot_is_the_last_without_a_vote(votes):
    assert votes.open_ballot("bo") is None
    ballot = votes.show(add(votes), "bo")
    assert votes.open_ballot("bo") == ballot
    votes.cast(ballot, "skip", seconds=1)
    assert votes.open_ballot("bo") is None


def test_a_ballot_is_its_annotators_alone(votes):
    ballot = votes.show(add(votes), "bo")
    assert votes.ballot(ballot.id, "bo") == ballot
    with pytest.raises(NoSuchBallot):
        votes.ballot(ballot.id, "cy")


def test_many_threads_cast_one_vote_each(votes):
    ballots = [votes.show(add(votes), f"annotator {number}") for number in range(40)]
    refused = []

    def cast(ballot):
        for _ in range(2):
            try:
                votes.cast(ballot, "first", seconds=1)
            except AlreadyCast:
                refused.append(ballot.id)

    threads = [threading.Thread(target=cast, args=(ballot,)) for ballot in ballots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(votes.votes()) == len(refused) == 40


def test_a_killed_process_leaves_what_it_acknowledged(tmp_path):
    program = """
import os, sys
from pathlib import Path
from rlhf.data.votes import Reply, Votes
votes = Votes(Path(sys.argv[1]))
while True:
    number = votes.add("hello", [Reply("sft", "a"), Reply("dpo", "b")], sampling={})
    votes.cast(votes.show(number, "bo"), "first", seconds=1)
    os.write(1, f"{number}\\n".encode())
"""
    file = tmp_path / "votes.sqlite"
    process = subprocess.Popen([sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE)
    acknowledged = [int(process.stdout.readline()) for _ in range(30)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().split()]
    process.wait()
    with Votes(file) as votes:
        kept = [vote.ballot.comparison.id for vote in votes.votes()]
    assert set(acknowledged) <= set(kept)
    assert len(kept) == len(set(kept)) <= len(acknowledged) + 1


def test_a_run_without_an_arena_has_no_votes(tmp_path):
    assert read_votes(tmp_path) == []
    assert not votes_file(tmp_path).exists()


@pytest.mark.parametrize(
    "content", [b"not a database at all, but a text of some length", b"SQLite format 3\0" + b"x" * 200]
)
def test_a_damaged_file_is_one_line(tmp_path, content):
    file = tmp_path / "votes.sqlite"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"votes\.sqlite"):
        Votes(file)
    assert file.read_bytes() == content


def test_another_version_is_refused(tmp_path):
    file = tmp_path / "votes.sqlite"
    with Votes(file) as votes:
        votes._connection.execute("pragma user_version = 9")
    with pytest.raises(UserError, match="version 9"):
        Votes(file)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "arena").write_text("a file")
    with pytest.raises(UserError, match="arena"):
        Votes(tmp_path / "arena" / "votes.sqlite")


def test_votes_are_read_where_nothing_can_be_written(tmp_path):
    with Votes(votes_file(tmp_path)) as votes:
        votes.cast(votes.show(add(votes), "bo"), "first", seconds=1)
    assert [path.name for path in votes_file(tmp_path).parent.iterdir()] == ["votes.sqlite"]
    before = votes_file(tmp_path).read_bytes()
    assert [vote.verdict for vote in read_votes(tmp_path)] == ["first"]
    assert votes_file(tmp_path).read_bytes() == before


def test_votes_are_read_while_they_are_cast(votes, tmp_path):
    votes.cast(votes.show(add(votes), "bo"), "first", seconds=1)
    with Votes(votes.file, read_only=True) as reader:
        assert len(reader.votes()) == 1
        votes.cast(votes.show(add(votes), "bo"), "tie", seconds=1)
        assert len(reader.votes()) == 2


def test_a_file_that_was_emptied_is_not_taken_for_no_votes(tmp_path):
    votes_file(tmp_path).parent.mkdir()
    votes_file(tmp_path).touch()
    with pytest.raises(UserError, match=r"votes\.sqlite: nothing"):
        read_votes(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        "delete from reply where place = 1",
        "delete from reply",
        "delete from comparison",
        "update comparison set prompt = 'no json'",
        "update reply set scores = '{'",
    ],
)
def test_damaged_rows_are_one_line(tmp_path, damage):
    with Votes(votes_file(tmp_path)) as votes:
        for _ in range(2):
            votes.cast(votes.show(add(votes), "bo"), "first", seconds=1)
        votes._connection.execute("pragma foreign_keys = off")
        votes._connection.execute(damage)
    with pytest.raises(UserError, match=r"votes\.sqlite: damaged"):
        read_votes(tmp_path)


def test_damaged_pages_are_one_line(tmp_path):
    with Votes(votes_file(tmp_path)) as votes:
        for _ in range(40):
            votes.cast(votes.show(add(votes), "bo"), "first", seconds=1)
    content = bytearray(votes_file(tmp_path).read_bytes())
    content[4096:] = b"x" * (len(content) - 4096)
    votes_file(tmp_path).write_bytes(content)
    with pytest.raises(UserError, match=r"votes\.sqlite"):
        read_votes(tmp_path)
