"""Who is at the page: a signed cookie with the annotator's name, and a token that binds what a page sends to it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from rlhf.arena.bodies import has_visible
from rlhf.errors import UserError

HEADER = "x-csrf-token"
"""Where a page sends its token."""
SECONDS = 30 * 24 * 3600
"""How long a browser keeps the cookie."""
LONGEST_NAME = 60
_KEY_FILE, _KEY_BYTES = "session.key", 32


@dataclass(frozen=True)
class Session:
    """A browser, and the annotator who uses it."""

    id: str
    annotator: str | None = None
    """None until a name is given."""


class Sessions:
    """Makes and reads cookies.

    Args:
        key: What signs them.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def new(self) -> Session:
        """A session of nobody yet."""
        return Session(secrets.token_urlsafe(16))

    def cookie(self, session: Session) -> str:
        """What the browser keeps."""
        name = base64.urlsafe_b64encode((session.annotator or "").encode()).decode()
        return f"{session.id}.{name}.{self._sign('session', session.id, name)}"

    def read(self, cookie: str | None) -> Session | None:
        """The session of a cookie; None where there is none, or nobody here signed it."""
        parts = (cookie or "").split(".")
        if len(parts) != 3:
            return None
        number, name, signature = parts
        if not hmac.compare_digest(signature.encode(), self._sign("session", number, name).encode()):
            return None
        return Session(number, base64.urlsafe_b64decode(name).decode() or None)

    def token(self, session: Session) -> str:
        """What a page of this session sends with everything that changes something."""
        return self._sign("csrf", session.id)

    def is_token(self, session: Session, token: str) -> bool:
        """Whether a token is this session's."""
        return hmac.compare_digest(token.encode(), self.token(session).encode())

    def _sign(self, *parts: str) -> str:
        digest = hmac.new(self._key, "\0".join(parts).encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def cookie_name(port: int) -> str:
    """What the cookie of an arena at a port is called: a browser sends a cookie to every port of a host."""
    return f"rlhf_arena_{port}"


def session_key(folder: Path) -> bytes:
    """The key that signs cookies, from a file that only its owner reads; made if need be, so that restarts keep names.

    Args:
        folder: Where the votes are.

    Raises:
        UserError: It cannot be read or written.
    """
    file = folder / _KEY_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            made = folder / f".{_KEY_FILE}.{os.getpid()}"
            with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
                out.write(secrets.token_bytes(_KEY_BYTES))
            try:
                os.link(made, file)  # of two servers that start together, one makes the key
            except FileExistsError:
                pass
            finally:
                made.unlink()
        key = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: {(error.strerror or str(error)).lower()}") from None
    if len(key) != _KEY_BYTES:
        raise UserError(f"{file}: damaged; delete it, and annotators give their names again")
    return key


def annotator_name(given: str) -> str:
    """A name as it is kept: in the form NFKC, without control characters, and with single spaces.

    So names that look alike because they are written in another form are one annotator's.

    Raises:
        ValueError: Nothing of it can be seen, or it is too long.
    """
    shown = (letter for letter in given if unicodedata.category(letter) != "Cf")  # such as a space of no width
    name = unicodedata.normalize("NFKC", "".join(letter if letter.isprintable() else " " for letter in shown))
    name = " ".join(name.split())
    if not has_visible(name):
        raise ValueError("Please give a name.")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"A name has at most {LONGEST_NAME} characters.")
    return name
