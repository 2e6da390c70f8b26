"""The pages in a browser: with the keyboard alone, for axe, and with hostile texts."""

import json

import pytest

from rlhf.arena.prepare import Preparer
from rlhf.arena.prompts import Pool
from rlhf.arena.scores import Judges
from rlhf.config.project import EvaluateConfig
from rlhf.data.records import Prompt
from rlhf.data.votes import Reply
from tests.support.arena import SAMPLING, contestants, fill, make_arena, served
from tests.support.browser import chromium, violations

READY = "[data-save]:not([disabled])"
VOTED = "[data-after]:not([hidden])"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def arena(tmp_path):
    arena = make_arena(tmp_path / "runs" / "tiny")
    fill(arena.store, 12)
    with served(arena) as address:
        arena.url = address.url
        yield arena


@pytest.fixture
def page(browser, arena):
    context = browser.new_context(accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(arena.url)
    yield page
    context.close()
    assert not page.problems


def enter(page, name="Ann"):
    page.wait_for_selector("#name:focus")
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    page.wait_for_selector(READY)


def test_ten_comparisons_with_the_keyboard_alone(page, arena):
    enter(page)
    keys = page.keyboard
    for number, verdict in enumerate("abtnsababa"):
        page.wait_for_selector(READY)
        keys.press(verdict)
        if number == 1:
            keys.press("e")
            keys.type("Dear Ada, it comes on Monday.")
            keys.press("Escape")
            keys.press("r")
            keys.type("no date")
            keys.press("Control+Enter")
        elif number == 3:
            keys.press("1")
            keys.press("4")
            keys.press("4")
            keys.press("Enter")
        else:
            keys.press("Enter")
        page.wait_for_selector(VOTED)
        assert page.locator('[data-policy="a"]').inner_text() in ("SFT", "DPO")
        keys.press("Enter")
    page.wait_for_selector(READY)
    votes = arena.store.votes()
    said = [vote.verdict if vote.verdict not in ("first", "second") else "ab"[
        (vote.verdict == "second") != vote.ballot.swapped] for vote in votes]  # fmt: skip
    assert said == ["a", "b", "tie", "neither", "skip", "a", "b", "a", "b", "a"]
    assert (votes[1].edit, votes[1].reason) == ("Dear Ada, it comes on Monday.", "no date")
    assert sorted(map(str, votes[3].good)) == ["None", "True"]
    assert all(0 < vote.seconds < 60 for vote in votes)
    keys.press("v")
    page.wait_for_url("**/results")
    assert "10 votes on 10 comparisons by 1 annotator" in page.inner_text("main")
    with page.expect_download() as download:
        while page.evaluate("document.activeElement.textContent") != "Preferences":
            keys.press("Tab")
        keys.press("Enter")
    rows = [json.loads(line) for line in download.value.path().read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 7
    assert set(rows[0]) >= {"prompt", "chosen", "rejected"}


def test_a_prompt_of_ones_own_and_the_turn_after_it(page, arena):
    enter(page)
    page.keyboard.press("w")
    page.wait_for_selector("textarea:focus")
    page.keyboard.type("Hi")
    page.keyboard.press("Enter")
    page.wait_for_selector(READY)
    assert page.inner_text('[data-text="a"]') == "one says: Hi"
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    page.wait_for_selector(VOTED)
    page.keyboard.press("c")
    assert page.is_checked('input[name="reply"][value="b"]')
    page.keyboard.type("And then?")
    page.keyboard.press("Enter")
    page.locator(".prompt .turn").nth(2).wait_for()
    page.wait_for_selector(READY)
    assert "/ballots/" in page.url
    assert page.locator(".prompt .turn").count() == 3
    page.keyboard.press("t")
    page.keyboard.press("Enter")
    page.wait_for_selector(VOTED)
    assert [vote.ballot.comparison.parent for vote in arena.store.votes()] == [None, arena.store.votes()[0].ballot.id]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, arena, scheme):
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(120_000)
    found = {}

    def look(name):
        if wrong := violations(page):
            found[name] = wrong

    page.goto(arena.url)
    look("name")
    enter(page)
    look("judge")
    page.keyboard.press("a")
    page.keyboard.press("1")
    page.keyboard.press("e")
    page.keyboard.type("So.")
    look("judge, filled in")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    look("help")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    page.wait_for_selector(VOTED)
    page.keyboard.press("c")
    look("voted")
    page.keyboard.press("Escape")
    for key, address in (("v", "**/results"), ("w", "**/write")):
        page.keyboard.press(key)
        page.wait_for_url(address)
        look(address)
        page.keyboard.press("Escape")
    page.goto(f"{arena.url}/ballots/999")
    look("message")
    for _ in range(11):
        page.goto(arena.url)
        page.wait_for_selector(READY)
        page.keyboard.press("t")
        page.keyboard.press("Enter")
        page.wait_for_selector(VOTED)
    page.goto(arena.url)
    look("all judged")
    context.close()
    assert not found


def test_what_a_model_writes_is_text(page, arena):
    script = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
    replies = [Reply("sft", script), Reply("dpo", f"{script} more")]
    number = arena.store.add([{"role": "user", "content": script}], replies, sampling=SAMPLING)
    enter(page)
    ballot = arena.store.show(number, "Ann")
    page.goto(f"{arena.url}/ballots/{ballot.id}")
    page.wait_for_selector(READY)
    assert {page.inner_text(f'[data-text="{side}"]') for side in "ab"} == {script, f"{script} more"}
    assert page.inner_text(".prompt .text") == script
    page.keyboard.press("a")
    page.keyboard.press("e")
    page.keyboard.type(script)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(VOTED)
    page.reload()
    assert page.inner_text(".quoted") == script
    assert page.locator("main script, main img").count() == 0
    assert page.title().startswith("Which reply")


def test_letters_are_no_keys_in_a_text_box_or_where_they_are_switched_off(page, arena):
    enter(page)
    page.keyboard.press("e")
    page.keyboard.type("abtns")
    assert page.locator('input[name="verdict"]:checked').count() == 0
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    page.uncheck("[data-single-keys]")
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    assert page.locator('input[name="verdict"]:checked').count() == 0


def test_the_first_comparison_appears_by_itself_and_its_replies_as_they_are_written(browser, tmp_path):
    arena = make_arena(tmp_path / "runs" / "tiny")
    pool = Pool([Prompt(f"Question {number}") for number in range(3)], "file", 0)
    arena.preparer = Preparer(arena.store, pool, contestants(), Judges(), EvaluateConfig())
    with served(arena) as address:
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(address.url)
        page.wait_for_selector("#name:focus")
        page.keyboard.type("Ann")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=Replies are being prepared")
        assert not violations(page)
        for number in range(3):
            arena.store.add(f"Question {number}", [Reply("sft", "one"), Reply("dpo", "two")], sampling=SAMPLING)
        page.wait_for_selector(READY)
        page.keyboard.press("w")
        page.wait_for_selector("textarea:focus")
        page.keyboard.type("word " * 200)
        page.keyboard.press("Enter")
        page.wait_for_selector('[data-text="a"]:not(:empty)')
        assert page.locator(READY).count() == 0
        page.wait_for_selector(READY)
        assert page.inner_text('[data-text="b"]').count("word") == 200
        page.close()


def test_a_vote_whose_answer_is_lost_is_sent_again_and_taken_once(page, arena):
    lost = []

    def lose(route):
        if len(lost) < 2:
            lost.append(route.fetch().status)
            route.abort()
        else:
            route.continue_()

    page.route("**/votes", lose)  # holds for pages loaded from now on; one that stands may send past it
    enter(page)
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    page.wait_for_selector(VOTED)
    assert lost == [200, 200]
    assert len(arena.store.votes()) == 1
    page.problems.clear()  # of the requests that were lost
