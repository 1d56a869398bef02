"""The pages as Kubeflow's pane frames them: by srcdoc and sandbox="allow-scripts", where no link opens and no download starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser import Browser, in_a_pane
from marble_core.evaluation.gate import Decision
from marble_core.report.page import places_of
from marble_core.tracking.outcome import Outcome
from vote_builders import lay_out_vote

RUN = "https://mlflow.example/#/experiments/3/runs/abc"
SEEN = """
new Promise(done => {
  onmessage = ({data}) => done(data);
  setTimeout(() => done("the frame never answered"), 20000);
})
"""
ASK = """<script>addEventListener("load", () => setTimeout(() => parent.postMessage({
  origin, links: [...document.querySelectorAll("a[href]:not([hidden])")].map(a => a.getAttribute("href")),
  addresses: [...document.querySelectorAll("code")].map(c => c.textContent).filter(t => /^https|html/.test(t)), said: document.body.innerText,
}, "*"), 300))</script>"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out_vote(tmp_path_factory.mktemp("runs"), per_source=4, links={"Run in MLflow": RUN})


def framed(browser: Browser, page: Path, directory: Path, then: str = "") -> dict:
    """What the page in the pane says of itself, once it is loaded; ``then`` runs in it before."""
    asking = directory / "asking.html"
    text = page.read_text(encoding="utf-8")
    asking.write_text(text + f"<script>{then}</script>{ASK}", encoding="utf-8")
    pane = in_a_pane(asking, directory)
    pane.write_text(
        pane.read_text("utf-8").replace("<body", f"<script>window.answer = {SEEN.strip()}</script><body", 1), "utf-8"
    )
    browser.open(pane.as_uri(), width=880)
    answer = browser.evaluate("answer")
    assert answer["origin"] == "null" and browser.errors == []
    return answer


def test_the_report_offers_no_link_that_cannot_open_but_the_addresses_of_explorer_vote_and_run(
    browser: Browser, here: Path, tmp_path: Path
) -> None:
    seen = framed(browser, here / "report.html", tmp_path)
    assert seen["links"] == []
    assert seen["addresses"] == [f"{RUN}/artifacts/explorer.html", f"{RUN}/artifacts/vote.html", RUN]
    assert "Links do not open in this frame: copy an address into a new tab." in seen["said"]


def test_opened_as_a_file_the_report_has_links_that_lead_to_files(browser: Browser, here: Path) -> None:
    browser.open((here / "report.html").as_uri())
    links = browser.evaluate("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
    assert links == ["explorer.html", "vote.html", RUN] and all((here / link).is_file() for link in links[:2])
    assert "Links do not open" not in browser.evaluate("document.body.innerText")


def test_register_s_page_offers_addresses_too(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    Outcome("night-7", "marble", Decision(True, "promoted", ("More.",)), links={"Run in MLflow": RUN}).write_page(page)
    seen = framed(browser, page, tmp_path)
    assert (seen["links"], seen["addresses"]) == ([], [RUN]) and "Links do not open" in seen["said"]


def test_the_vote_offers_its_text_and_no_download(browser: Browser, here: Path, tmp_path: Path) -> None:
    vote = "const f = id => document.getElementById(id); f('voter').value = 'Ann'; f('start').click(); f('neither').click(); f('stop').click()"
    seen = framed(browser, here / "vote.html", tmp_path, vote)
    assert seen["links"] == [] and "Copy this text into a file votes.json." in seen["said"] and "Download" not in seen["said"]


def test_the_explorer_offers_no_link(browser: Browser, here: Path, tmp_path: Path) -> None:
    enlarge = "setTimeout(() => document.querySelector('.enlarge').click())"
    seen = framed(browser, here / "explorer.html", tmp_path, enlarge)
    assert seen["links"] == [] and "1 to 12 of 12 prompts" in seen["said"]


def test_without_a_page_in_mlflow_the_artifact_is_named() -> None:
    assert places_of({"Explorer": "explorer.html"}) == {
        "Explorer": "explorer.html in the artifact evaluation of the step evaluate"
    }
    assert places_of({"Model": "https://x/y"}) == {"Model": ""}
