"""Intervals over seeds and prompts: what they cover, and what is paired."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from marble_core.evaluation.cell import Cell, as_array
from marble_core.evaluation.over_seeds import MEAN, diversity_change, gains, interval, leads, over_guidance, paired
from marble_core.types import MarbleError
from study_builders import NAMES, a_cell


@pytest.mark.parametrize(("of_seeds", "of_prompts", "seeds"), [(0.0, 1.0, 3), (0.1, 1.0, 3), (0.3, 0.0, 3), (0.1, 1.0, 5)])
def test_intervals_cover_the_truth_whether_seeds_or_prompts_vary_more(of_seeds: float, of_prompts: float, seeds: int) -> None:
    """Gains of seed s on prompt n are a_s + b_n + e_sn about a truth of 0."""
    texts, resamples, trials, covered = 96, 300, 400, 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        d_SN = (
            of_seeds * rng.normal(size=(seeds, 1)) + of_prompts * rng.normal(size=texts) + 0.5 * rng.normal(size=(seeds, texts))
        )
        drawn_UN = rng.multinomial(texts, np.full(texts, 1 / texts), size=resamples) / texts
        found = interval(d_SN.mean(axis=1), d_SN @ drawn_UN.T, texts)
        covered += found.low <= 0 <= found.high
    assert 0.90 <= covered / trials <= 0.99


def test_a_gain_is_the_mean_over_seeds_and_rewards_of_the_paired_difference_in_base_stds() -> None:
    cells = [a_cell("a", 0, 0.4), a_cell("a", 1, 0.8)]
    found = gains(cells, 4)
    want = []
    for cell in cells:
        for name in NAMES:
            base = [v for v in cell.base[name] if v is not None]
            trained = [v for v in cell.evaluations[4].trained[name] if v is not None]
            want.append((sum(trained) - sum(base)) / len(base) / np.std(base))
    assert found[MEAN].estimate.mean == pytest.approx(np.mean(want))
    assert list(found) == [MEAN, *NAMES] and list(found[MEAN].seeds) == [0, 1]
    assert found[MEAN].seeds[1] == pytest.approx(np.mean(want[3:]))


def test_two_arms_are_held_against_each_other_seed_by_seed() -> None:
    """What a seed does to both arms alike is not in the interval of their difference."""
    shifts = {0: -2.0, 1: 0.0, 2: 2.0}
    a = [a_cell("a", seed, 0.5 + shift) for seed, shift in shifts.items()]
    b = [a_cell("b", seed, 0.3 + shift) for seed, shift in shifts.items()]
    difference = paired(a, b[1:], 4)["clipscore"]
    assert list(difference.seeds) == [1, 2]
    std = np.nanstd(as_array(a[0].base["clipscore"]))
    assert difference.estimate.mean == pytest.approx(0.2 / std, abs=1e-3)
    assert difference.estimate.high - difference.estimate.low < 0.1, "what is left is what the unit is known by"
    apart = gains(a, 4)["clipscore"].estimate
    assert apart.high - apart.low > 2


def test_one_seed_has_the_interval_over_prompts() -> None:
    cell = a_cell("a", 0, 0.0)
    found = gains([cell], 4)["clipscore"].estimate
    base = as_array(cell.base["clipscore"])
    d = as_array(cell.evaluations[4].trained["clipscore"]) - base
    assert (found.high - found.low) / 2 == pytest.approx(2.0 * d.std() / np.sqrt(len(d)) / base.std(), rel=0.25)


def test_a_cell_is_the_same_after_it_was_written_and_what_is_none_is_refused(tmp_path: Path) -> None:
    cell = replace(a_cell("a", 3, 0.4), held_out=())
    cell.save(tmp_path / "cells" / "a" / "seed-3.json")
    assert Cell.load(tmp_path / "cells" / "a" / "seed-3.json") == cell
    assert [path.name for path in (tmp_path / "cells" / "a").iterdir()] == ["seed-3.json"]
    (tmp_path / "cut.json").write_bytes((tmp_path / "cells" / "a" / "seed-3.json").read_bytes()[:-50])
    with pytest.raises(MarbleError, match=r"cut.json is no cell of a study .*: remove it to have it made again.$"):
        Cell.load(tmp_path / "cut.json")


def with_roles(seed: int, gain: float, strength: float) -> Cell:
    """A cell with the base under guidance, .3 above the base, and a LoRA at half its strength; diversity falls to .4 and by more."""
    cell = a_cell("a", seed, gain)
    shifted = {n: tuple(None if v is None else v + 0.3 for v in column) for n, column in cell.base.items()}
    half = {n: tuple(None if v is None else v + strength for v in column) for n, column in cell.base.items()}
    distances = {"trained": (0.3 - 0.1 * seed,) * 10, "trained-s0.5": (0.45,) * 10}
    evaluation = replace(cell.evaluations[4], roles={"trained-s0.5": half}, distances=distances)
    return replace(
        cell,
        evaluations={**cell.evaluations, 4: evaluation},
        free_roles={"base-g2": shifted},
        varied=(0, 1, 2, 3, 4, 85, 86, 87, 88, 89),
        distances={"base": (0.5,) * 10, "base-g2": (0.4,) * 10},
    )


def test_further_roles_have_their_gains_over_seeds_and_what_no_training_changes_counts_once() -> None:
    cells = [with_roles(0, 0.4, 0.1), with_roles(1, 0.8, 0.2)]
    std = np.nanstd(as_array(cells[0].base["clipscore"]))
    half, free = gains(cells, 4, "trained-s0.5")["clipscore"], gains(cells, 4, "base-g2")["clipscore"]
    assert [half.seeds[s] for s in (0, 1)] == pytest.approx([0.1 / std, 0.2 / std])
    assert list(free.seeds) == [0] and free.estimate.mean == pytest.approx(0.3 / std)
    lead = leads(cells, 4, "trained", "base-g2")[MEAN]
    for seed in (0, 1):
        assert lead.seeds[seed] == pytest.approx(
            gains(cells, 4)[MEAN].seeds[seed] - gains(cells, 4, "base-g2")[MEAN].estimate.mean
        )
    assert gains(cells, 2, "trained-s0.5") == {} == gains([a_cell("a", 0, 0.4)], 4, "base-g2")


def test_the_change_of_diversity_is_relative_and_over_the_seeds() -> None:
    cells = [with_roles(0, 0.4, 0.1), with_roles(1, 0.8, 0.2)]
    trained, half, free, ahead = (
        diversity_change(cells, 4, *roles) for roles in (["trained"], ["trained-s0.5"], ["base-g2"], ["trained", "base-g2"])
    )
    assert trained is not None and half is not None and free is not None and ahead is not None
    assert trained.seeds == pytest.approx({0: -0.4, 1: -0.6}) and trained.estimate.mean == pytest.approx(-0.5)
    assert trained.estimate.low < -0.6 < -0.4 < trained.estimate.high, "two seeds that differ are no sure thing"
    assert half.estimate.mean == half.estimate.low == pytest.approx(-0.1)
    assert free.seeds == pytest.approx({0: -0.2}) and ahead.seeds == pytest.approx({0: -0.25, 1: -0.5})
    assert diversity_change([a_cell("a", 0, 0.4)], 4) is None


def test_at_equal_diversity_guidance_is_read_off_the_line_between_its_two_scales() -> None:
    """By hand: base, guided once and guided twice gain 0, 1, 4 of the base's std at diversity .3, .2, .1; the trained model gains 3."""
    cell = a_cell("a", 0, 3.0)

    def guided(gain: float) -> dict[str, tuple[float | None, ...]]:
        return {name: tuple(None if v is None else v + gain for v in column) for name, column in cell.base.items()}

    def as_diverse_as(trained: float) -> Cell:
        last = replace(cell.evaluations[4], distances={"trained": (trained,) * 4})
        apart = {"base": (0.3,) * 4, "base-g2": (0.2,) * 4, "base-g3": (0.1,) * 4}
        roles = {"base-g2": guided(1.0), "base-g3": guided(4.0)}
        return replace(cell, evaluations={4: last}, varied=(0, 1, 2, 3), free_roles=roles, distances=apart)

    for trained, guidance in ((0.25, 0.5), (0.2, 1.0), (0.125, 3.25), (0.05, 4.0), (0.4, 0.0), (0.3, 0.0), (0.1, 4.0)):
        ours = as_diverse_as(trained)
        over = over_guidance([ours], 4)[MEAN].estimate.mean
        assert over == pytest.approx(
            gains([ours], 4)[MEAN].estimate.mean - gains([ours], 4, "base-g2")[MEAN].estimate.mean * guidance, abs=1e-3
        )
    assert over_guidance([a_cell("a", 0, 0.4)], 4) == {}
