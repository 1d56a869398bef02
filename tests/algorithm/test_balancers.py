"""The one rule from Gram matrix to weights, and what becomes of a reward that says nothing."""

import numpy as np
import pytest

from marble_core.algorithm.balancers import Balancer
from marble_core.algorithm.methods import make_balancer
from marble_core.config.balance import BalanceConfig
from marble_core.types import MarbleError

NAMES = ("clipscore", "pickscore", "ocr")


def balancer(names=NAMES, steps=100, **config) -> Balancer:
    return make_balancer(BalanceConfig(**config), names, steps)


def weigh(marble, G_KK, has_signal_K=None):
    """The balance for gradients whose Gram matrix is G."""
    return marble.weigh(G_KK, np.ones(len(G_KK), bool) if has_signal_K is None else has_signal_K)


def gram(seed=0, scales=(1.0, 1.0, 1.0), size=3):
    g = np.random.default_rng(seed).normal(size=(size, 50)) + 0.5
    g *= np.array(scales)[:, None]
    return g, g @ g.T


def test_multiplying_a_reward_by_1000_changes_neither_alpha_nor_the_direction():
    (g, G), (h, H) = gram(), gram(scales=(1000.0, 1.0, 1.0))
    one, other = (weigh(balancer(), x) for x in (G, H))
    assert np.allclose(one.alpha_K, other.alpha_K, atol=1e-6)
    d, e = one.w_K @ g, other.w_K @ h
    assert np.allclose(d / np.linalg.norm(d), e / np.linalg.norm(e), atol=1e-6)


def test_the_update_is_the_mean_norm_times_the_min_norm_point():
    g, G = gram(scales=(3.0, 1.0, 0.2))
    done = weigh(balancer(rho=0.0), G)
    norms = np.linalg.norm(g, axis=1)
    assert np.allclose(done.w_K @ g, norms.mean() * (done.alpha_K @ (g / norms[:, None])))


def test_alpha_is_blended_over_steps_and_the_first_value_is_taken_as_it_is():
    marble = balancer(rho=0.7)
    first = weigh(marble, gram(0)[1]).alpha_K
    alone = weigh(balancer(rho=0.7), gram(5)[1]).alpha_K
    assert np.allclose(weigh(marble, gram(5)[1]).alpha_K, 0.7 * first + 0.3 * alone)


@pytest.mark.parametrize("kind", ["no advantage", "no gradient", "vanishing gradient", "not finite"])
def test_a_dead_reward_gets_weight_0_is_named_and_leaves_the_average_alone(kind):
    marble = balancer(rho=0.7)
    weigh(marble, gram(0)[1])
    before = marble.memory.alpha_K.copy()
    G, signal = gram(1)[1].copy(), np.array([True, True, kind != "no advantage"])
    if kind != "no advantage":
        factor = {"no gradient": 0.0, "vanishing gradient": 1e-9, "not finite": np.nan}[kind]
        G[2] *= factor
        G[:, 2] *= factor
    done = weigh(marble, G, signal)
    assert done.w_K[2] == 0 and done.alpha_K[2] == 0 and np.isclose(done.alpha_K.sum(), 1)
    assert any("ocr is inactive" in note for note in done.notes)
    assert marble.memory.alpha_K[2] == before[2]
    assert np.isfinite(done.w_K).all()


def test_with_no_active_reward_nothing_is_updated():
    done = weigh(balancer(), np.zeros((3, 3)), np.zeros(3, bool))
    assert not done.w_K.any()


def test_opposite_gradients_are_pareto_stationary_and_no_update_is_made():
    done = weigh(balancer(NAMES[:2], rho=0), np.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert not done.w_K.any() and done.stationary and any("Pareto-stationary" in note for note in done.notes)


def test_a_failing_solver_falls_back_to_the_last_weights_and_says_so(monkeypatch):
    marble = balancer()
    last = weigh(marble, gram(0)[1]).alpha_K

    def fail(*_):
        raise ArithmeticError("no luck")

    monkeypatch.setattr("marble_core.algorithm.marble.min_norm", fail)
    done = weigh(marble, gram(1)[1])
    assert np.allclose(done.alpha_K, last) and done.failed and any("no luck" in note for note in done.notes)


def test_the_state_survives_a_checkpoint():
    one = balancer()
    weigh(one, gram(0)[1])
    other = balancer()
    other.load_state(one.state())
    assert (weigh(one, gram(1)[1]).w_K == weigh(other, gram(1)[1]).w_K).all()


@pytest.mark.parametrize(
    ("config", "holds"),
    [
        ({"wishes": ("ocr >= 0.5",)}, lambda a: np.isclose(a[2], 0.5)),
        ({"wishes": ("clipscore + pickscore <= 0.3",)}, lambda a: np.isclose(a[0] + a[1], 0.3)),
        (
            {"wishes": ("ocr == 0.4", "clipscore - pickscore >= 0.2")},
            lambda a: np.isclose(a[2], 0.4) and a[0] - a[1] > 0.2 - 1e-9,
        ),
        ({"floor": {"ocr": 0.6}}, lambda a: np.isclose(a[2], 0.6)),
        ({"cap": {"clipscore": 0.05, "pickscore": 0.05}}, lambda a: np.isclose(a[2], 0.9)),
        ({"prior": {"ocr": 1.0}, "kappa": 0.0}, lambda a: np.allclose(a, [0, 0, 1])),
    ],
)
def test_a_wish_a_floor_a_cap_and_a_prior_bind(config, holds):
    G = np.diag([1.0, 1.0, 1.0]) + 0.1
    assert not holds(weigh(balancer(), G).alpha_K)
    assert holds(weigh(balancer(**config), G).alpha_K)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"wishes": ("ocr >= 0.6", "clipscore >= 0.6")}, "No weights that add up to 1"),
        ({"floor": {"ocr": 0.5, "clipscore": 0.6}}, "loosen one of them"),
        ({"wishes": ("ocr > 0.6",)}, "cannot be read"),
        ({"wishes": ("ocr clipscore >= 0.6",)}, "cannot be read"),
        ({"wishes": ("dreams >= 0.6",)}, "'dreams'"),
    ],
)
def test_wishes_that_cannot_be_met_or_read_are_an_error_before_anything_is_loaded(config, said):
    with pytest.raises(MarbleError, match=said):
        balancer(**config)


def test_a_wish_on_an_inactive_reward_is_dropped_for_the_step():
    done = weigh(balancer(wishes=("ocr >= 0.5",)), gram()[1], np.array([True, True, False]))
    assert done.alpha_K[2] == 0 and np.isclose(done.alpha_K.sum(), 1)


def test_between_two_solved_steps_the_average_is_used_on_gradients_normalised_by_their_average_norms():
    marble = balancer(every=10)
    assert [marble.needs_gram(step) for step in (0, 1, 9, 10)] == [True, False, False, True]
    _, G = gram(scales=(3.0, 1.0, 0.2))
    solved, between = weigh(marble, G), marble.between(1, np.ones(3, bool))
    assert np.allclose(solved.w_K, between.w_K)
    raw = balancer(every=10, normalise_between=False)
    assert np.allclose(raw.between(1, np.ones(3, bool)).w_K, 1 / 3), "nothing was solved yet"
    weigh(raw, G)
    assert np.allclose(raw.between(1, np.ones(3, bool)).w_K, raw.memory.alpha_K)


def test_the_last_steps_are_uniform_where_the_paper_ends_so():
    marble = balancer(final_uniform_steps=5, steps=20)
    weigh(marble, gram()[1])
    assert marble.needs_gram(14) and not marble.needs_gram(15)
    assert np.allclose(marble.between(15, np.ones(3, bool)).w_K, 1 / 3)


def test_on_a_solved_step_the_paper_uses_alpha_itself_and_every_1_its_average():
    for every, same in ((10, True), (1, False)):
        marble = balancer(every=every)
        weigh(marble, gram(0)[1])
        done = weigh(marble, gram(5)[1])
        assert np.allclose(done.alpha_K, done.alpha_star_K) == same


def test_mgda_balances_the_gradients_as_they_are():
    _, G = gram(scales=(5.0, 1.0, 0.2))
    done = weigh(balancer(method="mgda", rho=0.0), G)
    assert np.allclose(done.w_K, done.alpha_star_K)
    assert (G @ done.w_K).min() >= (done.w_K @ G @ done.w_K) * (1 - 1e-6)


def test_sequential_trains_each_stage_on_its_own_rewards():
    stages = [{"rewards": ["ocr"], "steps": 2}, {"rewards": ["clipscore", "pickscore"], "sources": ["general"], "steps": 3}]
    sequence = balancer(method="sequential", stages=stages, steps=5)
    assert [sequence.rewards(step) for step in (0, 1)] == [("ocr",)] * 2
    assert sequence.sources(2) == ("general",)
    assert np.allclose(sequence.between(1, np.ones(3, bool)).w_K, [0, 0, 1])
    assert np.allclose(sequence.between(4, np.ones(3, bool)).w_K, [0.5, 0.5, 0])
