"""A policy behind another server: any that understands OpenAI's chat completions, such as `rlhf serve` or vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2

from rlhf.config.checks import endpoint_problem
from rlhf.data.records import Text, as_conversation
from rlhf.errors import UserError
from rlhf.rewards.http import async_client_of, complaint, final_refusal, key_of, may_recover, on_a_line
from rlhf.rewards.pairwise import writable
from rlhf.rewards.retry import retry_delay
from rlhf.serving.replies import Sampling, Stream

_LONGEST = 1 << 20
"""Characters of a reply; a server that goes on writing is left."""
_MOST_READ = 1 << 23
"""Bytes of an answer that are read, whatever they hold."""
_NAME = 200
"""Characters of a model's name."""
_LISTING = 30.0
"""Seconds in which a server has to say what models it has."""
_PATIENCE = 0.1
"""Seconds after which a request looks whether its answer is still wanted."""


class EndpointReplier:
    """A policy that another server runs.

    The key comes from the environment and goes into one header, nowhere else. Over plain http it is only sent to this
    machine, private addresses and names without a dot. Redirects are not followed. What it reads of an answer is
    limited in bytes and in time, so that no server can hold it.

    Args:
        endpoint: Base URL, up to and without `/chat/completions`.
        model: Name of the model, as the server knows it; None takes the only one that it has.
        api_key_env: Name of the environment variable that holds the key; None if the server wants none.
        timeout: Seconds without a byte from the server after which a try has failed.
        deadline: Seconds in which a reply has to end, all tries together.
        retries: Tries after the first.
        backoff: Approximate seconds before the first retry; doubles with each one.

    Raises:
        UserError: The endpoint is not a base URL, the key is missing or would be sent in the clear, or no model is
            named and the server does not have exactly one, or its name is not a printable line.
    """

    artifact: str | None = None

    def __init__(
        self,
        endpoint: str,
        model: str | None = None,
        api_key_env: str | None = None,
        *,
        timeout: float = 120.0,
        deadline: float = 600.0,
        retries: int = 2,
        backoff: float = 1.0,
    ) -> None:
        if problem := endpoint_problem(endpoint, with_key=api_key_env is not None):
            raise UserError(problem)
        self.endpoint = endpoint.rstrip("/")
        self.retries, self.backoff = retries, backoff
        self._key = None if api_key_env is None else key_of(api_key_env, self.endpoint)
        self.timeout, self.deadline = timeout, deadline
        self._tls = httpx2.create_ssl_context()
        self.model = self._only_model() if model is None else model
        if not (0 < len(self.model) <= _NAME and self.model.isprintable()):
            raise self._error(f"a model's name is printable and has 1 to {_NAME} characters")

    @property
    def name(self) -> str:
        """The server and the model there."""
        return f"{self.endpoint} {self.model}"

    def stream(self, prompt: Text, sampling: Sampling, stop: threading.Event | None = None) -> Stream:
        """Write a reply, as `Replier.stream` says. It begins and ends without white space.

        Whoever reads it gets a `UserError` where the server does not answer, or breaks off.
        """
        messages = [{**turn, "content": writable(turn["content"])} for turn in as_conversation(prompt)]
        request: dict[str, Any] = {
            "model": self.model, "messages": messages,
            "stream": True, "temperature": sampling.temperature, "max_tokens": sampling.max_new_tokens,
            "seed": sampling.seed,
        }  # fmt: skip
        if sampling.stop_strings:
            request["stop"] = list(sampling.stop_strings)
        return Stream(
            lambda stream: _stripped(self._waited_for(lambda: self._reply(stream, request), self.deadline, stop))
        )

    def check(self) -> None:
        """Have the server write a token, to learn early that it does not.

        Raises:
            UserError: It does not, in the seconds of `timeout`.
        """
        request = {"model": self.model, "messages": [{"role": "user", "content": "Say hello."}], "stream": True,
                   "temperature": 0.0, "max_tokens": 1}  # fmt: skip
        for _ in self._waited_for(lambda: self._reply(Stream(lambda _: iter(())), request), self.timeout):
            pass

    def _waited_for(
        self, ask: Callable[[], AsyncIterator[str]], deadline: float, stop: threading.Event | None = None
    ) -> Iterator[str]:
        """The texts that a server is asked for, which come from a thread; the server cannot keep the reader waiting.

        Args:
            ask: Gives them.
            deadline: Seconds in which the last one has to come.
            stop: Ends them early when it is set.

        Raises:
            UserError: They do not come in time, or the server fails.
        """
        texts: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        gone = threading.Event()

        async def pass_on() -> None:
            async for text in ask():
                texts.put(text)

        async def work() -> None:
            task, over = asyncio.create_task(pass_on()), time.monotonic() + deadline
            while not task.done():
                if gone.is_set() or (stop is not None and stop.is_set()):
                    texts.put(None)
                    return
                if time.monotonic() >= over:
                    texts.put(self._error(f"its answer did not end in {deadline:g} seconds"))
                    return
                await asyncio.wait({task}, timeout=_PATIENCE)
            texts.put(task.exception())

        def run() -> None:
            try:
                asyncio.run(work())  # which cancels what is left
            except BaseException as error:  # it is raised where the texts are read
                texts.put(error)

        threading.Thread(target=run, daemon=True).start()
        try:
            while isinstance(text := texts.get(), str):
                yield text
            if text is not None:
                raise text
        finally:
            gone.set()

    @contextlib.asynccontextmanager
    async def _asked(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> AsyncIterator[httpx2.Response]:
        """An answer, of which nothing but the headers is read yet, and no more than so many bytes can be."""
        async with (
            async_client_of(self.endpoint, self._key, self.timeout, self._tls) as client,
            client.stream(method, self.endpoint + path, json=body, headers={"Accept-Encoding": "identity"}) as response,
        ):
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise self._error("it compresses its answer unasked")
            response.stream = _Limited(response.stream, self._error(f"an answer of more than {_MOST_READ} bytes"))
            response.encoding = "utf-8"
            yield response

    async def _reply(self, stream: Stream, request: dict[str, Any]) -> AsyncIterator[str]:
        """The pieces of a reply, after as many tries as it takes."""
        begun = False
        for attempt in itertools.count():
            try:
                async with self._asked("POST", "/chat/completions", request) as response:
                    if response.status_code == 200:
                        async for piece in self._read(stream, response):
                            begun = True
                            yield piece
                        return
                    await response.aread()
                    problem, wait = self._refused(response), response.headers.get("Retry-After")
            except (httpx2.RequestError, httpx2.InvalidURL) as error:
                if begun or not isinstance(error, httpx2.RequestError):
                    raise self._error(f"it broke off: {type(error).__name__}: {error}") from None
                problem, wait = f"{type(error).__name__}: {error}", None
            if attempt == self.retries:
                raise self._error(problem)
            await asyncio.sleep(retry_delay(attempt, self.backoff, wait))

    def _refused(self, response: httpx2.Response) -> str:
        """What the server complains of, where asking again may help.

        Raises:
            UserError: It will not help.
        """
        problem = f"{response.status_code}: {complaint(response, self._key)}"
        final = final_refusal(response, self._key)
        if final is not None or not may_recover(response.status_code):
            raise self._error(final or problem)
        return problem

    async def _read(self, stream: Stream, response: httpx2.Response) -> AsyncIterator[str]:
        """The pieces of an answer that has begun."""
        length, ended = 0, False
        async for event in httpx2.EventSource(response):
            if event.data == "[DONE]":
                ended = True
                break
            try:
                body = event.json()
                piece, reason = _piece(body)
                _count(stream, body)
            except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
                raise self._error(f"an answer that is no chat completion: {event.data}") from None
            if piece:
                length += len(piece)
                yield piece
            if reason is not None:
                ended, stream.finished = True, reason == "stop"
            if length > _LONGEST:
                raise self._error(f"a reply of more than {_LONGEST} characters")
        if not ended:
            raise self._error("it broke off in the middle of a reply")

    def _only_model(self) -> str:
        """The only model of the server."""
        names = list(self._waited_for(self._models, _LISTING))
        if len(names) != 1:
            raise self._error(f"it has {len(names)} models; name one: {', '.join(names[:12])}")
        return names[0]

    async def _models(self) -> AsyncIterator[str]:
        """The names of the server's models."""
        try:
            async with self._asked("GET", "/models") as response:
                await response.aread()
            if response.status_code != 200:
                raise self._error(final_refusal(response, self._key) or complaint(response, self._key))
            names = [_text(model["id"]) for model in response.json()["data"]]
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            raise self._error(f"{type(error).__name__}: {error}") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._error("it does not say what models it has; name one") from None
        for name in names:
            yield name

    def _error(self, what: str) -> UserError:
        return UserError(f"{self.endpoint}: {on_a_line(what, self._key)[:400]}")


class _Limited(httpx2.AsyncByteStream):
    """The body of an answer, up to a limit.

    Args:
        body: The body.
        too_much: Raised beyond the limit.
    """

    def __init__(self, body: Any, too_much: UserError) -> None:
        self._body, self._too_much = body, too_much

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Its parts, as they come."""
        size = 0
        async for part in self._body:
            size += len(part)
            if size > _MOST_READ:
                raise self._too_much
            yield part

    async def aclose(self) -> None:
        """Close the connection."""
        await self._body.aclose()


def _piece(body: Any) -> tuple[str, str | None]:
    """The text of an event, and why the reply ends if it does."""
    if not body["choices"]:
        return "", None  # an event with the usage alone
    choice = body["choices"][0]
    text, reason = choice["delta"].get("content"), choice.get("finish_reason")
    return "" if text is None else writable(_text(text)), None if reason is None else _text(reason)


def _count(stream: Stream, body: Any) -> None:
    """Keep the tokens that a server counted, if it says."""
    usage = body.get("usage") or {}
    for name in ("prompt_tokens", "completion_tokens"):
        tokens = usage.get(name)
        if tokens is None:
            continue
        if type(tokens) is not int or not 0 <= tokens < 1 << 31:
            raise ValueError(f"{name} is no count")
        setattr(stream, name, tokens)


def _text(value: Any) -> str:
    """A value that has to be text."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _stripped(pieces: Iterator[str]) -> Iterator[str]:
    """The same text without white space at both ends."""
    begun, held = False, ""
    for piece in pieces:
        held += piece
        text = (held if begun else held.lstrip()).rstrip()
        if text:
            held = held[held.index(text) + len(text) :] if not begun else held[len(text) :]
            begun = True
            yield text
