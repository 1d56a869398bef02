"""Each baseline's formula on numbers that can be worked out by hand."""

import numpy as np
import pytest

from marble_core.algorithm.advantages import Advantages, estimate
from marble_core.algorithm.backward import mean_row, reward_rows
from marble_core.algorithm.methods import make_balancer
from marble_core.config.balance import BalanceConfig
from marble_core.types import RewardTable

NAN = np.nan
NAMES = ("a", "b", "c")
# Two prompts of two images; c does not apply to the second.
R = np.array([[1.0, 10.0, 5.0], [3.0, 10.0, 9.0], [2.0, 40.0, NAN], [6.0, 20.0, NAN]])
GROUPS = np.array([0, 0, 1, 1])


def advantages(mixing, std="batch"):
    return estimate(RewardTable(NAMES, R), GROUPS, std, mixing)


def balancer(method, **config):
    return make_balancer(BalanceConfig(method=method, **config), NAMES, 10)


def test_weighted_sum_is_the_advantage_of_the_mean_of_the_raw_rewards():
    """Means of what applies: 16/3, 22/3, 21, 13. Each prompt's mean: 19/3, 17. Their std over the step is that of four numbers."""
    mean = np.array([16 / 3, 22 / 3, 21.0, 13.0])
    sigma = np.sqrt(((mean - mean.sum() / 4) ** 2).sum() / 4)
    assert balancer("weighted_sum").mixing == "rewards"
    assert np.allclose(advantages("rewards").A_N, np.array([-1.0, 1.0, 4.0, -4.0]) / (sigma + 1e-4), rtol=1e-12)


def test_gdpo_is_the_mean_of_the_group_advantages_whitened_over_the_step():
    """Of two images with different rewards one lies half their distance above the mean and one below, and that is the std too."""

    def one(distance):
        return distance / (distance + 1e-4)

    mixed = np.array([-(one(1) + 0 + one(2)) / 3, (one(1) + 0 + one(2)) / 3, (-one(2) + one(10)) / 2, (one(2) - one(10)) / 2])
    sigma = np.sqrt((mixed**2).sum() / 4)
    assert balancer("gdpo").mixing == "advantages"
    assert np.allclose(advantages("advantages").A_N, mixed / (sigma + 1e-4), rtol=1e-12)
    assert np.allclose(advantages("advantages", std="group").A_N, mixed / (sigma + 1e-4)), "by group, whatever the setting"


def test_gdpo_takes_the_steps_mean_away_where_groups_differ_in_what_applies():
    """Masks inside a prompt's images do not occur; here one does, so that the mean is not zero."""
    table = np.array([[1.0, NAN], [3.0, 5.0], [2.0, 1.0]])
    A_N = estimate(RewardTable(("a", "b"), table), np.zeros(3, int), "batch", "advantages").A_N
    a, b = (np.array([1.0, 3.0, 2.0]) - 2) / (np.sqrt(2 / 3) + 1e-4), np.array([2.0, -2.0]) / (2 + 1e-4)
    mixed = np.array([a[0], (a[1] + b[0]) / 2, (a[2] + b[1]) / 2])
    assert abs(mixed.mean()) > 0.01
    assert np.allclose(A_N, (mixed - mixed.mean()) / (mixed.std() + 1e-4))


def test_the_other_methods_mix_nothing():
    assert not advantages(None).A_N.any()
    for method in ("marble", "mgda", "equal", "single:a"):
        assert balancer(method).mixing is None


@pytest.mark.parametrize(
    ("method", "weights", "active"),
    [("equal", [1 / 3] * 3, [1, 0, 1]), ("single:c", [0, 0, 1], [0, 0, 1]), ("single:b", [0, 1, 0], [0, 0, 0])],
)
def test_equal_and_single_have_fixed_weights_and_need_no_gradients_of_their_own(method, weights, active):
    one = balancer(method)
    done = one.between(3, np.array([True, False, True]))
    assert np.allclose(done.w_K, weights) and np.allclose(done.alpha_K, weights)
    assert done.active_K.tolist() == [bool(a) for a in active]
    assert not any(one.needs_gram(step) for step in range(10))
    assert one.rewards(0) == (NAMES if method == "equal" else (method[-1],))


def test_sequential_weighs_the_rewards_of_its_stage_alike_and_the_last_stage_stays():
    stages = [{"rewards": ["b"], "steps": 3}, {"rewards": ["a", "c"], "sources": ["ocr"], "steps": 7}]
    one, all_on = balancer("sequential", stages=stages), np.ones(3, bool)
    assert [one.between(s, all_on).w_K.tolist() for s in (0, 2, 3, 9, 10)] == [[0, 1, 0]] * 2 + [[0.5, 0, 0.5]] * 3
    assert [one.sources(s) for s in (0, 2, 3)] == [(), (), ("ocr",)]


def test_mgda_is_the_min_norm_point_of_the_gradients_as_they_are():
    """Of orthogonal gradients of lengths 1, 2, 2: shares as 1 : 1/4 : 1/4."""
    done = balancer("mgda", rho=0.0).weigh(np.diag([1.0, 4.0, 4.0]), np.ones(3, bool))
    assert np.allclose(done.w_K, [2 / 3, 1 / 6, 1 / 6], atol=1e-6)


def test_marble_is_the_same_of_unit_gradients_at_the_mean_length():
    """Shares of orthogonal directions are equal: w_k = (1/3) (5/3) / n_k for lengths 1, 2, 2."""
    done = balancer("marble").weigh(np.diag([1.0, 4.0, 4.0]), np.ones(3, bool))
    assert np.allclose(done.w_K, [5 / 9, 5 / 18, 5 / 18], atol=1e-6)


def test_every_row_is_a_mean_over_the_images_that_its_reward_applies_to():
    A = Advantages(np.arange(12.0).reshape(4, 3), ~np.isnan(R), np.array([1.0, 2.0, 3.0, 4.0]))
    rows = reward_rows(A, None, timesteps=5)
    assert np.allclose(rows.weight_JN, [[0.05] * 4, [0.05] * 4, [0.1, 0.1, 0, 0]]) and not rows.common_N.any()
    assert np.allclose(rows.A_JN, A.A_NK.T)
    halves = reward_rows(A, np.array([0, 0, 1, 1]), timesteps=5)
    assert np.allclose(halves.weight_JN[:3] + halves.weight_JN[3:], rows.weight_JN)
    assert not halves.weight_JN[:3, 2:].any() and not halves.weight_JN[3:, :2].any()
    mixed = reward_rows(A, None, timesteps=5, with_mixed=True)
    assert np.allclose(mixed.weight_JN[3], 0.05) and np.allclose(mixed.A_JN[3], A.A_N)
    assert np.allclose(mean_row(A, 5).weight_JN, 0.05) and np.allclose(mean_row(A, 5).A_JN, A.A_N)
    assert np.allclose(reward_rows(A, None, 5, subtract_common=True).common_N, 0.05)
