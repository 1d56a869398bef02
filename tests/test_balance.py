"""The one rule from Gram matrix to weights, and what becomes of a reward that says nothing."""

import numpy as np
import pytest

from marble_core import balance as balance_module
from marble_core.balance import Marble
from marble_core.config import BalanceConfig

NAMES = ("clipscore", "pickscore", "ocr")


def gram(seed=0, scales=(1.0, 1.0, 1.0), size=3):
    g = np.random.default_rng(seed).normal(size=(size, 50)) + 0.5
    g *= np.array(scales)[:, None]
    return g, g @ g.T


def test_multiplying_a_reward_by_1000_changes_neither_alpha_nor_the_direction():
    (g, G), (h, H) = gram(), gram(scales=(1000.0, 1.0, 1.0))
    one, other = (Marble(BalanceConfig(), NAMES).weigh(x, np.ones(3, bool)) for x in (G, H))
    assert np.allclose(one.alpha_K, other.alpha_K, atol=1e-6)
    d, e = one.w_K @ g, other.w_K @ h
    assert np.allclose(d / np.linalg.norm(d), e / np.linalg.norm(e), atol=1e-6)


def test_the_update_is_the_mean_norm_times_the_min_norm_point():
    g, G = gram(scales=(3.0, 1.0, 0.2))
    done = Marble(BalanceConfig(rho=0.0), NAMES).weigh(G, np.ones(3, bool))
    norms = np.linalg.norm(g, axis=1)
    assert np.allclose(done.w_K @ g, norms.mean() * (done.alpha_K @ (g / norms[:, None])))


def test_alpha_is_blended_over_steps_and_the_first_value_is_taken_as_it_is():
    marble = Marble(BalanceConfig(rho=0.7), NAMES)
    first = marble.weigh(gram(0)[1], np.ones(3, bool)).alpha_K
    alone = Marble(BalanceConfig(rho=0.7), NAMES).weigh(gram(5)[1], np.ones(3, bool)).alpha_K
    assert np.allclose(marble.weigh(gram(5)[1], np.ones(3, bool)).alpha_K, 0.7 * first + 0.3 * alone)


@pytest.mark.parametrize("kind", ["no advantage", "no gradient", "vanishing gradient", "not finite"])
def test_a_dead_reward_gets_weight_0_is_named_and_leaves_the_average_alone(kind):
    marble = Marble(BalanceConfig(rho=0.7), NAMES)
    marble.weigh(gram(0)[1], np.ones(3, bool))
    before = marble.alpha_ema_K.copy()
    G, signal = gram(1)[1].copy(), np.array([True, True, kind != "no advantage"])
    if kind != "no advantage":
        factor = {"no gradient": 0.0, "vanishing gradient": 1e-9, "not finite": np.nan}[kind]
        G[2] *= factor
        G[:, 2] *= factor
    done = marble.weigh(G, signal)
    assert done.w_K[2] == 0 and done.alpha_K[2] == 0 and np.isclose(done.alpha_K.sum(), 1)
    assert any("ocr is inactive" in note for note in done.notes)
    assert marble.alpha_ema_K[2] == before[2]
    assert np.isfinite(done.w_K).all() and np.isfinite(done.worst_cosine)


def test_with_no_active_reward_nothing_is_updated():
    done = Marble(BalanceConfig(), NAMES).weigh(np.zeros((3, 3)), np.zeros(3, bool))
    assert not done.w_K.any()


def test_opposite_gradients_are_pareto_stationary_and_no_update_is_made():
    done = Marble(BalanceConfig(rho=0), NAMES[:2]).weigh(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.ones(2, bool))
    assert not done.w_K.any() and any("Pareto-stationary" in note for note in done.notes)


def test_a_failing_solver_falls_back_to_the_last_weights_and_says_so(monkeypatch):
    marble = Marble(BalanceConfig(), NAMES)
    last = marble.weigh(gram(0)[1], np.ones(3, bool)).alpha_K

    def fail(_):
        raise ArithmeticError("no luck")

    monkeypatch.setattr(balance_module, "min_norm", fail)
    done = marble.weigh(gram(1)[1], np.ones(3, bool))
    assert np.allclose(done.alpha_K, last) and any("no luck" in note for note in done.notes)


def test_the_state_survives_a_checkpoint():
    one = Marble(BalanceConfig(), NAMES)
    one.weigh(gram(0)[1], np.ones(3, bool))
    other = Marble(BalanceConfig(), NAMES)
    other.load_state(one.state())
    assert (one.weigh(gram(1)[1], np.ones(3, bool)).w_K == other.weigh(gram(1)[1], np.ones(3, bool)).w_K).all()
