"""The QP against enumeration of supports, and the theory it must satisfy, over hostile Gram matrices."""

from fractions import Fraction
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marble_core.algorithm.min_norm import Limits, min_norm
from oracles import min_norm_by_enumeration


def unit_gram(rng, size, dim, common=0.0):
    g = rng.normal(size=(size, dim)) + common * rng.normal(size=dim)
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    return g @ g.T


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_the_qp_finds_the_minimum_that_enumeration_of_supports_finds(size):
    rng = np.random.default_rng(size)
    for dim, common in ((40, 0.0), (40, 2.0), (max(1, size - 1), 0.5), (3, 0.0)):
        G = unit_gram(rng, size, dim, common)
        alpha = min_norm(G)
        assert np.isclose(alpha.sum(), 1) and (alpha >= 0).all()
        assert alpha @ G @ alpha <= min_norm_by_enumeration(G)[1] + 1e-9


@pytest.mark.parametrize("size", [2, 5, 16, 64])
def test_active_gradients_have_equal_cosines_with_the_direction_and_none_a_lower_one(size):
    G = unit_gram(np.random.default_rng(3), size, 200, common=1.0)
    alpha = min_norm(G)
    cosines = G @ alpha / np.sqrt(alpha @ G @ alpha)
    active = alpha > 1e-6
    assert np.ptp(cosines[active]) < 1e-6
    assert cosines.min() > cosines[active].mean() - 1e-6


def test_duplicates_share_their_weight_and_leave_the_direction_alone():
    g = np.random.default_rng(0).normal(size=(3, 20))
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    doubled = g[[0, 1, 2, 2]]
    alone, shared = min_norm(g @ g.T), min_norm(doubled @ doubled.T)
    assert np.allclose(alone @ g, shared @ doubled, atol=1e-6)
    assert np.isclose(shared[2], shared[3], atol=1e-4)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_weights_do_not_depend_on_the_scale_of_the_gram_matrix(scale):
    G = unit_gram(np.random.default_rng(1), 5, 30)
    assert np.allclose(min_norm(scale * G), min_norm(G), atol=1e-7)


def exact_direction(g):
    """The min-norm point's direction in rational numbers: over all supports x = G^-1 1, of those with x >= 0 the shortest."""
    best, rows = None, [[Fraction(float(a)) for a in row] for row in g]
    for support in chain.from_iterable(combinations(range(len(g)), n) for n in range(1, len(g) + 1)):
        A = [[sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) for j in support] + [Fraction(1)] for i in support]
        for c in range(len(A)):  # positive definite: no pivoting
            A[c] = [value / A[c][c] for value in A[c]]
            A = [row if r == c else [v - row[c] * u for v, u in zip(row, A[c], strict=True)] for r, row in enumerate(A)]
        x = [row[-1] for row in A]
        if min(x) >= 0 and (best is None or sum(x) > best[0]):  # ||d||^2 = 1 / sum x
            best = sum(x), {i: value / sum(x) for i, value in zip(support, x, strict=True)}
    return np.array([float(sum(a * rows[i][d] for i, a in best[1].items())) for d in range(g.shape[1])])


@pytest.mark.parametrize("ratio", [1e3, 1e5, 1e7, 1e9, 1e12])
def test_the_direction_is_exact_at_any_ratio_of_norms(ratio):
    """Without normalisation (mgda). A tie-break or a tolerance of the largest gradient's size would rule over the smallest."""
    rng = np.random.default_rng(0)
    for size in (2, 3, 4, 5):
        for common in (0.0, 1.5):
            g = rng.normal(size=(size, 8)) + common * rng.normal(size=8)
            g *= (ratio ** np.linspace(0, 1, size))[rng.permutation(size)][:, None]
            ours, exact = min_norm(g @ g.T) @ g, exact_direction(g)
            assert ours @ exact / np.linalg.norm(ours) / np.linalg.norm(exact) > 1 - 1e-9, (size, common)


def test_limits_hold_where_norms_differ():
    g = np.random.default_rng(2).normal(size=(3, 20)) * np.array([1.0, 300.0, 4e4])[:, None]
    free = min_norm(g @ g.T)
    assert free[0] > 0.9
    capped = min_norm(g @ g.T, Limits(np.zeros(3), np.array([0.7, 1.0, 1.0]), np.zeros((0, 3)), np.zeros(0)))
    assert np.isclose(capped[0], 0.7, atol=1e-6) and np.isclose(capped[1], 0.3, atol=0.01)
    floored = min_norm(g @ g.T, Limits(np.array([0.0, 0.2, 0.0]), np.ones(3), np.zeros((0, 3)), np.zeros(0)))
    assert np.isclose(floored[1], 0.2, atol=1e-6)
    wished = min_norm(g @ g.T, Limits(np.zeros(3), np.ones(3), np.array([[1.0, -1.0, 0.0]]), np.array([0.0])))
    assert wished[0] <= wished[1] + 1e-6


def test_nothing_to_weigh_is_an_arithmetic_error():
    with pytest.raises(ArithmeticError, match="no gradient"):
        min_norm(np.zeros((0, 0)))


def test_opposite_gradients_cancel():
    assert np.allclose(min_norm(np.array([[1.0, -1.0], [-1.0, 1.0]])), 0.5)


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(
    size=st.integers(2, 64),
    dim=st.integers(1, 40),
    kind=st.sampled_from(["free", "duplicates", "opposites", "rank one", "common"]),
    scale=st.sampled_from([1e-12, 1e-6, 1.0, 1e6, 1e12]),
    seed=st.integers(0, 2**31),
)
def test_the_duality_gap_is_below_1e_9_on_hostile_gram_matrices(size, dim, kind, scale, seed):
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(size, dim))
    if kind == "duplicates":
        g[size // 2 :] = g[0]
    elif kind == "opposites":
        g[1::2] = -g[: size // 2 * 2 : 2]
    elif kind == "rank one":
        g = np.outer(rng.normal(size=size), g[0])
    elif kind == "common":
        g += 3 * g[0]
    g /= np.linalg.norm(g, axis=1, keepdims=True) + 1e-300
    C = g @ g.T
    alpha = min_norm(scale * C)
    assert np.isclose(alpha.sum(), 1) and (alpha >= 0).all()
    gap = alpha @ C @ alpha - (C @ alpha).min()
    assert gap <= 1e-9, gap
    order = rng.permutation(size)
    again = min_norm(scale * C[np.ix_(order, order)])
    assert np.linalg.norm(alpha @ g - again @ g[order]) < 1e-4, "the direction does not depend on the order"
