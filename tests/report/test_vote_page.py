"""vote.html in a real browser, as Kubeflow's pane frames it: answered by keys, and what comes out is counted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from browser import Browser, sandboxed
from marble_core.evaluation.votes import Ballot, cast_votes, counted
from vote_builders import data_of, lay_out_vote, role_of

READY = "document.documentElement.dataset.ready === 'yes'"
COUNT = "document.getElementById('count').textContent"
SIDES = "[...document.querySelectorAll('#pair img')].map(i => i.src)"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out_vote(tmp_path_factory.mktemp("runs"), per_source=4)


def begin(browser: Browser, url: str, width: int = 880) -> None:
    browser.open(url, width=width, wait=READY)
    browser.evaluate("document.getElementById('voter').value = ' Ann '")
    browser.evaluate("document.getElementById('voter').focus()")
    browser.press("Enter")


def test_a_vote_by_keys_in_a_sandbox_counts_the_images_that_were_chosen(browser: Browser, here: Path, tmp_path: Path) -> None:
    whose = {image["uri"]: role_of(image, here) for pair in data_of(here / "vote.html")["pairs"] for image in pair["images"]}
    with sandboxed(here / "vote.html") as url:
        begin(browser, url)
        assert browser.evaluate("origin") == "null" and browser.evaluate(COUNT) == "1 of 12"
        won = []
        for k, key in enumerate(["ArrowLeft", "ArrowRight", "ArrowDown"] * 4):
            sides = [whose[uri] for uri in browser.evaluate(SIDES)]
            won.append({"ArrowLeft": sides[0] == "trained", "ArrowRight": sides[1] == "trained", "ArrowDown": 0.5}[key])
            if k == 5:  # an answer that is taken back leaves no trace
                browser.press("ArrowLeft")
                browser.press("ArrowUp")
                assert browser.evaluate(COUNT) == "6 of 12"
            browser.press(key)
        assert browser.evaluate("document.getElementById('thanks').textContent") == "Thank you: 12 of 12 pairs are answered."
        text = browser.evaluate("document.getElementById('text').value")
        assert browser.evaluate("fetch(document.getElementById('download').href).then(r => r.text()).catch(() => 'none')") in (
            text, "none"
        )  # fmt: skip
        assert set(browser.requests) - {url} <= {one for one in browser.requests if one.startswith(("data:", "blob:"))}
    file = tmp_path / "votes.json"
    file.write_text(text, encoding="utf-8")
    cast = cast_votes(file, Ballot.of("monday", here / "images"), tmp_path)
    assert (cast.added, cast.voter) == (12, "Ann") and counted(cast.box).win_rate.mean == pytest.approx(sum(won) / 12)


def test_order_and_sides_are_drawn_anew_each_time(browser: Browser, here: Path) -> None:
    """That all of 12 orders or all of 12 sides come twice alike has odds of less than one in 4,000."""
    seen = []
    for _ in range(2):
        begin(browser, (here / "vote.html").as_uri())
        seen.append([])
        for _ in range(12):
            seen[-1].append(tuple(browser.evaluate(SIDES)))
            browser.press("ArrowDown")
    assert [frozenset(pair) for pair in seen[0]] != [frozenset(pair) for pair in seen[1]]
    assert set(seen[0]) != set(seen[1]) and {frozenset(pair) for pair in seen[0]} == {frozenset(pair) for pair in seen[1]}


def test_the_first_screen_of_the_pane_shows_the_first_pair_and_begins_with_it(browser: Browser, here: Path) -> None:
    browser.open((here / "vote.html").as_uri(), width=880, wait=READY)
    tops = browser.evaluate("[...document.querySelectorAll('#pair img')].map(i => i.getBoundingClientRect().top)")
    assert len(tops) == 2 and max(tops) < 300
    seen = browser.evaluate(SIDES)
    browser.evaluate("document.getElementById('voter').value = 'Ann'; document.getElementById('start').click()")
    assert browser.evaluate(SIDES) == seen and browser.evaluate(COUNT) == "1 of 12"


def test_nobody_votes_without_a_name_and_who_stops_early_gets_what_was_answered(browser: Browser, here: Path) -> None:
    browser.open((here / "vote.html").as_uri(), wait=READY)
    browser.evaluate("document.getElementById('start').click()")
    browser.evaluate("document.querySelector('#pair button').click()")
    browser.press("ArrowLeft")
    assert browser.evaluate("document.getElementById('vote').inert && !document.getElementById('begin').hidden")
    begin(browser, (here / "vote.html").as_uri())
    browser.press("ArrowLeft")
    browser.evaluate("document.getElementById('stop').click()")
    returned = json.loads(browser.evaluate("document.getElementById('text').value"))
    assert len(returned["votes"]) == 1 and returned["voter"] == "Ann"
    assert browser.evaluate("document.getElementById('download').download") == "votes.json"
    browser.evaluate("document.getElementById('more').click()")
    assert browser.evaluate(COUNT) == "2 of 12"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (760, True), (400, False)])
def test_both_images_and_the_keys_are_on_one_screen_and_nothing_is_fetched(
    browser: Browser, here: Path, width: int, dark: bool
) -> None:
    page = here / "vote.html"
    browser.open(page.as_uri(), width=width, dark=dark, wait=READY)
    browser.evaluate("document.getElementById('voter').value = 'Ann'; document.getElementById('start').click()")
    assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    bottom = "Math.max(...[...document.querySelectorAll('#pair img, #neither')].map(e => e.getBoundingClientRect().bottom))"
    assert browser.evaluate(bottom) < 900
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()] and browser.errors == []
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=\"(?!data:)", page.read_text("utf-8"))
