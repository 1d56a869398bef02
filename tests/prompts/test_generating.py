"""What is generated for training: GenEval's and OCR's prompts, none of which the official test set asks for."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from marble_core.prompts.filters import normal
from marble_core.prompts.generate import generate
from marble_core.prompts.geneval import CLASSES, COLORS, NUMBERS, SHARES, is_test, meaning, one, several
from marble_core.prompts.kinds import apportion
from marble_core.prompts.ocr import GENERATOR as OCR
from marble_core.prompts.reading import read_prompts
from marble_core.types import MarbleError, Prompt
from paths import ROOT
from prompt_files import asked

# One prompt of each kind of the official test set, by what it asks for.
OFFICIAL = {
    "single_object": "1 any bench",
    "two_object": "1 any bench; 1 any sports ball",
    "counting": "4 any bench",
    "colors": "1 pink car",
    "position": "1 any kite; 1 any wine glass; 1 any wine glass above 1 any kite",
    "color_attr": "1 green bus; 1 purple microwave",
}


@pytest.fixture(scope="module")
def shipped() -> list[str]:
    return json.loads((ROOT / "marble_core" / "prompts" / "geneval_test.json").read_text())["fingerprints"]


def hashed(told: str) -> str:
    return hashlib.blake2b(told.encode(), digest_size=5).hexdigest()


def test_the_shipped_fingerprints_hold_test_prompts_of_every_kind(shipped: list[str]) -> None:
    assert len(shipped) == 552 and shipped == sorted(set(shipped)), "553 prompts, two of which ask for the same"
    assert {hashed(f"1 any {name}") for name in CLASSES} | set(map(hashed, OFFICIAL.values())) <= set(shipped)
    assert hashed("5 any bench") not in shipped


@pytest.mark.parametrize("held_out", [False, True])
def test_nothing_generated_has_the_fingerprint_of_a_test_prompt(shipped: list[str], held_out: bool) -> None:
    tests = set(shipped)
    for prompt in (p for seed in range(4) for p in generate("geneval", 4000, seed, held_out)):
        things = [f"{wish['count']} {wish.get('color', 'any')} {wish['class']}" for wish in prompt.metadata["include"]]
        told = sorted(things)
        if "position" in prompt.metadata["include"][-1]:
            other, one = things
            relation, _ = prompt.metadata["include"][-1]["position"]
            seen = {"right of": f"{other} left of {one}", "below": f"{other} above {one}"}
            told.append(seen.get(relation, f"{one} {relation} {other}"))
        assert hashed("; ".join(told)) not in tests, prompt.text
    assert is_test(meaning([{"class": "bench", "count": 4}]))  # "four benchs" there, "four benches" here


@pytest.mark.parametrize("source", ["geneval", "ocr"])
def test_generated_prompts_depend_on_the_seed_alone_and_training_ones_are_disjoint_from_held_out_ones(source: str) -> None:
    made = generate(source, 600, 0, held_out=False)
    assert made == generate(source, 600, 0, held_out=False) != generate(source, 600, 1, held_out=False)
    trained = set().union(
        *(asked(p) if p.metadata.get("include") else {normal(p.text)} for p in generate(source, 5000, 0, held_out=False))
    )
    for prompt in generate(source, 2000, 1, held_out=True):
        assert not (asked(prompt) if prompt.metadata.get("include") else {normal(prompt.text)}) & trained


@pytest.mark.parametrize(("source", "shares"), [("geneval", SHARES), ("ocr", OCR.shares)])
@pytest.mark.parametrize("count", [17, 1000, 3400])
def test_kinds_come_in_the_proportions_of_their_weights_and_texts_equally_often(
    source: str, shares: dict[str, float], count: int
) -> None:
    made = generate(source, count, 3, held_out=False)
    assert Counter(p.metadata.get("tag") for p in made) == apportion(shares, count)
    for kind, share in shares.items():
        copies = Counter(p.text for p in made if p.metadata.get("tag") == kind)
        assert abs(copies.total() - count * share / sum(shares.values())) < 1
        assert max(copies.values()) - min(copies.values()) <= 1
        if kind != "counting":  # of which there are 160 texts at most
            assert max(copies.values()) == 1


def test_what_is_judged_by_is_not_generated_however_it_is_put() -> None:
    mine = Prompt("two benches please", "geneval", {"include": [{"class": "bench", "count": 2}]})
    plain = Prompt('A cup printed with  "OPEN"', "ocr", {"text": "OPEN"})
    made = generate("geneval", 3000, 0, False)
    some = next(p for p in made if p.metadata.get("tag") == "counting")
    again = generate("geneval", 3000, 0, False, avoid=[mine, some, plain])
    assert any(p.metadata.get("include") == mine.metadata.get("include") for p in made + generate("geneval", 3000, 0, True))
    assert not any(p.metadata.get("include") in (mine.metadata.get("include"), some.metadata.get("include")) for p in again)
    everything = [p for held_out in (False, True) for p in generate("geneval", 5000, 0, held_out)]
    with pytest.raises(MarbleError, match="nothing to generate of the kind 'counting'"):
        generate("geneval", 100, 0, False, avoid=everything)
    with pytest.raises(MarbleError, match="no generator 'general'"):
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
        include, text = prompt.metadata.get("include"), prompt.text.removeprefix("a photo of ")
        assert text != prompt.text and all(wish["class"] in CLASSES for wish in include)
        assert all(wish.get("color", "red") in COLORS for wish in include)
        assert not any(wish["class"] == "person" and "color" in wish for wish in include)
        match prompt.metadata.get("tag"):
            case "counting":
                ((wish,), (surplus,)) = include, prompt.metadata.get("exclude")
                assert surplus == {"class": wish["class"], "count": wish["count"] + 1}
                number, _, rest = text.partition(" ")
                assert number == NUMBERS[wish["count"]] and rest == several(wish["class"])
            case "colors":
                assert grammatical(text, include[0]) and "color" in include[0]
            case "two_object" | "color_attr":
                first, second = text.split(" and ")
                assert grammatical(first, include[0]) and grammatical(second, include[1])
                assert include[0]["class"] != include[1]["class"]
                assert ("color" in include[0]) == ("color" in include[1]) == (prompt.metadata.get("tag") == "color_attr")
                assert prompt.metadata.get("tag") == "two_object" or include[0]["color"] != include[1]["color"]
            case "position":
                relation, index = include[1]["position"]
                first, second = text.split(f" {relation} ")
                assert index == 0 and grammatical(first, include[1]) and grammatical(second, include[0])
            case _:
                pytest.fail(f"{prompt.text} is of no kind")


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
    assert [p.metadata.get("text") for p in read_prompts(tmp_path / "p.txt", "ocr")] == [p.metadata.get("text") for p in made]
    words = {"one_word": 1, "two_words": 2, "three_words": 3}
    assert all(
        p.metadata.get("text") and p.metadata.get("tag") and len(p.metadata["text"].split()) == words[p.metadata["tag"]]
        for p in made
    )
    for text in (p.text for p in made):
        assert text.startswith(("a ", "an ")) and "  " not in text and re.match(r"an? [a-z]", text), text
        assert text.startswith("an ") == (text.split()[1][0] in "aeiou")
