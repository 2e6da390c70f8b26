"""Talks to a vLLM server: over a socket of this machine, or over HTTP."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from rlhf.errors import SamplerFailed
from rlhf.rewards.http import complaint, key_of, may_recover, on_a_line
from rlhf.rewards.retry import retry_delay

T = TypeVar("T")
SOCKET = "unix:"
"""How the address of a server begins that listens on a socket of this machine."""
KEY = "VLLM_API_KEY"
"""Environment variable with the key of a server, by the name that vLLM itself gives it."""
_MAX_OPEN = 256
"""Requests that are open at a time: as many sequences as a vLLM server computes at once."""
_ATTEMPTS = 4
_BACKOFF = 0.5
"""Approximate seconds before the first retry; doubles with each one."""
TIMEOUT = 1800.0
"""Seconds in which an answer has to come: those of a long rollout wait for each other."""


class Refused(SamplerFailed):
    """The server says that a request can never be answered.

    Args:
        status: Of the answer.
        message: What is wrong.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """A server that is asked as often as it takes.

    Lost connections, answers that cannot be read and those that say that the server is busy are tried again: a
    completion depends on its prompt and its seed, so that asking twice is asking once. Redirects are not followed.

    Args:
        address: `unix:/path/to/a/socket`, or a URL.
        ended: Says why the server is gone for good, where that can be known; else None.
    """

    def __init__(self, address: str, ended: Callable[[], str | None] = lambda: None) -> None:
        self.address, self._ended = address.rstrip("/"), ended
        self._url = "http://vllm" if self._socket else self.address
        self._key = key_of(KEY, self.address) if os.environ.get(KEY) and not self._socket else None

    @property
    def _socket(self) -> str | None:
        return self.address.removeprefix(SOCKET) if self.address.startswith(SOCKET) else None

    def call(
        self, method: str, path: str, body: Any = None, timeout: float = TIMEOUT, attempts: int | None = None
    ) -> Any:
        """One request.

        Args:
            method: `GET` or `POST`.
            path: Below the server's root.
            body: Sent as JSON.
            timeout: Seconds in which the answer has to come.
            attempts: How often it is asked at most; None for as often as everything else.

        Returns:
            What the answer's JSON holds; its text where it is none.

        Raises:
            SamplerFailed: There is no answer, or it is a refusal.
        """

        async def work() -> Any:
            async with self._session(timeout) as session:
                return await self._ask(session, method, path, body, lambda answer: answer, attempts)

        return asyncio.run(work())

    def complete(self, requests: Sequence[dict[str, Any]], read: Callable[[Any], T]) -> list[T]:
        """Completions of prompts.

        Args:
            requests: Bodies for `/v1/completions`.
            read: Makes a completion of an answer's JSON; raises a `ValueError`, `KeyError`, `IndexError` or `TypeError`
                where it is none.

        Raises:
            SamplerFailed: The server gave no completion to one of them.
        """

        async def work() -> list[T]:
            async with self._session(TIMEOUT) as session:
                asked = [self._ask(session, "POST", "/v1/completions", body, read) for body in requests]
                return await _at_most(_MAX_OPEN, asked)

        return asyncio.run(work())

    def _session(self, timeout: float) -> httpx2.AsyncClient:
        limits = httpx2.Limits(max_connections=_MAX_OPEN, max_keepalive_connections=_MAX_OPEN)
        https = urlsplit(self._url).scheme == "https"
        transport = httpx2.AsyncHTTPTransport(uds=self._socket, limits=limits, trust_env=https, verify=https)
        return httpx2.AsyncClient(
            transport=transport, headers={} if self._key is None else {"Authorization": f"Bearer {self._key}"},
            timeout=httpx2.Timeout(timeout, connect=min(10.0, timeout), pool=None), follow_redirects=False,
        )  # fmt: skip

    async def _ask(
        self, session: httpx2.AsyncClient, method: str, path: str, body: Any, read: Callable[[Any], T],
        attempts: int | None = None,
    ) -> T:  # fmt: skip
        """The answer to a request, after as many attempts as it takes."""
        problem = ""
        for attempt in range(attempts or _ATTEMPTS):
            if attempt:
                await asyncio.sleep(retry_delay(attempt - 1, _BACKOFF))
            if (ended := self._ended()) is not None:
                raise SamplerFailed(ended)
            try:
                response = await session.request(method, self._url + path, json=body)
            except httpx2.TimeoutException as error:
                problem = f"no answer in time ({type(error).__name__})"
                continue
            except (httpx2.RequestError, httpx2.InvalidURL) as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if response.status_code == 200:
                try:
                    return read(_content(response))
                except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
                    problem = f"an answer that cannot be read: {error}"
                    continue
            problem = f"{response.status_code}: {complaint(response, self._key)}"
            if not may_recover(response.status_code):
                raise Refused(response.status_code, self.line(problem))
        raise SamplerFailed(self._ended() or self.line(problem))

    def line(self, problem: str) -> str:
        """A problem with the server as a line of an error."""
        return f"sampler: vLLM at {self.address}: {on_a_line(problem, self._key)[:400]}"


def _content(response: httpx2.Response) -> Any:
    if response.headers.get("Content-Type", "").startswith("application/json"):
        return response.json()
    return response.text


async def _at_most(count: int, work: Sequence[Awaitable[T]]) -> list[T]:
    """Results of all, of which so many are worked on at a time."""
    free = asyncio.Semaphore(count)

    async def in_turn(awaitable: Awaitable[T]) -> T:
        async with free:
            return await awaitable

    return await asyncio.gather(*map(in_turn, work))
