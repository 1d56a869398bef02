"""trust in the balancer: what it changes and what it leaves, and the choice of an exponent by what the next step says."""

import itertools

import numpy as np
import pytest

from marble_core.algorithm.auto_trust import AutoTrust
from marble_core.algorithm.meter import InTime
from marble_core.algorithm.methods import make_balancer
from marble_core.config.balance import CANDIDATES, BalanceConfig

NAMES = ("clipscore", "pickscore", "ocr")
LABELS = list(CANDIDATES)


def balancer(**config):
    return make_balancer(BalanceConfig(**config), NAMES, 100)


def gradients(seed=0, scales=(3.0, 1.0, 0.2)):
    return (np.random.default_rng(seed).normal(size=(3, 50)) + 0.3) * np.array(scales)[:, None]


def weigh(one, g, signal=None):
    return one.weigh(g @ g.T, np.ones(3, bool), signal)


def test_the_paper_is_the_default_and_a_p_of_2_gives_equal_shares_of_unit_or_of_raw_gradients():
    g = gradients()
    assert (weigh(balancer(), g).w_K == weigh(balancer(trust="paper"), g).w_K).all()
    unit, raw = weigh(balancer(trust=2), g), weigh(balancer(trust=2, normalise=False), g)
    assert np.allclose(unit.alpha_K, 1 / 3) and np.allclose(
        unit.w_K * np.linalg.norm(g, axis=1), unit.w_K[0] * np.linalg.norm(g[0])
    )
    assert np.allclose(raw.w_K, 1 / 3)
    assert np.allclose(weigh(balancer(normalise=False), g).w_K, weigh(balancer(method="mgda"), g).w_K)


@pytest.mark.parametrize("trust", [1, 1.5, 2, 4, 64])
def test_floors_caps_wishes_and_preferences_hold_for_every_p(trust):
    g, prior = gradients(), {"clipscore": 1.0, "pickscore": 1.0, "ocr": 2.0}
    free = weigh(balancer(trust=trust), g).alpha_K
    assert weigh(balancer(trust=trust, floor={"ocr": 0.6}), g).alpha_K[2] == pytest.approx(0.6, abs=1e-6)
    assert weigh(balancer(trust=trust, cap={"clipscore": 0.05}), g).alpha_K[0] == pytest.approx(0.05, abs=1e-6)
    assert weigh(balancer(trust=trust, wishes=("clipscore + pickscore <= 0.2",)), g).alpha_K[2] == pytest.approx(0.8, abs=1e-6)
    preferred = weigh(balancer(trust=trust, prior=prior), g).alpha_K
    assert preferred[2] > free[2] + (0.005 if trust == 64 else 0.05)
    kept = weigh(balancer(trust=trust, prior=prior, kappa=0.25), g).alpha_K
    assert np.allclose(kept, 0.75 * np.array([0.25, 0.25, 0.5]) + 0.25 * preferred)


def test_a_step_whose_p_has_no_answer_keeps_the_last_weights():
    one = balancer(trust=1.5, cap=dict.fromkeys(NAMES, 0.4))
    last = weigh(one, gradients(0)).alpha_K
    done = one.weigh(gradients(1) @ gradients(1).T, np.array([True, True, False]))
    assert done.failed and np.allclose(done.alpha_K, [*last[:2] / last[:2].sum(), 0])


def says(worst_R):
    """A reading whose least cosine with each candidate's last direction is this."""
    last_RK = np.vstack([np.zeros(3), *[[c, c + 0.1, c + 0.2] for c in worst_R]])
    return InTime(np.full((3, 3), np.nan), np.ones(3), last_RK)


def test_auto_begins_with_equal_shares_and_takes_the_best_when_the_evidence_is_beyond_its_noise():
    rng, one = np.random.default_rng(0), balancer(trust="auto", meter="time")
    assert isinstance(one, AutoTrust) and weigh(one, gradients()).numbers["trust/p"] == 2
    advantage = np.zeros(len(LABELS))
    advantage[LABELS.index("1")] = 0.1
    chosen = [
        weigh(one, gradients(), says(advantage + 0.02 * rng.normal(size=len(LABELS)))).numbers["trust/p"] for _ in range(20)
    ]
    assert chosen[0] == 2 and set(chosen[6:]) == {1}
    assert np.allclose(weigh(one, gradients()).alpha_K, weigh(balancer(trust=1), gradients()).alpha_K)
    for _ in range(30):
        done = weigh(
            one, gradients(), says(0.3 * np.eye(len(LABELS))[LABELS.index("raw")] + 0.02 * rng.normal(size=len(LABELS)))
        )
    assert done.numbers["trust/raw"] == 1 and np.allclose(done.w_K, 1 / 3)


def test_auto_does_not_change_its_mind_for_noise():
    changes = 0
    for seed in range(4):
        rng, one = np.random.default_rng(seed), balancer(trust="auto", meter="time")
        chosen = [one.chosen]
        for _ in range(40):
            one._judge(0.1 * rng.normal() + 0.1 * rng.normal(size=len(LABELS)))
            chosen.append(one.chosen)
        changes += sum(a != b for a, b in itertools.pairwise(chosen))
    assert changes <= 12, "of 160 steps, where the best by the average alone changes on more than half of them"
