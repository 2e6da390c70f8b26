"""The pictures of the arena in docs/images: `python -m tests.support.arena_pictures RUN`, a trained quickstart."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from rlhf.arena.store import ArenaVotes
from rlhf.data.votes import votes_file
from tests.support.arena import Annotator, started
from tests.support.browser import chromium

IMAGES = Path(__file__).parents[2] / "docs/images"
VOTES = 75
DESKTOP = {"viewport": {"width": 1180, "height": 700}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 1.5, "is_mobile": True, "has_touch": True}


def judge(url, run_dir, name, seed):
    """Vote as somebody who mostly prefers what the function `gold` does."""
    annotator, chance = Annotator(url, name), random.Random(seed)
    with ArenaVotes(votes_file(run_dir)) as store:
        for _ in range(VOTES):
            while (ballot := annotator.next()["ballot"]) is None:
                time.sleep(0.1)
            first, second = (reply.scores["gold"] for reply in store.ballot(ballot, name).shown_replies)
            verdict = (
                "tie" if abs(first - second) < 0.02 else "a" if (first > second) != (chance.random() < 0.12) else "b"
            )
            annotator.vote(ballot, verdict)
        with store._transaction() as connection:  # nobody waited, so that a time is drawn
            connection.execute("update vote set seconds = 4 + abs(random() % 1000) / 100.0")


def enter(page, url, name):
    """Begin to judge."""
    page.goto(url)
    page.fill("#name", name)
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-save]:not([disabled])")


def main():
    """Write them."""
    run_dir = Path(sys.argv[1])
    with started(run_dir) as url, chromium() as browser:
        for number, name in enumerate(("Ada", "Ben")):
            judge(url, run_dir, name, number)
        page = browser.new_page(**DESKTOP)
        enter(page, url, "Cleo")
        page.goto(f"{url}/results")
        page.screenshot(path=IMAGES / "arena-results.png", full_page=True)
        page.goto(url)
        page.wait_for_selector("[data-save]:not([disabled])")
        page.keyboard.press("1")
        page.keyboard.press("a")
        page.screenshot(path=IMAGES / "arena.png")
        page.keyboard.press("Enter")
        page.wait_for_selector("[data-after]:not([hidden])")
        page.screenshot(path=IMAGES / "arena-voted.png", clip={"x": 0, "y": 0, "width": 1180, "height": 560})
        page = browser.new_page(**PHONE)
        enter(page, url, "Dov")
        page.screenshot(path=IMAGES / "arena-phone.png")
        page = browser.new_page(**DESKTOP, color_scheme="dark")
        enter(page, url, "Eve")
        page.keyboard.press("e")
        page.keyboard.type("Dear customer, I am sorry. A new one is on its way.")
        page.screenshot(path=IMAGES / "arena-dark.png")


if __name__ == "__main__":
    main()
