"""Retraining from the champion: which prompts, which weights, and four rounds of it."""

from collections import Counter

from marble_core.retraining import choose
from marble_core.types import Prompt


def prompts(source: str, *names: str) -> list[Prompt]:
    return [Prompt(f"{source} {name}", source, target="A" if source == "ocr" else None) for name in names]


BEFORE = [*prompts("general", "a", "b", "c", "d"), *prompts("ocr", "a", "b"), *prompts("geneval", "a", "b", "c")]


def counts(chosen: list[Prompt]) -> dict[str, int]:
    return dict(Counter(p.source for p in chosen))


def test_mix_takes_what_is_new_and_fills_every_source_up_to_its_size_of_before() -> None:
    new = prompts("ocr", "x", "y", "z")
    choice = choose("mix", [*BEFORE, *new], BEFORE, (), seed=0)
    assert set(new) <= set(choice.prompts)
    assert counts(choice.prompts) == {"general": 4, "ocr": 3, "geneval": 3}, "ocr had 2, and has 3 new ones"
    assert choice.new == {"general": 0, "ocr": 3, "geneval": 0} and choice.known == {"general": 4, "ocr": 0, "geneval": 3}
    one = choose("mix", prompts("general", "x"), BEFORE, (), seed=0)
    assert counts(one.prompts) == {"general": 4, "ocr": 2, "geneval": 3}, "also where the file has lost the old ones"
    assert one == choose("mix", prompts("general", "x"), BEFORE, (), seed=0)


def test_only_takes_the_new_ones_and_all_takes_what_is_given() -> None:
    new = prompts("ocr", "x")
    assert choose("only", [*BEFORE, *new], BEFORE, (), seed=0).prompts == new
    assert choose("only", BEFORE, BEFORE, (), seed=0).prompts == []
    assert set(choose("all", [*BEFORE[:4], *new], BEFORE, (), seed=0).prompts) == {*BEFORE[:4], *new}
    assert set(choose("mix", BEFORE, BEFORE, (), seed=0).prompts) == set(BEFORE), "nothing new: the old set"


def test_a_prompt_that_is_held_out_now_is_not_taken_from_the_champions_set() -> None:
    held_out = prompts("general", "a", "b", "c")
    chosen = choose("mix", prompts("general", "x"), BEFORE, held_out, seed=0).prompts
    assert not {p.text for p in held_out} & {p.text for p in chosen} and Prompt("general d", "general") in chosen
