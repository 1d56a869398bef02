"""An image without a value takes no part in its reward's statistics, nor in its gradient: docs/algorithm.md, sections 2 and 3."""

import numpy as np
import pytest

from builders import PROMPTS
from marble_core.algorithm.advantages import estimate
from marble_core.algorithm.backward import mean_row, reward_rows
from marble_core.algorithm.diagnostics import no_signal, unusable_rewards, without_value
from marble_core.algorithm.metrics import coverage_metrics
from marble_core.config.schema import RewardConfig
from marble_core.types import Prompt, PromptBatch, RewardTable

NAN = np.nan
GROUPS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
R = np.array([[1.0, 10], [2, 20], [4, 20], [9, 50], [3, 10], [5, 30], [6, NAN], [8, NAN]])  # the second applies to six images
LOST = [(2, 0), (3, 1), (5, 0)]  # of these (image, reward) there is no value


def lacking(lost=LOST):
    values = R.copy()
    for i, k in lost:
        values[i, k] = NAN
    return RewardTable(("a", "b"), values, missing=dict.fromkeys(lost, "reset by peer"))


@pytest.mark.parametrize("std", ["batch", "group"])
def test_a_reward_s_advantages_are_those_of_the_images_that_have_a_value(std):
    found = estimate(lacking(), GROUPS, std)
    for k in range(2):
        have = [i for i in range(8) if (i, k) not in LOST and not np.isnan(R[i, k])]
        for i in range(8):
            if i not in have:
                assert found.A_NK[i, k] == 0 and not found.mask_NK[i, k]
                continue
            own = [R[j, k] for j in have if GROUPS[j] == GROUPS[i]]
            spread = np.std(own if std == "group" else [R[j, k] for j in have])
            assert found.A_NK[i, k] == pytest.approx((R[i, k] - np.mean(own)) / (spread + 1e-4))


def test_a_gradient_is_the_mean_over_the_images_that_have_a_value():
    weight_JN = reward_rows(estimate(lacking(), GROUPS, "batch"), None, timesteps=2).weight_JN
    n = (6, 5)
    for k in range(2):
        wanted = [0 if (i, k) in LOST or np.isnan(R[i, k]) else 1 / (n[k] * 2) for i in range(8)]
        np.testing.assert_allclose(weight_JN[k], wanted)


@pytest.mark.parametrize("mixing", ["rewards", "advantages"])
def test_a_mixed_advantage_is_made_of_images_that_lack_nothing(mixing):
    """The mean of an image's other rewards is a number of another kind: dropping the image must change nothing for the rest."""
    found = estimate(lacking(), GROUPS, "batch", mixing)
    rest = np.array([i for i in range(8) if i not in {i for i, _ in LOST}])
    without = estimate(RewardTable(("a", "b"), R[rest]), GROUPS[rest], "batch", mixing)
    np.testing.assert_allclose(found.A_N[rest], without.A_N, atol=1e-12)
    assert not np.delete(found.A_N, rest).any()
    weights = mean_row(found, timesteps=2).weight_JN[0]
    np.testing.assert_allclose(weights, [1 / 10 if i in rest else 0 for i in range(8)])


def test_an_image_without_any_value_has_no_part_in_the_common_one():
    table = lacking([(0, 0), (0, 1), (1, 0)])
    common = reward_rows(estimate(table, GROUPS, "batch"), None, 2, subtract_common=True).common_N
    np.testing.assert_allclose(common, [0, *[1 / 14] * 7])


BATCH = PromptBatch((PROMPTS[0], PROMPTS[1], Prompt("more", "general")), 3, 0, 0)


def test_missing_values_and_prompts_without_signal_are_counted_by_reward_and_source():
    a = [1, 2, 3, 5, 5, 5, 4, NAN, NAN]  # the third prompt has one value left
    b = [NAN, NAN, NAN, 1, 1, NAN, NAN, NAN, NAN]  # applies to the second prompt
    table = RewardTable(("a", "b"), np.array([a, b]).T, missing={(7, 0): "x", (8, 0): "x", (5, 1): "y"})
    assert coverage_metrics(table, BATCH) == {
        "missing/a": 2, "no_signal/a/general": 1, "no_signal/a/ocr": 1, "missing/b": 1, "no_signal/b/ocr": 1,
    }  # fmt: skip
    assert without_value(table, BATCH) == [
        "reward a has no value for 2 of 9 images, the first of the prompt 'more': x (2 times)",
        "reward b has no value for 1 of 3 images, the first of the prompt 'a sign that says \"CAT\"': y",
    ]


def test_a_prompt_that_a_step_drew_twice_is_one_group():
    table = RewardTable(("a",), np.array([[1.0], [1], [2], [2]]))
    assert coverage_metrics(table, PromptBatch((PROMPTS[0], PROMPTS[0]), 2, 0, 0)) == {"missing/a": 0, "no_signal/a/general": 0}


def test_a_step_is_unusable_above_the_share_and_never_for_one_image():
    rewards = [RewardConfig(name="a", max_missing=0.25), RewardConfig(name="b")]
    batch = PromptBatch(PROMPTS[:2], 4, 0, 0)
    assert unusable_rewards(lacking([(2, 0), (5, 0), (3, 1)]), batch, rewards) == []
    assert unusable_rewards(lacking([(2, 0), (5, 0), (6, 0), (3, 1), (4, 1)]), batch, rewards) == [
        "reward a has no value for 3 of 8 images, more than its max_missing = 0.25",
        "reward b has no value for 2 of 6 images, more than its max_missing = 0.1",
    ]


def test_a_step_without_signal_says_what_each_reward_is():
    table = RewardTable(("a", "b", "c"), np.array([[1, 0, NAN]] * 2 + [[2, 0, NAN]] * 2))
    (said,) = no_signal(table, PromptBatch(PROMPTS[:2], 2, 0, 0))
    start = "no reward tells the images of a prompt apart: "
    assert said == f"{start}a is equal within each prompt, from 1 to 2 between them, b is 0 for all 4 images"
