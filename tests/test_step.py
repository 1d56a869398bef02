"""A whole optimizer step against a naive one, and what a step must not depend on: observing, stopping, going on."""

import json
import threading
from itertools import chain, combinations

import numpy as np
import pytest
import torch

from marble_core.algorithm import backward
from marble_core.algorithm.advantages import estimate
from marble_core.algorithm.methods import make_balancer
from marble_core.checkpoints import CheckpointStore
from marble_core.models.rollout import collect
from marble_core.prompts import mix
from marble_core.rewards.scoring import score_all
from marble_core.step import Learner, optimizer_step
from marble_core.training import loop
from marble_core.types import MarbleError, Prompt
from small import SmallModel, small_config, small_policy
from test_gradients import autograd_gradient, relative_error

STEP = [
    "rollout.prompts=6",
    "rollout.images_per_prompt=4",
    "loss.timesteps=2",
    "optimizer.eta_rate=0.3",
    "train.checkpoint_every=1",
]


class Channel:
    """Rewards a colour channel; the specialist one looks at prompts of one source only."""

    value_range = (0.0, 1.0)

    def __init__(self, name, channel, source=None, fault_at=None):
        self.name, self.channel, self.source, self.fault_at, self.calls = name, channel, source, fault_at, 0

    def applies(self, prompt):
        return self.source in (None, prompt.source)

    def score(self, images_NHWC, prompts):
        self.calls += 1
        values = images_NHWC[..., self.channel].astype(float).mean((1, 2)) / 255
        return values if self.calls != self.fault_at else np.full(len(values), np.nan)

    def self_check(self):
        pass


def rewards(fault_at=None):
    return Channel("clipscore", 0), Channel("pickscore", 1, fault_at=fault_at), Channel("ocr", 2, "ocr")


def prompts():
    return [Prompt(f"{source} {n}", source) for source in ("general", "ocr", "geneval") for n in range(10)]


def learner(*overrides, dtype=torch.float32, scorers=None):
    names = "rewards=[{name: clipscore}, {name: pickscore}, {name: ocr}]"
    config = small_config(*STEP, names, *overrides)
    policy = small_policy(config, model=SmallModel(dtype))
    optimizer = torch.optim.AdamW(policy.parameters_of("default").values(), lr=1e-3, weight_decay=1e-4)
    balancer = make_balancer(config.balance, config.reward_names, config.train.steps)
    return Learner(config, policy, scorers or rewards(), balancer, optimizer)


def weights(one):
    return {n: p.detach().clone() for n, p in one.policy.parameters_of("default").items()}


def min_norm_by_enumeration(C):
    best = None
    for support in chain.from_iterable(combinations(range(len(C)), n) for n in range(1, len(C) + 1)):
        s = list(support)
        kkt = np.block([[2 * C[np.ix_(s, s)], np.ones((len(s), 1))], [np.ones((1, len(s))), np.zeros((1, 1))]])
        alpha = np.zeros(len(C))
        alpha[s] = np.linalg.solve(kkt, np.append(np.zeros(len(s)), 1.0))[:-1]
        if (alpha >= 0).all() and (best is None or alpha @ C @ alpha < best @ C @ best):
            best = alpha
    return best


def naive_step(one):
    """The same step written down once more: K + 1 autograd passes, a QP by enumeration, Adam by hand (its first step)."""
    config, policy = one.config, one.policy
    batch = mix(prompts(), 6, 4, one.step, config.seed)
    rollout = collect(policy, batch, config.rollout)
    table = score_all(one.scorers, rollout.images_NHWC, list(batch.prompts_of(rollout.index_N)))
    advantages = estimate(table, batch.group_N, "batch")
    gradients = []
    for k in range(3):
        weight_N = advantages.mask_NK[:, k] / advantages.mask_NK[:, k].sum() / config.loss.timesteps
        gradients.append(autograd_gradient(policy, rollout, config, weight_N, advantages.A_NK[:, k]))
    kl = autograd_gradient(policy, rollout, config, np.zeros(24), np.zeros(24), kl=True)
    flat = np.array([torch.cat([g.flatten() for g in one_.values()]).double().numpy() for one_ in gradients])
    norms = np.linalg.norm(flat, axis=1)
    unit = flat / norms[:, None]
    alpha = min_norm_by_enumeration(unit @ unit.T)
    w = alpha * norms.mean() / norms
    return {n: sum(float(w[k]) * gradients[k][n] for k in range(3)) + kl[n] for n in kl}, alpha


def test_a_step_is_what_a_naive_implementation_makes_of_it():
    one = learner(dtype=torch.float64)
    before = weights(one)
    direction, alpha = naive_step(one)
    report = optimizer_step(one, prompts())
    assert np.allclose([report.metrics[f"alpha/{n}"] for n in one.config.reward_names], alpha, atol=1e-6)
    norm = torch.cat([g.flatten() for g in direction.values()]).norm()
    for name, after in weights(one).items():
        g = direction[name] * min(1.0, 1.0 / float(norm))
        expected = before[name] * (1 - 1e-3 * 1e-4) - 1e-3 * g / (g.abs() + 1e-8)
        assert torch.allclose(after, expected, atol=1e-9, rtol=0), name
    old = one.policy.parameters_of("old")
    assert all(torch.equal(old[n], w) for n, w in weights(one).items()), "eta(0) = 0: old becomes default"


def direction_of(one):
    """The direction that a step takes, the KL included, and its report; nothing is updated."""
    found = {}
    one.policy.update = lambda _, gradient, *__: found.update(gradient) or 0.0
    return found, optimizer_step(one, prompts())


def test_in_fp32_the_direction_is_the_naive_one_within_1e_5():
    expected, alpha = naive_step(learner())
    found, report = direction_of(learner())
    assert relative_error(found, expected) < 1e-5
    assert np.allclose([report.metrics[f"alpha/{n}"] for n in ("clipscore", "pickscore", "ocr")], alpha, atol=1e-5)


@pytest.mark.parametrize("k", range(3))
def test_multiplying_a_reward_by_1000_moves_alpha_and_the_direction_by_less_than_one_percent(k):
    """Not exactly nothing, because of the 1e-4 beside the standard deviation."""
    scaled = rewards()
    score = scaled[k].score
    scaled[k].score = lambda images, prompts: 1000 * score(images, prompts)
    (one, usual), (other, larger) = direction_of(learner()), direction_of(learner(scorers=scaled))
    assert relative_error(other, one) < 0.01
    for name in ("clipscore", "pickscore", "ocr"):
        assert larger.metrics[f"alpha/{name}"] == pytest.approx(usual.metrics[f"alpha/{name}"], abs=0.01)


@pytest.mark.parametrize("method", ["weighted_sum", "marble"])
def test_observing_changes_no_bit(method):
    plain, watched = (learner(f"balance.method={method}", "balance.every=2", f"balance.observe={n}") for n in (0, 1))
    for _ in range(3):
        quiet, loud = optimizer_step(plain, prompts()), optimizer_step(watched, prompts())
    assert "grad_norm/ocr" in loud.metrics
    assert method == "marble" or "grad_norm/ocr" not in quiet.metrics
    assert all(torch.equal(a, b) for a, b in zip(weights(plain).values(), weights(watched).values(), strict=True))


def test_halves_change_no_number_of_the_update():
    apart, whole = (learner(f"balance.halves={on}", dtype=torch.float64) for on in ("true", "false"))
    for _ in range(2):
        seen, unseen = optimizer_step(apart, prompts()).metrics, optimizer_step(whole, prompts()).metrics
    assert "held_out/worst" in seen and "held_out/worst" not in unseen
    assert all(
        torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in zip(weights(apart).values(), weights(whole).values(), strict=True)
    )
    assert [seen[f"alpha/{n}"] for n in apart.config.reward_names] == pytest.approx(
        [unseen[f"alpha/{n}"] for n in apart.config.reward_names], abs=1e-9
    )


@pytest.mark.parametrize("method", ["weighted_sum", "gdpo", "equal", "single:ocr", "marble"])
def test_the_logged_cosines_are_those_of_the_update_whatever_the_method(method):
    """Against K + 1 autograd gradients; the KL is left out, so its weight is made next to nothing."""
    one = learner(f"balance.method={method}", "balance.observe=1", "loss.kl_beta=1e-20", dtype=torch.float64)
    config, policy, found = one.config, one.policy, {}
    policy.update = lambda _, gradient, *__: found.update(gradient) or 0.0
    batch = mix([p for p in prompts() if p.source == "ocr" or method != "single:ocr"], 6, 4, 0, config.seed)
    rollout = collect(policy, batch, config.rollout)
    advantages = estimate(
        score_all(one.scorers, rollout.images_NHWC, batch.prompts_of(rollout.index_N)), batch.group_N, "batch"
    )
    metrics = optimizer_step(one, prompts()).metrics
    flat = lambda g: torch.cat([g[n].flatten() for n in found])
    for k, name in enumerate(config.reward_names):
        weight_N = advantages.mask_NK[:, k] / advantages.count_K[k] / config.loss.timesteps
        g = autograd_gradient(policy, rollout, config, weight_N, advantages.A_NK[:, k])
        cosine = torch.nn.functional.cosine_similarity(flat(g), flat(found), dim=0)
        assert metrics[f"cosine/update:{name}"] == pytest.approx(float(cosine), abs=1e-6)
        assert 0 <= metrics[f"alpha_star/{name}"] <= 1


@pytest.mark.parametrize(
    "method",
    ["marble", "mgda", "weighted_sum", "equal", "gdpo", "single:ocr", "marble balance.every=3", "marble balance.gram=cross"],
)
def test_every_method_runs_in_the_one_loop_and_moves_the_policy(method):
    one = learner(*f"balance.method={method}".split())
    before = weights(one)
    for _ in range(2):
        report = optimizer_step(one, prompts())
    assert not report.skipped and any(not torch.equal(a, before[n]) for n, a in weights(one).items())


def test_stages_follow_each_other_with_their_own_rewards_and_sources():
    stages = "[{rewards: [ocr], steps: 1}, {rewards: [clipscore, pickscore], sources: [general], steps: 1}]"
    one = learner("train.steps=2", f"balance={{method: sequential, stages: {stages}}}")
    first, second = optimizer_step(one, prompts()).metrics, optimizer_step(one, prompts()).metrics
    alphas = [[done[f"alpha/{n}"] for n in one.config.reward_names] for done in (first, second)]
    assert alphas == [[0, 0, 1], [0.5, 0.5, 0]]
    assert "reward/clipscore/ocr" in first and "reward/clipscore/general" not in first
    assert "reward/clipscore/general" in second and "reward/ocr/mean" not in second


def test_a_step_of_one_reward_takes_its_prompts_from_the_sources_it_applies_to():
    report = optimizer_step(learner("balance.method=single:ocr"), prompts())
    assert report.metrics["reward/clipscore/ocr"] and "reward/clipscore/general" not in report.metrics


def test_subtracting_the_common_part_leaves_the_one_backward_form_exact():
    one = learner("balance.subtract_common=true", dtype=torch.float64)
    for _ in range(3):
        optimizer_step(one, prompts())  # default and old are apart now
    config, policy = one.config, one.policy
    batch = mix(prompts(), 6, 4, one.step, config.seed)
    rollout = collect(policy, batch, config.rollout)
    table = score_all(one.scorers, rollout.images_NHWC, list(batch.prompts_of(rollout.index_N)))
    rows = backward.reward_rows(estimate(table, batch.group_N, "batch"), np.arange(24) % 2, config.loss.timesteps, True)
    w_J = np.array([0.2, 0.5, 0.3] * 2)
    apart = backward.per_reward(policy, rollout, rows, config.loss)
    together = backward.weighted_sum(policy, rollout, rows, w_J, config.loss).gradients.combine(np.ones(1))
    assert relative_error(apart.gradients.combine(np.append(w_J, 1.0)), together) < 1e-9
    micro_batches = 24 // config.loss.micro_batch * config.loss.timesteps
    assert apart.backwards == 2 * micro_batches, "the common part rides with the KL"


def test_the_first_images_are_scored_while_the_next_are_sampled():
    """Sampling waits for the score of its first batch before it gives its second, so without overlap nothing would end."""
    one, scored = learner("rollout.batch_size=8"), threading.Event()
    decode, slow, waited = one.policy.model.decode, one.scorers[2], []
    slow.background, score = True, slow.score
    slow.score = lambda images, prompts: (scored.set(), score(images, prompts))[1]

    def decode_after_the_first_score(x0_NCHW):
        waited.append(scored.wait(20) if waited else True)
        return decode(x0_NCHW)

    one.policy.model.decode = decode_after_the_first_score
    together, apart = optimizer_step(one, prompts()), optimizer_step(learner("rollout.batch_size=8"), prompts())
    assert waited == [True] * 3
    assert together.metrics["reward/ocr/mean"] == apart.metrics["reward/ocr/mean"]


def test_a_reward_that_is_not_finite_skips_the_step_names_itself_and_changes_nothing():
    one = learner(scorers=rewards(fault_at=1))
    before = weights(one)
    report = optimizer_step(one, prompts())
    assert report.skipped and "pickscore is not finite for the prompt" in report.notes[0]
    assert all(torch.equal(a, before[n]) for n, a in weights(one).items()) and (one.step, one.updates) == (1, 0)


def test_a_step_that_no_reward_learns_from_is_skipped_and_counted_but_is_no_fault():
    one = learner()
    for scorer in one.scorers:
        scorer.score = lambda images, _: np.full(len(images), 0.5)
    before = weights(one)
    report = optimizer_step(one, prompts())
    assert report.skipped and not report.fault and "tells the images of a prompt apart" in report.notes[0]
    assert all(torch.equal(a, before[n]) for n, a in weights(one).items()) and (one.step, one.updates) == (1, 0)


def test_a_step_whose_one_reward_has_no_signal_is_skipped_though_others_have():
    one = learner("balance.method=single:ocr")
    one.scorers[2].score = lambda images, _: np.full(len(images), 0.5)
    before = weights(one)
    report = optimizer_step(one, prompts())
    assert report.skipped and not report.fault and "no reward is active" in report.notes[0]
    assert all(torch.equal(a, before[n]) for n, a in weights(one).items())


def test_faults_in_a_row_stop_the_run_with_one_sentence(tmp_path):
    one = learner("train.max_bad_steps=2", "train.steps=9")
    one.scorers[1].score = lambda images, _: np.full(len(images), np.nan)
    with pytest.raises(MarbleError, match="2 steps in a row were skipped for a fault"):
        loop.train(one, prompts(), CheckpointStore(tmp_path, None, "run"), lambda _: None)


def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_bits(tmp_path):
    whole = learner("train.steps=4")
    loop.train(whole, prompts(), CheckpointStore(tmp_path / "whole", None, "run"), lambda _: None)

    def stop_after_two(report):
        if report.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(learner("train.steps=4"), prompts(), CheckpointStore(tmp_path / "parts", None, "run"), stop_after_two)
    resumed = learner("train.steps=4")
    loop.train(resumed, prompts(), CheckpointStore(tmp_path / "parts", None, "run"), lambda _: None)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))
    assert all(torch.equal(whole.policy.ema[n], e) for n, e in resumed.policy.ema.items())
    kept = {n: v for n, v in whole.history[-1]["metrics"].items() if not n.startswith(("time/", "images_per"))}
    again = {n: v for n, v in resumed.history[-1]["metrics"].items() if not n.startswith(("time/", "images_per"))}
    assert json.dumps(kept) == json.dumps(again) and len(resumed.history) == 4


def test_a_skipped_step_leaves_the_balancer_as_it_was(monkeypatch):
    one = learner()
    optimizer_step(one, prompts())
    before = json.dumps(one.balancer.state())
    monkeypatch.setattr(backward.RowGradients, "combine", lambda self, w: {"x": torch.tensor([torch.nan])})
    assert optimizer_step(one, prompts()).fault
    assert json.dumps(one.balancer.state()) == before


def test_limits_that_the_active_rewards_cannot_meet_do_not_end_the_run():
    one = learner("balance.cap={clipscore: 0.4, pickscore: 0.4, ocr: 0.4}")
    one.scorers[2].score = lambda images, _: np.full(len(images), 0.5)
    report = optimizer_step(one, prompts())
    assert not report.skipped and any("the QP failed" in note for note in report.notes)
    assert report.metrics["qp_failed"] == 1


@pytest.mark.parametrize(
    "change", ["balance.method=equal", "optimizer.lr=0.5", "rewards=[{name: pickscore}, {name: clipscore}, {name: ocr}]"]
)
def test_a_setting_that_makes_another_run_of_it_is_one_sentence_and_one_that_does_not_is_taken(change, tmp_path):
    loop.train(learner("train.steps=1"), prompts(), CheckpointStore(tmp_path, None, "run"), lambda _: None)
    with pytest.raises(
        MarbleError, match=r"The run was begun with (balance.method|reward_names|optimizer.lr) = .*set it back, or"
    ):
        loop.train(learner("train.steps=2", change), prompts(), CheckpointStore(tmp_path, None, "run"), lambda _: None)
    free = learner("train.steps=2", "loss.micro_batch=6", "storage.keep_last=1", "registry.margin=0.2")
    loop.train(free, prompts(), CheckpointStore(tmp_path, None, "run"), lambda _: None)
    assert [line["step"] for line in free.history] == [1, 2]
