"""Where a server listens, and who needs a token there."""

import contextlib
import http.client
import socket
import time

import pytest

from rlhf.errors import UserError
from rlhf.serving import listen
from rlhf.serving.listen import TOKEN, Address, open_address
from tests.support.served import FakeReplier, served


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)


def test_this_machine_needs_no_token_and_beyond_it_one_is_made():
    opened, address = open_address("127.0.0.1", 0)
    opened.close()
    assert (address.bound, address.token) == ("127.0.0.1", None)
    assert address.url == f"http://127.0.0.1:{address.port}"
    tokens = set()
    for _ in range(2):
        opened, address = open_address("0.0.0.0", 0)
        opened.close()
        tokens.add(address.token)
        assert address.url.startswith("http://127.0.0.1:")
    assert len(tokens) == 2
    assert all(len(token) >= 32 for token in tokens)


def test_events_are_not_held_back_until_the_last_one_has_arrived():
    opened, address = open_address("127.0.0.1", 0)
    with opened, socket.create_connection(("127.0.0.1", address.port)), opened.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_token_of_the_environment_holds_everywhere(monkeypatch):
    monkeypatch.setenv(TOKEN, "x" * 16)
    for host in ("127.0.0.1", "0.0.0.0"):
        opened, address = open_address(host, 0)
        opened.close()
        assert address.token == "x" * 16
    for weak in ("short", "ä" * 20, "a b" * 9):
        monkeypatch.setenv(TOKEN, weak)
        with pytest.raises(UserError, match="at least 16 printable characters") as caught:
            open_address("127.0.0.1", 0)
        assert weak not in str(caught.value)


def test_an_address_that_cannot_be_had_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1, port {port}: "):
            open_address("127.0.0.1", port)
    for host, port in (("192.0.2.1", 0), ("no-such-name.invalid", 0), ("127.0.0.1", 99999), ("a" * 300, 0)):
        with pytest.raises(UserError, match="cannot listen at"):
            open_address(host, port)


def test_what_a_server_is_called():
    here = Address("::1", "::1", 80)
    assert here.url == "http://[::1]:80"
    assert here.is_called("localhost")
    named = Address("box.local", "10.0.0.7", 8000, "t" * 20)
    assert named.is_called("BOX.local:8000")
    assert named.is_called("10.0.0.7:8000")
    assert not named.is_called("localhost:8000")
    assert not named.is_called("10.0.0.8:8000")


def connected(address):
    return socket.create_connection((address.bound, address.port), timeout=60)


def closed(connection) -> bool:
    """Whether the server ends a connection before we have waited too long."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(1 << 16):
            pass
    return True


def health(connection) -> int:
    connection.request("GET", "/health")
    answer = connection.getresponse()
    answer.read()
    return answer.status


def free_place(address) -> http.client.HTTPConnection:
    """A connection that is answered, once the server has noticed that another has ended."""
    end = time.monotonic() + 60
    while True:
        connection = http.client.HTTPConnection(address.bound, address.port, timeout=60)
        with contextlib.suppress(http.client.HTTPException, ConnectionError):
            assert health(connection) == 200
            return connection
        connection.close()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_connection_whose_request_does_not_arrive_is_closed(monkeypatch):
    monkeypatch.setattr(listen, "_PATIENCE", 1.0)
    with served(FakeReplier(lambda *_: "x")) as address:
        silent, slow, later = (connected(address) for _ in range(3))
        slow.sendall(b"GET /health HTTP/1.1\r\n")
        later.sendall(f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{address.port}\r\n\r\n".encode())
        assert later.recv(1 << 16).startswith(b"HTTP/1.1 200")
        later.sendall(b"GET")
        for _ in range(4):  # a drip of bytes is no request
            time.sleep(0.3)
            with contextlib.suppress(OSError):
                slow.sendall(b"X: y\r\n")
        for connection in (silent, slow, later):
            with connection:
                assert closed(connection)


def test_a_request_that_is_being_answered_is_not_closed(monkeypatch):
    monkeypatch.setattr(listen, "_PATIENCE", 1.0)
    body = b'{"model": "it", "messages": [{"role": "user", "content": "x"}]}'
    with served(FakeReplier(lambda *_: "a b c d", 0.4)) as address:
        connection = http.client.HTTPConnection(address.bound, address.port, timeout=60)
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        assert b"a b c d" in connection.getresponse().read()
        assert health(connection) == 200
        connection.close()


def test_an_address_has_so_many_connections(monkeypatch):
    monkeypatch.setattr(listen, "_MOST_OF_ONE", 2)
    with served(FakeReplier(lambda *_: "x")) as address:
        held = [http.client.HTTPConnection(address.bound, address.port, timeout=60) for _ in range(2)]
        assert [health(each) for each in held] == [200, 200]
        with connected(address) as third:
            assert closed(third)
        assert [health(each) for each in held] == [200, 200]
        held[0].close()
        again = free_place(address)
        for each in (*held, again):
            each.close()
