"""The evaluation's statistics on numbers that can be worked out by hand."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from marble_core.evaluation.results import Diversity, Estimate, Evaluation, RewardResult
from marble_core.evaluation.statistics import Bootstrap, alarms, compare, diversity, interval
from marble_core.types import Prompt, RewardTable

NAN = np.nan
PROMPTS = [
    Prompt(text, source) for text, source in (("a", "general"), ("a", "general"), ("b", "general"), ("a", "ocr"), ("c", "ocr"))
]


def test_a_resample_draws_each_sources_texts_as_often_as_there_are_with_all_their_images():
    counts_UN = Bootstrap(PROMPTS, 4000, seed=0).counts_UN
    assert (counts_UN[:, 0] == counts_UN[:, 1]).all(), "two images of one text of one source"
    assert (counts_UN[:, 0] + counts_UN[:, 2] == 2).all() and (counts_UN[:, 3] + counts_UN[:, 4] == 2).all()
    assert np.allclose(counts_UN.mean(0), 1, atol=0.05) and np.allclose(counts_UN.var(0), 0.5, atol=0.05)
    assert abs(np.corrcoef(counts_UN[:, 0], counts_UN[:, 3])[0, 1]) < 0.05, "sources are drawn apart"
    assert (Bootstrap(PROMPTS, 50, seed=0).counts_UN != Bootstrap(PROMPTS, 50, seed=1).counts_UN).any()


def test_a_result_is_of_the_prompts_that_the_reward_applies_to():
    base, trained = np.array([1.0, NAN, 3.0, 5.0, 7.0]), np.array([2.0, NAN, 3.0, 4.0, 9.0])
    found = Bootstrap(PROMPTS, 200, seed=0).result(base, trained)
    assert (found.n, found.base, found.trained, found.difference.mean) == (4, 4.0, 4.5, 0.5)
    assert found.base_std == pytest.approx(math.sqrt(5)) and found.win_rate == (2 + 0.5) / 4
    among = Bootstrap(PROMPTS, 200, seed=0).versus(base, trained, np.array([NAN, NAN, 1.0, 1.0, NAN]))
    assert (among.mean, among.difference.mean, among.win_rate) == (4.0, -0.5, 0.25)


@pytest.mark.parametrize("n", [2, 20, 100])
def test_the_tails_are_those_of_the_expanded_percentile_interval(n):
    """Of the source with fewest texts: sqrt(n / (n - 1)) times Student's quantile with n - 1 degrees of freedom, to second order."""
    prompts = [Prompt(str(i), "general") for i in range(n)] + [Prompt(str(i), "ocr") for i in range(200)]
    draws, normal = np.linspace(0, 1, 100001), NormalDist()
    student = 1.959964 + (1.959964**3 + 1.959964) / (4 * (n - 1))
    tail = normal.cdf(-math.sqrt(n / (n - 1)) * student)
    found = Bootstrap(prompts, 100, seed=0)._estimate(0.5, draws, np.ones(len(prompts), bool))
    assert (found.mean, found.low, found.high) == (0.5, pytest.approx(tail, abs=1e-5), pytest.approx(1 - tail, abs=1e-5))
    of_ocr = Bootstrap(prompts, 100, seed=0)._estimate(0.5, draws, np.array([p.source == "ocr" for p in prompts]))
    assert of_ocr.low == pytest.approx(normal.cdf(-math.sqrt(200 / 199) * (1.959964 + 9.489 / 796)), abs=1e-5)


def test_a_single_text_has_the_tails_of_two_degrees_less_than_none():
    one = Bootstrap([Prompt("a", "general")] * 3, 100, seed=0)
    tail = NormalDist().cdf(-(1.959964 + (1.959964**3 + 1.959964) / 4))
    assert one._estimate(0.0, np.linspace(0, 1, 100001), np.ones(3, bool)).low == pytest.approx(tail, abs=1e-5)


def test_the_mean_gain_is_in_stds_of_the_base_and_leaves_out_a_base_without_spread():
    b, flat = np.array([1.0, 3.0, 5.0, 7.0, 9.0]), np.full(5, 2.0)
    d = np.array([1.0, 0.0, 1.0, 2.0, 1.0])
    found = Bootstrap(PROMPTS, 2000, seed=0)
    assert found.mean_gain([(d, b), (d, flat)]).mean == pytest.approx(1 / math.sqrt(8))
    assert found.mean_gain([(d, b), (3 * d, b)]).mean == pytest.approx(2 / math.sqrt(8))
    assert found.mean_gain([(d, flat)]) == Estimate(0.0, 0.0, 0.0)
    counts, centred = found.counts_UN, b - 5
    each = [(c @ d / c.sum()) / math.sqrt(max(c @ centred**2 / c.sum() - (c @ centred / c.sum()) ** 2, 2.0)) for c in counts]
    assert np.allclose(found.gains(d, b), each), "a resample's own std, but at least half the base's"


def test_the_change_of_diversity_is_relative_and_paired():
    b, t = np.array([2.0, 4.0, 2.0, 4.0, 8.0]), np.array([1.0, 2.0, 1.0, 2.0, 4.0])
    found = Bootstrap(PROMPTS, 200, seed=0)
    assert found.change(b, t) == Estimate(-0.5, -0.5, -0.5)
    assert found.change(0 * b, t) == Estimate(0.0, 0.0, 0.0)
    whole = diversity({"base": b, "trained": t, "champion": 3 * b}, PROMPTS, 4, 200, 0)
    half = Estimate(-0.5, -0.5, -0.5)
    general, ocr = Diversity(3, 4, 8 / 3, 4 / 3, half, 8.0), Diversity(2, 4, 6.0, 3.0, half, 18.0)
    assert whole == Diversity(5, 4, 4.0, 2.0, half, 12.0, {"general": general, "ocr": ocr})
    assert diversity({"base": b, "trained": t}, PROMPTS, 4, 200, 0).champion is None


def evaluation(trained, held_out, change):
    """Of rewards with these ends of their intervals."""

    def result(low, high):
        return RewardResult(50, 0.0, 0.0, Estimate((low + high) / 2, low, high), 1.0, 0.5)

    of = Diversity(5, 4, 1.0, 1.0, Estimate(change, change, change)) if change is not None else None
    return Evaluation({"r": result(*trained)}, {}, Estimate(0, 0, 0), (), (), held_out={"h": result(*held_out)}, diversity=of)


@pytest.mark.parametrize(
    ("trained", "held_out", "change", "kinds"),
    [
        ((0.1, 0.2), (-0.2, -0.1), None, ["reward hacking"]),
        ((-0.1, 0.2), (-0.2, -0.1), None, []),
        ((0.1, 0.2), (-0.2, 0.1), None, []),
        ((0.0, 0.2), (-0.2, -0.1), None, []),
        ((0.1, 0.2), (-0.2, 0.0), None, []),
        ((-0.1, 0.2), (0.1, 0.2), -0.21, ["mode collapse"]),
        ((-0.1, 0.2), (0.1, 0.2), -0.55, ["mode collapse"]),
        ((-0.1, 0.2), (0.1, 0.2), -0.2, []),
        ((-0.1, 0.2), (0.1, 0.2), 0.3, []),
    ],
)
def test_an_alarm_needs_a_whole_interval(trained, held_out, change, kinds):
    found = alarms(evaluation(trained, held_out, change))
    assert [alarm.kind for alarm in found] == kinds
    if kinds == ["mode collapse"]:
        percent = {-0.21: "-21", -0.55: "-55"}[change]
        assert f"{percent} ({percent} to {percent}) percent" in found[0].text


def test_an_interval_is_printed_with_signs():
    assert interval(Estimate(0.1234, -0.05, 0.2)) == "+0.123 (-0.050 to +0.200)"
    assert interval(Estimate(0.1234, -0.05, 0.2), 1) == "+0.1 (-0.1 to +0.2)"


@pytest.mark.parametrize(("n", "noted"), [(19, True), (20, False)])
def test_fewer_than_twenty_prompts_are_noted(n, noted):
    prompts = [Prompt(str(i), "general") for i in range(n)]
    base = RewardTable(("r",), np.arange(n, dtype=float)[:, None])
    notes = compare(base, RewardTable(("r",), base.R_NK + 1), prompts, 100, 0).notes
    assert notes == (("r rests on only 19 prompts: do not rely on its interval.",) if noted else ())


def test_held_out_rewards_and_side_values_are_compared_and_do_not_enter_the_mean_gain():
    prompts = [Prompt(str(i), "general") for i in range(30)]
    b = np.arange(60, dtype=float).reshape(30, 2)
    side = {"r/x": np.arange(30.0)}
    base, trained = (
        RewardTable(("r", "h"), b, side),
        RewardTable(("r", "h"), b + np.array([1.0, -2.0]), {"r/x": np.arange(30.0) + 3}),
    )
    found = compare(base, trained, prompts, 100, 0, held_out=["h"])
    assert list(found.rewards) == ["r"] and list(found.held_out) == ["h"] and list(found.side) == ["r/x"]
    assert found.held_out["h"].difference.mean == -2 and found.side["r/x"].difference.mean == 3
    assert found.mean_gain.mean == pytest.approx(1 / b[:, 0].std())


def test_rewards_rise_together_where_each_that_applies_is_above_the_base():
    prompts = [Prompt(str(i), "general") for i in range(7)]
    one = np.array([1.0, 3.0, 1.0, 1.0, 0.0, -1.0, NAN])
    two = np.array(
        [2.0, NAN, 0.0, -1.0, 0.0, NAN, NAN]
    )  # both, alone, a tie, against each other, nothing, falls alone, none applies
    found = Bootstrap(prompts, 2000, seed=0).together([one, two])
    assert (found.all_rise.mean, found.none_falls.mean) == (2 / 6, 3 / 6)
    assert found.all_rise.low == 0 and 0.4 < found.all_rise.high <= 1
