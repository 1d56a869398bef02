"""The 1:1:1 mix of an optimizer step."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marble_core.prompts import mix
from marble_core.types import SOURCES, MarbleError, Prompt


def a_pool(sizes: dict[str, int]) -> list[Prompt]:
    return [Prompt(f"{source} {i}", source) for source, n in sizes.items() for i in range(n)]


def test_every_step_mixes_the_sources_one_to_one() -> None:
    pool = a_pool({"general": 7, "ocr": 5, "geneval": 3})
    for step in range(20):
        batch = mix(pool, 12, 8, step, seed=1)
        assert Counter(p.source for p in batch.prompts) == dict.fromkeys(SOURCES, 4)
        assert len(batch) == 96


def test_every_prompt_comes_once_an_epoch_of_whole_steps_and_no_epoch_is_like_the_one_before() -> None:
    pool = a_pool({"general": 10, "ocr": 4, "geneval": 3})
    walked = [p.text for step in range(12) for p in mix(pool, 9, 2, step, seed=3).prompts if p.source == "general"]
    epochs = [walked[:12], walked[12:24], walked[24:36]]
    for epoch in epochs:
        assert sorted(Counter(epoch).values()) == [1] * 8 + [2] * 2  # ten prompts, and the fourth step is filled up
    assert epochs[0] != epochs[1]


def test_what_fills_an_epoch_up_is_no_prompt_more_than_another() -> None:
    pool = [Prompt(str(i), "general") for i in range(10)]
    seen = Counter(p.text for step in range(4000) for p in mix(pool, 3, 1, step, seed=0).prompts)
    assert max(seen.values()) - min(seen.values()) < 80  # 1200 each, of which 200 +- 13 fill


@settings(max_examples=300, deadline=None)
@given(
    copies=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    share=st.integers(1, 12),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_no_text_comes_twice_in_a_step_where_the_source_has_enough_texts(
    copies: list[int], share: int, epoch: int, seed: int
) -> None:
    pool = [Prompt(f"text {i}", "general", tag=str(copy)) for i, n in enumerate(copies) for copy in range(n)]
    steps = -(-len(pool) // share)
    drawn = [mix(pool, share, 2, epoch * steps + step, seed).prompts for step in range(steps)]
    assert {(p.text, p.tag) for batch in drawn for p in batch} == {(p.text, p.tag) for p in pool}
    assert all(len(batch) == share for batch in drawn)
    if len(copies) >= share and max(copies) <= steps:
        assert all(len({p.text for p in batch}) == share for batch in drawn)


def test_the_mix_is_a_function_of_seed_and_step_alone() -> None:
    pool = a_pool({"general": 50, "ocr": 50})
    later = mix(pool, 8, 2, 5, seed=0)
    assert later == mix(pool, 8, 2, 5, seed=0)
    assert later.prompts != mix(pool, 8, 2, 6, seed=0).prompts
    assert later.prompts != mix(pool, 8, 2, 5, seed=1).prompts
    alone = mix([p for p in pool if p.source == "ocr"], 4, 2, 5, seed=0)
    assert alone.prompts == tuple(p for p in later.prompts if p.source == "ocr")


def test_a_count_that_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(MarbleError, match="10 prompts a step cannot be mixed 1:1 over 3 sources"):
        mix(a_pool(dict.fromkeys(SOURCES, 4)), 10, 2, 0, seed=0)
