"""Replies in an event loop: their pieces as they come, for as long as a client waits for them."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import anyio
import anyio.to_thread

from rlhf.serving.replies import Stream


async def pieces_of(stream: Stream, stop: threading.Event) -> AsyncIterator[str]:
    """The pieces of a reply; whoever leaves, or is cancelled, stops it.

    Args:
        stream: The reply.
        stop: What stops it (`Replier.stream`).
    """
    thread = anyio.CapacityLimiter(1)  # of its own, as a reply may wait long for the model
    try:
        while True:
            piece = await anyio.to_thread.run_sync(next, stream, None, abandon_on_cancel=True, limiter=thread)
            if piece is None:
                return
            yield piece
    finally:
        stop.set()


async def while_connected(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]], work: Callable[[], Awaitable[None]]
) -> None:
    """Do some work, which is cancelled when the client leaves.

    Args:
        receive: Of the request, whose body has been read.
        work: What is done; it raises nothing.
    """
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        await work()
        group.cancel_scope.cancel()
