"""A policy behind another server: what it gets, and every way in which the server may fail it."""

import json
import threading
from http.server import BaseHTTPRequestHandler

import pytest

from rlhf.errors import UserError
from rlhf.serving.endpoint import EndpointReplier, _stripped
from rlhf.serving.replies import Sampling
from tests.support.judge_server import JudgeServer, Raw
from tests.support.local_server import LocalServer
from tests.support.served import FakeReplier, served

KEY = "sk-a-key-that-nobody-sees"
GREEDY = Sampling(0.0, 9, 5)


def events(*bodies, end=b"data: [DONE]\n\n"):
    texts = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies]
    return Raw(200, b"".join(b"data: " + text + b"\n\n" for text in texts) + end, {"Content-Type": "text/event-stream"})


def piece(text, reason=None):
    return {"choices": [{"delta": {"content": text}, "finish_reason": reason}]}


GOOD = events(piece(" Hello "), piece("there. "), piece(None, "stop"), {"choices": [], "usage": {"prompt_tokens": 3}})


def ask(*answers, prompt="Hi", sampling=GREEDY, **options):
    """The reply of a server that answers one request after another like this; and what it was asked."""
    left = list(answers)
    with JudgeServer(lambda server, messages: left.pop(0) if len(left) > 1 else left[0]) as server:
        stream = EndpointReplier(server.url, "m", backoff=0.0, **options).stream(prompt, sampling)
        return stream.text(), stream, server.seen


def test_a_reply_and_what_was_asked_for():
    text, stream, (request,) = ask(GOOD, sampling=Sampling(0.5, 7, 3, ("END",)))
    assert (text, stream.finished, stream.prompt_tokens, stream.completion_tokens) == ("Hello there.", True, 3, None)
    assert request.body == {
        "model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "temperature": 0.5,
        "max_tokens": 7, "seed": 3, "stop": ["END"],
    }  # fmt: skip
    assert not ask(events(piece("Hello", "length")))[1].finished
    turns = [{"role": "user", "content": "\ud800"}]
    assert ask(GOOD, prompt=turns)[2][0].body["messages"] == [{"role": "user", "content": "?"}]


def test_a_server_that_recovers_is_asked_again():
    text, _, seen = ask(Raw(503), Raw(429, b"{}", {"Retry-After": "0"}), GOOD)
    assert (text, len(seen)) == ("Hello there.", 3)
    with pytest.raises(UserError, match="503"):
        ask(Raw(503))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Raw(401, b'{"error": {"message": "no key"}}'), "wants a key"),
        (Raw(404), "no such model or address"),
        (Raw(400, b'{"error": {"message": "context is\\n full"}}'), "400: context is full"),
        (Raw(302, b"", {"Location": "http://u:p@evil.example/x"}), "redirects to evil.example,"),
        (events(piece("Hello"), end=b""), "broke off in the middle"),
        (events(b"{", end=b""), "no chat completion"),
        (events({"error": {"message": "out of memory"}}), "out of memory"),
        (events({"choices": "x"}), "no chat completion"),
        (events(b"[]"), "no chat completion"),
        (events(piece("x" * (1 << 19)), piece("x" * (1 << 19)), piece("x")), "more than"),
        (Raw(200, b"<html>", {"Content-Type": "text/html"}), "text/event-stream|broke off"),
    ],
)
def test_what_goes_wrong_is_a_line(answer, message):
    with pytest.raises(UserError, match=message) as caught:
        ask(answer)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_the_key_goes_into_one_header_and_no_message(monkeypatch):
    monkeypatch.setenv("THE_KEY", KEY)
    _, _, (request,) = ask(GOOD, api_key_env="THE_KEY")
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in json.dumps(request.body)
    with pytest.raises(UserError, match="the key is refused") as caught:
        ask(Raw(401, json.dumps({"error": f"bad {KEY}"}).encode()), api_key_env="THE_KEY")
    assert KEY not in str(caught.value)
    with pytest.raises(UserError, match="plain http"):
        EndpointReplier("http://example.com/v1", "m", "THE_KEY")
    with pytest.raises(UserError, match="NO_KEY is not set"):
        EndpointReplier("https://example.com/v1", "m", "NO_KEY")
    with pytest.raises(UserError, match="no user"):
        EndpointReplier("https://u:p@example.com/v1", "m")


def models(*names):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"data": [{"id": name} for name in names]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return LocalServer(Handler)


def test_the_only_model_is_taken_and_of_several_one_is_to_be_named():
    with models("only") as server:
        assert EndpointReplier(f"{server.url}/v1/").name == f"{server.url}/v1 only"
    for names in ((), ("one", "two")):
        with models(*names) as server, pytest.raises(UserError, match=f"it has {len(names)} models; name one"):
            EndpointReplier(server.url)
    with pytest.raises(UserError, match="ConnectError"):
        EndpointReplier(server.url)


def test_a_reply_stops_when_nobody_wants_it():
    stop = threading.Event()
    with served(FakeReplier(lambda *_: "word " * 5000, 0.005)) as address:
        stream = EndpointReplier(f"{address.url}/v1").stream("Hi", GREEDY, stop)
        assert next(stream) == "word"
        stop.set()
        stream.text()
        assert not stream.finished


def test_white_space_at_both_ends_is_left_out():
    for pieces in (["  a", " ", " b ", "\n"], [" ", "a  b"], ["a  b"], ["a", "  ", "", "b"]):
        assert "".join(_stripped(iter(pieces))) == "a  b"
    assert list(_stripped(iter([" ", "\n"]))) == []
