"""A policy behind another server: any that understands OpenAI's chat completions, such as `rlhf serve` or vLLM."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import httpx2

from rlhf.config.checks import endpoint_problem
from rlhf.data.records import Text
from rlhf.errors import UserError
from rlhf.rewards.http import client_of, complaint, final_refusal, key_of, may_recover, on_a_line
from rlhf.rewards.pairwise import writable
from rlhf.rewards.retry import retry_delay
from rlhf.serving.replies import Sampling, Stream

_LONGEST = 1 << 20
"""Characters of a reply; a server that goes on writing is left."""


class EndpointReplier:
    """A policy that another server runs.

    The key comes from the environment and goes into one header, nowhere else. Over plain http it is only sent to this
    machine, private addresses and names without a dot. Redirects are not followed.

    Args:
        endpoint: Base URL, up to and without `/chat/completions`.
        model: Name of the model, as the server knows it; None takes the only one that it has.
        api_key_env: Name of the environment variable that holds the key; None if the server wants none.
        timeout: Seconds without a byte from the server after which a try has failed.
        retries: Tries after the first.
        backoff: Approximate seconds before the first retry; doubles with each one.

    Raises:
        UserError: The endpoint is not a base URL, the key is missing or would be sent in the clear, or no model is
            named and the server does not have exactly one.
    """

    artifact: str | None = None

    def __init__(
        self,
        endpoint: str,
        model: str | None = None,
        api_key_env: str | None = None,
        *,
        timeout: float = 120.0,
        retries: int = 2,
        backoff: float = 1.0,
    ) -> None:
        if problem := endpoint_problem(endpoint, with_key=api_key_env is not None):
            raise UserError(problem)
        self.endpoint = endpoint.rstrip("/")
        self.retries, self.backoff = retries, backoff
        self._key = None if api_key_env is None else key_of(api_key_env, self.endpoint)
        self._client = client_of(self.endpoint, self._key, timeout)
        self.model = self._only_model() if model is None else model

    @property
    def name(self) -> str:
        """The server and the model there."""
        return f"{self.endpoint} {self.model}"

    def stream(self, prompt: Text, sampling: Sampling, stop: threading.Event | None = None) -> Stream:
        """Write a reply, as `Replier.stream` says. It begins and ends without white space.

        Whoever reads it gets a `UserError` where the server does not answer, or breaks off.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        request: dict[str, Any] = {
            "model": self.model, "messages": [{**turn, "content": writable(turn["content"])} for turn in messages],
            "stream": True, "temperature": sampling.temperature, "max_tokens": sampling.max_new_tokens,
            "seed": sampling.seed,
        }  # fmt: skip
        if sampling.stop_strings:
            request["stop"] = list(sampling.stop_strings)
        return Stream(lambda stream: _stripped(self._pieces(stream, request, stop or threading.Event())))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _pieces(self, stream: Stream, request: dict[str, Any], stop: threading.Event) -> Iterator[str]:
        begun = False
        for attempt in itertools.count():
            try:
                with self._client.stream("POST", f"{self.endpoint}/chat/completions", json=request) as response:
                    if response.status_code == 200:
                        for piece in self._read(stream, response, stop):
                            begun = True
                            yield piece
                        return
                    response.read()
                    problem, wait = self._refused(response), response.headers.get("Retry-After")
            except (httpx2.RequestError, httpx2.InvalidURL) as error:
                if begun or not isinstance(error, httpx2.RequestError):
                    raise self._error(f"it broke off: {type(error).__name__}: {error}") from None
                problem, wait = f"{type(error).__name__}: {error}", None
            if attempt == self.retries:
                raise self._error(problem)
            if stop.wait(retry_delay(attempt, self.backoff, wait)):
                return

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

    def _read(self, stream: Stream, response: httpx2.Response, stop: threading.Event) -> Iterator[str]:
        """The pieces of an answer that has begun."""
        length, ended = 0, False
        for event in httpx2.EventSource(response):
            if stop.is_set() or event.data == "[DONE]":
                ended = True
                break
            try:
                body = event.json()
                piece, reason = _piece(body)
            except (ValueError, KeyError, IndexError, TypeError, AttributeError):
                raise self._error(f"an answer that is no chat completion: {event.data}") from None
            _count(stream, body)
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
        try:
            response = self._client.get(f"{self.endpoint}/models")
            if response.status_code != 200:
                raise self._error(final_refusal(response, self._key) or complaint(response, self._key))
            names = [str(model["id"]) for model in response.json()["data"]]
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            raise self._error(f"{type(error).__name__}: {error}") from None
        except (ValueError, KeyError, TypeError):
            raise self._error("it does not say what models it has; name one") from None
        if len(names) != 1:
            raise self._error(f"it has {len(names)} models; name one: {', '.join(names[:12])}")
        return names[0]

    def _error(self, what: str) -> UserError:
        return UserError(f"{self.endpoint}: {on_a_line(what, self._key)[:400]}")


def _piece(body: Any) -> tuple[str, str | None]:
    """The text of an event, and why the reply ends if it does."""
    if not body["choices"]:
        return "", None  # an event with the usage alone
    choice = body["choices"][0]
    return writable(choice["delta"].get("content") or ""), choice.get("finish_reason")


def _count(stream: Stream, body: Any) -> None:
    """Keep the tokens that a server counted, if it says."""
    usage = body.get("usage") or {}
    stream.prompt_tokens = usage.get("prompt_tokens", stream.prompt_tokens)
    stream.completion_tokens = usage.get("completion_tokens", stream.completion_tokens)


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
