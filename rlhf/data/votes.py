"""What people said of replies: comparisons, ballots and votes in one SQLite file, `arena/votes.sqlite` of a run.

A comparison is two replies to one prompt. A ballot is a comparison as it was shown to one annotator, in random order.
A vote is what the annotator answered; a ballot takes one, and an annotator gets one ballot a comparison. Every write is
a transaction that is on disk before the call returns (WAL, synchronous FULL), so that a kill loses nothing that was
acknowledged. Many processes may hold the file open.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import random
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlhf.data.durable import explained, open_durable, open_to_read
from rlhf.data.records import Text
from rlhf.errors import UserError

FOLDER, FILE = "arena", "votes.sqlite"
"""Where a run keeps them."""
Verdict = Literal["first", "second", "tie", "neither", "skip"]
"""Which reply of a comparison is better; `neither` says that both are bad, `skip` says nothing."""
VERDICTS: tuple[Verdict, ...] = ("first", "second", "tie", "neither", "skip")
Origin = Literal["held out", "file", "typed"]
"""Where a prompt comes from: the run's own data, a file that was named, or the annotator."""

_json = functools.partial(json.dumps, ensure_ascii=False, default=str)
_VERSION = 1
_TABLES = """
create table comparison (
  id integer primary key, prompt text not null, columns text not null, origin text not null, parent integer
  references ballot (id), sampling text not null, made real not null
) strict;
create table reply (
  comparison integer not null references comparison (id), place integer not null check (place in (0, 1)),
  policy text not null, artifact text, text text not null, finished integer not null, scores text not null,
  primary key (comparison, place)
) strict;
create table ballot (
  id integer primary key, comparison integer not null references comparison (id), annotator text not null,
  swapped integer not null, shown real not null, unique (comparison, annotator)
) strict;
create table vote (
  ballot integer primary key references ballot (id), verdict text not null
  check (verdict in ('first', 'second', 'tie', 'neither', 'skip')),
  good_first integer, good_second integer, edit text, reason text, seconds real not null, cast_at real not null
) strict;
create index ballot_annotator on ballot (annotator);
"""


class AlreadyCast(UserError):
    """A ballot has its vote; a second one is not taken."""


class NoSuchBallot(UserError):
    """There is no such ballot, or it is another annotator's."""


@dataclass(frozen=True)
class Reply:
    """What a policy replied."""

    policy: str
    """Its name in the run (`base`, `sft`, `dpo@1`), or a server's `URL model`."""
    text: str
    artifact: str | None = None
    """Hash of its model's files, as its contract records it; None where nobody records one."""
    finished: bool = True
    """Whether it ended by itself and not at the limit."""
    scores: dict[str, float | None] = field(default_factory=dict)
    """By judge; null where a judge gives none."""


@dataclass(frozen=True)
class Comparison:
    """Two replies to one prompt."""

    id: int
    prompt: Text
    replies: tuple[Reply, Reply]
    columns: dict[str, Any]
    """The other columns of the prompt's row."""
    origin: Origin
    parent: int | None
    """The ballot that the conversation goes on from; None for its first turn."""
    sampling: dict[str, Any]
    """Settings of the sampling: temperature, max_new_tokens, seed."""


@dataclass(frozen=True)
class Ballot:
    """A comparison as it was shown to an annotator."""

    id: int
    comparison: Comparison
    annotator: str
    swapped: bool
    """Whether the comparison's second reply was shown first."""
    shown: float
    """When, in seconds since 1970."""

    @property
    def shown_replies(self) -> tuple[Reply, Reply]:
        """The replies in the order shown."""
        first, second = self.comparison.replies
        return (second, first) if self.swapped else (first, second)


@dataclass(frozen=True)
class Vote:
    """What an annotator said of a comparison. Replies are named by their place in the comparison, not as shown."""

    ballot: Ballot
    verdict: Verdict
    good: tuple[bool | None, bool | None]
    """Whether each reply is good by itself; None where the annotator did not say."""
    edit: str | None
    """What should have been said."""
    reason: str | None
    seconds: float
    """From the moment both replies could be read to the vote."""
    cast_at: float


class Votes(contextlib.AbstractContextManager["Votes"]):
    """The votes of a run. One object may be used by several threads.

    Args:
        file: The SQLite file; it and its folder are made if need be.
        seed: Of the order in which replies are shown; None draws it.
        read_only: Whether nothing is written, not even the file.

    Raises:
        UserError: The file is damaged, of another version, or cannot be written.
    """

    def __init__(self, file: Path, seed: int | None = None, read_only: bool = False) -> None:
        self.file = file
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._connection = open_to_read(file, _VERSION) if read_only else open_durable(file, _TABLES, _VERSION)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("begin immediate")
            try:
                yield self._connection
                self._connection.execute("commit")
            except BaseException:
                if self._connection.in_transaction:  # of which SQLite itself has not undone all, as on a full disk
                    self._connection.execute("rollback")
                raise

    def add(
        self,
        prompt: Text,
        replies: Sequence[Reply],
        *,
        sampling: dict[str, Any],
        columns: dict[str, Any] | None = None,
        origin: Origin = "held out",
        parent: int | None = None,
    ) -> int:
        """Add a comparison.

        Args:
            prompt: What was replied to.
            replies: Two of them.
            sampling: How they were sampled.
            columns: The other columns of the prompt's row.
            origin: Where the prompt comes from.
            parent: The ballot that the conversation goes on from.

        Returns:
            Its number.
        """
        first, second = replies
        with self._transaction() as connection:
            row = (_json(prompt), _json(columns or {}), origin, parent, _json(sampling), time.time())
            number = connection.execute(
                "insert into comparison (prompt, columns, origin, parent, sampling, made) values (?, ?, ?, ?, ?, ?)",
                row,
            ).lastrowid
            for place, reply in enumerate((first, second)):
                connection.execute(
                    "insert into reply values (?, ?, ?, ?, ?, ?, ?)",
                    (number, place, reply.policy, reply.artifact, reply.text, reply.finished, _json(reply.scores)),
                )
        assert number is not None
        return number

    def comparisons(self) -> list[Comparison]:
        """All comparisons, in the order they were added."""
        return self._comparisons("")

    def comparison(self, number: int) -> Comparison:
        """The comparison of a number.

        Raises:
            KeyError: There is none.
        """
        found = self._comparisons("where comparison.id = ?", number)
        if not found:
            raise KeyError(number)
        return found[0]

    def unseen(self, annotator: str, policies: Sequence[str] | None = None) -> list[int]:
        """Comparisons of nobody's own prompts that an annotator has not seen, those with the fewest votes first.

        Of those with equally many, the one added first comes first.

        Args:
            annotator: Who has not seen them.
            policies: Only comparisons between these; None for all.
        """
        names = list(policies or [])
        among = f"and policy not in ({','.join('?' * len(names))})" if policies is not None else "and false"
        query = f"""
            select comparison.id from comparison
            left join ballot on ballot.comparison = comparison.id left join vote on vote.ballot = ballot.id
            where comparison.origin != 'typed' and comparison.parent is null
            and not exists (select 1 from ballot b where b.comparison = comparison.id and b.annotator = ?)
            and not exists (select 1 from reply where reply.comparison = comparison.id {among})
            group by comparison.id order by count(vote.ballot), comparison.id
        """
        with self._lock:
            return [row[0] for row in self._connection.execute(query, (annotator, *names))]

    def show(self, comparison: int, annotator: str) -> Ballot:
        """A ballot for an annotator: a new one in random order, or the one that was made before.

        Raises:
            KeyError: There is no such comparison.
        """
        shown = self.comparison(comparison)
        with self._transaction() as connection:
            connection.execute(
                "insert into ballot (comparison, annotator, swapped, shown) values (?, ?, ?, ?) on conflict do nothing",
                (comparison, annotator, self._random.random() < 0.5, time.time()),
            )
            row = connection.execute(
                "select * from ballot where comparison = ? and annotator = ?", (comparison, annotator)
            ).fetchone()
        return _ballot(row, shown)

    def open_ballot(self, annotator: str) -> Ballot | None:
        """The ballot that an annotator was shown last and has not voted on."""
        query = """
            select ballot.comparison from ballot left join vote on vote.ballot = ballot.id
            where annotator = ? and vote.ballot is null order by ballot.id desc limit 1
        """
        with self._lock:
            row = self._connection.execute(query, (annotator,)).fetchone()
        return None if row is None else self.show(row[0], annotator)

    def ballot(self, number: int, annotator: str) -> Ballot:
        """A ballot of an annotator's.

        Raises:
            NoSuchBallot: There is none of this number, or it is another's.
        """
        with self._lock:
            row = self._connection.execute(
                "select comparison from ballot where id = ? and annotator = ?", (number, annotator)
            ).fetchone()
        if row is None:
            raise NoSuchBallot(f"there is no ballot {number} of {annotator!r}")
        return self.show(row[0], annotator)

    def cast(
        self,
        ballot: Ballot,
        verdict: Verdict,
        *,
        seconds: float,
        good: tuple[bool | None, bool | None] = (None, None),
        edit: str | None = None,
        reason: str | None = None,
    ) -> Vote:
        """Take a vote; once this returns, it is on disk.

        Args:
            ballot: What was judged.
            verdict: In terms of the comparison's places, not of the order shown.
            seconds: Time taken.
            good: Whether each reply is good by itself, by place.
            edit: What should have been said.
            reason: Why.

        Raises:
            AlreadyCast: The ballot has its vote.
            ValueError: There is no such verdict.
        """
        if verdict not in VERDICTS:
            raise ValueError(f"no verdict {verdict!r}")
        vote = Vote(ballot, verdict, good, edit or None, reason or None, seconds, time.time())
        row = (ballot.id, verdict, *good, vote.edit, vote.reason, seconds, vote.cast_at)
        try:
            with self._transaction() as connection:
                connection.execute("insert into vote values (?, ?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.IntegrityError:
            raise AlreadyCast(f"ballot {ballot.id} has its vote already") from None
        return vote

    def votes(self) -> list[Vote]:
        """All votes, in the order they were cast.

        Raises:
            UserError: The file is damaged.
        """
        query = "select * from vote join ballot on ballot.id = vote.ballot order by vote.cast_at, vote.ballot"
        with explained(self.file), self._lock:
            rows = self._connection.execute(query).fetchall()
            comparisons = {each.id: each for each in self.comparisons()}  # later: another may add some
            return [vote_of(row, _ballot(row, comparisons[row["comparison"]])) for row in rows]

    def _comparisons(self, where: str, *values: Any) -> list[Comparison]:
        query = f"""
            select comparison.*, reply.* from comparison left join reply on reply.comparison = comparison.id {where}
            order by comparison.id, place
        """
        with explained(self.file), self._lock:
            rows = self._connection.execute(query, values).fetchall()
            grouped = itertools.groupby(rows, key=lambda row: row["id"])
            return [_comparison(*replies) for _, replies in grouped]


def votes_file(run_dir: Path) -> Path:
    """Where a run keeps its votes."""
    return run_dir / FOLDER / FILE


def read_votes(run_dir: Path) -> list[Vote]:
    """The votes of a run; none where there was no arena.

    Raises:
        UserError: They cannot be read.
    """
    file = votes_file(run_dir)
    if not file.is_file():
        return []
    with Votes(file, read_only=True) as votes:
        return votes.votes()


def _comparison(first: sqlite3.Row, second: sqlite3.Row) -> Comparison:
    replies = [
        Reply(row["policy"], row["text"], row["artifact"], bool(row["finished"]), json.loads(row["scores"]))
        for row in (first, second)
    ]
    return Comparison(
        first["id"], json.loads(first["prompt"]), (replies[0], replies[1]), json.loads(first["columns"]),
        first["origin"], first["parent"], json.loads(first["sampling"]),
    )  # fmt: skip


def _ballot(row: sqlite3.Row, comparison: Comparison) -> Ballot:
    return Ballot(row["id"], comparison, row["annotator"], bool(row["swapped"]), row["shown"])


def vote_of(row: sqlite3.Row, ballot: Ballot) -> Vote:
    """The vote on a ballot.

    Args:
        row: Of the table `vote`.
        ballot: What was judged.
    """
    good = [None if flag is None else bool(flag) for flag in (row["good_first"], row["good_second"])]
    rest = (row["edit"], row["reason"], row["seconds"], row["cast_at"])
    return Vote(ballot, row["verdict"], (good[0], good[1]), *rest)
