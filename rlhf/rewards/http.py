"""Asks an OpenAI-compatible server, as a judge or as a policy: its key, the connection, and what it complains of."""

from __future__ import annotations

import contextlib
import os
import ssl
from typing import Any
from urllib.parse import urlsplit

import httpx2

from rlhf.errors import UserError
from rlhf.secrets import remember

_LONGEST = 200
"""Characters shown of a complaint."""


def key_of(variable: str, where: str) -> str:
    """The key in an environment variable; no message repeats it.

    Args:
        variable: Its name.
        where: What names the variable, for messages.

    Raises:
        UserError: It is not set, or cannot be a key.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"{where}: the environment variable {variable} is not set")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{where}: what stands in {variable} cannot be a key: it has odd characters")
    remember(key)
    return key


def client_of(endpoint: str, key: str | None, timeout: float) -> httpx2.Client:
    """What talks to a server. Redirects are not followed.

    A proxy set in the environment is used for https, where it cannot see the key, and bypassed for http.

    Args:
        endpoint: Base URL.
        key: What the server wants to see, if anything.
        timeout: Seconds without a byte from the server after which a request has failed.
    """
    return httpx2.Client(**_options(endpoint, key, timeout))


def async_client_of(endpoint: str, key: str | None, timeout: float, tls: ssl.SSLContext) -> httpx2.AsyncClient:
    """The same for an event loop, whose requests can be cancelled.

    Args:
        endpoint: As of `client_of`.
        key: As of `client_of`.
        timeout: As of `client_of`.
        tls: The certificates that it trusts; reading them takes longer than a request.
    """
    return httpx2.AsyncClient(**_options(endpoint, key, timeout), verify=tls)


def _options(endpoint: str, key: str | None, timeout: float) -> dict[str, Any]:
    return {
        "headers": {} if key is None else {"Authorization": f"Bearer {key}"},
        "timeout": httpx2.Timeout(timeout, connect=10.0),
        "follow_redirects": False,
        "trust_env": urlsplit(endpoint).scheme != "http",
    }


def final_refusal(response: httpx2.Response, key: str | None) -> str | None:
    """Why asking a server again is of no use, if it is: it redirects, refuses the key, or knows no such model.

    Args:
        response: Its answer, read.
        key: What it was shown, which is not repeated.
    """
    status = response.status_code
    if response.has_redirect_location:
        try:
            host = urlsplit(response.headers["Location"]).netloc.rpartition("@")[2] or "another path"
        except ValueError:
            host = "what is no address"
        return f"it redirects to {host}, where nothing is sent; give the address itself"
    if status in (401, 403):
        hint = "the key is refused" if key else "it wants a key: set api_key_env"
        return f"{hint} ({status}: {complaint(response, key)})"
    if status == 404:
        return f"no such model or address (404: {complaint(response, key)})"
    return None


def may_recover(status: int) -> bool:
    """Whether a server that answers with this status may answer better a little later."""
    return status in (408, 429) or status >= 500


def complaint(response: httpx2.Response, key: str | None) -> str:
    """What a server says went wrong, shortened, and without the key in case it repeats what it was sent."""
    text = response.text
    with contextlib.suppress(ValueError, RecursionError):  # no JSON that can be read: show the text as it is
        body = response.json()
        known = body if isinstance(body, dict) else {}
        problem = next((known[name] for name in ("error", "message", "detail") if known.get(name)), text)
        text = str(problem.get("message", problem) if isinstance(problem, dict) else problem)
    text = on_a_line(text, key) or response.reason_phrase
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def on_a_line(text: str, key: str | None) -> str:
    """A text on a single line, without the key and without control characters."""
    text = "".join(character for character in " ".join(text.split()) if character.isprintable())
    return text if key is None else text.replace(key, "…")
