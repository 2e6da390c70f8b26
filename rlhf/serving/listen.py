"""Listens at an address: on this machine only unless told otherwise, and beyond it with a token."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import secrets
import socket
import sys
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rlhf.errors import UserError

TOKEN = "RLHF_TOKEN"
"""The environment variable that a token is read from."""
_SHORTEST = 16
"""Characters of a token."""
_LAST_WORDS = 0.5
"""Seconds that answers under way have when the server ends, before they are cancelled."""
_PATIENCE = 10.0
"""Seconds in which the headers of a request have to arrive."""
_MOST_OF_ONE = 64
"""Connections of one address."""


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    """As it was asked for: an address or a name."""
    bound: str
    """The address that this is."""
    port: int
    token: str | None = None
    """What a client has to know; None if nobody beyond this machine can reach the server, and no token was set."""
    drawn: bool = False
    """Whether the token is new, so that its owner has to be told."""

    @property
    def url(self) -> str:
        """What a client on this machine calls it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.bound, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def is_called(self, host: str) -> bool:
        """Whether a `Host` header means this server.

        A server that listens at every address of its machine is called by any address; that is no name that somebody
        else could have point here.
        """
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        if port != self.port or parts.netloc != host or "@" in host:
            return False
        known = {self.host.lower(), self.bound}
        here = ipaddress.ip_address(self.bound)
        if here.is_loopback or here.is_unspecified:
            known |= {"localhost", "127.0.0.1", "::1"}
        if here.is_unspecified:
            known.add(socket.gethostname().lower())
            with contextlib.suppress(ValueError):
                known.add(str(ipaddress.ip_address(name)))
        return name in known


def open_address(host: str, port: int) -> tuple[socket.socket, Address]:
    """Open a socket to listen at, and settle who may ask there.

    Beyond loopback a client needs a token: the one in the variable RLHF_TOKEN, or a new one. If the variable is set,
    clients on this machine need it, too.

    Args:
        host: Address or name.
        port: Port; 0 takes a free one.

    Raises:
        UserError: The address is taken or not this machine's, or the token is too weak.
    """
    token = _token_of_environment()
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        opened = socket.create_server((place[0], port), family=family)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # events are sent as they come
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"cannot listen at {host}, port {port}: {getattr(error, 'strerror', None) or error}") from None
    bound, port = opened.getsockname()[:2]
    drawn = token is None and not ipaddress.ip_address(bound).is_loopback
    return opened, Address(host, bound, port, secrets.token_urlsafe(24) if drawn else token, drawn)


class Application(Protocol):
    """An ASGI application that can end what is under way; `Guard` is one."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        ...

    def end(self) -> None:
        """Cancel what is under way."""
        ...


def serve(app: Application, opened: socket.socket) -> None:
    """Serve an application until SIGINT or SIGTERM; answers under way then have a moment before they are cancelled.

    Args:
        app: The application, behind its guard.
        opened: The socket.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once it has ended
        Server(app).run(sockets=[opened])


class Server(uvicorn.Server):
    """What `serve` runs: it trusts no header about its client, logs no requests, and ends soon.

    Args:
        app: The application, behind its guard.
    """

    def __init__(self, app: Application) -> None:
        config = uvicorn.Config(
            app, http=_Connection, ws="none", log_config=None, access_log=False, proxy_headers=False,
            server_header=False, limit_concurrency=256, timeout_graceful_shutdown=2,
        )  # fmt: skip
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: take no new connections, and cancel what is under way after a moment."""
        asyncio.get_running_loop().call_later(_LAST_WORDS, self._app.end)
        await super().shutdown(sockets)


class _Connection(H11Protocol):
    """A connection that is closed if its request does not arrive, or if its client has too many.

    Otherwise connections that ask nothing would keep everybody else out.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or close it."""
        client = transport.get_extra_info("peername")[0]
        if sum(isinstance(each, _Connection) and each.comes_from(client) for each in self.connections) >= _MOST_OF_ONE:
            transport.abort()
            return
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection that was taken."""
        if self._deadline is not None:
            self._deadline.cancel()
            super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._await_request()
        super().on_response_complete()

    def comes_from(self, address: str) -> bool:
        """Whether this is the address of the client."""
        return self.client is not None and self.client[0] == address

    def _await_request(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(_PATIENCE, self._expire)

    def _expire(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


def _token_of_environment() -> str | None:
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        return None
    if len(token) < _SHORTEST or not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(f"{TOKEN}: a token has at least {_SHORTEST} printable characters without spaces")
    return token
