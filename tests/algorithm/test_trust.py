"""One direction for gradients that disagree, against general optimisers on coordinates and the QP by enumeration."""

import numpy as np
import pytest
from scipy.optimize import minimize

from marble_core.algorithm.min_norm import Limits
from marble_core.algorithm.trust import _constrained, fixed_point, trust_point
from oracles import min_norm_by_enumeration

POWERS = (1.0, 1.5, 2.0, 4.0, 10.0, 64.0)


def unit_vectors(seed, K=5, D=12, common=0.4):
    g_KD = np.random.default_rng(seed).normal(size=(K, D)) + common
    return g_KD / np.linalg.norm(g_KD, axis=1, keepdims=True)


def point(g_KD, p, prior_K=None, limits=None):
    prior_K = np.ones(len(g_KD)) if prior_K is None else np.array(prior_K, dtype=float)
    return trust_point(g_KD @ g_KD.T, p, prior_K, limits or Limits.none(len(g_KD)))


def loss(g_KD, d_D, p, prior_K=None):
    return np.average(np.linalg.norm(g_KD - d_D, axis=1) ** p, weights=prior_K)


def limits_of(K, floor=(), cap=(), wishes=()):
    free = Limits.none(K)
    floor_K, cap_K = free.floor_K.copy(), free.cap_K.copy()
    for k, value in floor:
        floor_K[k] = value
    for k, value in cap:
        cap_K[k] = value
    return Limits(floor_K, cap_K, np.array([row for row, _ in wishes]).reshape(-1, K), np.array([b for _, b in wishes]))


@pytest.mark.parametrize("K", [2, 5, 9])
def test_p_1_is_the_geometric_median_that_scipy_finds_in_coordinates(K):
    prior = np.arange(1.0, K + 1) + K
    for seed in range(3):
        g = unit_vectors(seed, K, 6)
        far = lambda d, g=g: prior @ np.linalg.norm(g - d, axis=1)
        found = min(
            (minimize(far, g.mean(0) + 0.01 * s, method="BFGS", options={"gtol": 1e-9}) for s in (0, 1)), key=lambda r: r.fun
        )
        d = point(g, 1.0, prior) @ g
        assert far(d) <= found.fun * (1 + 1e-6)
        if K > 2:
            assert np.allclose(d, found.x, atol=2e-4)


@pytest.mark.parametrize("p", [1.3, 3.0, 8.0, 64.0])
def test_every_p_is_the_minimum_that_scipy_finds_in_coordinates(p):
    prior = np.array([1.0, 2.0, 1.0, 3.0, 0.5])
    for seed in range(3):
        g = unit_vectors(seed, 5, 6)
        value = lambda d, g=g: np.log(prior @ np.linalg.norm(g - d, axis=1) ** p) / p
        found = minimize(value, g.mean(0), method="BFGS", options={"gtol": 1e-10})
        assert np.allclose(point(g, p, prior) @ g, found.x, atol=1e-4)


def test_p_2_is_the_mean_by_the_prior_to_the_bit():
    prior = np.array([1.0, 2.0, 1.0, 4.0, 0.0])
    assert (point(unit_vectors(0), 2.0, prior) == prior / 8).all()


@pytest.mark.parametrize("p", [1.0, 1.5, 4.0])
def test_limits_that_leave_one_point_give_it(p):
    assert np.allclose(point(unit_vectors(0, 3), p, limits=limits_of(3, cap=[(0, 0.0), (2, 0.0)])), [0, 1, 0], atol=1e-9)


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
def test_where_all_vectors_are_one_the_weights_are_the_priors(p):
    assert np.allclose(trust_point(np.ones((3, 3)), p, np.array([1.0, 2.0, 1.0]), Limits.none(3)), [0.25, 0.5, 0.25])


def test_p_64_is_close_to_the_min_norm_point_and_nearer_than_any_smaller_p():
    """The farthest vector is at most 5^(1/64) = 1.025 times as far as from the centre of the smallest ball."""
    for seed in range(5):
        g = unit_vectors(seed)
        best = min_norm_by_enumeration(g @ g.T)[0] @ g
        points = [point(g, p) @ g for p in POWERS]
        distance = [np.linalg.norm(d - best) for d in points]
        assert distance[-1] < 0.04 and distance == sorted(distance, reverse=True)
        radius = np.linalg.norm(g - best, axis=1).max()
        assert radius - 1e-9 <= np.linalg.norm(g - points[-1], axis=1).max() <= 5 ** (1 / 64) * radius


def test_the_odd_one_has_a_third_in_the_smallest_ball_and_less_the_smaller_p():
    C = np.full((6, 6), 0.3)
    C[5] = C[:, 5] = -0.3
    np.fill_diagonal(C, 1.0)
    odd = [trust_point(C, p, np.ones(6), Limits.none(6))[5] for p in POWERS]
    assert odd == sorted(odd) and odd[0] < 0.13 and odd[2] == pytest.approx(1 / 6)
    assert min_norm_by_enumeration(C)[0][5] == pytest.approx(0.363, abs=1e-3) and odd[-1] == pytest.approx(0.363, abs=0.02)


@pytest.mark.parametrize("p", POWERS)
def test_neither_order_nor_unit_nor_rotation_matters(p):
    g, prior = unit_vectors(7), np.array([1.0, 2.0, 1.0, 3.0, 2.0])
    a, order = point(g, p, prior), np.array([3, 0, 4, 1, 2])
    assert np.allclose(point(g[order], p, prior[order]), a[order], atol=1e-6)
    assert np.allclose(point(1000 * g, p, 7 * prior), a, atol=1e-6)
    assert a.min() >= 0 and a.sum() == pytest.approx(1)


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("kind", ["duplicates", "a vector is the answer", "many in few dimensions", "opposite"])
def test_degenerate_vectors_have_an_answer_that_no_neighbour_beats(kind, p):
    rng, g = np.random.default_rng(3), unit_vectors(3)
    if kind == "duplicates":
        g = g[[0, 0, 1, 2, 2, 2]]
    elif kind == "a vector is the answer":
        g = np.concatenate([g[:1], g[0] + 0.3 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]]) @ unit_vectors(4, 3)])
    elif kind == "many in few dimensions":
        g = unit_vectors(5, 40, 2, 0.2)
    else:
        g = np.array([[1.0, 0.0], [-1.0, 0.0]])
    a = point(g, p)
    assert a.min() >= -1e-12 and a.sum() == pytest.approx(1)
    value = loss(g, a @ g, p)
    for size in (1e-2, 1e-4):
        others = [loss(g, a @ g + size * direction, p) for direction in rng.normal(size=(50, g.shape[1]))]
        assert value <= min(others) * (1 + 1e-5)


LIMITS = {
    "floor": ({"floor": [(3, 0.4)]}, lambda a: a[3] - 0.4),
    "cap": ({"cap": [(0, 0.05), (1, 0.05)]}, lambda a: min(0.05 - a[0], 0.05 - a[1])),
    "wish": ({"wishes": [(np.array([1.0, 1, 0, 0, 0]), 0.1)]}, lambda a: 0.1 - a[0] - a[1]),
}


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 4.0, 64.0])
@pytest.mark.parametrize("kind", LIMITS)
def test_limits_are_respected_and_nothing_within_them_is_better(kind, p):
    given, slack = LIMITS[kind]
    g, prior, rng = unit_vectors(1), np.array([1.0, 2.0, 1.0, 1.0, 2.0]), np.random.default_rng(0)
    assert slack(point(g, p, prior)) < 0, "they bind"
    a = point(g, p, prior, limits_of(5, **given))
    assert slack(a) > -1e-6 and a.min() >= -1e-9 and a.sum() == pytest.approx(1)
    value = loss(g, a @ g, p, prior) ** (1 / p)
    inside = [b for b in rng.dirichlet(np.ones(5), size=1500) if slack(b) >= 0]
    assert len(inside) > 20
    assert all(value <= loss(g, b @ g, p, prior) ** (1 / p) + 1e-7 for b in inside)
    towards = [a + 0.01 * (b - a) for b in inside]
    assert all(value <= loss(g, b @ g, p, prior) ** (1 / p) + 1e-7 for b in towards)


@pytest.mark.parametrize("p", [1.0, 1.5, 3.0, 8.0, 64.0])
def test_the_iteration_and_the_cone_program_agree_where_no_limit_binds(p):
    g, prior = unit_vectors(2), np.array([1.0, 2.0, 1.0, 3.0, 2.0]) / 9
    by_steps, by_cones = fixed_point(g @ g.T, p, prior), _constrained(g @ g.T, p, prior, Limits.none(5))
    assert by_steps is not None and np.allclose(by_steps @ g, by_cones @ g, atol=1e-5)


def test_limits_that_no_weights_meet_are_an_arithmetic_error():
    with pytest.raises(ArithmeticError):
        point(unit_vectors(0, 3), 1.5, limits=limits_of(3, cap=[(0, 0.2), (1, 0.2), (2, 0.2)]))
