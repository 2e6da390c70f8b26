"""What a hostile client gets: nothing, and a line in the log."""

import httpx2
import pytest

from rlhf.serving.listen import TOKEN
from tests.support.arena import Annotator, fill, make_arena, served


@pytest.fixture
def arena(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    arena = make_arena(tmp_path / "runs" / "tiny")
    fill(arena.store, 3)
    with served(arena) as address:
        arena.url = address.url
        yield arena


def test_a_page_of_another_origin_and_a_name_that_is_not_ours(arena, caplog):
    ann = Annotator(arena.url, "Ann")
    ballot = ann.next()["ballot"]
    ann.client.headers["Origin"] = "http://evil.example"
    assert ann.vote(ballot, "a").status_code == 403
    ann.client.headers["Origin"] = "null"
    assert ann.vote(ballot, "a").status_code == 403
    ann.client.headers["Origin"] = arena.url
    ann.client.headers["Host"] = "evil.example"
    assert ann.vote(ballot, "a").status_code == 421
    assert not arena.store.votes()
    assert caplog.text.count("refused POST /votes") == 3


def test_a_form_of_another_page_is_refused(arena):
    ann = Annotator(arena.url, "Ann")
    text = f'{{"ballot": {ann.next()["ballot"]}, "verdict": "a"}}'
    for headers in ({}, {"X-CSRF-Token": ann.token, "Content-Type": "text/plain"}):
        assert ann.client.post("/votes", content=text, headers=headers).status_code in (403, 415)
    assert ann.client.get("/votes").status_code == 405
    assert not arena.store.votes()


def test_ten_megabytes_are_refused(arena, caplog):
    ann = Annotator(arena.url, "Ann")
    assert ann.post("/prompts", {"text": "x" * 10_000_000}).status_code == 413
    assert "refused POST /prompts" in caplog.text
    assert ann.post("/prompts", {"text": "x" * 100_000}).status_code == 422
    assert ann.next()["prompt"][0]["content"].startswith("Where is")


@pytest.mark.parametrize(
    "path",
    ["/export/..%2f..%2farena%2fvotes.sqlite.jsonl", "/static/../app.py", "/static/%2e%2e/app.py", "/ballots/-1",
     "/ballots/99999999999999999999999", pytest.param("/ballots/" + "9" * 5000, id="5000 digits"), "/ballots/x",
     pytest.param("/ballots/" + "9" * 5000 + "/replies", id="replies of 5000 digits"),
     "/writing/..%2f..%2fetc%2fpasswd",
     "/static/..%2f..%2f..%2farena%2fsession.key"],
)  # fmt: skip
def test_paths_lead_nowhere(arena, path):
    ann = Annotator(arena.url, "Ann")
    answer = ann.client.get(path)
    assert answer.status_code == 404
    assert "import" not in answer.text


def test_broken_bodies_are_refused(arena):
    ann = Annotator(arena.url, "Ann")
    headers = {"X-CSRF-Token": ann.token, "Content-Type": "application/json"}
    for content in (
        b"",
        b"{",
        b"[]",
        b'{"text": "\\ud800"}',
        b'{"text": 1}',
        b"\xff",
        b'{"text": "a", "after": 1e999}',
    ):
        assert ann.client.post("/prompts", content=content, headers=headers).status_code == 422
    assert ann.post("/prompts", {"text": "Hi", "after": 1, "reply": "a"}).status_code == 404
    assert ann.post("/prompts", {"text": "  "}).status_code == 422
    assert ann.post("/prompts", {"text": "\u200b\u3164"}).status_code == 422
    assert ann.post("/name", {"name": "\x00"}).status_code == 422


def test_without_a_name_there_is_nothing_to_see(arena):
    for path in ("/results", "/export/preferences.jsonl", "/next", "/write", "/ballots/1"):
        assert httpx2.get(arena.url + path).status_code == 401
    for path in ("/ballots/1/replies", "/waiting", "/writing/x/replies"):
        assert httpx2.get(arena.url + path).status_code == 401


def test_a_name_is_text(arena):
    ann = Annotator(arena.url, "<img src=x onerror=alert(1)>")
    page = ann.client.get("/write").text
    assert "&lt;img src=x" in page
    assert "<img" not in page


def test_a_log_line_is_one_line(arena, caplog):
    ann = Annotator(arena.url, "Ann")
    ann.client.get("/%0aforged line")
    assert "\nforged" not in caplog.text


def test_a_cookie_is_for_this_page_alone(arena):
    cookie = httpx2.get(arena.url).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_beyond_this_machine_a_token_is_required(tmp_path, monkeypatch):
    monkeypatch.setenv(TOKEN, "a-token-of-many-letters")
    arena = make_arena(tmp_path / "runs" / "tiny")
    fill(arena.store, 1)
    with served(arena) as address:
        assert httpx2.get(address.url).status_code == 401
        client = httpx2.Client(base_url=address.url, follow_redirects=True)
        assert client.get("/?token=wrong-token-of-letters").status_code == 401
        page = client.get(f"/?token={address.token}")
        assert "Your name" in page.text
        assert "token=" not in str(page.url)
        assert client.get("/static/arena.js").status_code == 200
