"""explorer.html in a real browser, offline: sliders, order, filters, search, lightbox, filmstrip, charts."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from browser import Browser, sandboxed
from explorer_builders import PROMPT, STEPS, scores_of, written_explorer, written_large_explorer
from paths import ROOT

READY = "document.documentElement.dataset.ready === 'yes'"
LAYOUTS = {
    "wide": {"width": 1280},
    "dark": {"width": 1280, "dark": True},
    "pane": {"width": 760},
    "phone": {"width": 400},
    "print": {"width": 760, "media": "print"},
}
SHOWN = "[...document.querySelectorAll('.card')].map(c => +c.dataset.index)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_explorer(tmp_path_factory.mktemp("explorer"))


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    browser.open(page.as_uri(), width=1280, wait=READY)
    return browser


def choose(browser: Browser, control: str, value: str) -> list[int]:
    """The prompts on the screen once the control has this value."""
    setting = f"c = document.getElementById({control!r}); c.value = {json.dumps(value)}; c.dispatchEvent(new Event('input'))"
    browser.evaluate(f"(() => {{ let {setting}; }})()")
    return browser.evaluate(SHOWN)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_page_is_drawn_at_every_width_and_fetches_nothing(browser: Browser, page: Path, layout: str) -> None:
    browser.open(page.as_uri(), **LAYOUTS[layout], wait=READY)
    assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.evaluate("document.querySelectorAll('svg').length") >= 6
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]
    assert browser.errors == []


def test_the_file_stands_alone_and_is_small_enough_for_the_demo(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) <= 4_000_000
    assert "default-src 'none'" in text and not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=\"(?!data:)", text)
    assert "<script>alert" not in text, "a prompt is data, and not run"


def test_it_works_in_a_sandbox_and_shows_an_image_in_a_pane_of_600_px(browser: Browser, page: Path) -> None:
    with sandboxed(page) as url:
        browser.open(url, width=880, wait=READY)
        assert browser.evaluate("origin") == "null"
        top = "document.querySelector('img-comparison-slider img').getBoundingClientRect().top"
        assert browser.evaluate(top) < 450 and len(browser.evaluate(SHOWN)) == 20
        assert browser.errors == []


def test_where_not_all_images_were_kept_it_opens_with_those_that_were(browser: Browser, page: Path, tmp_path: Path) -> None:
    """The prompts that lost most are among those without images, which would fill the first screen."""
    text = page.read_text(encoding="utf-8")
    data = json.loads(text.split('id="data">', 1)[1].split("</script>", 1)[0])
    for case in data["cases"]:
        if case["index"] % 4:
            case.pop("thumb", None), case.pop("full", None)
    part = tmp_path / "part.html"
    before, rest = text.split('id="data">', 1)
    part.write_text(
        f'{before}id="data">{json.dumps(data).replace("<", chr(92) + "u003c")}</script>{rest.split("</script>", 1)[1]}', "utf-8"
    )
    browser.open(part.as_uri(), width=1280, wait=READY)
    assert browser.evaluate("document.getElementById('count').textContent") == "1 to 20 of 36 prompts"
    assert browser.evaluate("document.querySelectorAll('.card img-comparison-slider').length") == 20
    assert len(choose(browser, "alarm", "")) == 20
    assert browser.evaluate("document.getElementById('count').textContent") == "1 to 20 of 144 prompts"


def test_the_slider_is_moved_by_the_keyboard(opened: Browser) -> None:
    opened.evaluate("document.querySelector('img-comparison-slider').focus()")
    assert opened.evaluate("document.querySelector('img-comparison-slider').value") == 50
    opened.press("ArrowRight", until="document.querySelector('img-comparison-slider').value > 51")
    opened.press("ArrowLeft", until="document.querySelector('img-comparison-slider').value < 50")


def test_sorted_by_the_loss_of_ocr_the_order_is_that_of_the_scores(opened: Browser, page: Path) -> None:
    lines = sorted(scores_of(page), key=lambda line: line["trained"]["ocr"] - line["base"]["ocr"])
    assert choose(opened, "order", "loss:ocr") == [line["index"] for line in lines[:20]]
    assert choose(opened, "order", "win:ocr") == [line["index"] for line in lines[::-1][:20]]
    opened.evaluate("document.getElementById('after').click()")
    assert opened.evaluate(SHOWN) == [line["index"] for line in lines[::-1][20:40]]
    against = sorted(scores_of(page), key=lambda line: line["trained"]["ocr"] - line["champion"]["ocr"])
    choose(opened, "left", "champion")
    assert choose(opened, "order", "loss:ocr") == [line["index"] for line in against[:20]]


def test_search_source_and_mark_choose_the_prompts(opened: Browser, page: Path) -> None:
    assert choose(opened, "search", "RED 77") == [77]
    assert opened.evaluate("document.querySelector('.prompt').textContent") == f"{PROMPT} 77"
    choose(opened, "search", "")
    choose(opened, "order", "drawn")
    assert choose(opened, "source", "geneval") == list(range(96, 116))
    choose(opened, "source", "")
    fell = [
        line["index"] for line in scores_of(page) if any(line["trained"][n] - b < -0.25 * 0.4 for n, b in line["base"].items())
    ]
    assert choose(opened, "alarm", "a reward fell") == fell[:20]


def test_the_lightbox_shows_each_role_with_its_prompt_and_scores(opened: Browser, page: Path) -> None:
    (line,) = [line for line in scores_of(page) if line["index"] == 77]
    choose(opened, "search", "77")
    opened.evaluate("document.querySelector('.enlarge').focus()")
    opened.press("Enter")
    caption = "document.querySelector('.pswp__caption').innerText"
    assert "base" in opened.evaluate(caption) and PROMPT in opened.evaluate(caption)
    assert f"{line['base']['ocr']:.3f}".replace("-", "−") in opened.evaluate(caption)
    opened.press("ArrowRight")
    assert opened.evaluate(caption).startswith("trained")
    assert f"{line['trained']['ocr']:.3f}".replace("-", "−") in opened.evaluate(caption)
    assert opened.evaluate("document.querySelector('.pswp__caption a').getAttribute('href')") == "images/trained-077.png"
    opened.press("Escape")
    gone = "new Promise(r => { const look = () => document.querySelector('.pswp') ? requestAnimationFrame(look) : r(true); look(); })"
    assert opened.evaluate(gone)


def test_the_filmstrip_has_one_image_per_sampled_step_of_the_chosen_prompt(opened: Browser) -> None:
    steps = "[...document.querySelectorAll('.strip figcaption')].map(f => f.textContent)"
    assert opened.evaluate(steps) == [f"step {step}" for step in STEPS]
    at = "[...document.querySelectorAll('.frame')].map(f => f.style.backgroundPosition)"
    assert set(opened.evaluate(at)) == {"0% 0%"}
    choose(opened, "filmed", "3")
    assert set(opened.evaluate(at)) == {"100% 50%"}
    assert opened.evaluate("document.querySelector('.frame').ariaLabel") == "step 0: d"


def test_each_model_s_name_is_written_once_and_over_no_point_and_no_other_name(opened: Browser) -> None:
    boxes = """(q => [...document.querySelectorAll(q)].map(e => [e.textContent, e.getBoundingClientRect()])
      .map(([text, r]) => [text, r.left, r.top, r.right, r.bottom]))"""
    names = opened.evaluate(f"{boxes}('#diversity svg > text')")
    dots = opened.evaluate(f"{boxes}('#diversity [aria-label=dot] circle')")
    assert sorted(name for name, *_ in names) == ["base", "champion", "trained"] and len(dots) == 3
    for k, (_, left, top, right, bottom) in enumerate(names):
        for _, left_, top_, right_, bottom_ in (*dots, *names[:k]):
            assert left >= right_ or right <= left_ or top + 2 >= bottom_ or bottom - 2 <= top_


def test_a_reward_s_curve_has_a_panel_to_itself_so_that_none_is_flat_beside_another(page: Path) -> None:
    data = json.loads(page.read_text("utf-8").split('id="data">', 1)[1].split("</script>", 1)[0])
    panels = {panel["title"]: panel for panel in data["training"]}
    assert all(list(panels[name]["series"]) == [name] and not panels[name]["zero"] for name in ("clipscore", "ocr", "geneval"))
    assert len(panels["Alpha"]["series"]) == 3


def test_a_click_on_a_point_shows_its_prompt(opened: Browser) -> None:
    opened.evaluate("document.getElementById('scatter').scrollIntoView({block: 'center', behavior: 'instant'})")
    dots = "document.querySelectorAll('#scatter [aria-label=dot] circle')"
    x, y = opened.evaluate(
        f"(() => {{ const r = {dots}[30].getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
    )
    opened.click(x, y)
    assert opened.evaluate("document.getElementById('search').value").startswith(PROMPT)
    assert 1 <= len(opened.evaluate(SHOWN)) <= 20


def test_300_prompts_of_512_px_stay_small_on_disk_and_in_memory(browser: Browser, tmp_path: Path) -> None:
    large = written_large_explorer(tmp_path, steps=range(0, 48, 4))
    assert large.stat().st_size <= 6_000_000
    browser.open(large.as_uri(), width=1280, wait=READY)
    assert browser.evaluate("document.getElementById('count').textContent") == "1 to 20 of 300 prompts"
    for _ in range(3):
        assert browser.evaluate("document.images.length + document.querySelectorAll('.frame').length") <= 60
        assert browser.evaluate("document.querySelectorAll('*').length") <= 3000
        browser.evaluate("document.getElementById('after').click()")
    said = browser.evaluate("document.getElementById('remarks').innerText")
    assert re.search(r"The 12 largest wins and losses have images of \d+ px, the others of \d+ px", said)


def test_the_script_is_built_from_these_sources_of_pinned_libraries_whose_licences_are_named() -> None:
    place, digest = ROOT / "explorer", hashlib.sha256()
    for name in ("build.mjs", "package-lock.json", *(f"src/{path.name}" for path in sorted((place / "src").iterdir()))):
        digest.update(f"{name}\n".encode() + (place / name).read_bytes())
    script = (ROOT / "marble_core" / "report" / "explorer.js").read_text(encoding="utf-8")
    assert f"sha256 of the sources: {digest.hexdigest()}." in script, "run: make explorer"
    pinned = json.loads((place / "package.json").read_text(encoding="utf-8"))["dependencies"]
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert all(re.fullmatch(r"[\d.]+", v) and f"\n{name} {v} (" in notice for name, v in pinned.items())
