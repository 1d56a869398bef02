"""Alarms are raised by what they name and by nothing else; the record reads back as it was."""

from pathlib import Path

import numpy as np
import pytest

from marble_core.config.watch import WatchConfig
from marble_core.evaluation.watch import Look, Record, compare_look
from marble_core.types import MarbleError, Prompt

PROMPTS = [Prompt(f"{source} {i}", source) for source in ("general", "ocr", "geneval") for i in range(16)]
M = len(PROMPTS)
REWARDS = ("clipscore", "pickscore", "aesthetic", "ocr", "geneval")


def base(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = {f"reward/{name}": rng.normal(size=M) for name in REWARDS}
    columns["reward/ocr"] = np.where([p.source == "ocr" for p in PROMPTS], columns["reward/ocr"], np.nan)
    columns |= {f"ties/{name}": (rng.random(M) < 0.2).astype(float) for name in REWARDS}
    columns |= {name: rng.normal(3, 0.5, M) for name in ("edge_density", "colour_entropy", "dark_share", "latent_norm")}
    return columns | {"diversity": rng.uniform(0.2, 0.4, M)}


WIDE = WatchConfig(range=0.25)


def look(shift: dict[str, float], config: WatchConfig = WIDE, seed: int = 0, step: int = 8) -> Look:
    """Every column moves by paired noise of .3 of its std, and those of ``shift`` by so many stds besides."""
    before, noise = base(seed), np.random.default_rng(seed + 1000)
    now = {n: c + np.nanstd(c) * (shift.get(n, 0.0) + noise.normal(0, 0.3, M)) for n, c in before.items()}
    return compare_look(step, "x", before, now, PROMPTS, config, 300, 0)


def kinds(found: Look) -> list[str]:
    return [alarm.kind for alarm in found.alarms]


def test_a_witness_out_of_its_range_while_a_reward_rose_is_hacking_and_without_a_rise_damage() -> None:
    for name in ("edge_density", "colour_entropy"):
        for change in (-0.8, 0.8):
            (alarm,) = look({name: change, "reward/aesthetic": 0.5}).alarms
            assert alarm.kind == "reward hacking" and name in alarm.text and "aesthetic" in alarm.text
    lone = {f"reward/{name}": -0.05 for name in REWARDS}
    assert kinds(look({"colour_entropy": -0.8, **lone})) == ["damage"]
    assert look({"colour_entropy": -0.8, **lone}).hacked


def test_a_trusted_reward_that_fell_is_hacking_and_one_that_is_not_trusted_is_not() -> None:
    fell = {"reward/clipscore": -0.5, "reward/geneval": 0.5}
    (alarm,) = look(fell).alarms
    assert alarm.kind == "reward hacking" and "clipscore fell" in alarm.text
    assert kinds(look(fell, WatchConfig(range=0.25, trusted=("pickscore", "aesthetic")))) == []


def test_loss_of_diversity_is_told_apart_from_hacking() -> None:
    found = look({"diversity": -2.0, "reward/aesthetic": 0.5})
    assert kinds(found) == ["mode collapse"] and not found.hacked
    both = look({"diversity": -2.0, "colour_entropy": -0.8, "reward/aesthetic": 0.5})
    assert kinds(both) == ["reward hacking", "mode collapse"] and both.hacked


def test_witnesses_that_move_under_any_training_are_recorded_and_raise_nothing_unless_they_are_named() -> None:
    moved = {"dark_share": -0.8, "latent_norm": 0.8, "ties/ocr": 3.0, "reward/aesthetic": 0.5}
    found = look(moved)
    assert kinds(found) == [] and found.witnesses["dark_share"].difference.high < 0
    assert kinds(look(moved, WatchConfig(range=0.25, witnesses=("latent_norm",)))) == ["reward hacking"]


def test_noise_and_a_change_within_the_range_raise_none() -> None:
    assert sum(look({}, seed=seed).hacked for seed in range(60)) <= 4
    inside = {"colour_entropy": -0.2, "edge_density": 0.2, "reward/aesthetic": 0.5}
    assert sum(look(inside, seed=seed).hacked for seed in range(40)) <= 3


def test_the_falls_of_many_rewards_share_one_error() -> None:
    """A fall that is shown when it is the only one asked for is not, where it is one of five."""
    lone, shared = WatchConfig(range=0.25, trusted=("aesthetic",)), WIDE
    shift = {"reward/aesthetic": -0.11}
    counts = [sum(look(shift, config, seed).hacked for seed in range(40)) for config in (lone, shared)]
    assert counts[0] > counts[1] + 4, counts


def test_a_look_gives_gains_in_the_bases_standard_deviations() -> None:
    before = base()
    now = {name: column + np.nanstd(column) * 0.5 for name, column in before.items()}
    found = compare_look(8, "x", before, now, PROMPTS, WatchConfig(), 300, 0).metrics()
    assert found["watch/mean_gain"] == pytest.approx(0.5) and found["watch/gain/ocr"] == pytest.approx(0.5)
    assert found["watch/colour_entropy"] == pytest.approx(0.5) and found["watch/alarm"] == 1.0
    assert found["watch/diversity"] == pytest.approx(0.5 * before["diversity"].std() / before["diversity"].mean())


def test_the_record_reads_back_as_it_was_written_and_tells_what_is_none(tmp_path: Path) -> None:
    hacked = {"colour_entropy": -0.8, "reward/aesthetic": 0.9}
    looks = [look({"reward/aesthetic": 0.3}, step=8), look({}, step=16), look(hacked, step=24)]
    record = Record(looks, "x", base())
    record.save(tmp_path / "watch.jsonl")
    again = Record.load(tmp_path / "watch.jsonl")
    assert again.looks == record.looks and again.of == "x"
    assert all(np.array_equal(again.base[n], c, equal_nan=True) for n, c in record.base.items())
    again.save(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "watch.jsonl").read_bytes()
    assert Record.load(tmp_path / "nothing.jsonl").looks == []
    (tmp_path / "watch.jsonl").write_text('{"format": 1, "step": 3}\n')
    with pytest.raises(MarbleError, match=r"line 1, is no look .*: remove the file"):
        Record.load(tmp_path / "watch.jsonl")


def test_the_best_look_has_the_largest_mean_gain_and_no_alarm_and_the_end_is_before_the_first_alarm() -> None:
    hacked = {"colour_entropy": -0.8, **{f"reward/{name}": 0.9 for name in REWARDS}}
    record = Record([look({"reward/aesthetic": 0.5}, step=8), look({}, step=16), look(hacked, step=24)], "x")
    best, first = record.best(), record.first_alarm
    assert best and best.step == 8 and first and first.step == 24 and record.before_alarm() == 16
    assert Record([look(hacked, step=8)], "x").best() is None and Record([look(hacked, step=8)], "x").before_alarm() == 0
    assert Record([look({}, step=8)], "another").best() is None, "a look at other prompts cannot be compared"
