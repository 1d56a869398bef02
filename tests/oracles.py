"""Slow and obvious implementations to hold the fast ones against. Of marble_core they know ``derive``, the seeds."""

import math
from itertools import chain, combinations

import numpy as np
import torch

from marble_core.runtime.seeding import derive


def written_out_loss(v, v_old, x, x0, t, A, beta, a_max):
    """DiffusionNFT as its paper writes it, one number an image, for autograd."""
    t = t[:, None, None, None]

    def part(velocity):
        error = x - t * velocity - x0
        return (error**2 / error.detach().abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-5)).mean((1, 2, 3))

    plus, minus = part(v_old + beta * (v - v_old)), part(v_old - beta * (v - v_old))
    r = 0.5 + A / (2 * a_max)
    return a_max * (r * plus + (1 - r) * minus) / beta


def written_awm(v, v_old, x, x0, t, A, clip=None):
    """Advantage-weighted matching of v to (x_t - x0) / t, and its clipped form."""
    target = (x - x0) / t[:, None, None, None]
    old, new = ((u - target).pow(2).mean((1, 2, 3)) for u in (v_old, v))
    if clip is None:
        return A * new
    rho = (old - new).exp()
    return -torch.minimum(rho * A, rho.clamp(1 - clip, 1 + clip) * A)


def written_loss(v, v_old, x, x0, t, A, loss):
    """The loss that the configuration names, one number an image."""
    if loss.name == "nft":
        return written_out_loss(v, v_old, x, x0, t, A, loss.beta, loss.advantage_max)
    return written_awm(v, v_old, x, x0, t, A, loss.clip_range if loss.name == "awm_clipped" else None)


def _first(size, count, seed):
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count].tolist()


def written_share(seed, step, N, loss, share, purpose):
    """Which (image, draw) pairs lie in a share of a step's micro-batches, which are numbered draw by draw."""
    per_draw = math.ceil(N / loss.micro_batch)
    count = per_draw * loss.timesteps
    chosen = _first(count, math.ceil(share * count), derive(seed, purpose, step))
    return np.array([[j * per_draw + i // loss.micro_batch in chosen for j in range(loss.timesteps)] for i in range(N)])


def written_pairs(seed, step, x0_NCHW, t_S, loss):
    """For each of the T draws: x_t, t_N and the KL's weight kl_N of all N images. Each (image, draw) has its own noise and time, an
    image's times are distinct, and the KL rides on ``kl_fraction`` of the micro-batches as a mean over what these hold."""
    N, T, S = len(x0_NCHW), loss.timesteps, len(t_S)
    drawn = [_first(S, T, derive(seed, "times", step, i)) for i in range(N)]
    micro_batches = math.ceil(N / loss.micro_batch)
    carriers = _kl_cells(micro_batches, T, math.ceil(loss.kl_fraction * micro_batches * T), derive(seed, "kl", step))
    carry_NT = np.array([[(i // loss.micro_batch, j) in carriers for j in range(T)] for i in range(N)])
    for j in range(T):
        t_N = torch.stack([t_S[drawn[i][j]] for i in range(N)])
        if loss.times == "between":  # uniform from each time down to the solver's next
            below = torch.tensor([0.0 if drawn[i][j] == S - 1 else t_S[drawn[i][j] + 1] for i in range(N)])
            seeds = [derive(seed, "between", step, i) for i in range(N)]
            u_N = torch.stack([torch.rand(T, generator=torch.Generator().manual_seed(s))[j] for s in seeds])
            t_N = (1 - u_N) * t_N + u_N * below
        generators = [torch.Generator().manual_seed(derive(seed, "eps", step, i, j)) for i in range(N)]
        eps = torch.stack([torch.randn(x0_NCHW.shape[1:], generator=g) for g in generators])
        t = t_N[:, None, None, None]
        yield x0_NCHW - t * x0_NCHW + t * eps, t_N, carry_NT[:, j] / carry_NT.sum()


def _kl_cells(micro_batches, T, taken, seed):
    """(micro-batch of images, draw) of each pass with the KL: along the images, each one's draws in a random order, one pass at
    each multiple of an equal distance from a random start."""
    generator = torch.Generator().manual_seed(seed)
    start = float(torch.rand((), generator=generator))
    line = [(s, int(j)) for s in range(micro_batches) for j in torch.randperm(T, generator=generator)]
    return {line[math.floor((i + start) * len(line) / taken)] for i in range(taken)}


def autograd_gradient(policy, rollout, config, weight_N, A_N, kl=False, keep_NT=None):
    """The gradient of sum_it weight_i l(A_i), or of the KL, in one ordinary backward a draw of all images. ``keep_NT``: the (image,
    draw) pairs that count, of the first; all by default."""
    default, batch = policy.parameters_of("default"), rollout.batch
    total = {n: torch.zeros_like(p) for n, p in default.items()}
    x0 = rollout.x0_NCHW
    conditioning = rollout.conditioning[[m for m in range(len(batch.prompts)) for _ in range(batch.images_per_prompt)]]
    for j, (x_t, t_N, kl_N) in enumerate(written_pairs(batch.seed, batch.step, x0, rollout.t_S, config.loss)):
        velocities = {}
        for adapter in ("old", "off"):
            with policy.using(adapter) as model, torch.no_grad():
                velocities[adapter] = model.velocity(x_t, t_N, conditioning)
        with policy.using("default") as model:
            for p in default.values():
                p.requires_grad_(True)
            v = model.velocity(x_t, t_N, conditioning)
        if kl:
            weight, each = config.loss.kl_beta * kl_N, (v - velocities["off"]).pow(2).mean((1, 2, 3))
        else:
            weight = weight_N if keep_NT is None else weight_N * keep_NT[:, j]
            each = written_loss(v, velocities["old"], x_t, x0, t_N, torch.as_tensor(A_N).to(v), config.loss)
        loss = (torch.as_tensor(weight).to(v) * each).sum()
        for n, g in zip(default, torch.autograd.grad(loss, list(default.values()), allow_unused=True), strict=True):
            total[n] += 0 if g is None else g
    for p in default.values():
        p.requires_grad_(False)
    return total


def relative_error(a, b):
    """Of two gradients as whole vectors."""
    one, other = (torch.cat([g[n].flatten().double() for n in a]) for g in (a, b))
    return float((one - other).norm() / other.norm().clamp_min(1e-30))


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
