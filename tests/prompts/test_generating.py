"""The published prompt files, and what is generated for training beside them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from marble_core.prompts.filters import UNSAFE, normal, split_blocked
from marble_core.prompts.generate import generate
from marble_core.prompts.geneval import CLASSES, COLORS, NUMBERS, SHARES, fingerprint, is_test, meaning, one, several
from marble_core.prompts.kinds import apportion
from marble_core.prompts.ocr import GENERATOR as OCR
from marble_core.prompts.reading import read, read_prompts
from marble_core.types import MarbleError, Prompt
from paths import ROOT

DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def data() -> Path:
    assert DATA.is_dir(), f"This test reads the published prompt files, but there is no directory {DATA}."
    return DATA


@pytest.fixture(scope="module")
def official(data: Path) -> list[Prompt]:
    return read_prompts(data / "geneval" / "evaluation_metadata.jsonl", "geneval")


def test_genevals_553_prompts_are_read_with_their_metadata(data: Path, official: list[Prompt]) -> None:
    assert Counter(p.tag for p in official) == {
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
        assert (prompt.text, prompt.tag, list(prompt.include)) == (row["prompt"], row["tag"], row["include"])
        assert list(prompt.exclude) == row.get("exclude", [])


def test_the_1018_ocr_prompts_have_one_target_each(data: Path) -> None:
    prompts = read_prompts(data / "ocr" / "test.txt", "ocr")
    assert len(prompts) == 1018 and {p.source for p in prompts} == {"ocr"}
    assert [p.target for p in prompts] == [p.text.split('"')[1] for p in prompts]
    assert prompts[0].target == "Spring Collection 2024"


def test_drawbenchs_200_prompts_are_general_and_none_of_them_is_taken_for_unsafe(data: Path) -> None:
    placed = read(data / "drawbench" / "test.txt", "general")
    assert len(placed) == 200 == len({normal(p.prompt.text) for p in placed})
    assert {(p.prompt.source, p.prompt.target, p.prompt.include) for p in placed} == {("general", None, ())}
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
    assert shipped == sorted({fingerprint(meaning(p.include)) for p in official})


def asked(prompt: Prompt) -> set[str]:
    """What a prompt asks for, told in all orders: an oracle that does without meaning()."""
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    things = [json.dumps({k: v for k, v in wish.items() if k != "position"}, sort_keys=True) for wish in prompt.include]
    if len(things) == 2 and "position" in prompt.include[1]:
        relation = prompt.include[1]["position"][0]
        return {f"{things[1]} {relation} {things[0]}", f"{things[0]} {opposite[relation]} {things[1]}"}
    return {" and ".join(things), " and ".join(reversed(things))}


@pytest.mark.parametrize("held_out", [False, True])
def test_no_generated_prompt_asks_for_what_a_test_prompt_asks_for(official: list[Prompt], held_out: bool) -> None:
    tests = set().union(*map(asked, official))
    texts = {normal(p.text) for p in official}
    made = [p for seed in range(4) for p in generate("geneval", 4000, seed, held_out)]
    assert not [p.text for p in made if asked(p) & tests or normal(p.text) in texts]
    assert is_test(meaning([{"class": "bench", "count": 4}]))  # "four benchs" there, "four benches" here


def test_no_generated_ocr_prompt_is_a_published_one(data: Path) -> None:
    published = {normal(p.text) for p in read_prompts(data / "ocr" / "test.txt", "ocr")}
    assert not [p for p in generate("ocr", 20_000, 0, held_out=False) if normal(p.text) in published]


@pytest.mark.parametrize("source", ["geneval", "ocr"])
def test_generated_prompts_depend_on_the_seed_alone_and_training_ones_are_disjoint_from_held_out_ones(source: str) -> None:
    made = generate(source, 600, 0, held_out=False)
    assert made == generate(source, 600, 0, held_out=False) != generate(source, 600, 1, held_out=False)
    trained = set().union(*(asked(p) if p.include else {normal(p.text)} for p in generate(source, 5000, 0, held_out=False)))
    for prompt in generate(source, 2000, 1, held_out=True):
        assert not (asked(prompt) if prompt.include else {normal(prompt.text)}) & trained


@pytest.mark.parametrize(("source", "shares"), [("geneval", SHARES), ("ocr", OCR.shares)])
@pytest.mark.parametrize("count", [17, 1000, 3400])
def test_kinds_come_in_the_proportions_of_their_weights_and_texts_equally_often(
    source: str, shares: dict[str, float], count: int
) -> None:
    made = generate(source, count, 3, held_out=False)
    assert Counter(p.tag for p in made) == apportion(shares, count)
    for kind, share in shares.items():
        copies = Counter(p.text for p in made if p.tag == kind)
        assert abs(copies.total() - count * share / sum(shares.values())) < 1
        assert max(copies.values()) - min(copies.values()) <= 1
        if kind != "counting":  # of which there are 160 texts at most
            assert max(copies.values()) == 1


def test_what_is_judged_by_is_not_generated_however_it_is_put(official: list[Prompt]) -> None:
    mine = Prompt("two benches please", "geneval", include=({"class": "bench", "count": 2},))
    plain = Prompt('A cup printed with  "OPEN"', "ocr", target="OPEN")
    made = generate("geneval", 3000, 0, False)
    some = next(p for p in made if p.tag == "counting")
    again = generate("geneval", 3000, 0, False, avoid=[mine, some, plain])
    assert any(p.include == mine.include for p in made + generate("geneval", 3000, 0, True))
    assert not any(p.include in (mine.include, some.include) for p in again)
    everything = [p for held_out in (False, True) for p in generate("geneval", 5000, 0, held_out)]
    with pytest.raises(MarbleError, match="nothing to generate of the kind 'counting'"):
        generate("geneval", 100, 0, False, avoid=everything)
    with pytest.raises(MarbleError, match="no generator for the source 'general'"):
        generate("general", 1, 0, False)


NOUN_PHRASE = r"(?P<article>a|an) (?:(?P<unit>pair|head) of )?(?P<rest>.+)"


def grammatical(phrase: str, wish: dict) -> bool:
    """Whether "an orange chair" stands for {"class": "chair", "color": "orange"}; by pattern, not by the generator's own words."""
    found = re.fullmatch(NOUN_PHRASE, phrase)
    assert found is not None, phrase
    first = found["unit"] or found["rest"]
    return (
        (found["article"] == "an") == (first[0] in "aeiou")
        and (found["unit"] == {"scissors": "pair", "skis": "pair", "broccoli": "head"}.get(wish["class"]))
        and found["rest"] == " ".join(filter(None, [wish.get("color"), wish["class"]]))
    )


def test_generated_geneval_prompts_are_grammatical_and_say_what_their_metadata_say() -> None:
    for prompt in generate("geneval", 6000, 0, held_out=False) + generate("geneval", 2000, 0, held_out=True):
        include, text = prompt.include, prompt.text.removeprefix("a photo of ")
        assert text != prompt.text and all(wish["class"] in CLASSES for wish in include)
        assert all(wish.get("color", "red") in COLORS for wish in include)
        assert not any(wish["class"] == "person" and "color" in wish for wish in include)
        match prompt.tag:
            case "counting":
                ((wish,), (surplus,)) = include, prompt.exclude
                assert surplus == {"class": wish["class"], "count": wish["count"] + 1}
                number, _, rest = text.partition(" ")
                assert number == NUMBERS[wish["count"]] and rest == several(wish["class"])
            case "colors":
                assert grammatical(text, include[0]) and "color" in include[0]
            case "two_object" | "color_attr":
                first, second = text.split(" and ")
                assert grammatical(first, include[0]) and grammatical(second, include[1])
                assert include[0]["class"] != include[1]["class"]
                assert ("color" in include[0]) == ("color" in include[1]) == (prompt.tag == "color_attr")
                assert prompt.tag == "two_object" or include[0]["color"] != include[1]["color"]
            case "position":
                relation, index = include[1]["position"]
                first, second = text.split(f" {relation} ")
                assert index == 0 and grammatical(first, include[1]) and grammatical(second, include[0])
            case _:
                pytest.fail(f"{prompt.tag} is no kind")


def test_plurals_and_articles_are_english() -> None:
    irregular = {
        "person": "people",
        "sheep": "sheep",
        "knife": "knives",
        "bus": "buses",
        "bench": "benches",
        "couch": "couches",
        "sandwich": "sandwiches",
        "toothbrush": "toothbrushes",
        "wine glass": "wine glasses",
        "skis": "pairs of skis",
        "scissors": "pairs of scissors",
        "broccoli": "heads of broccoli",
    }
    assert {name: several(name) for name in CLASSES} == {name: f"{name}s" for name in CLASSES} | irregular
    with_an = {"airplane", "elephant", "umbrella", "apple", "orange", "oven"}
    assert {name for name in CLASSES if one(name).startswith("an ")} == with_an
    assert one("scissors", "orange") == "a pair of orange scissors" and one("cup", "orange") == "an orange cup"


def test_generated_ocr_prompts_are_read_back_with_the_words_that_they_ask_for(tmp_path: Path) -> None:
    made = generate("ocr", 5000, 0, held_out=False)
    (tmp_path / "p.txt").write_text("\n".join(p.text for p in made), encoding="utf-8")
    assert [p.target for p in read_prompts(tmp_path / "p.txt", "ocr")] == [p.target for p in made]
    words = {"one_word": 1, "two_words": 2, "three_words": 3}
    assert all(p.target and p.tag and len(p.target.split()) == words[p.tag] for p in made)
    for text in (p.text for p in made):
        assert text.startswith(("a ", "an ")) and "  " not in text and re.match(r"an? [a-z]", text), text
        assert text.startswith("an ") == (text.split()[1][0] in "aeiou")
