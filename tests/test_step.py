"""What a whole optimizer step must not depend on: observing, stopping, going on. test_written_step.py has what it computes."""

import json
import threading

import numpy as np
import pytest
import torch

from builders import learner, prompts, rewards, weights
from marble_core.algorithm import backward, metrics
from marble_core.algorithm.advantages import estimate
from marble_core.models.rollout import collect
from marble_core.prompts import mix
from marble_core.rewards.scoring import score_all
from marble_core.step import optimizer_step
from marble_core.types import Prompt
from oracles import autograd_gradient, min_norm_by_enumeration, relative_error, written_share


def direction_of(one):
    """The direction that a step takes, the KL included, and its report; nothing is updated."""
    found = {}
    one.policy.update = lambda _, gradient, *__: found.update(gradient) or 0.0
    return found, optimizer_step(one, prompts())


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
    plain, watched = (learner(f"balance={{method: {method}, every: 2}}", f"balance.observe={n}") for n in (0, 1))
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


def test_the_released_codes_balance_learns_from_a_share_of_a_step_and_steers_means_over_all_images():
    """docs/algorithm.md, section 7: weights from the QP of some micro-batches, for the whole step's raw gradients, masks left out."""
    settings = "{meter: none, qp_share: 0.3, masks_between: all, normalise_between: false, every: 10}"
    one = learner(f"balance={settings}", "loss.micro_batch=5", dtype=torch.float64)
    config, policy = one.config, one.policy
    batch = mix(prompts(), 6, 4, 0, config.seed)
    rollout = collect(policy, batch, config.rollout)
    table = score_all(one.scorers, rollout.images_NHWC, batch.prompts_of(rollout.index_N))
    advantages = estimate(table, batch.group_N, "batch")
    qp_NT = written_share(config.seed, 0, 24, config.loss, 0.3, "qp")
    assert 0 < qp_NT.sum() <= 3 * 5, "3 of the 10 micro-batches, which hold at most 5 images"

    def gradients(weight_NK, keep_NT=None):
        of = lambda k: autograd_gradient(policy, rollout, config, weight_NK[:, k] / 2, advantages.A_NK[:, k], keep_NT=keep_NT)
        return [of(k) for k in range(3)]

    whole = gradients(advantages.mask_NK / 24)
    kl = autograd_gradient(policy, rollout, config, np.zeros(24), np.zeros(24), kl=True)
    part = gradients(advantages.mask_NK / advantages.count_K, qp_NT)
    flat = np.array([torch.cat([g.flatten() for g in one_.values()]).numpy() for one_ in part])
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    alpha, _ = min_norm_by_enumeration(unit @ unit.T)
    calls, velocity = [], policy.model.velocity
    policy.model.velocity = lambda *inputs: (calls.append(1), velocity(*inputs))[1]
    collect(policy, batch, config.rollout)
    sampling = len(calls)
    found, report = direction_of(one)
    assert report.metrics["passes/forward"] == len(calls) - 2 * sampling, "those of the share and of the whole step"
    assert np.allclose([report.metrics[f"alpha/{n}"] for n in config.reward_names], alpha, atol=1e-6)
    assert relative_error(found, {n: sum(float(alpha[k]) * whole[k][n] for k in range(3)) + kl[n] for n in kl}) < 1e-5
    assert (report.metrics["passes/backward"], report.metrics["alpha_star/ocr"]) == (13, pytest.approx(alpha[2], abs=1e-6))


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


def test_images_per_second_are_those_of_the_time_up_to_the_last_lap():
    clock = metrics.Clock()
    clock.last = clock.first - 7.5  # the lap before ended long ago
    clock.lap("sample")
    assert 7.5 <= clock.laps["time/sample"] < 8.5
    clock.first, clock.last = 10.0, 14.0
    assert clock.metrics(6)["images_per_second"] == 1.5


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
    assert report.skipped and "pickscore is not finite for the prompt" in report.notes[0] and "rank" not in report.notes[0]
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


ONE_PROMPT = ("rollout.prompts=1", "data.train.ocr=null", "data.train.geneval=null")


@pytest.mark.parametrize(
    ("overrides", "texts"),
    [(ONE_PROMPT, ["a"]), ((*ONE_PROMPT, "rollout.prompts=2"), ["a", "a"]), (("optimizer.eta_rate=0",), ["a", "b"])],
    ids=["one prompt", "one text", "one prompt whose images differ"],
)
def test_a_half_without_a_gradient_costs_the_held_out_numbers_and_nothing_else(overrides, texts):
    one = learner(*overrides)
    pool = [Prompt(text, "general") for text in texts]
    if len(set(texts)) > 1:
        pool, differing = prompts(), []
        for scorer in one.scorers:
            score = scorer.score

            def only_the_first_prompt(images, of, score=score):
                differing[:] = differing or [of[0].text]
                return np.where([p.text == differing[0] for p in of], score(images, of), 0.5)

            scorer.score = only_the_first_prompt
    before = weights(one)
    report = optimizer_step(one, pool)
    assert not report.skipped and any(not torch.equal(a, before[n]) for n, a in weights(one).items())
    assert report.metrics["metrics_failed"] == 0 and report.metrics["cosine/worst"] > 0
    assert not [name for name in report.metrics if name.startswith("held_out/")]


@pytest.mark.parametrize("part", ["reward_metrics", "balance_metrics", "gradient_metrics", "half_metrics"])
def test_a_number_that_is_only_logged_cannot_end_a_step(part, monkeypatch):
    """It is left out, said and counted; the update is the same to the bit, and the weights have not moved before it is computed."""
    well, ill = learner(), learner()
    start, seen = weights(ill), []
    optimizer_step(well, prompts())

    def fail(*_):
        seen.append(all(torch.equal(a, start[n]) for n, a in weights(ill).items()))
        raise IndexError("index 0 is out of bounds")

    monkeypatch.setattr(metrics, part, fail)
    report = optimizer_step(ill, prompts())
    assert seen == [True] and report.metrics["metrics_failed"] == 1 and not report.skipped
    assert any("no metrics of the" in note and "IndexError: index 0 is out of bounds" in note for note in report.notes)
    assert all(torch.equal(a, b) for a, b in zip(weights(well).values(), weights(ill).values(), strict=True))
    assert (ill.step, ill.updates, ill.updating) == (1, 1, False) and "update/norm" in report.metrics
