"""OCR: the released formula against its own definition, which prompts it applies to, and rapidocr reading rendered words."""

from functools import cache, partial
from pathlib import Path
from random import Random

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from marble_core.demo.draw import draw
from marble_core.demo.prompts import entries
from marble_core.rewards.ocr import Ocr
from marble_core.rewards.scoring import score_all
from marble_core.types import Prompt

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
WORDS = [
    "STOP",
    "OPEN",
    "Cafe",
    "Exit",
    "HELLO",
    "World",
    "Pizza",
    "Taxi",
    "Hotel",
    "Music",
    "2026",
    "Sale",
    "Bread",
    "Ocean",
    "RIVER",
    "Green",
    "Yoga",
    "Zebra",
    "Quiet",
    "Ninja",
]


def scored(read, target, **options):
    """(reward, whole_text) of an image on which the engine reads that."""
    scorer = Ocr(reader=lambda images: [read] * len(images), workers=1, **options)
    return scorer.score(np.zeros((1, 8, 8, 3), np.uint8), [Prompt("", "ocr", {"text": target})])[0].tolist()


def test_the_published_rule_is_the_released_formula():
    released = partial(scored, published=True)
    assert released("S T O P", "stop")[0] == 1
    assert released("xxSTOPxx", "STOP")[0] == 1
    assert released("STEP", "STOP")[0] == 0.75
    assert released("sitting", "kitten")[0] == 0.5
    assert released("", "STOP")[0] == 0
    assert released("a very long other text", "STOP")[0] == 0
    assert released("S\tTOP", "STOP")[0] == 0.75, "of white space, only the blank does not count"
    assert released("It's open", "It’s open")[0] == 0.875, "nor is one apostrophe another"
    assert scored("It's open", "It’s open", published=True, code_points=False)[0] == 1
    assert scored("It's open", "It’s open", code_points=True)[0] == 0.875


@cache
def edits(a, b):
    """Levenshtein's distance by its recursive definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(edits(a[1:], b) + 1, edits(a, b[1:]) + 1, edits(a[1:], b[1:]) + (a[0] != b[0]))


@pytest.mark.parametrize("published", [False, True])
@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(text=st.text("aB c", max_size=7), target=st.text("ab C", min_size=1, max_size=6).filter(str.strip))
def test_both_values_are_their_definitions(published, text, target):
    a, b = (s.replace(" ", "").lower() for s in (text, target))
    value, whole = scored(text, target, published=published)
    assert value == pytest.approx(1 if b in a else 1 - min(edits(a, b), len(b)) / len(b))
    assert whole == pytest.approx(1 - edits(a, b) / max(len(a), len(b)))


def test_a_mark_that_a_reader_sees_costs_its_share():
    for read, target, value in (
        ("Cafe", "Café", 0.75),
        ("a b", "a-b", 2 / 3),
        ("its", "it's", 0.75),
        ("Wait.", "Wait…", 5 / 7),
        ("B-carotene", "β-carotene", 0.9),
        ("10 mm", "10 µm", 0.75),
        ("N", "ν", 1.0),
        ("TABEPNA", "ταβέρνα", 1.0),
        ("TABEPMA", "ΤΑΒΕΡΝΑ", 6 / 7),
    ):
        assert scored(read, target)[0] == pytest.approx(value), target


def test_writing_much_is_rewarded_but_shows_beside_the_reward():
    scorer = Ocr(reader=lambda part: ["buy STOP now or never"] * len(part))
    table = score_all([scorer], np.zeros((1, 8, 8, 3), np.uint8), [Prompt("", "ocr", {"text": "STOP"})])
    assert table.R_NK[0, 0] == 1 and table.side["ocr/whole_text"][0] == pytest.approx(4 / 17)


def test_ocr_reads_each_picture_once_and_keeps_their_order():
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    prompts = [Prompt("", "ocr", {"text": str(i)}) for i in range(7)]
    seen = []

    def reader(part):
        seen.extend(image.item() for image in part)
        return [str(image.item()) for image in part]

    for workers in (1, 3, 16):
        assert Ocr(reader=reader, workers=workers).score(images, prompts)[:, 0].tolist() == [1] * 7
    assert sorted(seen) == sorted(list(range(7)) * 3)


QUOTED = [
    (Prompt('a sign "STOP"', "general"), "STOP"),
    (Prompt('a 5" disk', "general"), " disk"),
    (Prompt('an empty "" sign', "general"), None),
    (Prompt('a blank " " sign', "general"), None),
    (Prompt("a sign", "general"), None),
]


def test_ocr_applies_to_a_target_and_to_any_quote_only_where_the_released_rule_is_named():
    target = Prompt('"not this"', "ocr", {"text": "STOP"})
    assert Ocr().applies(target) and not Ocr().applies(Prompt("", "ocr", {"text": "  "}))
    assert not any(Ocr().applies(prompt) for prompt, _ in QUOTED)
    for scorer in (Ocr(any_quote=True), Ocr(published=True)):
        assert [scorer.applies(prompt) for prompt, _ in QUOTED] == [text is not None for _, text in QUOTED]
        assert scorer.applies(target)
    assert not Ocr(published=True, any_quote=False).applies(QUOTED[0][0])
    texts = [text for _, text in QUOTED if text] + ["STOP"]
    scorer = Ocr(any_quote=True, reader=lambda part: texts, workers=1)
    prompts = [prompt for prompt, text in QUOTED if text] + [target]
    assert scorer.score(np.zeros((len(texts), 1, 1, 3)), prompts)[:, 0].tolist() == [1] * len(texts)


def test_an_image_on_which_the_engine_fails_has_no_value_or_scores_0_where_that_is_named():
    def reader(part):
        if any(image[0, 0, 0] == 1 for image in part):
            raise RuntimeError("no memory")
        return ["STOP"] * len(part)

    images = np.arange(3, dtype=np.uint8).repeat(3).reshape(3, 1, 1, 3)
    prompts = [Prompt(f"sign {i}", "ocr", {"text": "STOP"}) for i in range(3)]
    table = score_all([Ocr(reader=reader)], images, prompts)
    np.testing.assert_array_equal(table.R_NK[:, 0], [1, np.nan, 1])
    assert table.missing == {(1, 0): "RuntimeError: no memory"}
    assert score_all([Ocr(reader=reader, published=True)], images, prompts).R_NK[:, 0].tolist() == [1, 0, 1]


# Drawn clean, PP-OCR reads them: in the mark that it has for one of that look, or in one that says the same.
TYPOGRAPHY = (
    *("It’s open", "rock ’n’ roll", "Hawaiʻi", "“Hello”", "«Ouvert»", "‹Prix›", "pp. 3–5", "well‑known", "Stop—now", "— No —"),
    *("3 − 2 = 1", "Wait…", "20 °C", "ACME™", "10 µm", "A • B", "ﬁsh", "Ⅷ", "Cafe\u0301", "İstanbul", "Straße", "5′ 10″"),
    *("No\u00a0entry", "co\u00adop", "can\u200dnot", "zero\u200bwidth", "two\nlines", "two\twords", "1\u202f000 km"),
    *("ΤΑΒΕΡΝΑ", "ταβερνα", "ΟΔΟΣ", "ΜΟΥΣΕΙΟ", "ΚΑΦΕ"),
)
# (as drawn with Noto Sans CJK, what PP-OCR reads): no such font is among the packages.
CJK = (
    *(("ＯＰＥＮ", "OPEN"), ("２４時間", "２4時間"), ("〜10％", "～10%"), ("㈱山田", "(株)山田"), ("5００円", "500円")),
    *(("か\u3099くせい", "がくせい"), ("東京！", "東京！"), ("北京 2026", "北京2026"), ("中文，测试", "中文，测试")),
)


def clean(text):
    """Black on white, 48 pixels high, on one line."""
    font = ImageFont.truetype(str(FONT.with_name("DejaVuSans.ttf")), 48)
    text = text.replace("\n", " ").replace("\t", " ")
    picture = Image.new("RGB", (int(font.getlength(text)) + 80, 256), "white")
    ImageDraw.Draw(picture).text((picture.width / 2, 128), text, "black", font, anchor="mm")
    return np.asarray(picture)[None]


@pytest.mark.parametrize("text", TYPOGRAPHY)
def test_a_target_that_is_drawn_clean_scores_1_whatever_its_typography(text):
    assert Ocr(workers=1).score(clean(text), [Prompt("", "ocr", {"text": text})])[0].tolist() == [1, 1]


@pytest.mark.parametrize(("target", "read"), CJK)
def test_a_cjk_target_scores_1_for_what_is_read_where_it_is_drawn_clean(target, read):
    assert scored(read, target) == [1, 1]


def sign(word, side, rng):
    """A word in dark on a light, coloured, noisy ground, up to 8 degrees askew; the font is a fifth of a 64-pixel image."""
    ground = np.array([rng.randint(150, 255) for _ in range(3)])
    picture = Image.fromarray(np.broadcast_to(ground, (side, side, 3)).astype(np.uint8).copy())
    font = ImageFont.truetype(str(FONT), 13 if side == 64 else side // 8)
    layer = Image.new("L", picture.size)
    ImageDraw.Draw(layer).text((side / 2, side / 2), word, fill=255, font=font, anchor="mm")
    layer = layer.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC)
    picture.paste(tuple(rng.randint(0, 70) for _ in range(3)), mask=layer)
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, 8, (side, side, 3))
    return (np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("side", [512, 256, 64])
def test_rapidocr_reads_rendered_words(side):
    rng = Random(side)
    words = [rng.choice(WORDS) for _ in range(50)]
    images = np.stack([sign(word, side, rng) for word in words])
    values = Ocr().score(images, [Prompt("", "ocr", {"text": word}) for word in words])
    assert ((values == 1).all(1)).mean() >= 0.98, "each word, and nothing else"


@pytest.fixture(scope="module")
def signs():
    rng = Random(0)
    chosen = entries("ocr", 100, 0, True)
    return np.stack([np.asarray(draw(rng.choice(e.scenes), rng)) for e in chosen]), [e.prompt for e in chosen]


def test_ocr_reads_the_worlds_signs(signs):
    images, prompts = signs
    right = Ocr(detection=False).score(images, prompts)[:, 0]
    wrong = Ocr(detection=False).score(images[:20], prompts[20:40])[:, 0]
    assert (right == 1).mean() >= 0.98
    assert wrong.mean() < 0.5


def test_a_picture_without_text_scores_0_and_the_check_passes():
    scorer = Ocr()
    scorer.self_check()
    assert not scorer.score(np.full((1, 256, 256, 3), 200, np.uint8), [Prompt("", "ocr", {"text": "STOP"})]).any()
