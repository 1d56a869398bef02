"""From Gram matrices to weights, written out once more: the signal's Gram matrix, the averages, prior and kappa."""

import numpy as np
import pytest

from marble_core.algorithm.methods import make_balancer
from marble_core.algorithm.split_half import SplitHalf
from marble_core.config.balance import BalanceConfig
from marble_core.types import MarbleError
from oracles import min_norm_by_enumeration

NAMES = ("a", "b", "c")
ALL = np.ones(3, bool)


def balancer(**config):
    return make_balancer(BalanceConfig(**config), NAMES, 100)


def halves(seed, weak=1.0):
    """Gradients of two halves in 30 dimensions, the last reward's mostly noise."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(3, 30)) * np.array([3.0, 1.0, 0.02 * weak])[:, None]
    return np.concatenate([signal + 0.8 * rng.normal(size=(3, 30)) for _ in "ab"])


def written_cross(vectors_by_step, rho, ridge, floor, blend):
    """w_K after the last step of gram: cross, from the gradients themselves."""
    S = abar = None
    for v in vectors_by_step:
        a, b = v[:3], v[3:]
        now = np.array([[2 * (a[j] @ b[k] + a[k] @ b[j]) for k in range(3)] for j in range(3)])
        S = now if S is None else rho * S + (1 - rho) * now
        length = np.linalg.norm(a + b, axis=1)
        unit = np.array([max(np.sqrt(max(S[k, k], 0)), floor * length[k]) for k in range(3)])
        values, vectors = np.linalg.eigh(S / unit[:, None] / unit[None])
        C = sum(max(value, 0) * np.outer(u, u) for value, u in zip(values, vectors.T, strict=True)) + ridge * np.eye(3)
        star, _ = min_norm_by_enumeration(C)
        abar = star if abar is None else blend * abar + (1 - blend) * star
    return abar * unit.mean() / unit, unit / length


@pytest.mark.parametrize("rho", [0.9, 0.3])
def test_the_signals_gram_matrix_is_averaged_floored_and_has_a_ridge(rho):
    steps = [halves(seed) for seed in (1, 2, 3)]
    one = balancer(gram="cross", cross_rho=rho, cross_ridge=0.2, cross_floor=0.3)
    for v in steps:
        split = SplitHalf(v @ v.T)
        done = one.weigh(split.whole, ALL, split)
    expected, shares = written_cross(steps, rho, 0.2, 0.3, 0.7)
    assert np.isclose(shares.min(), 0.3) and shares.max() > 0.5, "the floor holds for one reward and not for all"
    assert np.allclose(done.w_K, expected, atol=1e-6)


def test_kappa_is_the_share_of_the_balanced_weights_and_the_rest_is_the_priors():
    G = np.array([[1.0, 0.2, 0.1], [0.2, 4.0, -0.3], [0.1, -0.3, 9.0]])
    alone = balancer().weigh(G, ALL).alpha_K
    prior = {"a": 3.0, "c": 1.0}
    for kappa in (0.0, 0.25, 0.8):
        done = balancer(prior=prior, kappa=kappa).weigh(G, ALL)
        expected = (1 - kappa) * np.array([0.75, 0.0, 0.25]) + kappa * alone
        assert np.allclose(done.alpha_K, expected, atol=1e-7)
        lengths = np.array([1.0, 2.0, 3.0])
        assert np.allclose(done.w_K, expected * 2.0 / lengths, atol=1e-7)
    uniform = balancer(kappa=0.5).weigh(G, ALL).alpha_K
    assert np.allclose(uniform, (alone + 1 / 3) / 2, atol=1e-7), "no prior is a uniform one"


def test_an_inactive_rewards_share_of_the_prior_goes_to_the_others():
    done = balancer(prior={"a": 1.0, "b": 1.0, "c": 2.0}, kappa=0.0).weigh(np.eye(3), np.array([True, True, False]))
    assert np.allclose(done.alpha_K, [0.5, 0.5, 0.0])


def test_between_two_qps_weights_are_the_average_on_averaged_lengths():
    one = balancer(every=3, rho=0.6)
    first, second = np.diag([1.0, 4.0, 9.0]), np.diag([16.0, 1.0, 1.0])
    one.weigh(first, ALL)
    one.weigh(second, ALL)
    lengths = 0.6 * np.array([1.0, 2.0, 3.0]) + 0.4 * np.array([4.0, 1.0, 1.0])
    assert np.allclose(one.between(1, ALL).w_K, lengths.mean() / lengths / 3, atol=1e-7)
    active = np.array([True, True, False])
    known = one.between(1, active)
    assert np.allclose(known.w_K, np.append(lengths[:2].mean() / lengths[:2] / 2, 0), atol=1e-7)


@pytest.mark.parametrize(("share", "alive"), [(0.9e-6, False), (1.1e-6, True)])
def test_a_reward_is_dead_below_a_millionth_of_the_median_length(share, alive):
    lengths = np.array([2.0, 2.0, 2.0 * share])
    done = balancer().weigh(np.diag(lengths**2), ALL)
    assert done.active_K.tolist() == [True, True, alive]
    assert done.notes == (() if alive else ("c is inactive",))


def test_where_no_reward_with_a_share_is_active_those_that_are_share_equally():
    done = balancer(prior={"a": 1.0}, kappa=0.0).weigh(np.diag([1.0, 4.0, 9.0]), np.array([False, True, True]))
    assert np.allclose(done.alpha_K, [0, 0.5, 0.5])


def test_rethinking_is_the_balance_without_memory():
    one = balancer(prior={"a": 1.0}, kappa=0.5)
    for G in (np.diag([1.0, 4.0, 9.0]), np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 4.0]])):
        done = one.weigh(G, ALL)
    before = one.state()
    H = np.array([[4.0, 1.0, 0.0], [1.0, 1.0, 0.2], [0.0, 0.2, 9.0]])
    fresh = balancer(prior={"a": 1.0}, kappa=0.5).weigh(H, ALL)
    assert np.allclose(one.rethink(H, done), fresh.w_K, atol=1e-9) and one.state() == before


@pytest.mark.parametrize("method", ["marble", "mgda"])
def test_stationary_is_said_of_a_direction_a_millionth_as_long_as_a_gradient(method):
    for gap, said in ((1e-5, False), (1e-7, True)):
        g = np.array([[1.0, gap], [-1.0, gap], [0.0, 1.0]]) * 5
        done = balancer(method=method).weigh(g @ g.T, ALL)
        assert done.stationary is said and bool(done.w_K.any()) is not said


def test_a_single_reward_has_all_the_weight_unless_its_limits_forbid_it():
    def of_one(**config):
        return make_balancer(BalanceConfig(**config), ("a",), 10)

    assert of_one(wishes=("a >= 0.5",)).weigh(np.array([[4.0]]), np.ones(1, bool)).w_K.tolist() == [1.0]
    assert of_one().weigh(np.array([[4.0]]), np.ones(1, bool)).w_K.tolist() == [1.0]
    for config in ({"cap": {"a": 0.5}}, {"wishes": ("a <= 0.5",)}):
        with pytest.raises(MarbleError, match="No weights that add up to 1"):
            of_one(**config)
