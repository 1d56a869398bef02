"""The pages in a real browser: every figure is drawn, nothing is fetched, nothing is cut off, everything can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser import Browser, sandboxed
from report_builders import written_comparison, written_report

LAYOUTS = {
    "wide": {"width": 1200},
    "dark": {"width": 1200, "dark": True},
    "pane": {"width": 880},
    "narrow pane": {"width": 760},
    "phone": {"width": 400},
    "dark phone": {"width": 400, "dark": True},
    "print": {"width": 760, "media": "print"},
}
FIGURES = """
(() => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  const pictures = [...document.images], drawings = [...document.querySelectorAll("svg:not([aria-hidden])")];
  const seen = e => { const r = e.getBoundingClientRect(); return r.width > 40 && r.height > 40; };
  return {
    pictures: pictures.length, drawings: drawings.length,
    empty: pictures.filter(p => !(p.complete && p.naturalWidth > 0 && seen(p))).map(p => p.alt)
      .concat(drawings.filter(d => !(seen(d) && d.querySelectorAll("path, use").length > 3)).map(d => d.ariaLabel)),
    silent: pictures.filter(p => !p.alt.trim()).length + drawings.filter(d => !d.ariaLabel).length,
  };
})()
"""
CUT_OFF = """
(() => {
  const wide = document.documentElement.clientWidth; // a phone's innerWidth grows with what is too wide for it
  const inner = e => e.closest("svg, .unseen, .track, pre") || (e.parentElement && e.parentElement.closest(".scroll:has(.heat)"));
  const over = [...document.querySelectorAll("main *")].filter(e => !inner(e))
    .filter(e => { const r = e.getBoundingClientRect(); return r.width && (r.right > wide + 1 || r.left < -1); });
  return [document.documentElement.scrollWidth > wide ? "the page" : null, ...over.map(e => e.outerHTML.slice(0, 120))].filter(Boolean);
})()
"""
HARD_TO_READ = """
(() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1}), c = canvas.getContext("2d", {willReadFrequently: true});
  const painted = (layers) => {
    c.clearRect(0, 0, 1, 1);
    for (const colour of layers) { c.fillStyle = colour; c.fillRect(0, 0, 1, 1); }
    return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  };
  const light = ([r, g, b]) => .2126 * r + .7152 * g + .0722 * b;
  const walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT), low = [];
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim(), e = walk.currentNode.parentElement;
    if (!text || e.closest(".unseen, style, desc, title") || !e.getClientRects().length) continue;
    const grounds = [];
    for (let up = e; up; up = up.parentElement) grounds.unshift(getComputedStyle(up).backgroundColor);
    const ink = getComputedStyle(e)[e.closest("svg") ? "fill" : "color"];
    const [a, b] = [light(painted(["#fff", ...grounds, ink])), light(painted(["#fff", ...grounds]))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) low.push(`${text.slice(0, 30)}: ${((a + .05) / (b + .05)).toFixed(2)}`);
  }
  return [...new Set(low)];
})()
"""


SMALL = """
(() => {
  const walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT), small = [];
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim(), e = walk.currentNode.parentElement;
    if (!text || e.closest(".unseen, style, desc, title") || !e.getClientRects().length) continue;
    const scale = e.ownerSVGElement ? Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b) : 1, size = parseFloat(getComputedStyle(e).fontSize) * scale;
    if (size < 10.9) small.push(`${text.slice(0, 30)}: ${size.toFixed(1)}`);
  }
  return [...new Set(small)];
})()
"""
FIRST_SCREEN = """
(() => {
  const above = e => e.getBoundingClientRect().bottom <= %d, lists = [...document.querySelectorAll("dl.answers dt")];
  const tops = [...document.images].filter(i => i.getClientRects().length && i.getBoundingClientRect().top < 500);
  return {images: tops.length, answers: Object.fromEntries(lists.filter(above).map(t => [t.textContent, t.nextElementSibling.textContent]))};
})()
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_report(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_comparison(tmp_path_factory.mktemp("comparison"))


def check(browser: Browser, page: Path, layout: str, pictures: int, drawings: int) -> None:
    browser.open(page.as_uri(), **LAYOUTS[layout])
    assert browser.evaluate(FIGURES) == {"pictures": pictures, "drawings": drawings, "empty": [], "silent": 0}
    assert browser.evaluate(CUT_OFF) == []
    assert browser.evaluate(HARD_TO_READ) == []
    assert [url for url in browser.requests if not url.startswith("data:image/")] == [page.as_uri()]
    assert browser.errors == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_report_is_drawn_whole_and_readable(browser: Browser, report: Path, layout: str) -> None:
    check(browser, report, layout, pictures=4 * 2 + 3 * 3 * 6, drawings=1 + 1 + 3 + 3)
    assert browser.evaluate(SMALL) == []


@pytest.mark.parametrize("height", [900, 600])
def test_the_first_screen_answers_three_questions_and_shows_an_image(browser: Browser, report: Path, height: int) -> None:
    browser.open(report.as_uri(), width=1280)
    seen = browser.evaluate(FIRST_SCREEN % height)
    assert seen["images"] >= 4 and all(len(said) > 30 for said in seen["answers"].values())
    assert list(seen["answers"]) == ["Is it better?", "What is the catch?", "Which prompt got worst?", "What next?"]
    assert seen["answers"]["Is it better?"].startswith("Yes: ") and "Mode collapse" in seen["answers"]["What is the catch?"]


def test_no_column_of_the_results_is_cut_off_at_1280_px(browser: Browser, report: Path) -> None:
    browser.open(report.as_uri(), width=1280)
    assert (
        browser.evaluate(
            "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.ariaLabel)"
        )
        == []
    )


def test_in_kubeflow_s_frame_the_report_and_its_first_images_are_seen(browser: Browser, report: Path) -> None:
    """sandbox="allow-scripts", which has no origin; the pane is 600 px high."""
    with sandboxed(report) as url:
        browser.open(url, width=880)
        assert browser.evaluate("origin") == "null" and browser.evaluate(FIRST_SCREEN % 600)["images"] >= 2
        asked = [one for one in browser.requests if not one.startswith("data:image/")]
        assert (
            set(asked) <= {url, url.replace("page.html", "favicon.ico")} and browser.errors == []
        )  # the browser itself wants an icon


def test_what_scrolls_is_reached_by_the_keyboard(browser: Browser, report: Path) -> None:
    browser.open(report.as_uri(), width=400)
    scrolls = "e => e.scrollWidth > e.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(e).overflowX)"
    found = browser.evaluate(f"""(() => {{
      document.querySelectorAll("details").forEach(d => d.open = true);
      return [...document.querySelectorAll("main *")].filter({scrolls}).map(e => e.tabIndex);
    }})()""")
    assert found and set(found) == {0}


@pytest.mark.parametrize("layout", ["wide", "dark phone", "print"])
def test_the_comparison_is_drawn_whole_and_readable(browser: Browser, comparison: Path, layout: str) -> None:
    check(browser, comparison, layout, pictures=3 * 6 * 4, drawings=1 + 3 + 1)


def test_these_checks_see_what_they_are_for(browser: Browser, tmp_path: Path) -> None:
    """An image from elsewhere, a broken one, one without words, a column that is cut off, pale letters, a script's error."""
    page = tmp_path / "bad.html"
    page.write_text(
        '<main><img src="http://127.0.0.1:9/x.png"><img alt="b" src="data:image/png;base64,AAAA">'
        '<p style="color: #aaa">pale</p><p style="width: 2000px">wide</p></main><script>nowhere()</script>'
    )
    browser.open(page.as_uri(), width=400)
    found = browser.evaluate(FIGURES)
    assert (found["pictures"], len(found["empty"]), found["silent"]) == (2, 2, 1)
    assert any("wide" in cut for cut in browser.evaluate(CUT_OFF)) and browser.evaluate(HARD_TO_READ) == ["pale: 2.32"]
    assert "http://127.0.0.1:9/x.png" in browser.requests
    assert any("nowhere is not defined" in error for error in browser.errors)
