"""Twenty annotators at once, and a server that is killed under them: every acknowledged vote is there, once."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import httpx2
import pytest

from rlhf.arena.store import ArenaVotes
from rlhf.data.votes import votes_file
from tests.support.arena import Annotator, fill, free_port, wait_for

ANNOTATORS, COMPARISONS, KILLS = 20, 100, 3


class Server:
    """The arena as a process of its own."""

    def __init__(self, folder, port, root):
        self.command = [sys.executable, "-m", "tests.support.arena", str(folder), str(port)]
        self.root, self.url = root, f"http://127.0.0.1:{port}"
        self.start()

    def start(self):
        environment = {**os.environ, "PYTHONPATH": str(self.root)}
        self.process = subprocess.Popen(self.command, cwd=self.root, env=environment, stderr=subprocess.DEVNULL)
        wait_for(self.url)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Judging:
    """What the annotators were told is kept."""

    def __init__(self):
        self.acknowledged, self.again = {}, 0
        self.changed = threading.Condition()

    def told(self, ballot, verdict, again):
        with self.changed:
            assert ballot not in self.acknowledged
            self.acknowledged[ballot] = verdict
            self.again += again
            self.changed.notify_all()

    def reached(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.acknowledged) >= count, 300)


def insist(ask):
    """The answer to a request that is sent until it gets one; and whether it was sent again."""
    again = False
    while True:
        try:
            answer = ask()
            if answer.status_code < 500:
                return answer, again
        except httpx2.TransportError:
            time.sleep(0.05)
        again = True


def judge(url, name, judging):
    annotator = Annotator(url, name)
    chance = random.Random(name)
    while True:
        answer, _ = insist(lambda: annotator.client.get("/next"))
        if (ballot := answer.json()["ballot"]) is None:
            return
        verdict = chance.choice(["a", "b", "tie", "neither", "skip"])
        answer, again = insist(lambda: annotator.vote(ballot, verdict, reason=f"{name} {ballot}"))  # noqa: B023
        assert answer.status_code == 200, answer.text
        judging.told(ballot, answer.json()["verdict"], again)


@pytest.mark.slow
def test_every_acknowledged_vote_is_there_once(tmp_path, root):
    file = votes_file(tmp_path)
    with ArenaVotes(file, seed=0) as store:
        fill(store, COMPARISONS)
    port = free_port()
    server, judging = Server(tmp_path, port, root), Judging()
    names = [f"annotator {number}" for number in range(ANNOTATORS)]
    threads = [threading.Thread(target=judge, args=(server.url, name, judging), daemon=True) for name in names]
    busy, begun = 0.0, time.monotonic()
    for thread in threads:
        thread.start()
    for kill in range(1, KILLS + 1):
        judging.reached(ANNOTATORS * COMPARISONS * kill // (KILLS + 1))
        busy += time.monotonic() - begun
        server.kill()
        server.start()
        begun = time.monotonic()
    for thread in threads:
        thread.join(300)
    busy += time.monotonic() - begun
    server.kill()
    with ArenaVotes(file) as store:
        votes = store.votes()
    assert len(votes) == len(judging.acknowledged) == ANNOTATORS * COMPARISONS
    assert Counter((vote.ballot.annotator, vote.ballot.comparison.id) for vote in votes).most_common(1)[0][1] == 1
    for vote in votes:
        said = judging.acknowledged[vote.ballot.id]
        shown = {"first": "ab", "second": "ba"}.get(vote.verdict, "")
        assert said == (shown[vote.ballot.swapped] if shown else vote.verdict)
        assert vote.reason == f"{vote.ballot.annotator} {vote.ballot.id}"
    print(f"{len(votes) / busy:.0f} votes a second; {judging.again} were sent again")
