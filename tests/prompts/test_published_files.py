"""The published prompt files as they are read, and held against what is shipped and generated. ``make test-deep`` with the directory
that holds drawbench/test.txt, geneval/evaluation_metadata.jsonl, geneval/object_names.txt and ocr/test.txt in PUBLISHED_PROMPTS."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from marble_core.config.loading import load_config
from marble_core.config.schema import RewardConfig
from marble_core.prompts.filters import UNSAFE, normal, split_blocked
from marble_core.prompts.generate import generate
from marble_core.prompts.geneval import CLASSES, fingerprint, meaning
from marble_core.prompts.reading import read, read_prompts
from marble_core.rewards.applies import check_prompts
from marble_core.rewards.cards import cards_of
from marble_core.types import MarbleError, Prompt
from paths import ROOT
from prompt_files import asked

pytestmark = pytest.mark.deep

DIRECTORY = "PUBLISHED_PROMPTS"


@pytest.fixture(scope="module")
def data() -> Path:
    directory = os.environ.get(DIRECTORY, "")
    if not Path(directory, "geneval").is_dir():
        pytest.fail(
            f"This test reads the published prompt files (docs/rewards.md, section 8): name their directory in {DIRECTORY}.",
            pytrace=False,
        )
    return Path(directory)


@pytest.fixture(scope="module")
def official(data: Path) -> list[Prompt]:
    return read_prompts(data / "geneval" / "evaluation_metadata.jsonl", "geneval")


def test_genevals_553_prompts_are_read_with_their_metadata(data: Path, official: list[Prompt]) -> None:
    assert Counter(p.metadata.get("tag") for p in official) == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    lines = (data / "geneval" / "evaluation_metadata.jsonl").read_text().splitlines()
    for prompt, line in zip(official, lines, strict=True):
        row = json.loads(line)
        assert (prompt.text, prompt.metadata.get("tag"), prompt.metadata["include"]) == (
            row["prompt"],
            row["tag"],
            row["include"],
        )
        assert prompt.metadata.get("exclude", []) == row.get("exclude", [])


def test_the_1018_ocr_prompts_have_one_target_each(data: Path) -> None:
    prompts = read_prompts(data / "ocr" / "test.txt", "ocr")
    assert len(prompts) == 1018 and {p.source for p in prompts} == {"ocr"}
    assert [p.metadata.get("text") for p in prompts] == [p.text.split('"')[1] for p in prompts]
    assert prompts[0].metadata.get("text") == "Spring Collection 2024"


def test_drawbenchs_200_prompts_are_general_and_none_of_them_is_taken_for_unsafe(data: Path) -> None:
    placed = read(data / "drawbench" / "test.txt", "general")
    assert len(placed) == 200 == len({normal(p.prompt.text) for p in placed})
    assert {(p.prompt.source, p.prompt.metadata.get("text"), p.prompt.metadata.get("include")) for p in placed} == {
        ("general", None, None)
    }
    assert split_blocked(placed, UNSAFE) == (placed, [])


@pytest.mark.parametrize(
    ("file", "source", "says"),
    [
        ("drawbench/test.txt", "ocr", r"line 1: an ocr prompt needs the words"),
        ("drawbench/test.txt", "geneval", r"line 1: a geneval prompt needs 'include'"),
        ("ocr/test.txt", "geneval", r"line 1: a geneval prompt needs 'include'"),
        ("ocr/test.txt", None, r"is plain text, so its source must be named"),
        ("geneval/evaluation_metadata.jsonl", None, r"line 1: the key 'source' is missing"),
        ("geneval/evaluation_metadata.jsonl", "ocr", r"line 1: an ocr prompt needs the words"),
    ],
)
def test_a_published_file_read_for_another_source_is_refused_for_the_right_reason(
    data: Path, file: str, source: str | None, says: str
) -> None:
    with pytest.raises(MarbleError, match=says):
        read_prompts(data / file, source)


def test_our_classes_are_genevals_in_the_detectors_order(data: Path) -> None:
    assert (data / "geneval" / "object_names.txt").read_text().split("\n")[:80] == list(CLASSES)


def test_the_shipped_fingerprints_are_those_of_the_official_test_set(official: list[Prompt]) -> None:
    shipped = json.loads((ROOT / "marble_core" / "prompts" / "geneval_test.json").read_text())["fingerprints"]
    assert shipped == sorted({fingerprint(meaning(p.metadata.get("include"))) for p in official})


@pytest.mark.parametrize("held_out", [False, True])
def test_no_generated_prompt_asks_for_what_a_test_prompt_asks_for(official: list[Prompt], held_out: bool) -> None:
    tests = set().union(*map(asked, official))
    texts = {normal(p.text) for p in official}
    made = [p for seed in range(4) for p in generate("geneval", 4000, seed, held_out)]
    assert not [p.text for p in made if asked(p) & tests or normal(p.text) in texts]


def test_no_generated_ocr_prompt_is_a_published_one(data: Path) -> None:
    published = {normal(p.text) for p in read_prompts(data / "ocr" / "test.txt", "ocr")}
    assert not [p for p in generate("ocr", 20_000, 0, held_out=False) if normal(p.text) in published]


def test_genevals_own_prompts_can_all_be_judged(data: Path) -> None:
    placed = read(data / "geneval" / "evaluation_metadata.jsonl", "geneval")
    for published in (False, True):
        reward = RewardConfig(name="geneval", options={"published": published})
        config = load_config("demo").model_copy(update={"rewards": (reward,)})
        assert check_prompts(config, {"train": placed, "evaluation": placed}, cards_of(config.measured)) == []
