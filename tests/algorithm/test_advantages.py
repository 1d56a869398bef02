"""One estimator a reward; NaN means that a reward does not apply, and never leaks."""

import numpy as np

from marble_core.algorithm.advantages import estimate
from marble_core.types import RewardTable

NAMES = ("a", "b")
GROUPS = np.array([0, 0, 0, 1, 1, 1])


def table(a, b):
    return RewardTable(NAMES, np.array([a, b], float).T)


def test_advantages_are_centred_in_each_prompt_and_scaled_by_the_std_of_the_step():
    R = table([1, 2, 3, 10, 10, 13], [0, 0, 1, 5, 6, 7])
    A = estimate(R, GROUPS, "batch").A_NK
    sigma = R.R_NK.std(0)
    assert np.allclose(A[:3, 0], (np.array([1, 2, 3]) - 2) / (sigma[0] + 1e-4))
    assert np.allclose(A[3:, 1], (np.array([5, 6, 7]) - 6) / (sigma[1] + 1e-4))


def test_the_group_std_is_that_of_the_prompt():
    R = table([1, 2, 3, 10, 10, 13], [0, 0, 1, 5, 6, 7])
    A = estimate(R, GROUPS, "group").A_NK
    assert np.allclose(A[3:, 0], (R.R_NK[3:, 0] - 11) / (R.R_NK[3:, 0].std() + 1e-4))


def test_a_reward_that_does_not_apply_gives_0_and_changes_nobody_else():
    nan = np.nan
    masked = estimate(table([1, 2, 3, nan, nan, nan], [0, 0, 1, 5, 6, 7]), GROUPS, "batch")
    alone = estimate(RewardTable(("a",), np.array([[1.0], [2.0], [3.0]])), GROUPS[:3], "batch")
    assert (masked.A_NK[3:, 0] == 0).all() and not masked.mask_NK[3:, 0].any()
    assert np.allclose(masked.A_NK[:3, 0], alone.A_NK[:, 0])
    assert np.isfinite(masked.A_N).all()


def test_equal_rewards_in_a_group_have_advantage_0_to_the_bit():
    A = estimate(table([0.1, 0.1, 0.1, 1, 2, 3], [0.3] * 6), GROUPS, "batch").A_NK
    assert (A[:3, 0] == 0).all() and (A[:, 1] == 0).all()


def test_scaling_a_reward_by_1000_changes_its_advantages_by_less_than_one_percent():
    one = estimate(table([0.1, 0.2, 0.3, 0.5, 0.6, 0.9], [0, 0, 1, 5, 6, 7]), GROUPS, "batch").A_NK
    other = estimate(table([100, 200, 300, 500, 600, 900], [0, 0, 1, 5, 6, 7]), GROUPS, "batch").A_NK
    assert np.allclose(one, other, rtol=0.01)


def test_clamping_is_counted_over_the_valid_entries():
    nan = np.nan
    raw = estimate(table([0, 0, 30, 0, 0, 0], [nan, nan, nan, 5, 6, 7]), GROUPS, "batch")
    advantages, share = raw.clamped(1.0)
    assert np.abs(advantages.A_NK).max() == 1.0
    assert share == np.mean(np.abs(raw.A_NK[raw.mask_NK]) > 1.0) > 0
