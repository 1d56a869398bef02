"""The comparison in a real browser: run beside run in the explorer, labels that do not collide, words that are not broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from browser import Browser, sandboxed
from marble_core.report import write_comparison
from marble_core.report.explorer_of_runs import merged, roles_of_runs
from marble_core.tracking.finished_runs import FinishedRun, local_run
from pages import Page
from report_builders import evaluated, lay_out, three_runs

READY = "document.documentElement.dataset.ready === 'yes'"
LONG = ("20261124-093000-3fa9c1", "20261125-120500-0b77de", "nightly-of-the-whole-team-with-guard")
COLLIDING = """
(() => {
  const found = [];
  for (const drawing of document.querySelectorAll("figure.plot svg[role=img]")) {
    const boxes = [...drawing.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
      if (Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 1) found.push(a + " | " + b);
    }));
  }
  return found;
})()
"""
BROKEN = """
(() => {
  const walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT), broken = [], range = document.createRange();
  while (walk.nextNode()) {
    const node = walk.currentNode;
    if (node.parentElement.closest(".unseen, style, pre, svg, script, option")) continue;
    for (const found of node.textContent.matchAll(/[\\p{L}\\p{N}_]+/gu)) {
      range.setStart(node, found.index); range.setEnd(node, found.index + found[0].length);
      const lines = new Set([...range.getClientRects()].filter(r => r.width).map(r => Math.round(r.top)));
      if (lines.size > 1) broken.push(found[0]);
    }
  }
  return broken;
})()
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[FinishedRun]:
    """Three that reach nearly the same, with the names that runs have."""
    place = tmp_path_factory.mktemp("runs")
    for k, (name, method) in enumerate(zip(LONG, ("marble", "weighted_sum", "equal"), strict=True)):
        lay_out(place, name, evaluated(0.1 + 0.01 * k, ocr=(-0.1 + 0.002 * k, -0.2, -0.05)), method)
    return [found for name in LONG if (found := local_run(name, place))]


@pytest.fixture(scope="module")
def pages(runs: list[FinishedRun], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_comparison(tmp_path_factory.mktemp("page") / "week.html", runs)


def test_the_explorer_of_runs_opens_with_the_first_two_side_by_side_in_a_sandbox(browser: Browser, pages: list[Path]) -> None:
    assert [page.name for page in pages] == ["week.html", "week-explorer.html"]
    with sandboxed(pages[1]) as url:
        browser.open(url, width=1280, wait=READY)
        assert browser.evaluate("[...document.querySelectorAll('.roles')][0].innerText.split('\\n')") == list(LONG[:2])
        assert browser.evaluate("[...document.getElementById('left').options].map(o => o.value)") == ["base", *LONG]
        pairs = "new Set([...document.querySelectorAll('img-comparison-slider')].map(s => s.querySelectorAll('img').length))"
        assert browser.evaluate(f"[...{pairs}]") == [2] and browser.errors == []
        assert set(browser.requests) <= {url, *(one for one in browser.requests if one.startswith("data:"))}
    assert {a["href"] for a in Page(pages[0]).all("a")} == {"week-explorer.html"}


def test_a_line_holds_the_base_and_each_run_s_own_scores_and_image(runs: list[FinishedRun]) -> None:
    lines = merged(dict(zip(LONG, runs, strict=True)))
    assert len(lines) == 21
    for line in lines:
        files = line["pictures"]
        assert Path(files["base"]).name == f"base-{line['index']:03d}.png" and LONG[0] in files["base"]
        assert all(f"{name}/artifacts" in files[name] and "trained-" in files[name] for name in LONG)
        assert [line[name] for name in LONG] == [{"clipscore": 1.0 + line["index"] % 7 - 8}] * 3


def test_where_an_image_is_not_there_its_prompt_has_scores_alone(runs: list[FinishedRun], tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").write_bytes((runs[1].images / "scores.jsonl").read_bytes())
    lines = merged({"a": runs[0], "b": replace(runs[1], images=tmp_path)})
    assert len(lines) == 21 and not any("pictures" in line for line in lines)


def test_runs_on_other_prompts_get_no_explorer_and_the_page_says_why(tmp_path: Path) -> None:
    first, second, _ = three_runs(tmp_path)
    other = replace(second, evaluation=evaluated(settings={"prompts_sha256": "2", "noise_seed": 4242, "steps": 12}))
    (page,) = write_comparison(tmp_path / "page.html", [first, other])
    assert "so none stand side by side" in Page(page).text and not list(tmp_path.glob("*explorer*"))


def test_each_run_has_a_role_of_its_own() -> None:
    runs = [FinishedRun(name, {}, evaluated(), None, Path(), "") for name in ("base", "a", "a")]  # type: ignore[arg-type]
    assert roles_of_runs(runs) == ["base (1)", "a", "a (3)"]


@pytest.mark.parametrize("width", [1280, 760, 400])
def test_no_label_collides_and_no_word_is_broken_inside(browser: Browser, pages: list[Path], width: int) -> None:
    browser.open(pages[0].as_uri(), width=width)
    assert browser.evaluate(COLLIDING) == [] and browser.evaluate(BROKEN) == []
    browser.open(pages[1].as_uri(), width=width, wait=READY)
    assert browser.evaluate(BROKEN) == []


def test_these_checks_see_what_they_are_for(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        '<main><p style="width: 40px; overflow-wrap: anywhere">incomprehensible</p><figure class="plot"><svg role="img">'
        '<text y="20">one</text><text x="3" y="22">two</text></svg></figure></main>'
    )
    browser.open(page.as_uri())
    assert browser.evaluate(BROKEN) == ["incomprehensible"] and browser.evaluate(COLLIDING) == ["one | two"]


def test_six_labels_on_nearly_one_spot_find_places_of_their_own(browser: Browser, tmp_path: Path) -> None:
    from marble_core.report.scatter import Point, scatter

    rng = np.random.default_rng(0)
    points = [Point(f"m{k}", *(0.5 + 0.02 * rng.normal(size=2)), label=f"run {k}") for k in range(6)]
    page = tmp_path / "scatter.html"
    page.write_text(f'<main><figure class="plot" style="width: 500px">{scatter(points, "a", "b", "s")}</figure></main>')
    browser.open(page.as_uri())
    assert browser.evaluate(COLLIDING) == []
