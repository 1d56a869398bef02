"""The QP against enumeration of supports, and the theory it must satisfy, over hostile Gram matrices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marble_core.algorithm.min_norm import min_norm
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
