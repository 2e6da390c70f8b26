"""An arena with policies that need no model, served on this machine, and annotators who use it over HTTP.

`python -m tests.support.arena FOLDER PORT` serves the votes of a folder until it is killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2

from rlhf.arena.app import application
from rlhf.arena.contestants import Contestant
from rlhf.arena.context import CSP, Arena
from rlhf.arena.live import Live
from rlhf.arena.scores import Judges
from rlhf.arena.sessions import Sessions, session_key
from rlhf.arena.store import ArenaVotes
from rlhf.config.project import EvaluateConfig
from rlhf.data.votes import Reply, votes_file
from rlhf.serving.guard import Guard, Rules
from rlhf.serving.listen import Server, open_address

SAMPLING = {"temperature": 1.0, "max_new_tokens": 32, "seed": 0}


class FakeStream:
    """A reply that comes word by word."""

    finished = True

    def __init__(self, words, stop):
        self.words, self.stop = words, stop

    def __iter__(self):
        for word in self.words:
            if self.stop is not None and self.stop.is_set():
                return
            time.sleep(0.002)
            yield word

    def text(self):
        return "".join(self)


class FakeReplier:
    """A policy that says its line."""

    artifact = None

    def __init__(self, name, line="{name} says: {prompt}"):
        self.name, self.line = name, line

    def stream(self, prompt, sampling, stop=None):
        text = self.line.format(name="one", prompt=prompt if isinstance(prompt, str) else prompt[-1]["content"])
        return FakeStream(re.findall(r"\S+\s*", text), stop)


def contestants(*names):
    """Policies without a model."""
    return [Contestant(FakeReplier(name)) for name in names or ("sft", "dpo", "ppo")]


def length(prompts, completions, **columns):
    """A judge that likes length."""
    return [float(len(str(completion))) for completion in completions]


def fill(store, count, policies=("sft", "dpo")):
    """Add comparisons of two policies."""
    for number in range(count):
        replies = [
            Reply(policy, f"Hello, this is reply {number} in its {place} form.", artifact=f"{policy}-hash",
                  scores={"reward": float(place)})
            for place, policy in enumerate(policies)
        ]  # fmt: skip
        prompt = [{"role": "user", "content": f"Where is my parcel number {number}?"}]
        store.add(prompt, replies, sampling=SAMPLING, columns={"name": "Ada"})


def make_arena(run_dir, names=("sft", "dpo", "ppo"), seed=0, **more):
    """An arena over the votes of a run's folder."""
    store = ArenaVotes(votes_file(run_dir), seed)
    judges = Judges({"length": length})
    live = Live(store, contestants(*names), judges, EvaluateConfig(max_new_tokens=32), seed)
    sessions = Sessions(session_key(store.file.parent))
    return Arena(name=run_dir.name, base="Base", policies=names, store=store, live=live, sessions=sessions, **more)


def guarded(arena, address):
    """The application as it is served."""
    return Guard(application(arena), address, Rules(rate="100000/minute", policy=CSP, cookie=True))


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served(arena, host="127.0.0.1"):
    """Serve an arena from a thread; gives its address."""
    opened, address = open_address(host, 0)
    server = Server(guarded(arena, address))
    thread = threading.Thread(target=server.run, args=([opened],), daemon=True)
    thread.start()
    wait_for(address.url)
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join()
        arena.store.close()


@contextlib.contextmanager
def started(*arguments):
    """`rlhf arena` as a process that ends well; gives its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rlhf.cli", "arena", *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        found = None
        while found is None:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            found = re.search(r"judge them at (http://[\d.:]+)", line)
        yield found[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def wait_for(url, seconds=60.0):
    """Wait until a server answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            return httpx2.get(url)
        except httpx2.TransportError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


class Annotator:
    """Somebody who judges over HTTP, as a page does.

    Args:
        url: Where the arena is.
        name: Of the annotator.
    """

    def __init__(self, url, name, timeout=120.0):
        self.client = httpx2.Client(base_url=url, timeout=timeout, headers={"Origin": url})
        self.name = name
        self.enter()

    def enter(self):
        """Open the page and give the name."""
        page = self.client.get("/", headers={"Accept": "text/html"}, follow_redirects=True).text
        self.token = re.search(r'name="csrf-token" content="([^"]+)"', page)[1]
        assert self.post("/name", {"name": self.name}).status_code == 200

    def post(self, path, body, **headers):
        """Send what a page sends."""
        return self.client.post(path, json=body, headers={"X-CSRF-Token": self.token, **headers})

    def next(self):
        """What is judged next: `ballot` (None where there is nothing), `prompt`, `a` and `b`."""
        return self.client.get("/next").json()

    def vote(self, ballot, verdict, **more):
        """Cast a vote: a, b, tie, neither or skip."""
        return self.post("/votes", {"ballot": ballot, "verdict": verdict, "seconds": 1.0, **more})


def main():
    """Serve until killed."""
    arena = make_arena(Path(sys.argv[1]), ("sft", "dpo"), seed=None)
    opened, address = open_address("127.0.0.1", int(sys.argv[2]))
    Server(guarded(arena, address)).run([opened])


if __name__ == "__main__":
    main()
