"""The paired comparison: what is paired, what an interval covers, and what is said about rewards without data."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from marble_core.config.loading import load_config
from marble_core.config.schema import RegistryConfig
from marble_core.evaluation.evaluator import mean_distances
from marble_core.evaluation.gate import decide
from marble_core.evaluation.results import Alarm, Estimate, Evaluation, Incumbent
from marble_core.evaluation.run import loaded, run_evaluation
from marble_core.evaluation.statistics import Bootstrap, alarms, compare, diversity
from marble_core.types import SOURCES, MarbleError, Prompt, RewardTable

NAMES = ("clipscore", "ocr")


def held_out(n: int) -> list[Prompt]:
    return [Prompt(f"{source} {i}", source) for source in SOURCES for i in range(n)]


def tables(
    prompts: list[Prompt], rng: np.random.Generator, gain: float = 0.1, noise: float = 0.5
) -> tuple[RewardTable, RewardTable]:
    """Base rewards of std 1 with a shift a source; ocr applies to its own source only. The true gain is ``gain`` stds."""
    shift = {s: i - 1.0 for i, s in enumerate(SOURCES)}
    base = rng.normal(size=(len(prompts), 2))
    base[:, 0] += [shift[p.source] for p in prompts]
    base[[p.source != "ocr" for p in prompts], 1] = np.nan
    scale = np.array([np.sqrt(1 + 2 / 3), 1.0])
    trained = base + gain * scale + noise * rng.normal(size=base.shape)
    return RewardTable(NAMES, base), RewardTable(NAMES, trained)


def test_intervals_cover_the_truth_in_93_to_97_of_100_comparisons() -> None:
    """Of differences to base and champion (a tenth of a std below trained), and of the mean gain over either."""
    prompts, covered = held_out(40), np.zeros(6)
    scale, trials = np.array([np.sqrt(1 + 2 / 3), 1.0]), 1000
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        base, trained = tables(prompts, rng)
        champion = RewardTable(NAMES, trained.R_NK - 0.1 * scale + 0.5 * rng.normal(size=trained.R_NK.shape))
        e = compare(base, trained, prompts, 300, trial, champion)
        assert e.champion is not None
        found = [e.rewards[n].difference for n in NAMES] + [e.champion.rewards[n].difference for n in NAMES]
        found = [*found, e.mean_gain, e.champion.mean_gain]
        covered += [d.low <= true <= d.high for d, true in zip(found, (*0.1 * scale, *0.1 * scale, 0.1, 0.1), strict=True)]
    assert ((0.93 * trials <= covered) & (covered <= 0.97 * trials)).all(), covered / trials


@pytest.mark.parametrize(
    ("n", "draw"),
    [
        (20, lambda rng: rng.normal(size=20)),
        (20, lambda rng: rng.choice([-1, 0, 1], p=[0.1, 0.7, 0.2], size=20) - 0.1),
        (40, lambda rng: rng.exponential(size=40) - 1),
    ],
    ids=["twenty prompts", "wins and losses among ties, twenty prompts", "an exponential tail, forty prompts"],
)
def test_intervals_cover_the_truth_with_few_prompts_and_skewed_differences(
    n: int, draw: Callable[[np.random.Generator], np.ndarray]
) -> None:
    prompts, covered = [Prompt(f"general {i}", "general") for i in range(n)], 0
    for trial in range(1000):
        rng = np.random.default_rng(trial)
        base = rng.normal(size=n)
        d = Bootstrap(prompts, 500, trial).versus(base, base + draw(rng)).difference
        covered += d.low <= 0 <= d.high
    assert 930 <= covered <= 970


def test_the_numbers_are_the_plain_paired_statistics() -> None:
    prompts = held_out(40)
    base, trained = tables(prompts, np.random.default_rng(0))
    e = compare(base, trained, prompts, resamples=500, seed=0)
    ocr = np.array([p.source == "ocr" for p in prompts])
    b, t = base.R_NK[ocr, 1], trained.R_NK[ocr, 1]
    r = e.rewards["ocr"]
    assert r.n == 40
    np.testing.assert_allclose([r.base, r.trained, r.difference.mean], [b.mean(), t.mean(), (t - b).mean()])
    np.testing.assert_allclose([r.base_std, r.win_rate], [b.std(), (t > b).mean()])
    gains = [x.difference.mean / x.base_std for x in e.rewards.values()]
    assert e.mean_gain.mean == pytest.approx(np.mean(gains))
    rise_NK = trained.R_NK > base.R_NK
    assert e.together and e.together.all_rise.mean == pytest.approx((rise_NK[:, 0] & (rise_NK[:, 1] | ~ocr)).mean())
    assert e.by_source["ocr"]["ocr"] == r and "ocr" not in e.by_source["general"]


def test_pairing_makes_a_small_gain_visible_that_independent_samples_would_hide() -> None:
    prompts = held_out(40)
    base, trained = tables(prompts, np.random.default_rng(0), gain=0.1, noise=0.02)
    shuffled = RewardTable(NAMES, trained.R_NK.copy())
    for source in SOURCES:
        own = np.flatnonzero([p.source == source for p in prompts])
        shuffled.R_NK[own] = shuffled.R_NK[np.random.default_rng(1).permutation(own)]
    assert compare(base, trained, prompts, 500, 0).mean_gain.low > 0.08
    assert compare(base, shuffled, prompts, 500, 0).mean_gain.low < 0


def test_a_resample_draws_prompts_within_their_source() -> None:
    prompts = held_out(30)
    shift = np.array([[10.0 * SOURCES.index(p.source)] for p in prompts])
    base = RewardTable(("r",), np.random.default_rng(0).normal(size=(90, 1)))
    between_sources_only = RewardTable(("r",), base.R_NK + shift)
    d = compare(base, between_sources_only, prompts, 500, 0).rewards["r"].difference
    assert d.low == pytest.approx(d.mean) and d.high == pytest.approx(d.mean)


def test_one_resample_serves_all_rewards_so_opposite_moves_cancel_in_the_mean_gain() -> None:
    prompts = held_out(30)
    rng = np.random.default_rng(0)
    b, d = rng.normal(size=90), rng.normal(size=90)
    e = compare(RewardTable(NAMES, np.stack([b, b], 1)), RewardTable(NAMES, np.stack([b + d, b - d], 1)), prompts, 500, 0)
    assert e.rewards["clipscore"].difference.high - e.rewards["clipscore"].difference.low > 0.2
    assert abs(e.mean_gain.low) < 1e-9 and abs(e.mean_gain.high) < 1e-9


def test_rewards_do_not_depend_on_their_scale() -> None:
    prompts = held_out(30)
    base, trained = tables(prompts, np.random.default_rng(0))
    thousand = np.array([1000.0, 1.0])
    scaled = [RewardTable(NAMES, t.R_NK * thousand) for t in (base, trained)]
    a, b = compare(base, trained, prompts, 300, 0).mean_gain, compare(*scaled, prompts, 300, 0).mean_gain
    np.testing.assert_allclose([a.mean, a.low, a.high], [b.mean, b.low, b.high])


def test_a_reward_that_applies_to_no_prompt_is_named_and_the_others_are_compared() -> None:
    prompts = [p for p in held_out(30) if p.source != "ocr"]
    base, trained = tables(prompts, np.random.default_rng(0))
    e = compare(base, trained, prompts, 200, 0)
    assert e.missing == ("ocr",) and list(e.rewards) == ["clipscore"]
    assert "ocr applies to no held-out prompt" in e.notes[0]
    nothing = RewardTable(("ocr",), np.full((60, 1), np.nan))
    with pytest.raises(MarbleError, match="No reward applies"):
        compare(nothing, nothing, prompts, 200, 0)


def test_a_constant_base_few_prompts_and_a_lora_that_does_nothing_are_noted() -> None:
    prompts = held_out(5)
    flat = RewardTable(("ocr",), np.zeros((15, 1)))
    e = compare(flat, flat, prompts, 200, 0)
    assert e.mean_gain.low == e.mean_gain.high == 0
    assert [any(word in note for note in e.notes) for word in ("only 15 prompts", "same on every prompt", "does nothing")] == [
        True
    ] * 3


def test_pairof_different_prompts_or_with_other_masks_are_a_bug() -> None:
    prompts = held_out(10)
    base, trained = tables(prompts, np.random.default_rng(0))
    holed = trained.R_NK.copy()
    holed[0, 0] = np.nan
    for wrong in (RewardTable(NAMES, holed), RewardTable(NAMES, trained.R_NK[1:]), RewardTable(("a", "b"), trained.R_NK)):
        for pair in ((base, wrong), (wrong, base)):
            with pytest.raises(ValueError, match="base"):
                compare(*pair, prompts, 100, 0)


def test_an_evaluation_survives_its_file_with_its_settings(tmp_path: Path) -> None:
    prompts = held_out(10)
    b, t = tables(prompts, np.random.default_rng(0))
    e = replace(compare(b, t, prompts, 100, 0, b, ["ocr"]), settings={"solver": "euler"}, alarms=(Alarm("mode collapse", "x"),))
    e.save(tmp_path / "evaluation.json")
    assert Evaluation.load(tmp_path / "evaluation.json") == e
    (tmp_path / "broken.json").write_text('{"rewards": 3}')
    with pytest.raises(MarbleError, match="is not an evaluation"):
        Evaluation.load(tmp_path / "broken.json")
    with pytest.raises(MarbleError, match="cannot be read"):
        Evaluation.load(tmp_path / "none.json")


def test_the_gate_reads_an_evaluation_without_torch() -> None:
    code = "import sys, marble_core.evaluation.results, marble_core.tracking.registry; sys.exit(bool({'torch', 'mlflow', 'pandas', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_base_and_trained_draw_the_same_prompts_from_the_same_noise(tmp_path: Path) -> None:
    """A LoRA that is zero gives the base's images to the bit; another one gives others, and the base's again."""
    import torch

    from marble_core.models.policy import Policy

    overrides = ["evaluation.steps=2", "evaluation.batch_size=2", "evaluation.resamples=100", "lora.rank=2"]
    config = load_config("demo", overrides=overrides)
    config = config.model_copy(update={"rewards": tuple(r for r in config.rewards if r.name == "geneval")})
    square = {"class": "square", "count": 1, "color": "red"}
    prompts = [Prompt("a red square", "geneval", {"tag": "colors", "include": [square]}) for _ in range(3)]

    policy = Policy.load(config)
    policy.add_trainable(config)
    pictures: dict[str, list[bytes]] = {}
    for name, scale in (("zero", 0.0), ("other", 0.2)):
        weights = {n: torch.full_like(p, scale) if "lora_B" in n else p for n, p in policy.parameters_of("default").items()}
        policy.save_adapter(tmp_path / name, weights)
        found = run_evaluation(config, prompts, tmp_path / name, tmp_path / name)
        assert Evaluation.load(tmp_path / name / "evaluation.json") == found
        assert found.settings["prompts"] == {"geneval": 3} and found.settings["steps"] == 2
        rows = [json.loads(line) for line in (tmp_path / name / "images" / "scores.jsonl").read_text().splitlines()]
        assert [set(row["trained"]) for row in rows] == [{"geneval"}] * 3
        assert len({row["noise_seed"] for row in rows}) == 3
        for role in ("base", "trained"):
            pictures[f"{name} {role}"] = [(tmp_path / name / "images" / row["pictures"][role]).read_bytes() for row in rows]
    assert pictures["zero base"] == pictures["zero trained"] == pictures["other base"] != pictures["other trained"]
    assert len(set(pictures["zero base"])) == 3, "the same prompt was drawn from the same noise twice"


def test_asking_the_same_prompts_four_times_does_not_make_the_interval_narrower() -> None:
    prompts = held_out(40)
    base, trained = tables(prompts, np.random.default_rng(5))
    base4, trained4 = (RewardTable(NAMES, np.tile(table.R_NK, (4, 1))) for table in (base, trained))
    once, often = compare(base, trained, prompts, 2000, 0), compare(base4, trained4, prompts * 4, 2000, 0)
    for name in NAMES:
        one, other = once.rewards[name].difference, often.rewards[name].difference
        assert other.high - other.low == pytest.approx(one.high - one.low, rel=0.05)


def test_a_base_that_is_constant_but_for_rounding_has_no_unit_and_no_gain() -> None:
    prompts = [Prompt(f"general {i}", "general") for i in range(96)]
    base = np.stack([np.full(96, 0.7), np.random.default_rng(0).normal(size=96)], axis=1)
    done = compare(RewardTable(NAMES, base), RewardTable(NAMES, base + np.array([1e-6, -0.05])), prompts, 500, 0)
    assert done.rewards["clipscore"].base_std == 0 and done.mean_gain.mean < 0


def test_side_values_are_compared_as_rewards_are_and_neither_gain_nor_gate_knows_of_them() -> None:
    prompts = held_out(30)
    base, trained = tables(prompts, np.random.default_rng(0))
    plain = compare(base, trained, prompts, 500, 0)
    worse = {"ocr/whole_text": base.R_NK[:, 1], "ocr/never": np.full(len(prompts), np.nan)}
    beside = [replace(base, side=worse), replace(trained, side=worse | {"ocr/whole_text": base.R_NK[:, 1] - 9})]
    e = compare(*beside, prompts, 500, 0)
    assert list(e.side) == ["ocr/whole_text"] and e.side["ocr/whole_text"].n == 30
    assert e.side["ocr/whole_text"].difference.high == pytest.approx(-9)
    assert replace(e, side={}) == plain and decide(e, RegistryConfig()) == decide(plain, RegistryConfig())
    same = compare(
        replace(base, side={"ocr/x": base.R_NK[:, 1]}), replace(trained, side={"ocr/x": trained.R_NK[:, 1]}), prompts, 500, 0
    )
    assert same.side["ocr/x"] == same.rewards["ocr"]


def test_a_reward_that_was_not_trained_on_is_beside_the_gain_and_falls_with_an_alarm() -> None:
    prompts = held_out(30)
    base, trained = tables(prompts, np.random.default_rng(0), gain=0.5, noise=0.1)
    fell = RewardTable(NAMES, trained.R_NK - np.array([3.0, 0.0]))
    e = compare(base, fell, prompts, 500, 0, held_out=["clipscore"])
    assert list(e.rewards) == ["ocr"] and list(e.held_out) == ["clipscore"] and e.mean_gain.mean > 0
    (alarm,) = alarms(e)
    assert alarm.kind == "reward hacking" and alarm.text.startswith("clipscore, which was not trained on, fell by -2.")
    assert "while what was trained on rose: ocr +0.5" in alarm.text
    for harmless in (compare(base, trained, prompts, 500, 0, held_out=["clipscore"]), compare(base, fell, prompts, 500, 0)):
        assert alarms(harmless) == ()


def test_pictures_that_become_alike_are_an_alarm_and_a_little_less_diversity_is_none() -> None:
    prompts, rng = held_out(8), np.random.default_rng(0)
    e = compare(*tables(prompts, rng), prompts, 100, 0)
    base = rng.uniform(0.3, 0.5, size=24)
    for factor, kinds in ((0.5, ["mode collapse"]), (0.9, []), (1.5, [])):
        d = diversity({"base": base, "trained": factor * base + rng.normal(0, 0.01, 24)}, prompts, 4, 500, 0)
        assert d.change.low <= factor - 1 <= d.change.high and d.prompts == 24
        assert [alarm.kind for alarm in alarms(replace(e, diversity=d))] == kinds
    assert (
        "their diversity changed by -50 ("
        in alarms(replace(e, diversity=replace(d, change=Estimate(-0.5, -0.6, -0.4))))[0].text
    )


def test_the_mean_distance_is_that_of_all_pairs_and_none_of_equal_pictures() -> None:
    features = np.random.default_rng(0).normal(size=(3, 4, 7))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    pairs = [[1 - a @ b for a, b in combinations(group, 2)] for group in features]
    np.testing.assert_allclose(mean_distances(features), np.mean(pairs, axis=1))
    assert mean_distances(np.repeat(features[:, :1], 4, axis=1)).max() < 1e-12


def test_a_champion_that_does_not_fit_the_base_is_left_out_with_a_sentence(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from marble_core.models.policy import Policy

    layer = "transformer.transformer_blocks.0.attn.to_q.lora_{}.weight"
    save_file(
        {layer.format("A"): torch.zeros(4, 7), layer.format("B"): torch.zeros(7, 4)},
        tmp_path / "pytorch_lora_weights.safetensors",
    )
    policy = Policy.load(load_config("demo"))
    left_out = loaded(policy, Incumbent("3", tmp_path))
    assert left_out.adapter is None and left_out.version == "3"
    assert re.match(r"The champion, version 3, is not compared with: The LoRA .* is another model's", left_out.absent)
