"""Whole optimizer steps against the same steps written out once more (written_step.py): sampling, masks, advantages, gradients,
balance, clipping, Adam, ``old`` and the EMA, from a policy whose ``old``, ``default`` and EMA lie apart."""

import numpy as np
import pytest
import torch

from builders import SmallModel, learner, prompts, weights
from marble_core.models.rollout import collect
from marble_core.step import optimizer_step
from marble_core.types import PromptBatch
from oracles import relative_error
from written_step import WrittenLearner, cosine, flat, written_mix

# Micro-batches that do not divide the images, a KL on part of them, a clamp that cuts, and a KL large enough to see.
HARD = ("loss.micro_batch=7", "loss.kl_fraction=0.3", "loss.advantage_max=0.9", "loss.kl_beta=0.5", "optimizer.clip_norm=0.05")


def apart(*overrides, updates=2):
    """A learner in the middle of its run, and the written-out one."""
    one = learner(*HARD, *overrides, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    for w in (one.policy.parameters_of("default"), one.policy.parameters_of("old"), one.policy.ema):
        for p in w.values():
            p.data.add_(0.05 * torch.randn(p.shape, generator=generator))
    one.policy.old_is_default, one.updates = False, updates
    return one, WrittenLearner.of(one, SmallModel(torch.float64))


def sampled(one):
    """The latents that the step decodes, as they come."""
    found, decode = [], one.policy.model.decode
    one.policy.model.decode = lambda x0: (found.append(x0), decode(x0))[1]
    return found


def assert_same(one, written, report):
    seen = written.seen
    gradient = {n: s["exp_avg"] for n, s in zip(one.policy.parameters_of("default"), moments(one), strict=True)}
    assert relative_error(gradient, written.first) < 3e-5, (
        "Adam's first moment, which clipping enters; images and times are float32"
    )
    assert report.metrics["update/norm"] == pytest.approx(seen["norm"], rel=1e-5)
    assert report.metrics["clamped"] == pytest.approx(seen["clamped"]) and 0 < seen["clamped"] < 1
    for ours, theirs in (
        (weights(one), written.default),
        (one.policy.parameters_of("old"), written.old),
        (one.policy.ema, written.ema),
    ):
        off = torch.cat([((ours[n] - theirs[n]).abs() > 2e-6).flatten() for n in theirs])
        assert off.float().mean() < 1e-3, "Adam goes by the sign of a gradient, which rounding decides next to 0"


def moments(one):
    return [one.optimizer.state[p] for p in one.policy.parameters_of("default").values()]


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ((), 2),
        (("balance.method=weighted_sum",), 1),
        (("balance.method=gdpo", "loss.times=between"), 1),
        (("balance.every=2",), 2),
        (("balance.method=mgda", "loss.name=awm_clipped", "loss.clip_range=0.01"), 1),
        (("balance.method=equal", "loss.advantage_std=group"), 1),
    ],
    ids=["marble", "weighted_sum", "gdpo at times between", "between two QPs", "mgda awm_clipped", "equal, std of the group"],
)
def test_steps_are_what_the_formulas_make_of_them(overrides, steps):
    one, written = apart(*overrides)
    latents = sampled(one)
    for _ in range(steps):
        report = optimizer_step(one, prompts())
        written.run(prompts(), x0 := latents.pop())
        assert torch.allclose(x0.double(), written.seen["x0"], rtol=0, atol=2e-5), "each step's own noise"
        assert_same(one, written, report)
        assert np.linalg.norm(written.seen["kl_part"]) > 0.01 * np.linalg.norm(written.seen["reward_part"]), "the KL counts"
        assert written.seen["norm"] > one.config.optimizer.clip_norm, "clipping counts"
        if "alpha" in written.seen:
            alpha = [report.metrics[f"alpha/{n}"] for n in one.config.reward_names]
            assert np.allclose(alpha, written.seen["alpha"], atol=1e-5)
        if "held_out" in written.seen:
            held_out = [report.metrics[f"held_out/{n}"] for n in one.config.reward_names]
            assert np.allclose(held_out, written.seen["held_out"], atol=1e-4)


def test_a_rollout_is_dpm_solver_2m_by_old_under_each_images_own_prompt():
    """Each image against the solver written out, with ``old``'s LoRA merged into the frozen weights."""
    one, written = apart("rollout.steps=6")
    batch = PromptBatch(tuple(written_mix(prompts(), 6, 0, one.config.seed)), 4, step=0, seed=one.config.seed)
    rollout = collect(one.policy, batch, one.config.rollout)
    x0, t_S, _ = written.sample(batch.prompts)
    assert torch.allclose(rollout.x0_NCHW.double(), x0, rtol=0, atol=2e-5) and torch.allclose(rollout.t_S, t_S)
    assert not torch.allclose(written.sample(batch.prompts[::-1])[0], x0, atol=1e-2), "prompts matter"


def test_a_gradient_below_the_clip_is_left_as_it_is():
    one, written = apart("optimizer.clip_norm=1000")
    latents = sampled(one)
    report = optimizer_step(one, prompts())
    written.run(prompts(), latents.pop())
    assert_same(one, written, report)


def test_the_first_two_steps_where_old_equals_default_are_the_same_formulas():
    """The step leaves out a forward and a backward pass there; what is written out does not."""
    one = learner("loss.advantage_max=0.9", dtype=torch.float64)
    written, latents = WrittenLearner.of(one, SmallModel(torch.float64)), sampled(one)
    for _ in range(2):
        report = optimizer_step(one, prompts())
        written.run(prompts(), latents.pop())
        assert_same(one, written, report)


def direction_of(one, given=None):
    """The direction that a step takes, the KL included, its report and its latents; nothing is updated."""
    found, latents = {}, sampled(one)
    one.policy.update = lambda _, gradient, *__: found.update(gradient) or 0.0
    return found, optimizer_step(one, given or prompts()), latents.pop()


def test_in_fp32_the_direction_is_the_written_one_within_1e_5():
    one = learner()
    written = WrittenLearner.of(one, SmallModel())
    found, report, x0 = direction_of(one)
    written.run(prompts(), x0)
    assert relative_error(found, written.seen["gradient"]) < 1e-5
    assert np.allclose([report.metrics[f"alpha/{n}"] for n in one.config.reward_names], written.alpha, atol=1e-5)


@pytest.mark.parametrize("method", ["weighted_sum", "gdpo", "equal", "single:ocr", "marble"])
def test_the_logged_cosines_are_those_of_the_update_whatever_the_method(method):
    """Against K + 1 autograd gradients; the KL is left out, so its weight is made next to nothing."""
    one = learner(f"balance.method={method}", "balance.observe=1", "loss.kl_beta=1e-20", dtype=torch.float64)
    written = WrittenLearner.of(one, SmallModel(torch.float64))
    start = dict(written.default), dict(written.old), 0
    given = [p for p in prompts() if p.source == "ocr"][:6] if method == "single:ocr" else prompts()
    found, report, x0 = direction_of(one, given)
    written.run(given, x0)
    written.default, written.old, written.step = start
    rows, _ = written.gradients(*written.seen["rows"])
    assert relative_error(found, written.seen["gradient"]) < 1e-5
    for name, row in zip(one.config.reward_names, rows, strict=True):
        expected = cosine(flat(row), flat({n: found[n] for n in row}))
        assert report.metrics[f"cosine/update:{name}"] == pytest.approx(expected, abs=1e-6)
        assert 0 <= report.metrics[f"alpha_star/{name}"] <= 1
