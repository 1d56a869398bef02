"""Slow and obvious implementations to hold the fast ones against."""

from itertools import chain, combinations

import numpy as np
import torch

from marble_core.algorithm import backward
from marble_core.algorithm.advantages import estimate
from marble_core.models.rollout import collect
from marble_core.prompts import mix
from marble_core.rewards.scoring import score_all


def written_out_loss(v, v_old, x, x0, t, A, beta, a_max):
    """DiffusionNFT as its paper writes it, one number an image, for autograd."""
    t = t[:, None, None, None]

    def part(velocity):
        error = x - t * velocity - x0
        return (error**2 / error.detach().abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-5)).mean((1, 2, 3))

    plus, minus = part(v_old + beta * (v - v_old)), part(v_old - beta * (v - v_old))
    r = 0.5 + A / (2 * a_max)
    return a_max * (r * plus + (1 - r) * minus) / beta


def autograd_gradient(policy, rollout, config, weight_N, A_N, kl=False):
    """The gradient of sum_it weight_i l(A_i), or of the KL, in one ordinary backward a micro-batch."""
    default = policy.parameters_of("default")
    total = {n: torch.zeros_like(p) for n, p in default.items()}
    for part in backward._micro_batches(rollout, config.loss):
        velocities = {}
        for adapter in ("old", "off"):
            with policy.using(adapter) as model, torch.no_grad():
                velocities[adapter] = model.velocity(part.x_BCHW, part.t_B, part.conditioning)
        with policy.using("default") as model:
            for p in default.values():
                p.requires_grad_(True)
            v = model.velocity(part.x_BCHW, part.t_B, part.conditioning)
        A, weight = (torch.as_tensor(a, dtype=v.dtype)[part.images_B] for a in (A_N, weight_N))
        if kl:
            loss = config.loss.kl_beta * part.kl_scale * (v - velocities["off"]).pow(2).mean((1, 2, 3)).sum()
        else:
            l = written_out_loss(
                v, velocities["old"], part.x_BCHW, part.x0_BCHW, part.t_B, A, config.loss.beta, config.loss.advantage_max
            )
            loss = (weight * l).sum()
        for n, g in zip(default, torch.autograd.grad(loss, list(default.values()), allow_unused=True), strict=True):
            total[n] += 0 if g is None else g
    for p in default.values():
        p.requires_grad_(False)
    return total


def relative_error(a, b):
    """Of two gradients as whole vectors."""
    one, other = (torch.cat([g[n].flatten().double() for n in a]) for g in (a, b))
    return float((one - other).norm() / other.norm().clamp_min(1e-30))


def naive_step(one, prompts):
    """(direction, alpha) of the same step written down once more: K + 1 autograd passes and a QP by enumeration."""
    config, policy = one.config, one.policy
    batch = mix(prompts, 6, 4, one.step, config.seed)
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
    alpha, _ = min_norm_by_enumeration(unit @ unit.T)
    w = alpha * norms.mean() / norms
    return {n: sum(float(w[k]) * gradients[k][n] for k in range(3)) + kl[n] for n in kl}, alpha


def min_norm_by_enumeration(G):
    """The min-norm point over every face of the simplex, by the KKT system of each support."""
    size, best, value = len(G), None, np.inf
    for support in chain.from_iterable(combinations(range(size), n) for n in range(1, size + 1)):
        s = list(support)
        kkt = np.block([[2 * G[np.ix_(s, s)], np.ones((len(s), 1))], [np.ones((1, len(s))), np.zeros((1, 1))]])
        inner = np.linalg.lstsq(kkt, np.append(np.zeros(len(s)), 1.0), rcond=None)[0][:-1]
        if (inner < -1e-12).any() or not np.isclose(inner.sum(), 1):
            continue
        alpha = np.zeros(size)
        alpha[s] = inner
        if alpha @ G @ alpha < value:
            best, value = alpha, alpha @ G @ alpha
    return best, value
