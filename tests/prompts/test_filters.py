"""From a configuration to checked prompts: repeated, blocked, leaked and over-long ones, and the report of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marble_core.prompts.filters import check_disjoint, read_block_list, split_blocked, split_repeated
from marble_core.types import MarbleError, Placed, Prompt
from prompt_files import prepared


def placed(*texts: str, source: str = "general") -> list[Placed]:
    return [Placed(Prompt(text, source), f"p.txt, line {number}") for number, text in enumerate(texts, 1)]


def test_of_equal_texts_in_a_file_the_first_stays_and_the_others_are_counted(tmp_path: Path) -> None:
    assert split_repeated(placed("A cat", "a dog", "a  CAT", "a cat")) == (
        placed("A cat", "a dog"),
        [Placed(Prompt("a  CAT", "general"), "p.txt, line 3"), Placed(Prompt("a cat", "general"), "p.txt, line 4")],
    )
    lines = "A cat\na dog\na  CAT\na cat\n"
    data = prepared(tmp_path, lines)
    assert [p.text for p in data.train if p.source == "general"] == ["A cat", "a dog"]
    report = data.report["train"]["general"]
    assert (report["read"], report["prompts"], report["distinct"]) == (4, 2, 2)
    path = tmp_path / "train.txt"
    assert report["repeated"] == {"count": 2, "first": [f"{path}, line 3", f"{path}, line 4"]}
    assert f"2 general prompts of train ({path}) came before and were dropped: {path}, line 3, {path}, line 4." in data.warnings
    kept = prepared(tmp_path, lines, "held out", "data.keep_repeated=true")
    assert len([p for p in kept.train if p.source == "general"]) == 4
    assert kept.report["train"]["general"]["distinct"] == 2 and kept.warnings == []


@pytest.mark.parametrize(
    ("text", "blocked"),
    [
        ("a Gun on a table", True),
        ("GUN", True),
        ("gun-shaped cake", True),
        ("a gunner", False),
        ("the begun work", False),
        ("a gun_shop", False),
        ("my  Evil\tEMPIRE", True),
        ("my evil little empire", False),
        ("C++ on a mug", True),
        ("C+ on a mug", False),
        ("Straße at night", True),
        ("STRASSE at night", True),
        ("a.b", True),
        ("axb", False),
    ],
)
def test_blocked_words_and_phrases_match_whole_and_in_any_case(text: str, blocked: bool) -> None:
    phrases = ["gun", "evil empire", "c++", "straße", "a.b"]
    assert split_blocked(placed(text), phrases) == (([], placed(text)) if blocked else (placed(text), []))


def test_a_block_list_applies_to_every_source_and_the_words_of_safe_for_work_to_general(tmp_path: Path) -> None:
    (tmp_path / "block.txt").write_text("# names\n\nBig Brand\n")
    (tmp_path / "signs.txt").write_text('a "big brand" sign\na nude "SIGN"\n')
    files = (f"data.block_list={tmp_path / 'block.txt'}", f"data.train.ocr={tmp_path / 'signs.txt'}")
    data = prepared(tmp_path, "a BIG  brand car\na nude\na car\n", "a bus\nporn", *files)
    assert [p.text for p in data.train if p.source == "general"] == ["a car"]
    assert [p.text for p in data.train if p.source == "ocr"] == ['a nude "SIGN"']
    assert [p.text for p in data.evaluation if p.source == "general"] == ["a bus"]
    train = tmp_path / "train.txt"
    assert data.report["train"]["general"]["blocked"]["first"] == [f"{train}, line 1", f"{train}, line 2"]
    assert f"2 general prompts of train ({train}) hold blocked words and were dropped: {train}, line 1, {train}, line 2." in (
        data.warnings
    )
    data = prepared(tmp_path, "a BIG  brand car\na nude\na car\n", "a bus\nporn", *files, "data.safe_for_work=false")
    assert [p.text for p in data.train if p.source == "general"] == ["a nude", "a car"]
    with pytest.raises(MarbleError, match=r"All 2 prompts of .*train\.txt hold blocked words; see data\.block_list"):
        prepared(tmp_path, "big brand\nBIG BRAND\n", "held out", *files)
    (tmp_path / "block.txt").write_text("# nothing\n")
    with pytest.raises(MarbleError, match=r"block\.txt holds no word"):
        read_block_list(tmp_path / "block.txt")


def test_a_held_out_prompt_that_is_trained_on_is_a_leak_named_with_both_places(tmp_path: Path) -> None:
    check_disjoint(placed("A red  Circle"), placed("a blue circle"))
    with pytest.raises(MarbleError) as error:
        prepared(tmp_path, "a car\nA red  Circle\n", "a bus\n\na red circle\na  RED circle")
    held_out, train = tmp_path / "evaluation.txt", tmp_path / "train.txt"
    said = f"The prompt 'a red circle' is both held out ({held_out}, line 3) and trained on ({train}, line 2)"
    assert str(error.value) == f"{said}; remove it from one of the two."
    with pytest.raises(MarbleError, match=r"and trained on .*, and so are 2 more; remove"):
        check_disjoint(placed("a", "b", "c", "d"), placed("C", "A", "B", "a"))


def test_what_is_generated_keeps_clear_of_the_held_out_files(tmp_path: Path) -> None:
    generated = "data.train.geneval=generate://geneval"
    first = prepared(tmp_path, "x", "held out", generated).train
    (tmp_path / "eval.jsonl").write_text(
        "\n".join(json.dumps({"prompt": p.text, "include": p.metadata.get("include")}) for p in first[-20:])
    )
    data = prepared(tmp_path, "x", "held out", generated, f"data.evaluation.geneval={tmp_path / 'eval.jsonl'}")
    assert len(data.train) == 41
    assert not {p.text for p in data.train} & {p.text for p in data.evaluation}


def test_a_source_of_any_name_may_be_generated_and_what_no_generator_makes_is_refused(tmp_path: Path) -> None:
    signs = ["data.train.signs=generate://ocr", "data.evaluation.signs=demo://prompts/ocr"]
    data = prepared(tmp_path, "x", "y", *signs)
    made = [p for p in data.train if p.source == "signs"]
    assert len(made) == 20 and all(p.metadata["text"] in p.text for p in made)
    assert [p.source for p in data.evaluation].count("signs") == 9
    for uri in ("demo://prompts/signs", "generate://signs"):
        with pytest.raises(MarbleError, match=r"no (source|generator) 'signs'"):
            prepared(tmp_path, "x", "y", f"data.train.signs={uri}")
