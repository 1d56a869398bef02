"""The bank's algebra, held against gradients whose signal and noise are known, and against other solvers and simulations."""

from functools import partial
from itertools import permutations
from itertools import product as product_of

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize

from marble_core.bench.signal.agreement import _ahead, _updates, agreement
from marble_core.bench.signal.meter import meters
from marble_core.bench.signal.products import Products, of_layers
from marble_core.bench.signal.rules import MARBLE, Rule, Seen, _onto_dual_cone, consensus, of_unit, table
from marble_core.bench.signal.truth import cosines_of_a_step, energies, true_cosines

P = 60  # size of a gradient
NOISE = {"between_prompts": 0.5, "between_images": 1.0, "t_eps": 2.0}  # energy in one step, where a signal's is 1


def signals(cosine_KK):
    """K vectors (K, P) of length 1 with these cosines."""
    values, vectors = np.linalg.eigh(np.asarray(cosine_KK, dtype=float))
    assert values.min() > -1e-12
    padded = np.zeros((len(cosine_KK), P))
    padded[:, : len(cosine_KK)] = vectors * np.sqrt(np.clip(values, 0, None))
    return padded


def one_odd(size, friends, odd):
    """Cosines of ``size`` rewards, of which all but the last agree and the last one is against them."""
    cosine = np.full((size, size), friends)
    cosine[-1] = cosine[:, -1] = odd
    np.fill_diagonal(cosine, 1)
    return cosine


def bank(signal_KP, Z, X=2, Y=2, seed=0, noise=NOISE) -> Products:
    """A bank of rewards with this signal: each half has half of it, and half of the noise of each kind."""
    rng, K = np.random.default_rng(seed), len(signal_KP)

    def normal(energy, *shape):
        return np.sqrt(energy / 2 / P) * rng.normal(size=(*shape, 2, K, P))

    g = signal_KP / 2 + normal(noise["between_prompts"], Z, 1, 1)
    g = g + normal(noise["between_images"], Z, 1, Y) + normal(noise["t_eps"], Z, X, Y)
    layers = np.split(torch.as_tensor(g.reshape(Z, X, Y, 2 * K, P)), [P // 3], axis=-1)
    return of_layers([f"r{k}" for k in range(K)], (), layers)


def assert_within_errors(found, truth, most):
    """Within four standard errors, which are at most ``most``."""
    truth = np.broadcast_to(truth, found.value.shape)
    assert (np.abs(found.value - truth) <= 4 * found.se + 1e-9).all(), (found.value, found.se)
    assert found.se.max() < most, found.se


def test_products_of_batches_recover_cosines_that_one_step_does_not_show():
    cosine = one_odd(4, 0.9, -0.6)
    made = bank(signals(cosine), Z=24)
    assert_within_errors(true_cosines(made), cosine, 0.12)
    seen = cosines_of_a_step(made).value
    assert np.abs(seen - cosine / (1 + sum(NOISE.values())))[cosine < 1].max() < 0.12  # noise dilutes what a step sees


def test_noise_is_told_apart_by_where_it_comes_from():
    found = energies(bank(signals(np.eye(3)), Z=60, Y=3))
    assert_within_errors(found["signal"], 1.0, 0.1)
    for name, energy in NOISE.items():
        assert_within_errors(found[name], energy, 0.25)
    assert_within_errors(found["consistency"], 1 / 4.5, 0.03)
    assert_within_errors(found["cosine"], np.sqrt(1 / 4.5), 0.03)


def test_what_a_design_cannot_tell_apart_is_left_open():
    found = energies(bank(signals(np.eye(2)), Z=5, X=1, Y=1))
    assert all(np.isnan(found[name].value).all() for name in NOISE)
    assert np.isfinite(found["signal"].value).all()


def test_the_jackknife_gives_the_spread_that_repeated_banks_have():
    equal = of_unit(lambda C: np.full(len(C), 1 / len(C)))
    first = Rule(lambda seen: np.eye(len(seen.G_KK))[0])
    found = {"signal": [], "cosine": [], "gain": []}
    for seed in range(80):
        made = bank(signals(one_odd(3, 0.5, 0.2)), Z=8, X=1, Y=1, seed=seed)
        one = agreement(made, {MARBLE: Rule(equal), "first": first}, range(3))["first"]
        found["signal"].append(energies(made)["signal"])
        found["cosine"].append(one.cosine)
        found["gain"].append(one.gain)
    for estimates in found.values():
        spread = np.std([e.value for e in estimates], axis=0)
        said = np.sqrt(np.mean([e.se**2 for e in estimates], axis=0))
        assert (np.abs(said / spread - 1) < 0.4).all(), said / spread


def test_the_meters_are_as_blunt_as_a_simulation_of_many_steps_finds():
    signal_KP, rng = signals(np.eye(2)), np.random.default_rng(3)
    made = bank(signal_KP, Z=80, X=1, Y=1)
    m, by_halves, in_time = np.zeros((2, P)), [], []
    for t in range(6000):
        halves = signal_KP / 2 + np.sqrt(3.5 / 2 / P) * rng.normal(size=(2, 2, P))
        g = halves.sum(0)
        if t > 50:
            by_halves.append(4 * (halves[0] * halves[1]).sum(-1))
            in_time.append((m * g).sum(-1))
        m = 0.8 * m + 0.2 * g
    found = meters(made)
    assert_within_errors(found["halves_mean"], 1.0, 0.2)
    assert_within_errors(found["halves_sd"], np.std(by_halves, axis=0), 0.15)
    assert_within_errors(found["time_sd"], np.std(in_time, axis=0), 0.08)
    assert np.std(by_halves) > 1.5 * np.std(in_time)


def test_the_meter_in_time_is_that_of_all_orders_of_the_batches():
    """The variance of an EMA's estimate, term by term, over every order and every choice of a batch's steps."""
    made = bank(signals(np.eye(1)), Z=5, X=1, Y=2)
    step = made.whole[:, :, 0, :, :, 0]

    def mean(count, product):
        choices = list(product_of(range(2), repeat=count))
        return np.mean([product(list(zip(order, f, strict=True))) for order in permutations(range(5), count) for f in choices])

    one = mean(2, lambda s: step[*s[0], *s[1]] ** 2)
    two = mean(3, lambda s: step[*s[0], *s[2]] * step[*s[1], *s[2]])
    apart = mean(4, lambda s: step[*s[0], *s[1]] * step[*s[2], *s[3]])
    truth = mean(2, lambda s: step[*s[0], *s[1]])
    c = np.array([0.2 * 0.8**i for i in range(200)])
    variance = (c**2).sum() * one + (1 - (c**2).sum()) * two - apart
    assert variance > 0
    np.testing.assert_allclose(meters(made)["time_sd"].value, np.sqrt(variance) / truth, rtol=1e-6)


def test_a_hackable_reward_is_given_more_by_min_norm_than_by_the_consensus_and_turns_the_update():
    made = bank(signals(one_odd(6, 0.3, -0.3)), Z=24, X=1, Y=1)
    rules = {MARBLE: Rule(table()[0][MARBLE].weigh), "consensus": Rule(of_unit(consensus(1)))}
    found = agreement(made, rules, range(6))
    assert found[MARBLE].alpha_of_truth[5] == pytest.approx(0.363, abs=0.03)
    assert found["consensus"].alpha_of_truth[5] < 0.12
    assert found[MARBLE].alpha.value[5] > 1 / 6 + 0.01 > found["consensus"].alpha.value[5] + 0.02
    gain = found["consensus"].gain
    assert (gain.value[:5] > 2 * gain.se[:5]).all() and gain.value[5] < -2 * gain.se[5], gain


def test_a_rule_that_looks_at_steps_before_is_judged_by_others():
    """Of pure noise its update leads nowhere; what it has looked at would say otherwise."""
    follow = Rule(lambda seen: np.diag(seen.time_KK), "time")  # towards what the steps before were like
    ahead = []
    for seed in range(60):
        made = bank(np.zeros((2, P)), Z=7, X=1, Y=1, seed=seed)
        update = _updates(made, follow, range(2))
        assert (update.known.sum(1) == 3).all()  # three batches are looked at, the others judge
        ahead.append(_ahead(update, np.arange(7)))
    ahead = np.array(ahead)
    assert (np.abs(ahead.mean(0)) < 3 * ahead.std(0) / np.sqrt(len(ahead))).all(), ahead.mean(0)


@pytest.mark.parametrize("p", [1, 1.5, 2, 4])
def test_the_consensus_minimises_its_sum_of_distances(p):
    units = np.random.default_rng(1).normal(size=(5, 7)) + 0.4
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    best = minimize(lambda d: (np.linalg.norm(units - d, axis=1) ** p).sum(), units.mean(0), tol=1e-14)
    np.testing.assert_allclose(consensus(p)(units @ units.T) @ units, best.x, atol=2e-4)


def test_torchjds_projection_is_the_least_norm_above_each_row():
    rows = np.random.default_rng(2).normal(size=(4, 9))
    G, U = rows @ rows.T, np.eye(4)
    found = _onto_dual_cone(torch.as_tensor(U), torch.as_tensor(G)).numpy()
    for u, v in zip(U, found, strict=True):
        best = minimize(partial(lambda G, v: v @ G @ v, G), u + 1, constraints=LinearConstraint(np.eye(4), lb=u), tol=1e-12)
        assert (v >= u - 1e-9).all() and v @ G @ v == pytest.approx(best.fun, rel=1e-5)


def test_every_rule_takes_a_reward_without_a_gradient_and_gives_it_nothing():
    rules, missing = table()
    made = bank(signals(one_odd(4, 0.5, -0.2)), Z=4, X=1, Y=1)
    halves = made.step(0, 0, range(4))
    halves.G_JJ[[2, 6]] = halves.G_JJ[:, [2, 6]] = 0
    for name, rule in rules.items():
        w_K = rule.weights(Seen(halves.whole, halves, halves.cross))
        assert np.isfinite(w_K).all() and w_K[2] == 0 and w_K.any(), name
    assert missing == [] and {"UPGrad (TorchJD)", "CAGrad, c = 0.5 (TorchJD)", "PCGrad (TorchJD)"} <= rules.keys()
