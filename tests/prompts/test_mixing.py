"""The mix of an optimizer step."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marble_core.config.loading import load_config
from marble_core.config.shares import check_divides, counts_of
from marble_core.prompts import mix
from marble_core.prompts.dataset import prepare_data
from marble_core.types import SOURCES, MarbleError, Prompt


def a_pool(sizes: dict[str, int]) -> list[Prompt]:
    return [Prompt(f"{source} {i}", source) for source, n in sizes.items() for i in range(n)]


class Walked(tuple[Prompt, ...]):
    """Counts how often somebody goes through it."""

    times = 0

    def __iter__(self) -> Iterator[Prompt]:
        self.times += 1
        return super().__iter__()


def test_a_run_walks_through_its_prompts_once_and_not_at_each_step() -> None:
    pool = Walked(a_pool({"general": 700, "ocr": 500}))
    steps = [mix(pool, 12, 8, step, seed=1) for step in range(100)]
    assert pool.times == 1
    assert steps == [mix(list(pool), 12, 8, step, seed=1) for step in range(100)], "the same as of prompts that may change"
    assert mix(pool, 12, 8, 3, seed=2) == mix(list(pool), 12, 8, 3, seed=2)


def test_a_list_that_grows_between_two_steps_is_read_anew() -> None:
    pool = a_pool({"general": 4})
    mix(pool, 4, 1, 0, seed=0)
    pool.append(Prompt("new", "general"))
    assert "new" in {p.text for step in range(2) for p in mix(pool, 4, 1, step, seed=0).prompts}


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
    pool = [Prompt(f"text {i}", "general", {"tag": str(copy)}) for i, n in enumerate(copies) for copy in range(n)]
    steps = -(-len(pool) // share)
    drawn = [mix(pool, share, 2, epoch * steps + step, seed).prompts for step in range(steps)]
    assert {(p.text, p.metadata.get("tag")) for batch in drawn for p in batch} == {
        (p.text, p.metadata.get("tag")) for p in pool
    }
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
    with pytest.raises(MarbleError, match="2 prompts a step cannot be mixed over 3 sources"):
        mix(a_pool(dict.fromkeys(SOURCES, 4)), 2, 2, 0, seed=0)
    with pytest.raises(MarbleError, match=r"10 cannot be mixed 1:1:2 over 3 sources \(a, b, c\), the nearest is 8"):
        check_divides(("a", "b", "c"), {"c": 2}, 10)


@settings(max_examples=300, deadline=None)
@given(shares=st.lists(st.integers(1, 50), min_size=1, max_size=6), extra=st.integers(0, 40))
def test_of_fewer_sources_than_configured_each_has_the_nearest_whole_number(shares: list[int], extra: int) -> None:
    """A step has those that its rewards apply to, and their shares need not divide it."""
    count, names = len(shares) + extra, [f"s{i}" for i in range(len(shares))]
    found = counts_of(names, dict(zip(names, shares, strict=True)), count)
    assert sum(found.values()) == count and min(found.values()) >= 1
    exact = [share * count / sum(shares) for share in shares]
    if min(exact) >= 1:
        assert all(abs(n - e) < 1 for n, e in zip(found.values(), exact, strict=True))


def test_shares_give_each_source_its_part_of_every_step_spread_over_it() -> None:
    pool = a_pool({"general": 30, "poems": 30, "ocr": 30})
    batch = mix(pool, 12, 2, 4, seed=0, shares={"poems": 2, "ocr": 0.5, "general": 0.5})
    assert Counter(p.source for p in batch.prompts) == {"poems": 8, "ocr": 2, "general": 2}
    halves = [Counter(p.source for p in half) for half in (batch.prompts[:6], batch.prompts[6:])]
    assert halves == [{"poems": 4, "ocr": 1, "general": 1}] * 2


def test_a_source_of_any_name_is_gone_through_like_the_others_whatever_stands_beside_it() -> None:
    pool = a_pool({"zebras": 5, "general": 4, "ants": 6})
    batch = mix(pool, 6, 2, 3, seed=0)
    assert [p.source for p in batch.prompts] == ["general", "ants", "zebras"] * 2
    again = mix(a_pool({"ants": 6, "general": 4, "zebras": 5}), 6, 2, 3, seed=0)
    assert again == batch, "the order of the sources in the file is no matter"
    shared = mix(pool, 8, 2, 3, seed=0, shares={"general": 2})
    drawn = {s: tuple(p for p in shared.prompts if p.source == s) for s in ("ants", "zebras")}
    assert drawn == {s: tuple(p for p in batch.prompts if p.source == s) for s in ("ants", "zebras")}


def test_equal_sources_are_mixed_to_the_prompt_as_before_there_were_shares() -> None:
    """The digest was taken of the code that knew three sources and no shares: 150 steps of the demo's prompts."""
    config = load_config("demo")
    data = prepare_data(config)
    digest = hashlib.sha256()
    for prompt in data.train + data.evaluation:
        digest.update(f"{prompt.source}\t{prompt.text}\n".encode())
    for step in range(150):
        for prompt in mix(data.train, config.rollout.prompts, 8, step, config.seed, config.data.shares).prompts:
            digest.update(f"{prompt.source}\t{prompt.text}\n".encode())
    assert digest.hexdigest() == "cbaa1af832a9b0b80b02e59733c46dd0bea8d885355a8766157ab6d711426d80"
