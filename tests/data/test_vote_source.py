"""`source: votes:RUN`: rows by role, origins, what identifies them, and what is refused."""

import dataclasses
import sqlite3

import pytest

from rlhf.config.sets import SourceConfig
from rlhf.data.sources import fingerprint, locate, read_rows
from rlhf.data.votes import Votes, read_votes, votes_file
from rlhf.errors import UserError
from tests.support.votes import cast_votes

JUDGED = [("Q1", " a", " b", "first"), ("Q2", " c", " d", "second"), ("Q3", " e", " f", "neither")]


@pytest.fixture
def run(tmp_path):
    cast_votes(tmp_path / "runs" / "mine", JUDGED)
    return tmp_path / "runs" / "mine"


def test_each_role_has_its_rows(run, tmp_path):
    source = SourceConfig(f"votes:{run}")
    pairs = list(read_rows(source, tmp_path, "preferences"))
    assert [(row["prompt"], row["chosen"], row["rejected"], origin) for row, origin in pairs] == [
        ("Q1", " a", " b", f"votes:{run}#1"), ("Q2", " d", " c", f"votes:{run}#2")
    ]  # fmt: skip
    judged = [(row["completion"], row["label"]) for row, _ in read_rows(source, tmp_path, "feedback")]
    assert judged == [(" e", False), (" f", False)]


@pytest.mark.parametrize("name", ["mine", "runs/mine"])
def test_a_run_is_found_by_its_name_and_beside_the_yaml(run, tmp_path, name):
    assert locate(f"votes:{name}", tmp_path) == run


def test_rows_identify_votes_and_the_bytes_of_their_file_do_not(run, tmp_path):
    source = SourceConfig(f"votes:{run}")
    before = fingerprint(source, tmp_path, "preferences")
    with sqlite3.connect(votes_file(run)) as connection:
        connection.execute("create table other (x)")
    assert fingerprint(source, tmp_path, "preferences") == before
    cast_votes(run, [("Q4", " a", " b", "tie")])
    assert fingerprint(source, tmp_path, "preferences") == before
    cast_votes(run, [("Q5", " a", " b", "first")])
    assert fingerprint(source, tmp_path, "preferences") != before
    assert fingerprint(source, tmp_path, "feedback") != before
    twice = dataclasses.replace(source, weight=2.0)
    assert fingerprint(twice, tmp_path, "preferences")["weight"] == 2.0


def test_an_arena_that_is_open_goes_on(run, tmp_path):
    with Votes(votes_file(run)) as arena:
        first = len(list(read_rows(SourceConfig(f"votes:{run}"), tmp_path, "preferences")))
        cast_votes(run, [("Q6", " a", " b", "first")])
        assert len(arena.votes()) == len(read_votes(run)) == 4
        assert len(list(read_rows(SourceConfig(f"votes:{run}"), tmp_path, "preferences"))) == first + 1


@pytest.mark.parametrize(
    ("name", "role", "said"),
    [
        ("votes:mine", "demonstrations", r"its 3 votes give no demonstrations \(2 preferences, 0 demonst"),
        ("votes:mine", "rollouts", "votes give preferences, demonstrations, feedback, and no rows of data.rollouts"),
        ("votes:mine", None, "no rows of this set"),
        ("votes:other", "preferences", "no such run"),
        ("votes:", "preferences", "no such run"),
        ("votes:empty", "preferences", "nobody has voted there yet: rlhf arena"),
        ("votes:folder", "preferences", "is no run"),
    ],
)
def test_what_is_not_there_is_one_line(run, tmp_path, name, role, said):
    for folder in ("empty", "folder"):
        (tmp_path / "runs" / folder).mkdir()
    (tmp_path / "runs" / "empty" / "project.json").touch()
    with pytest.raises(UserError, match=said) as caught:
        list(read_rows(SourceConfig(name), tmp_path, role))
    assert "\n" not in str(caught.value)
