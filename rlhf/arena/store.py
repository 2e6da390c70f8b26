"""The votes of a run as the page needs them: whose turn it is, what was said of a ballot, how far everybody is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from rlhf.data.splits import content_key
from rlhf.data.votes import AlreadyCast, Ballot, NoSuchBallot, Verdict, Vote, Votes, vote_of

Key = tuple[bytes, frozenset[str]]
"""A prompt and the two policies that reply to it."""


class Contradicted(AlreadyCast):
    """A ballot has its vote, and it says something else."""


class ArenaVotes(Votes):
    """The store of votes with the questions that the arena asks of it."""

    def show_as_added(self, comparison: int, annotator: str) -> Ballot:
        """A ballot with the replies in the order of the comparison, which was drawn before they were written.

        Args:
            comparison: The comparison, which nobody else was shown.
            annotator: Who watched them being written.
        """
        with self._transaction() as connection:
            connection.execute(
                "insert into ballot (comparison, annotator, swapped, shown) values (?, ?, 0, ?) on conflict do nothing",
                (comparison, annotator, time.time()),
            )
        return self.show(comparison, annotator)

    def next_ballot(self, annotator: str, policies: Sequence[str]) -> Ballot | None:
        """What an annotator judges next: the ballot that is open, else a comparison not seen yet.

        Args:
            annotator: Who judges.
            policies: Only comparisons between these are new ones.
        """
        ballot = self.open_ballot(annotator)
        if ballot is None and (unseen := self.unseen(annotator, policies)):
            ballot = self.show(unseen[0], annotator)
        return ballot

    def vote_on(self, ballot: Ballot) -> Vote | None:
        """The vote of a ballot, if it has been cast."""
        with self._lock:
            row = self._connection.execute("select * from vote where ballot = ?", (ballot.id,)).fetchone()
        return None if row is None else vote_of(row, ballot)

    def cast_once(
        self,
        ballot: Ballot,
        verdict: Verdict,
        *,
        seconds: float,
        good: tuple[bool | None, bool | None] = (None, None),
        edit: str | None = None,
        reason: str | None = None,
    ) -> Vote:
        """Take a vote as `cast` does; the same vote again, which a client sends that got no answer, is the first one.

        Raises:
            Contradicted: The ballot has another vote.
        """
        try:
            return self.cast(ballot, verdict, seconds=seconds, good=good, edit=edit, reason=reason)
        except AlreadyCast:
            before = self.vote_on(ballot)
            assert before is not None
            if (before.verdict, before.good, before.edit, before.reason) != (
                verdict, good, edit or None, reason or None,
            ):  # fmt: skip
                raise Contradicted(f"ballot {ballot.id} has another vote already") from None
            return before

    def own_ballot(self, number: int, annotator: str) -> Ballot:
        """A ballot of an annotator's.

        Raises:
            NoSuchBallot: There is none of this number, or it is another's.
        """
        if not 0 < number < 2**63:
            raise NoSuchBallot(f"there is no ballot {number}")
        return self.ballot(number, annotator)

    def judged(self, annotator: str) -> int:
        """How many votes an annotator has cast."""
        return self.progress().get(annotator, 0)

    def progress(self) -> dict[str, int]:
        """How many votes each annotator has cast, the most first."""
        query = """
            select annotator, count(vote.ballot) as votes from ballot left join vote on vote.ballot = ballot.id
            group by annotator order by votes desc, annotator
        """
        with self._lock:
            return {row["annotator"]: row["votes"] for row in self._connection.execute(query)}

    def size(self) -> tuple[int, int]:
        """How many comparisons and votes there are; they change when either is added."""
        with self._lock:
            query = "select (select count(*) from comparison), (select count(*) from vote)"
            row = self._connection.execute(query).fetchone()
        return row[0], row[1]

    def prepared(self) -> set[Key]:
        """The prompts that were prepared, each with the two policies; an annotator's own prompts are not among them."""
        return {
            (content_key(comparison.prompt), frozenset(reply.policy for reply in comparison.replies))
            for comparison in self.comparisons()
            if comparison.origin != "typed"
        }

    def least_compared(self, policies: Sequence[str]) -> list[tuple[str, str]]:
        """All pairs of policies, those with the fewest comparisons first."""
        query = """
            select first.policy, second.policy from reply first join reply second
            on first.comparison = second.comparison and first.place = 0 and second.place = 1
        """
        with self._lock:
            count = Counter(frozenset(row) for row in self._connection.execute(query))
        return sorted(combinations(policies, 2), key=lambda pair: count[frozenset(pair)])
