"""Cookies, tokens and names."""

import pytest

from rlhf.arena.sessions import Session, Sessions, annotator_name, session_key
from rlhf.errors import UserError


def test_a_cookie_says_who_and_cannot_be_changed():
    sessions = Sessions(b"k" * 32)
    session = Session("id", "Änn & Ben")
    cookie = sessions.cookie(session)
    assert sessions.read(cookie) == session
    number, name, signature = cookie.split(".")
    other = sessions.cookie(Session("id", "Eve")).split(".")[1]
    for forged in (f"{number}.{other}.{signature}", f"x.{name}.{signature}", f"{number}.{name}.", "", "a.b", None):
        assert sessions.read(forged) is None
    assert Sessions(b"l" * 32).read(cookie) is None


def test_a_token_is_of_one_session_and_outlives_the_name():
    sessions = Sessions(b"k" * 32)
    ann, ben = sessions.new(), sessions.new()
    assert sessions.is_token(Session(ann.id, "Ann"), sessions.token(ann))
    assert not sessions.is_token(ben, sessions.token(ann))
    assert not sessions.is_token(ann, "")
    assert not sessions.is_token(ann, "ü")


def test_the_key_is_kept_for_its_owner_alone(tmp_path):
    key = session_key(tmp_path / "arena")
    assert session_key(tmp_path / "arena") == key
    assert (tmp_path / "arena" / "session.key").stat().st_mode & 0o077 == 0
    assert [file.name for file in (tmp_path / "arena").iterdir()] == ["session.key"]
    (tmp_path / "arena" / "session.key").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged"):
        session_key(tmp_path / "arena")


def test_names():
    assert annotator_name("  Ann \t B.\n") == "Ann B."
    assert annotator_name("Zoë\x00") == "Zoë"
    assert annotator_name("A\u200bnn") == annotator_name("\uff21\uff4e\uff4e") == "Ann"
    assert annotator_name("Zoe\u0308") == annotator_name("Zo\u00eb") == "Zo\u00eb"
    for bad in ("", " \x07", "x" * 61, "\u200b\u2060", "\u3164", "\u2800 \ufe0f", "\ufdfa" * 10):
        with pytest.raises(ValueError, match="name"):
            annotator_name(bad)
