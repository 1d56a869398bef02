"""Every page is held against axe's rules, in light and in dark: contrast, names, roles, headings, keyboard, language."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser import Browser
from explorer_builders import written_explorer
from marble_core.evaluation.gate import Decision
from marble_core.prompts.data_report import SourceData, data_report, write_page
from marble_core.report.study import About, render_study
from marble_core.tracking.outcome import Outcome
from marble_core.types import Placed, Prompt
from paths import ROOT
from report_builders import evaluated, written_comparison, written_report
from study_builders import a_cell
from vote_builders import lay_out_vote

AXE = (ROOT / "tests" / "axe.min.js").read_text(encoding="utf-8")
FINDINGS = """
axe.run(document, {resultTypes: ["violations"]%s}).then(({violations}) => violations.filter(v => v.impact !== "minor")
  .flatMap(v => v.nodes.map(n => `${v.id}: ${n.target} ${n.failureSummary.split("\\n")[1] || ""}`)))
"""
CONTRAST = ", runOnly: ['color-contrast']"  # in dark nothing else is another


def written_study(page: Path) -> Path:
    cells = [a_cell(arm, seed, gain) for arm, gain in (("full", 0.6), ("equal", 0.2)) for seed in (0, 1)]
    file = {
        "preset": "demo",
        "set": ["train.steps=4"],
        "seeds": [0, 1],
        "arms": {"full": [], "equal": ["balance.method=equal"]},
    }
    state = {(cell.arm, cell.seed): "done" for cell in cells}
    page.write_text(render_study(About("hackable", file, state, "4 of 4 done"), cells), encoding="utf-8")
    return page


def written_data_report(page: Path) -> Path:
    placed = [Placed(Prompt(f"a red circle {k}", "general"), f"prompts.txt, line {k}") for k in range(12)]
    held_out = SourceData("general", "held.txt", tuple(placed[:4]))
    report = data_report(
        {"train": [SourceData("general", "prompts.txt", tuple(placed), (placed[0],))], "evaluation": [held_out]}, []
    )
    write_page(page, report, [("S3", "it can be written to")])
    return page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("pages")
    for name in ("report", "comparison", "explorer"):
        (place / name).mkdir()
    register = place / "register.html"
    links = {"Run in MLflow": "https://mlflow.example/#/experiments/3/runs/abc"}
    Outcome("night-7", "marble", Decision(True, "promoted", ("More.",)), version="8", alias="champion", links=links).write_page(
        register
    )
    refused = lay_out_vote(place / "runs", per_source=2, evaluation=evaluated(-0.2, ocr=(-0.2, -0.3, -0.1)))
    return {
        "report": written_report(place / "report"),
        "refused report": refused / "report.html",
        "comparison": written_comparison(place / "comparison"),
        "explorer": written_explorer(place / "explorer"),
        "vote": refused / "vote.html",
        "study": written_study(place / "study.html"),
        "data report": written_data_report(place / "data_report.html"),
        "register": register,
    }


PAGES = ["report", "refused report", "comparison", "explorer", "vote", "study", "data report", "register"]


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_in_light_and_no_pale_letters_in_dark(browser: Browser, pages: dict[str, Path], name: str) -> None:
    for dark, rules in ((False, ""), (True, CONTRAST)):
        browser.open(pages[name].as_uri(), width=1280, dark=dark)
        browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        browser.evaluate(AXE)
        assert browser.evaluate(FINDINGS % rules) == []
        assert browser.errors == []


def test_axe_finds_nothing_in_the_lightbox_and_while_people_vote(browser: Browser, pages: dict[str, Path]) -> None:
    begin = "document.getElementById('voter').value = 'Ann'; document.getElementById('start').click()"
    for name, act in (("explorer", "document.querySelector('.enlarge').click()"), ("vote", begin)):
        browser.open(pages[name].as_uri(), width=1280, wait="document.documentElement.dataset.ready === 'yes'")
        browser.evaluate(act)
        browser.evaluate(AXE)
        assert browser.evaluate(FINDINGS % "") == []


def test_axe_sees_what_it_is_for(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<html><main><img src='data:,'><p style='color: #aaa; background: #fff'>pale</p><input></main></html>", "utf-8"
    )
    browser.open(page.as_uri())
    browser.evaluate(AXE)
    assert {said.partition(":")[0] for said in browser.evaluate(FINDINGS % "")} >= {
        "color-contrast",
        "html-has-lang",
        "image-alt",
        "label",
    }
