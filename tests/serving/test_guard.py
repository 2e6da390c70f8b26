"""What a guard lets pass, what it refuses, and what it logs and adds."""

import asyncio
import json
import logging

import pytest

from rlhf.serving import guard as guard_module
from rlhf.serving.guard import Guard, Rules
from rlhf.serving.listen import Address

TOKEN = "a-token-of-twenty-letters"
HERE = Address("127.0.0.1", "127.0.0.1", 8000)
ABROAD = Address("0.0.0.0", "0.0.0.0", 8000, TOKEN)


async def echo(scope, receive, send):
    """An application that answers with what it was sent."""
    event = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": event["body"]})


def ask(guard, path="/v1/models", method="GET", body=(b"",), query=b"", client="10.0.0.9", **headers):
    """Status, headers and body of an answer; `_` in a header's name is `-`."""
    given = {"host": "127.0.0.1:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query,
        "client": (client, 5), "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
    }  # fmt: skip
    events = [{"type": "http.request", "body": part, "more_body": True} for part in body]
    events[-1]["more_body"] = False
    sent, taken = [], []

    async def receive():
        taken.append(events[len(taken)])
        return taken[-1]

    async def send(event):
        sent.append(event)

    asyncio.run(guard(scope, receive, send))
    answer = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answer, b"".join(event.get("body", b"") for event in sent[1:]), len(taken)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000"])
def test_a_server_of_this_machine_is_called_by_its_names(host):
    assert ask(Guard(echo, HERE, Rules()), host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example:8000", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:8000.evil.example", "u@127.0.0.1:8000", "",
     "127.0.0.1:8000/", "10.0.0.1:8000", "127.0.0.1:99999", "[::1", "localhost:8000#"],
)  # fmt: skip
def test_any_other_host_is_refused(host):
    assert ask(Guard(echo, HERE, Rules()), host=host)[0] == 421


def test_a_server_of_all_addresses_is_called_by_any_address_and_by_no_name_of_others():
    guard = Guard(echo, ABROAD, Rules())
    for host, status in {"192.168.1.7:8000": 200, "[fe80::1]:8000": 200, "evil.example:8000": 421}.items():
        assert ask(guard, host=host, authorization=f"Bearer {TOKEN}")[0] == status


def test_pages_of_other_origins_are_refused():
    guard = Guard(echo, HERE, Rules())
    assert ask(guard, origin="http://127.0.0.1:8000")[0] == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9000", "https://127.0.0.1:8000", ""):
        assert ask(guard, method="POST", origin=origin)[0] == 403


def test_a_token_opens_and_nothing_near_it_does():
    guard = Guard(echo, ABROAD, Rules(open_paths=("/health",)))
    status, headers, body, _ = ask(guard)
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert ask(guard, authorization=f"Bearer {TOKEN}")[0] == 200
    wrong = ("Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer ä")
    for value in wrong:
        assert ask(guard, authorization=value)[0] == 401
    assert ask(guard, query=f"token={TOKEN}".encode())[0] == 401  # no cookies here
    assert ask(guard, path="/health")[0] == 200
    assert ask(Guard(echo, Address("0.0.0.0", "0.0.0.0", 8000, ""), Rules()), authorization="Bearer ")[0] == 401


def test_a_link_gives_a_cookie_that_opens_and_is_not_the_token():
    guard = Guard(echo, ABROAD, Rules(cookie=True))
    status, headers, _, _ = ask(guard, path="//evil.example", query=f"token={TOKEN}".encode())
    assert (status, headers["location"]) == (303, "/evil.example")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert TOKEN not in cookie
    assert ask(guard, cookie=cookie.partition(";")[0])[0] == 200
    assert ask(guard, cookie=f"rlhf_8000={TOKEN}")[0] == 401
    assert ask(guard, query=b"token=wrong")[0] == 401
    assert ask(guard, method="POST", query=b"token=wrong", cookie=cookie.partition(";")[0])[0] == 200


def test_a_body_over_the_limit_is_not_read_to_its_end():
    guard = Guard(echo, HERE, Rules(max_body=100))
    assert ask(guard, method="POST", body=[b"x" * 60, b"x" * 40])[2] == b"x" * 100
    status, _, _, taken = ask(guard, method="POST", body=[b"x" * 60] * 50)
    assert (status, taken) == (413, 2)
    status, _, _, taken = ask(guard, method="POST", body=[b"x"] * 50, content_length="101")
    assert (status, taken) == (413, 0)


def test_a_body_that_does_not_arrive_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(guard_module, "PATIENCE", 0.01)
    sent = []

    async def receive():
        await asyncio.sleep(60)

    async def send(event):
        sent.append(event)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"127.0.0.1:8000")]}
    asyncio.run(Guard(echo, HERE, Rules())(scope, receive, send))
    assert sent[0]["status"] == 408


def test_rates_are_by_client_and_wrong_tokens_have_their_own():
    guard = Guard(echo, HERE, Rules(rate="3/minute"))
    assert [ask(guard)[0] for _ in range(4)] == [200, 200, 200, 429]
    assert 1 <= int(ask(guard)[1]["retry-after"]) <= 60
    assert ask(guard, client="10.0.0.8")[0] == 200
    guard = Guard(echo, ABROAD, Rules(wrong_tokens="2/minute"))
    wrong = {"authorization": "Bearer wrong"}
    assert [ask(guard, **wrong)[0] for _ in range(3)] == [401, 401, 429]
    assert int(ask(guard, **wrong)[1]["retry-after"]) > 1
    assert ask(guard, client="10.0.0.8", **wrong)[0] == 401


def test_nobody_can_lock_out_who_has_the_token():
    guard = Guard(echo, ABROAD, Rules(wrong_tokens="2/minute", cookie=True))
    assert {ask(guard)[0] for _ in range(9)} == {401}  # no token is no wrong token
    cookie = ask(guard, query=f"token={TOKEN}".encode())[1]["set-cookie"].partition(";")[0]
    assert [ask(guard, query=b"token=wrong")[0] for _ in range(3)] == [401, 401, 429]
    assert ask(guard)[0] == 401
    assert ask(guard, authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(guard, cookie=cookie)[0] == 200
    assert ask(guard, query=f"token={TOKEN}".encode(), cookie="rlhf_8000=old")[0] == 303


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_may_link_here_and_do_nothing_else(site):
    guard = Guard(echo, HERE, Rules(rate="3/minute"))
    for mode, place in (("no-cors", "image"), ("cors", "empty"), ("navigate", "iframe"), ("websocket", "websocket")):
        assert ask(guard, sec_fetch_site=site, sec_fetch_mode=mode, sec_fetch_dest=place)[0] == 403
    link = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert ask(guard, method="POST", **link)[0] == 403
    assert ask(guard, sec_fetch_site=site)[0] == 403
    assert ask(guard, **link)[0] == 200  # and none of the others counted
    for own in ("same-origin", "none"):
        assert ask(guard, sec_fetch_site=own, sec_fetch_mode="no-cors", sec_fetch_dest="image")[0] == 200


def test_answers_carry_headers_that_an_application_may_replace():
    _, headers, _, _ = ask(Guard(echo, HERE, Rules()))
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-type"] == "text/plain"
    assert (
        ask(Guard(echo, HERE, Rules(policy="default-src 'self'")))[1]["content-security-policy"] == "default-src 'self'"
    )
    assert ask(Guard(echo, HERE, Rules()), host="x")[1]["x-content-type-options"] == "nosniff"

    async def cached(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Cache-Control", b"max-age=9")]})
        await send({"type": "http.response.body"})

    own = ask(Guard(cached, HERE, Rules()))[1]
    assert own["Cache-Control"] == "max-age=9"
    assert "cache-control" not in own


def test_a_refusal_is_a_line_in_the_log_without_the_secret(caplog):
    caplog.set_level(logging.WARNING, "rlhf.serving")
    guard = Guard(echo, ABROAD, Rules(cookie=True))
    ask(guard, path="/a\nb\x1b[31m" + "x" * 500, query=b"token=my-secret", authorization="Bearer my-secret")
    (record,) = caplog.records
    line = record.getMessage()
    assert "my-secret" not in line
    assert "401" in line
    assert line.isprintable()
    assert len(line) < 250


def test_other_kinds_of_connections():
    sent = []

    async def send(event):
        sent.append(event)

    asyncio.run(Guard(echo, HERE, Rules())({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert [event["type"] for event in sent] == ["websocket.close"]
