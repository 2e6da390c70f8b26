"""The arena over HTTP."""

import json

import pytest

from tests.support.arena import Annotator, fill, make_arena, served


@pytest.fixture
def arena(tmp_path):
    arena = make_arena(tmp_path / "runs" / "tiny")
    fill(arena.store, 3)
    with served(arena) as address:
        arena.url, arena.port = address.url, address.port
        yield arena


def test_a_vote_is_kept_with_the_reply_that_was_meant(arena):
    ann = Annotator(arena.url, "Ann")
    shown = ann.next()
    answer = ann.vote(shown["ballot"], "b", good_a=False, edit=" better ", reason="why").json()
    (vote,) = arena.store.votes()
    replies = vote.ballot.comparison.replies
    chosen = replies[["first", "second"].index(vote.verdict)]
    assert chosen.text == shown["b"]
    assert answer["b"]["policy"] == chosen.policy
    assert vote.good[["first", "second"].index(vote.verdict)] is None
    assert sorted(map(str, vote.good)) == ["False", "None"]
    assert (vote.edit, vote.reason, vote.ballot.annotator) == ("better", "why", "Ann")
    assert answer["judged"] == 1


def test_names_are_hidden_until_the_vote(arena):
    ann = Annotator(arena.url, "Ann")
    shown = ann.next()
    page = f"/ballots/{shown['ballot']}"
    before = ann.client.get(page).text
    stream = ann.client.get(f"{page}/replies").text
    for name in ("SFT", "DPO", "sft", "dpo"):
        assert name not in before + stream + json.dumps(shown)
    assert shown["a"] in json.loads(stream.split("data: ")[1].splitlines()[0])["text"]
    ann.vote(shown["ballot"], "a")
    assert {"SFT", "DPO"} <= set(ann.client.get(page).text.replace("<", " ").replace(",", " ").split())


def test_the_same_vote_again_is_the_first_one_and_another_is_refused(arena):
    ann = Annotator(arena.url, "Ann")
    ballot = ann.next()["ballot"]
    first, again, other = ann.vote(ballot, "a"), ann.vote(ballot, "a"), ann.vote(ballot, "b")
    assert (first.status_code, again.status_code, other.status_code) == (200, 200, 409)
    assert first.json() == again.json()
    assert ann.vote(ballot, "a", reason="later").status_code == 409
    assert len(arena.store.votes()) == 1


def test_a_ballot_of_another_is_refused(arena):
    ann, ben = Annotator(arena.url, "Ann"), Annotator(arena.url, "Ben")
    ballot = ann.next()["ballot"]
    assert ben.vote(ballot, "a").status_code == 404
    assert ben.client.get(f"/ballots/{ballot}").status_code == 404
    assert ben.client.get(f"/ballots/{ballot}/replies").status_code == 404
    assert not arena.store.votes()


def test_a_token_of_another_session_is_refused(arena, caplog):
    ann, ben = Annotator(arena.url, "Ann"), Annotator(arena.url, "Ben")
    ballot = ann.next()["ballot"]
    ann.token = ben.token
    assert ann.vote(ballot, "a").status_code == 403
    ann.token = ""
    assert ann.vote(ballot, "a").status_code == 403
    assert "refused with 403: POST /votes" in caplog.text
    ann.client.cookies.clear()
    ann.client.cookies.set(f"rlhf_arena_{arena.port}", "forged.QW5u.signature")
    ann.token = ben.token
    assert ann.vote(ballot, "a").status_code == 401


@pytest.mark.parametrize(
    "change",
    [{"verdict": "c"}, {"ballot": "1"}, {"seconds": -1}, {"more": 1}, {"edit": "x" * 40_000}, {"good_a": 1},
     {"ballot": 2**70}],
)  # fmt: skip
def test_a_vote_that_is_none_is_refused(arena, change):
    ann = Annotator(arena.url, "Ann")
    body = {"ballot": ann.next()["ballot"], "verdict": "a", "seconds": 1.0, **change}
    assert ann.post("/votes", body).status_code in (404, 422)
    assert not arena.store.votes()


def test_everything_judged(arena):
    ann = Annotator(arena.url, "Ann")
    for _ in range(3):
        assert ann.vote(ann.next()["ballot"], "tie").status_code == 200
    assert ann.next() == {"ballot": None, "preparing": False}
    assert "You have judged everything" in ann.client.get("/").text


def test_a_prompt_of_ones_own_and_the_conversation_after_it(arena):
    ann = Annotator(arena.url, "Ann")
    page = ann.post("/prompts", {"text": "Hi there"}).json()["page"]
    events = ann.client.get(f"{page}/replies").text
    ballot = json.loads(events.split("event: ready\r\ndata: ")[1].splitlines()[0])["ballot"]
    shown = ann.next()
    assert shown["ballot"] == ballot
    assert shown["prompt"] == [{"role": "user", "content": "Hi there"}]
    assert shown["a"] == "one says: Hi there"
    assert ann.post("/prompts", {"text": "And?", "after": ballot, "reply": "a"}).status_code == 409
    ann.vote(ballot, "tie")
    assert ann.post("/prompts", {"text": "And?", "after": ballot, "reply": "edit"}).status_code == 422
    page = ann.post("/prompts", {"text": "And?", "after": ballot, "reply": "b"}).json()["page"]
    assert "ready" in ann.client.get(f"{page}/replies").text
    then = ann.next()
    assert [turn["role"] for turn in then["prompt"]] == ["user", "assistant", "user"]
    comparison = arena.store.ballot(then["ballot"], "Ann").comparison
    assert (comparison.parent, comparison.origin) == (ballot, "typed")
    first = arena.store.ballot(ballot, "Ann").comparison
    assert {reply.policy for reply in comparison.replies} == {reply.policy for reply in first.replies}
    assert set(comparison.replies[0].scores) == {"length"}
    assert Annotator(arena.url, "Ben").client.get(f"{page}/replies").status_code == 404


def test_a_script_in_a_prompt_is_text(arena):
    ann = Annotator(arena.url, "Ann")
    page = ann.post("/prompts", {"text": "<script>alert(1)</script>"}).json()["page"]
    assert "ready" in ann.client.get(f"{page}/replies").text
    answer = ann.client.get(page, follow_redirects=True)
    assert "&lt;script&gt;alert(1)" in answer.text
    assert "<script>alert" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_export_over_http(arena):
    ann = Annotator(arena.url, "Ann")
    shown = ann.next()
    ann.vote(shown["ballot"], "a", edit="So.")
    rows = {
        name: [json.loads(line) for line in ann.client.get(f"/export/{name}.jsonl").text.splitlines()]
        for name in ("preferences", "demonstrations", "feedback")
    }
    assert rows["preferences"][0]["chosen"] == [{"role": "assistant", "content": shown["a"]}]
    assert rows["demonstrations"][0]["completion"] == [{"role": "assistant", "content": "So."}]
    assert rows["feedback"] == []
    assert ann.client.get("/export/secrets.jsonl").status_code == 404


def test_two_arenas_of_one_machine_keep_their_sessions(arena, tmp_path):
    other = make_arena(tmp_path / "runs" / "other")
    with served(other) as address:
        ann = Annotator(arena.url, "Ann")
        there = Annotator(address.url, "Ann there")
        cookies = {**dict(ann.client.cookies), **dict(there.client.cookies)}  # as a browser sends them
        assert len(cookies) == 2
        ann.client.cookies.update(cookies)
        assert ann.vote(ann.next()["ballot"], "a").status_code == 200


def test_a_vote_that_cannot_be_kept_is_not_acknowledged(arena, caplog):
    ann = Annotator(arena.url, "Ann")
    ballot = ann.next()["ballot"]
    full = arena.store._connection.execute("pragma page_count").fetchone()[0]
    arena.store._connection.execute(f"pragma max_page_count = {full}")
    answer = ann.vote(ballot, "a", edit="x" * 30_000)
    assert (answer.status_code, list(answer.json())) == (503, ["error"])
    assert "full" in caplog.text
    assert not arena.store.votes()
    arena.store._connection.execute("pragma max_page_count = 100000")
    assert ann.vote(ballot, "a", edit="x" * 30_000).status_code == 200
    assert len(arena.store.votes()) == 1


def test_a_damaged_file_of_votes_is_said_on_the_page_too(arena):
    ann = Annotator(arena.url, "Ann")
    ballot = ann.next()["ballot"]
    arena.store._connection.execute("drop table vote")
    assert ann.vote(ballot, "a").status_code == 503
    page = ann.client.get("/results", headers={"Accept": "text/html"})
    assert page.status_code == 503
    assert "log says why" in page.text
