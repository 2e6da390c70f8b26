"""A policy that is served on this machine for the length of a test, in a thread."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rlhf.data.records import Text
from rlhf.serving.listen import Address, Server, open_address
from rlhf.serving.replies import Sampling, Stream
from rlhf.serving.server import application


class FakeReplier:
    """Replies what a function says, word by word.

    Args:
        answer: Called with the prompt and the sampling.
        delay: Seconds before each word.
    """

    name, artifact = "fake", "ab" * 32

    def __init__(self, answer: Callable[[Text, Sampling], str], delay: float = 0.0) -> None:
        self.answer, self.delay = answer, delay
        self.prompts: list[Text] = []
        self.stopped = threading.Event()
        """Set when the last reply is not wanted any more."""

    def stream(self, prompt: Text, sampling: Sampling, stop: threading.Event | None = None) -> Stream:
        self.stopped = stop or threading.Event()
        self.prompts.append(prompt)

        def pieces(stream: Stream) -> Iterator[str]:
            words = self.answer(prompt, sampling).split(" ")
            stream.prompt_tokens, stream.completion_tokens = 7, 0
            for number, word in enumerate(words):
                if stop is not None and stop.wait(self.delay):
                    return
                stream.completion_tokens += 1
                yield word if number == 0 else f" {word}"
            stream.finished = True

        return Stream(pieces)


@contextlib.contextmanager
def served(replier: object, model: str = "it", host: str = "127.0.0.1") -> Iterator[Address]:
    """Serve a policy as `rlhf serve` does; gives the address."""
    opened, address = open_address(host, 0)
    server = Server(application(replier, model, address))
    thread = threading.Thread(target=server.run, args=([opened],))
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join()
