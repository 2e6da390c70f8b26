"""A policy behind another server: what it gets, and every way in which the server may fail it."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest

from rlhf.errors import UserError
from rlhf.serving import endpoint
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
        (events({**piece("x"), "usage": [1]}), "no chat completion"),
        (events({**piece("x"), "usage": {"prompt_tokens": "7"}}), "no chat completion"),
        (events({**piece("x"), "usage": {"completion_tokens": -1}}), "no chat completion"),
        (events({**piece("x"), "usage": {"completion_tokens": 10**30}}), "no chat completion"),
        (events(b"[" * 100_000), "no chat completion"),
        (events(piece(5)), "no chat completion"),
        (events(piece(["x"])), "no chat completion"),
        (events(piece("x", 5)), "no chat completion"),
        (events(piece("x", {"a": "stop"})), "no chat completion"),
        (events({"choices": {"a": 1}}), "no chat completion"),
        (events({"choices": [[]]}), "no chat completion"),
        (events({"choices": [{"delta": 5}]}), "no chat completion"),
        (events(b"\x1b]0;title\x07"), "no chat completion"),
        (Raw(400, b'{"error": ' + b"[" * 100_000), "400: "),
        (Raw(400, b'{"error": "\\u001b[31m"}'), "400: "),
        (Raw(302, b"", {"Location": "http://[x"}), "redirects|RemoteProtocolError"),
        (Raw(200, b"x", {"Content-Type": "text/event-stream; charset=base64"}), "no chat completion|broke off"),
        (Raw(200, b"x", {"Content-Type": "text/event-stream", "Content-Encoding": "gzip"}), "compresses"),
        (Raw(200, b"<html>", {"Content-Type": "text/html"}), "text/event-stream|broke off"),
    ],
)
def test_what_goes_wrong_is_a_line(answer, message):
    with pytest.raises(UserError, match=message) as caught:
        ask(answer)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


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
    for url in ("http://a\x1b[31m.example/v1", "http://a.example/\nv1", "\x00http://a.example"):
        with pytest.raises(UserError, match="no control characters"):
            EndpointReplier(url, "m")
    with pytest.raises(UserError, match="no user"):
        EndpointReplier("https://u:p@example.com/v1", "m")


def models(*names):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            raw = [name for name in names if isinstance(name, bytes)]
            body = raw[0] if raw else json.dumps({"data": [{"id": name} for name in names]}).encode()
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


@pytest.mark.parametrize("name", ["", "x" * 201, "a\x1b[31m", "a\nb", "\u202eb"])
def test_a_name_that_is_no_printable_line_is_refused(name):
    with models(name) as server:
        for given in (None, name):
            with pytest.raises(UserError, match="name is printable and has 1 to 200 characters") as caught:
                EndpointReplier(server.url, given)
            assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", [5, None, ["x"], b"[" * 100_000, b"[]", b"5", b'{"data": 5}', b'{"data": [5]}', b'{"data": {"a": 1}}']
)
def test_a_list_of_models_that_is_none_is_a_line(name):
    with models(name) as server, pytest.raises(UserError, match="does not say what models it has"):
        EndpointReplier(server.url)


def test_names_to_choose_from_are_printable():
    with models("a\x1b[31m", "b") as server, pytest.raises(UserError, match="it has 2 models") as caught:
        EndpointReplier(server.url)
    assert str(caught.value).isprintable()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
EMPTY = b"data: " + json.dumps(piece("")).encode() + b"\n\n"


def hostile(head, drip, pause=0.02):
    """A server that answers with a head, and then with the same bytes until its client leaves."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                self.wfile.write(head)
                while True:
                    self.wfile.write(drip)
                    time.sleep(pause)
            except OSError:
                self.server.left.set()

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = LocalServer(Handler)
    server.left = threading.Event()
    return server


DRIPS = {
    "no head": (b"", b""), "silence": (HEAD, b""), "comments": (HEAD, b": wait\n\n"), "bytes": (HEAD + b"data: ", b"x"),
    "empty deltas": (HEAD, EMPTY), "a long head": (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
    "hints": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"), "an error": (b"HTTP/1.1 400 No\r\n\r\n", b"x"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DRIPS)
def test_no_server_holds_a_reply_beyond_its_deadline_or_after_it_is_stopped(kind, monkeypatch):
    monkeypatch.setattr(endpoint, "_LISTING", 0.3)
    with hostile(*DRIPS[kind]) as server:
        begun = time.monotonic()
        replier = EndpointReplier(server.url, "m", deadline=0.3, timeout=60)
        with pytest.raises(UserError, match=r"did not end in 0\.3 seconds"):
            replier.stream("Hi", GREEDY).text()
        with pytest.raises(UserError, match=r"did not end in 0\.3 seconds"):
            EndpointReplier(server.url)
        stop = threading.Event()
        threading.Timer(0.1, stop.set).start()
        stream = EndpointReplier(server.url, "m").stream("Hi", GREEDY, stop)
        assert (stream.text(), stream.finished) == ("", False)
        assert time.monotonic() - begun < 30  # about one second on a free machine


def test_a_server_is_checked_for_as_long_as_it_may_be_silent():
    with hostile(HEAD, EMPTY) as server, pytest.raises(UserError, match=r"did not end in 0\.3 seconds"):
        EndpointReplier(server.url, "m", timeout=0.3).check()
    with JudgeServer(lambda server, messages: GOOD) as server:
        EndpointReplier(server.url, "m").check()
    assert server.seen[0].body["max_tokens"] == 1


def test_a_server_that_falls_silent_is_left():
    with hostile(HEAD, b"") as server, pytest.raises(UserError, match="ReadTimeout"):
        EndpointReplier(server.url, "m", timeout=0.1, retries=1, backoff=0.0).stream("Hi", GREEDY).text()


@pytest.mark.parametrize("drip", [b": x\n" * 5000, EMPTY * 100, b"x" * 5000], ids=["comments", "deltas", "a line"])
@pytest.mark.parametrize("status", [b"200 OK", b"400 No"])
def test_of_a_flood_so_much_is_read(status, drip, monkeypatch):
    monkeypatch.setattr(endpoint, "_MOST_READ", 1 << 17)
    with hostile(HEAD.replace(b"200 OK", status), drip, 0) as server:
        with pytest.raises(UserError, match="an answer of more than 131072 bytes"):
            EndpointReplier(server.url, "m", deadline=30).stream("Hi", GREEDY).text()
        assert server.left.wait(60)
        with pytest.raises(UserError, match="an answer of more than 131072 bytes"):
            EndpointReplier(server.url)


def test_whoever_leaves_ends_the_connection():
    with hostile(HEAD + b"data: " + json.dumps(piece("Hello there")).encode() + b"\n\n", b": x\n") as server:
        stream = EndpointReplier(server.url, "m").stream("Hi", GREEDY)
        assert next(stream) == "Hello there"
        stream.close()
        assert server.left.wait(60)


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
