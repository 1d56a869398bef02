"""Guards: the update gives way no more than they ask for, and by nothing where they ask for nothing."""

import cvxpy as cp
import numpy as np
import pytest

from builders import learner, prompts, weights
from marble_core.algorithm.auto_trust import AutoTrust
from marble_core.algorithm.guards import Guarded, least_push
from marble_core.algorithm.marble import MinNorm
from marble_core.algorithm.meter import InTime
from marble_core.algorithm.methods import make_balancer
from marble_core.algorithm.metrics import gradient_metrics
from marble_core.algorithm.split_half import SplitHalf
from marble_core.algorithm.update import GradientStats
from marble_core.checkpoints import CheckpointStore
from marble_core.config.balance import BalanceConfig
from marble_core.config.loading import load_config
from marble_core.prompts import by_source
from marble_core.step import optimizer_step
from marble_core.training import loop
from marble_core.types import MarbleError

NAMES = ("one", "two", "guard", "three")
SHARED = [0, 1, 3]


def gradients(seed, against=1.0, size=12):
    """Three rewards that agree somewhat, and a third row that is against their mean by as much."""
    rng = np.random.default_rng(seed)
    g_KD = rng.normal(size=(4, size)) + 0.5
    g_KD[2] = rng.normal(size=size) - against * g_KD[SHARED].mean(0)
    return g_KD


def guarded(tau, **settings):
    return make_balancer(BalanceConfig(guards={"guard": tau}, **settings), NAMES, 10)


def projected(d, guards_HD, tau_H):
    """The direction of least distance to d that meets the rows, by cvxpy, with the directions themselves."""
    x = cp.Variable(len(d))
    bounds = [tau * min(float(g @ d), 0.0) for g, tau in zip(guards_HD, tau_H, strict=True)]
    rows = [g @ x >= bound for g, bound in zip(guards_HD, bounds, strict=True)]
    cp.Problem(cp.Minimize(cp.sum_squares(x - d)), rows).solve(solver=cp.CLARABEL)
    return x.value


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_push_is_the_nearest_direction_that_meets_every_row(seed, count):
    rng = np.random.default_rng(seed)
    d, guards_HD = rng.normal(size=7), rng.normal(size=(count, 7))
    guards_HD[0] -= d
    if count == 3 and seed % 2:
        guards_HD[2] = 2 * guards_HD[1]  # two that say the same
    tau_H = rng.uniform(0, 1, count)
    u_H = least_push(guards_HD @ guards_HD.T, guards_HD @ d, tau_H, float(np.linalg.norm(d)))
    assert (u_H >= 0).all()
    np.testing.assert_allclose(d + u_H @ guards_HD, projected(d, guards_HD, tau_H), atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"trust": 2.0, "normalise": False}, {"trust": 1.0}, {"method": "mgda"}, {"kappa": 0.5}]
)
@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0])
def test_a_guard_loses_its_part_of_what_it_would_and_the_others_keep_their_weights(tau, settings):
    g_KD = gradients(1)
    G_KK, signal = g_KD @ g_KD.T, np.ones(4, bool)
    found = guarded(tau, **settings).weigh(G_KK, signal)
    alone = make_balancer(BalanceConfig(**settings), tuple(NAMES[k] for k in SHARED), 10)
    free = alone.weigh(G_KK[np.ix_(SHARED, SHARED)], signal[:3])
    np.testing.assert_allclose(found.w_K[SHARED], free.w_K, rtol=1e-6)  # a solver that has been used begins elsewhere
    np.testing.assert_allclose(found.alpha_K[SHARED], free.alpha_K, rtol=1e-6)
    assert found.alpha_K[2] == 0 and found.alpha_K.sum() == pytest.approx(1)
    before = g_KD[2] @ (found.w_K[SHARED] @ g_KD[SHARED])
    assert before < 0 and g_KD[2] @ (found.w_K @ g_KD) == pytest.approx(tau * before, abs=1e-9)
    assert (found.w_K[2] == 0) == (tau == 1)
    length = np.linalg.norm(found.w_K[SHARED] @ g_KD[SHARED])
    norm = np.linalg.norm(g_KD[2])
    assert found.numbers["guard/before:guard"] == pytest.approx(before / norm / length)
    assert found.numbers["guard/push:guard"] == pytest.approx(-(1 - tau) * before / norm / length)


def test_a_guard_that_the_update_does_not_harm_changes_no_bit():
    g_KD = gradients(2, against=-1.0)
    G_KK, signal = g_KD @ g_KD.T, np.ones(4, bool)
    found = guarded(0.0).weigh(G_KK, signal)
    free = make_balancer(BalanceConfig(), tuple(NAMES[k] for k in SHARED), 10).weigh(G_KK[np.ix_(SHARED, SHARED)], signal[:3])
    np.testing.assert_allclose(found.w_K[SHARED], free.w_K, rtol=1e-6)
    assert found.w_K[2] == 0
    assert found.numbers["guard/before:guard"] > 0 == found.numbers["guard/push:guard"]


def test_without_guards_the_balancer_is_the_plain_one():
    assert type(make_balancer(BalanceConfig(), NAMES, 10)) is MinNorm
    assert type(guarded(0.5)) is Guarded


def test_a_guard_without_signal_guards_nothing_and_one_alone_is_no_reason_for_an_update():
    g_KD = gradients(3)
    G_KK = g_KD @ g_KD.T
    silent = guarded(0.0).weigh(G_KK, np.array([True, True, False, True]))
    assert silent.w_K[2] == 0 and not silent.active_K[2] and silent.active_K[SHARED].all()
    broken = G_KK.copy()
    broken[2, :] = broken[:, 2] = np.nan
    assert np.isfinite(guarded(0.0).weigh(broken, np.ones(4, bool)).w_K).all()
    lonely = guarded(0.0).weigh(G_KK, np.array([False, False, True, False]))
    assert not lonely.active_K.any() and not lonely.w_K.any()


def test_meters_tell_the_inner_balancer_of_its_own_rewards_alone():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(8, 20))
    halves = SplitHalf(rows @ rows.T)
    own = SplitHalf(rows[[0, 1, 3, 4, 5, 7]] @ rows[[0, 1, 3, 4, 5, 7]].T)
    np.testing.assert_allclose(halves.of(np.array(SHARED)).G_JJ, own.G_JJ)
    in_time = InTime(np.arange(16.0).reshape(4, 4), np.arange(4.0), np.arange(8.0).reshape(2, 4), 0.5).of(np.array(SHARED))
    assert in_time.S_KK.tolist() == [[0, 1, 3], [4, 5, 7], [12, 13, 15]] and in_time.square_K.tolist() == [0, 1, 3]
    assert in_time.last_RK.tolist() == [[0, 1, 3], [4, 5, 7]] and in_time.projection_error == 0.5
    found = guarded(0.3, gram="cross").weigh(halves.whole, np.ones(4, bool), halves)
    assert np.isfinite(found.w_K).all()


def test_the_log_says_the_worst_cosine_of_the_rewards_and_not_of_the_guard():
    g_KD = gradients(1)
    G_KK = g_KD @ g_KD.T
    found = guarded(1.0).weigh(G_KK, np.ones(4, bool))
    metrics = gradient_metrics(NAMES, GradientStats(G_KK, None, found.w_K), found)
    assert metrics["cosine/worst"] == min(metrics[f"cosine/update:{NAMES[k]}"] for k in SHARED) > 0
    assert metrics["cosine/update:guard"] < 0 and metrics["cosine/worst_star"] > 0


def test_trust_auto_judges_its_candidates_by_the_rewards_alone():
    balancer = make_balancer(BalanceConfig(guards={"guard": 0.5}, trust="auto", meter="time"), NAMES, 10)
    g_KD = gradients(1)
    G_KK = g_KD @ g_KD.T
    in_time = InTime(G_KK, np.diag(G_KK), np.zeros((0, 4)))
    found = balancer.weigh(G_KK, np.ones(4, bool), in_time)
    assert isinstance(balancer.inner, AutoTrust) and found.tried_RK.shape == (6, 4) and not found.tried_RK[:, 2].any()
    bad_for_the_guard = InTime(G_KK, np.diag(G_KK), np.tile([0.5, 0.5, -1.0, 0.5], (7, 1)))
    again = balancer.weigh(G_KK, np.ones(4, bool), bad_for_the_guard)
    assert again.numbers["trust/score:paper"] == pytest.approx(0.5)


GUARD = "balance.guards={pickscore: 0.2}"


def test_a_step_under_a_guard_takes_from_it_what_it_may_and_goes_on_to_the_same_bits(tmp_path):
    whole = learner("train.steps=4", GUARD)
    loop.train(whole, prompts(), CheckpointStore(tmp_path / "whole", None, "run"), lambda _: None)
    metrics = whole.history[-1]["metrics"]
    assert metrics["alpha/pickscore"] == 0 and metrics["alpha/clipscore"] + metrics["alpha/ocr"] == pytest.approx(1)
    assert metrics["inactive"] == 0 and "guard/push:pickscore" in metrics and metrics["metrics_failed"] == 0

    def stop_after_two(report):
        if report.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(learner("train.steps=4", GUARD), prompts(), CheckpointStore(tmp_path / "parts", None, "run"), stop_after_two)
    resumed = learner("train.steps=4", GUARD)
    loop.train(resumed, prompts(), CheckpointStore(tmp_path / "parts", None, "run"), lambda _: None)
    assert all((a == b).all() for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))


def test_prompts_are_those_of_the_rewards_with_a_share():
    one = learner(
        "balance.guards={clipscore: 0.5, pickscore: 0.5}", "rollout.prompts=3", "data.train={ocr: 'demo://prompts/ocr'}"
    )
    assert one.balancer.eligible(by_source(prompts()), one.scorers, 0) == ["ocr"]
    assert not optimizer_step(one, prompts()).skipped


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["balance.guards={x: 0.5}"], "names the reward 'x'"),
        (["balance.guards={ocr: 1.5}"], "balance.guards.ocr"),
        (["balance.guards={ocr: 0.5}", "balance.method=equal"], "'equal' that can"),
        (["balance.guards={ocr: 0.5}", "balance.every=10"], "holds on every step"),
        (["balance.guards={ocr: 0.5}", "balance.floor={ocr: 0.1}"], "leave it out of balance.floor"),
        (["balance.guards={ocr: 0.5}", "balance.wishes=['ocr >= 0.1']"], "names the reward 'ocr'"),
        (["balance.guards={clipscore: 0, pickscore: 0, aesthetic: 0, ocr: 0, geneval: 0}"], "nothing is left to train on"),
    ],
)
def test_guards_that_cannot_be_are_one_sentence(overrides, says):
    with pytest.raises(MarbleError, match=says):
        load_config("demo", overrides=["balance.method=marble", *overrides])


def test_the_worst_cosine_of_the_min_norm_point_is_that_of_the_shares_of_unit_gradients():
    g_KD = gradients(1) * np.array([[1.0], [3.0], [2.0], [0.5]])
    G_KK = g_KD @ g_KD.T
    found = guarded(1.0).weigh(G_KK, np.ones(4, bool))
    unit_KD = g_KD / np.linalg.norm(g_KD, axis=1, keepdims=True)
    d_D = found.alpha_star_K @ unit_KD
    worst = min(unit_KD[k] @ d_D / np.linalg.norm(d_D) for k in SHARED)
    assert gradient_metrics(NAMES, GradientStats(G_KK, None, found.w_K), found)["cosine/worst_star"] == pytest.approx(worst)


def test_rethinking_a_guarded_balance_is_a_fresh_one_on_the_other_gram_matrix():
    one, first, second = guarded(0.5), gradients(1), gradients(2)
    done = one.weigh(first @ first.T, np.ones(4, bool))
    H_KK = second @ second.T
    fresh = guarded(0.5).weigh(H_KK, np.ones(4, bool))
    assert fresh.w_K[NAMES.index("guard")] > 0, "the guard has to push"
    assert np.allclose(one.rethink(H_KK, done), fresh.w_K, atol=1e-8)
