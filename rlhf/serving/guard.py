"""What stands between a client and an application of this package: host, origin, token, sizes, rates and headers.

A page of the web that a browser shows can send requests to this machine, too. Its origin gives it away, and where it
has a name of its own point to this machine (DNS rebinding), the host does. Beyond this machine everybody needs a token.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

import anyio
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from rlhf.serving.listen import Address

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("rlhf.serving")

MAX_BODY = 1 << 20
"""Bytes of a request's body, unless an application wants another limit."""
PATIENCE = 10.0
"""Seconds in which a body has to arrive."""
NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""A content security policy under which a page can do nothing."""
_LONGEST = 80
"""Characters of a path that a log line shows."""


@dataclass(frozen=True)
class Rules:
    """What an application lets pass."""

    max_body: int = MAX_BODY
    rate: str = "1200/minute"
    """Requests of a client, as `limits` writes rates."""
    wrong_tokens: str = "20/minute"
    """Wrong tokens of a client; the right one always passes."""
    policy: str = NOTHING
    """The content security policy of every answer."""
    cookie: bool = False
    """Whether a link with `?token=…` gives a browser a cookie that stands for the token."""
    open_paths: tuple[str, ...] = ()
    """Paths that need no token."""


class Guard:
    """Middleware: lets a request through to an application, or refuses it and logs why.

    Args:
        app: The application.
        address: Where it listens, and the token that a client needs, if any.
        rules: What passes.
    """

    def __init__(self, app: App, address: Address, rules: Rules) -> None:
        self.app, self.address, self.rules = app, address, rules
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._rate, self._wrong_tokens = parse(rules.rate), parse(rules.wrong_tokens)
        self._under_way: set[anyio.CancelScope] = set()
        self._cookie = f"rlhf_{address.port}"  # a browser sends a cookie to every port of a host
        self._cookie_value = "" if address.token is None else _cookie_value(address.token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, as ASGI says."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _with_headers(send, self._headers())
        refusal = self._refusal(scope)
        if refusal is None and (entry := self._entry(scope)) is not None:
            await _answer(answer, 303, b"", entry)
            return
        body = b""
        if refusal is None:
            body, refusal = await self._body(scope, receive)
        if refusal is not None:
            await self._refuse(scope, answer, *refusal)
            return
        await self._pass_on(scope, _replayed(body, receive), answer)

    def end(self) -> None:
        """Cancel what is under way, since the server ends."""
        for passed in self._under_way:
            passed.cancel()

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the application answer; if it is cancelled, end its answer properly."""
        started = False

        async def noticed(event: Event) -> None:
            nonlocal started
            started = True
            await send(event)

        with anyio.CancelScope() as passed:
            self._under_way.add(passed)
            try:
                await self.app(scope, receive, noticed)
            finally:
                self._under_way.discard(passed)
        if passed.cancelled_caught and started:
            await send({"type": "http.response.body", "body": b""})
        elif passed.cancelled_caught:
            await self._refuse(scope, send, 503, "the server ends")

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason for which a request is refused before its body is read, if any."""
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        if len(hosts) != 1 or not self.address.is_called(hosts[0]):
            return 421, "this server is not called that: wrong Host"
        if origins and origins != [f"http://{hosts[0]}"]:
            return 403, "a page of another origin may not ask this server"
        if _is_of_another_site(scope):
            return 403, "a page of another site may only lead to this server"
        client = _client(scope)
        if not self._limiter.hit(self._rate, "requests", client):
            return 429, "too many requests"
        if self.address.token is None or scope["path"] in self.rules.open_paths:
            return None
        given = self._given(scope)
        if any(_equal(secret, right) for secret, right in given):
            return None  # whatever else came from this address: a page in its browser may have guessed
        if given and not self._limiter.hit(self._wrong_tokens, "tokens", client):
            return 429, "too many wrong tokens"
        return 401, "a token is required: Authorization: Bearer TOKEN"

    def _given(self, scope: Scope) -> list[tuple[str, str]]:
        """Every secret that a client gives, and what is right in its place."""
        token = self.address.token or ""
        for value in _values(scope, b"authorization"):
            scheme, _, given = value.partition(" ")
            if scheme.lower() == "bearer":
                return [(given.strip(), token)]
        if not self.rules.cookie:
            return []
        pairs = [(_cookies(scope).get(self._cookie, ""), self._cookie_value), (_linked(scope), token)]
        return [(given, right) for given, right in pairs if given]

    def _entry(self, scope: Scope) -> list[tuple[bytes, bytes]] | None:
        """Headers that turn a link with the token into a cookie, and lead to the same page without the token."""
        if not (self.rules.cookie and self.address.token and scope["method"] == "GET" and _linked(scope)):
            return None
        cookie = f"{self._cookie}={self._cookie_value}; HttpOnly; SameSite=Lax; Path=/"
        path = "/" + scope.get("raw_path", scope["path"].encode()).decode("latin-1").lstrip("/\\")
        return [(b"location", path.encode("latin-1")), (b"set-cookie", cookie.encode())]

    async def _body(self, scope: Scope, receive: Receive) -> tuple[bytes, tuple[int, str] | None]:
        """The body of a request, or why there is none."""
        too_large = (413, f"a request has at most {self.rules.max_body} bytes")
        declared = _values(scope, b"content-length")
        if declared and declared[0].isdigit() and int(declared[0]) > self.rules.max_body:
            return b"", too_large
        body = bytearray()
        with anyio.move_on_after(PATIENCE):
            while True:
                event = await receive()
                if event["type"] == "http.disconnect":
                    return b"", (400, "the client left")
                body += event.get("body", b"")
                if len(body) > self.rules.max_body:
                    return b"", too_large
                if not event.get("more_body", False):
                    return bytes(body), None
        return b"", (408, f"the request did not arrive in {PATIENCE:g} seconds")

    async def _refuse(self, scope: Scope, send: Send, status: int, reason: str) -> None:
        path = ascii(scope["path"])[1:-1][:_LONGEST]
        log.warning("refused %s %s from %s: %s, %s", scope["method"], path, _client(scope), status, reason)
        headers = [(b"content-type", b"application/json")]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if status == 429:
            headers.append((b"retry-after", str(self._wait(scope)).encode()))
        if status != 413:  # whose client is still sending, and would not see the answer
            headers.append((b"connection", b"close"))
        await _answer(send, status, json.dumps(error_body(reason, status)).encode(), headers)

    def _wait(self, scope: Scope) -> int:
        """Seconds until a client that was refused for its rate is heard again."""
        limits = ((self._rate, "requests"), (self._wrong_tokens, "tokens"))
        stats = [self._limiter.get_window_stats(item, name, _client(scope)) for item, name in limits]
        return max([1, *(math.ceil(each.reset_time - time.time()) for each in stats if each.remaining <= 0)])

    def _headers(self) -> dict[bytes, bytes]:
        return {
            b"content-security-policy": self.rules.policy.encode(),
            b"x-content-type-options": b"nosniff",
            b"x-frame-options": b"DENY",
            b"referrer-policy": b"no-referrer",
            b"cross-origin-opener-policy": b"same-origin",
            b"cross-origin-resource-policy": b"same-origin",
            b"cache-control": b"no-store",
        }


def error_body(reason: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's servers write it, which its clients understand.

    Args:
        reason: What is wrong, in a sentence.
        status: HTTP status.
        param: The field of the request that is wrong.
        code: A name for the error.
    """
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": reason, "type": kind, "param": param, "code": code}}


def _cookie_value(token: str) -> str:
    """What stands for a token in a cookie, and does not give it away."""
    return hashlib.blake2b(b"cookie", key=hashlib.sha256(token.encode()).digest(), digest_size=32).hexdigest()


def _equal(given: str, right: str) -> bool:
    """Whether two secrets are equal, in a time that does not say where they differ."""
    return bool(right) and hmac.compare_digest(given.encode(), right.encode())


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "?"


def _is_of_another_site(scope: Scope) -> bool:
    """Whether a browser asks for a page of another site, and not because somebody follows a link from there.

    An image or a frame sends no `Origin`; browsers say so in headers that no page can change.
    """
    sites, modes, places = (_values(scope, f"sec-fetch-{name}".encode()) for name in ("site", "mode", "dest"))
    followed = modes == ["navigate"] and places in ([], ["document"]) and scope["method"] == "GET"
    return not followed and not {"cross-site", "same-site"}.isdisjoint(sites)


def _cookies(scope: Scope) -> dict[str, str]:
    cookies: SimpleCookie = SimpleCookie()
    for value in _values(scope, b"cookie"):
        try:
            cookies.load(value)
        except CookieError:
            continue
    return {name: morsel.value for name, morsel in cookies.items()}


def _linked(scope: Scope) -> str:
    """The token of a link, `?token=…`; empty if there is none."""
    return parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Receive a body that was read already, and then what comes."""
    given = False

    async def next_event() -> Event:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_event


def _with_headers(send: Send, headers: dict[bytes, bytes]) -> Send:
    """Send with these headers, except for those that an answer has of its own."""

    async def sent(event: Event) -> None:
        if event["type"] == "http.response.start":
            own = list(event.get("headers", []))
            names = {name.lower() for name, _ in own}
            event = {**event, "headers": own + [item for item in headers.items() if item[0] not in names]}
        await send(event)

    return sent


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    size = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, size]})
    await send({"type": "http.response.body", "body": body})
