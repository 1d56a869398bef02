"""How near held-out prompts come to training prompts, and how the data report draws it."""

from __future__ import annotations

import re
from pathlib import Path

from marble_core.config.loading import load_config
from marble_core.prompts.data_report import write_page
from marble_core.prompts.dataset import prepare_data
from marble_core.prompts.overlap import overlap
from paths import ROOT
from prompt_files import prepared


def test_the_similarity_is_the_share_of_words_in_both_with_the_nearest_training_prompt() -> None:
    train = ["a red cat on a mat", "two blue dogs", "something else"]
    found = overlap(["on a MAT, a red cat", "two green dogs", "nothing shared"], train)
    assert found["same_words"] == 1 and found["compared"] == [3, 3]
    assert [(n["similarity"], n["train"]) for n in found["nearest"]] == [(1.0, train[0]), (0.5, train[1])]
    assert found["histogram"] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]


def test_the_nearest_is_found_as_by_trying_all() -> None:
    words = ["a", "the", "red", "blue", "cat", "dog", "on", "under", "mat", "box"]
    texts = [" ".join(words[(k * step) % 10] for k in range(n)) for step in (1, 3, 7, 9) for n in range(1, 8)]
    held_out, train = texts[::2], texts[1::2]

    def nearest(text: str) -> float:
        own = set(text.split())
        return max(len(own & set(other.split())) / len(own | set(other.split())) for other in train)

    by_hand = [0] * 10
    for text in held_out:
        by_hand[min(int(nearest(text) * 10), 9)] += 1
    assert overlap(held_out, train)["histogram"] == by_hand


def test_lengths_and_overlaps_are_drawn_and_warnings_stand_above_all_sources(tmp_path: Path) -> None:
    data = prepared(tmp_path, f"a cat\na cat\na dog runs\n{'the ' * 100}", "a cat sleeps")
    lengths = data.report["train"]["general"]["characters"]
    assert (lengths["min"], lengths["max"], sum(lengths["histogram"])) == (5, 399, 3)
    assert lengths["histogram"][0] == 2 and lengths["histogram"][-1] == 1 and len(lengths["histogram"]) <= 20
    write_page(tmp_path / "page.html", data.report, said=[*data.warnings, "The detector is absent."])
    text = (tmp_path / "page.html").read_text("utf-8")
    assert text.index("The detector is absent.") < text.index("<h2>") and text.index("came before") < text.index("<h2>")
    drawn = re.findall(r'<svg [^>]*aria-label="([^"]*)"', text)
    assert sum(label.startswith("Characters per prompt, counts from ") for label in drawn) == 6
    assert sum(label.startswith("Words shared with the nearest of ") for label in drawn) == 3
    (own,) = [label for label in drawn if label.startswith("Characters") and "from 5 to 399" in label]
    bars = [int(n) for n in own.partition(": ")[2].split(", ")]
    assert bars == lengths["histogram"]


def test_the_numbers_of_the_demo_s_page_are_those_that_the_docs_say(tmp_path: Path) -> None:
    data = prepare_data(load_config("demo"))
    write_page(tmp_path / "page.html", data.report)
    (trained, held_out) = re.search(
        r"([\d,]+) prompts to train on, ([\d,]+) held out", (tmp_path / "page.html").read_text()
    ).groups()  # type: ignore[union-attr]
    assert int(trained.replace(",", "")) == len(data.train) and int(held_out) == len(data.evaluation)
    assert f"on {held_out} held-out prompts" in (ROOT / "docs" / "laptop.md").read_text()
