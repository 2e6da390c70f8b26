"""Replies in an event loop."""

import threading

import anyio

from rlhf.serving.asynchronous import pieces_of, while_connected
from rlhf.serving.replies import Sampling
from tests.support.served import FakeReplier


def test_pieces_come_in_order_and_whoever_is_cancelled_stops_the_reply():
    replier, stop = FakeReplier(lambda *_: "a b c", 0.0), threading.Event()
    slow, slow_stop = FakeReplier(lambda *_: "a b c", 30.0), threading.Event()

    async def ask():
        got = [piece async for piece in pieces_of(replier.stream("x", Sampling(), stop), stop)]
        assert got == ["a", " b", " c"]
        with anyio.move_on_after(0.05):
            async for _ in pieces_of(slow.stream("x", Sampling(), slow_stop), slow_stop):
                pass

    anyio.run(ask)
    assert slow_stop.is_set()
    assert slow.stopped.wait(60)


def test_work_ends_with_its_client():
    seen = []

    async def ask(events, seconds):
        async def receive():
            await anyio.sleep(0.01)
            return {"type": events.pop(0)}

        async def work():
            await anyio.sleep(seconds)
            seen.append(seconds)

        await while_connected(receive, work)

    anyio.run(ask, ["http.request", "http.disconnect"], 30.0)
    assert seen == []
    anyio.run(ask, ["http.request"] * 9, 0.02)
    assert seen == [0.02]
