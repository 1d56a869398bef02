"""How far a Gram matrix that is estimated over steps may move the weights: as far as the evidence goes."""

import numpy as np
import pytest

from marble_core.algorithm.evidence import Evidence, shrunk
from marble_core.algorithm.meter import InTime
from marble_core.algorithm.methods import make_balancer
from marble_core.config.balance import BalanceConfig
from oracles import min_norm_by_enumeration

NAMES = ("clipscore", "pickscore", "ocr", "geneval")
EVERY = np.ones((4, 4), bool)


def symmetric_noise(rng, size=4):
    one = rng.normal(size=(size, size))
    return (one + one.T) / np.sqrt(2)


def signals(seed=0, D=30):
    """Four signals of equal length of which two agree and one is against them."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(4, D)) + np.array([2.0, 2.0, 1.0, -1.0])[:, None]
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    return g @ g.T


def test_mean_and_variance_over_steps_are_those_of_weighted_values():
    rng, rho = np.random.default_rng(0), 0.8
    values, there = rng.normal(size=(30, 2)), rng.random((30, 2)) < 0.7
    one = Evidence((2,), rho)
    assert (one.mean == 0).all() and np.isinf(one.variance).all()
    for value, where in zip(values, there, strict=True):
        one.add(np.where(where, value, np.nan), where)
    for j in range(2):
        x = values[there[:, j], j]
        weight = rho ** np.arange(len(x))[::-1]
        weight /= weight.sum()
        mean = weight @ x
        assert one.mean[j] == pytest.approx(mean)
        spread = weight @ (x - mean) ** 2 / (1 - weight @ weight) * (weight @ weight)
        assert one.variance[j] == pytest.approx(spread)
    other = Evidence((2,), rho)
    other.load_state(one.state())
    assert (other.variance == one.variance).all()


def test_the_variance_of_the_mean_is_the_scatter_of_means_of_many_runs():
    rng, runs = np.random.default_rng(1), Evidence((4000,), 0.9)
    for _ in range(40):
        runs.add(rng.normal(size=4000), np.ones(4000, bool))
    assert runs.variance.mean() == pytest.approx(runs.mean.var(), rel=0.1)


def test_a_norm_is_never_below_its_floor_however_sure_the_evidence_is():
    sure, norm_K = Evidence((4, 4), 0.9), np.array([1.0, 2.0, 0.5, 3.0])
    for _ in range(5):
        sure.add(np.diag([1e-8, 1.0, 1e-8, 4.0]), EVERY)
    _, unit_K, _ = shrunk(sure, norm_K, np.array([True, True, False, True]), 0.25)
    assert np.allclose(unit_K, [0.25 * 1.0, 1.0, 1.0, 2.0]), "the floor, the signal's own, 1 where inactive, the signal's own"


def test_small_cosines_that_are_sure_are_not_shrunk():
    sure, truth = Evidence((4, 4), 0.9), np.eye(4) + 0.1 * (np.ones((4, 4)) - np.eye(4))
    for sign in (1, -1) * 10:
        sure.add(truth + sign * 1e-4 * (np.ones((4, 4)) - np.eye(4)), EVERY)
    C_KK, _, share = shrunk(sure, np.ones(4), np.ones(4, bool), 0.1)
    assert share < 1e-3 and np.allclose(C_KK, truth, atol=1e-3)


def balancer(**more):
    return make_balancer(BalanceConfig(meter="time", gram="time", rho=0.0, **more), NAMES, 1000)


def weigh(one, S_KK, square_K):
    G_KK = np.diag(square_K)
    return one.weigh(G_KK, np.ones(4, bool), InTime(S_KK, square_K, np.zeros((0, 4))))


def test_without_evidence_the_weights_are_equal_and_stay_so_where_there_is_only_noise():
    one, rng = balancer(), np.random.default_rng(2)
    square_K = np.array([4.0, 1.0, 9.0, 0.25])
    first = weigh(one, np.full((4, 4), np.nan), square_K)
    assert np.allclose(first.alpha_K, 0.25) and first.numbers["shrinkage"] == 1
    assert np.allclose(first.w_K * np.sqrt(square_K), first.w_K[0] * 2), "of gradients of unit length"
    seen = []
    for _ in range(100):
        done = weigh(one, symmetric_noise(rng) * np.sqrt(np.outer(square_K, square_K)), square_K)
        seen.append((np.abs(done.alpha_K - 0.25).max(), done.numbers["shrinkage"]))
    deviation, shrinkage = np.array(seen)[20:].mean(0)
    assert deviation < 0.05 and shrinkage > 0.7


def test_with_evidence_the_weights_are_those_of_the_signals_alone_and_noise_holds_them_back():
    truth, rng = signals(), np.random.default_rng(3)
    expected, _ = min_norm_by_enumeration(truth)
    assert expected.max() > 0.4
    moved = []
    for noise in (0.0, 0.3, 3.0):
        one, square_K = balancer(cross_rho=0.95), np.full(4, 4.0)
        seen = []
        for step in range(300):
            if step % 10 == 9:
                seen.append(weigh(one, truth + noise * symmetric_noise(rng), square_K).alpha_K)
            else:
                one.in_time.add(truth + noise * symmetric_noise(rng), EVERY)
        moved.append((np.mean(seen[5:], axis=0) - 0.25) @ (expected - 0.25) / ((expected - 0.25) @ (expected - 0.25)))
        if noise == 0:
            assert np.allclose(seen[-1], expected, atol=1e-5)
    assert moved[0] > moved[1] > moved[2] and moved[1] > 0.6 and moved[2] < 0.4


def test_the_shrinkage_is_the_noise_of_the_cosines_over_their_square():
    """Against the intensity that is best for cosines known to be these, with noise known to be that."""
    truth, sd, rho = signals(), 0.4, 0.9
    share = (1 - rho) / (1 + rho)  # one over the number of values that a long average of weights rho^age stands for
    pairs = ~np.eye(4, dtype=bool)
    best = sd**2 * share * pairs.sum() / ((truth[pairs] ** 2).sum() + sd**2 * share * pairs.sum())
    rng, found = np.random.default_rng(4), []
    S = Evidence((4, 4), rho)
    for step in range(600):
        noise = sd * symmetric_noise(rng)
        np.fill_diagonal(noise, 0.0)
        S.add(truth + noise, EVERY)
        if step > 60:
            found.append(shrunk(S, np.full(4, 2.0), np.ones(4, bool), 0.15)[2])
    assert np.mean(found) == pytest.approx(best, rel=0.15)


def test_what_is_balanced_is_psd_of_unit_diagonal_and_does_not_see_units():
    rng, S, scaled = np.random.default_rng(5), Evidence((4, 4), 0.9), Evidence((4, 4), 0.9)
    unit_K = np.array([1.0, 1000.0, 1e-3, 5.0])
    active = np.array([True, True, True, False])
    for _ in range(12):
        value = symmetric_noise(rng) + signals()
        S.add(value, EVERY)
        scaled.add(value * np.outer(unit_K, unit_K), EVERY)
    C, norm_K, share = shrunk(S, np.full(4, 2.0), active, 0.15)
    other, other_norm_K, other_share = shrunk(scaled, 2 * unit_K, active, 0.15)
    assert (
        np.allclose(C, other) and np.allclose(norm_K[:3] * unit_K[:3], other_norm_K[:3]) and share == pytest.approx(other_share)
    )
    impossible = Evidence((4, 4), 0.9)
    for sign in (1, -1):
        value = np.array([[1.0, 0.9, 0.9, 0], [0.9, 1, -0.9, 0], [0.9, -0.9, 1, 0], [0, 0, 0, 1]])
        impossible.add(value + 1e-3 * sign * np.ones((4, 4)), EVERY)
    nearest, _, certain = shrunk(impossible, np.ones(4), active, 0.15)
    assert certain < 0.01 and np.linalg.eigvalsh(nearest).min() > -1e-12 and np.allclose(np.diag(nearest), 1)
    assert np.linalg.eigvalsh(C).min() > -1e-12 and np.allclose(np.diag(C), 1) and not C[3, :3].any() and norm_K[3] == 1
