"""The forward and backward passes of one optimizer step, a micro-batch of (image, timestep) pairs at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from marble_core.advantages import Advantages
from marble_core.config import LossConfig
from marble_core.gradients import RowGradients
from marble_core.loss import kl, nft, noisy
from marble_core.models import DiffusionModel
from marble_core.policy import Policy
from marble_core.seeding import derive, noise
from marble_core.types import Conditioning, PromptBatch, Rollout


@dataclass(frozen=True)
class Passes:
    """``gradients`` by row, and how many forwards and backwards of a micro-batch it took."""

    gradients: RowGradients
    forwards: int
    backwards: int


@dataclass(frozen=True)
class _MicroBatch:
    images_B: torch.Tensor  # indices into the step's N images
    x0_BCHW: torch.Tensor
    x_BCHW: torch.Tensor
    t_B: torch.Tensor
    conditioning: Conditioning
    kl_scale: float  # 0 where this micro-batch does not carry the KL


def reward_rows(advantages: Advantages, half_N: np.ndarray, timesteps: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights phi0_RN and phi1_RN of the rows (reward k over half a; reward k over half b): g_k is the sum of its two.

    phi0 = c_k m_ik / (N T), phi1 = c_k m_ik A_ik / (N T) with c_k = N / n_k over the whole step: a specialist reward
    is averaged over the images it applies to, not shrunk by those it does not.
    """
    N = len(half_N)
    c_K = N / np.maximum(advantages.count_K, 1)
    phi0_KN = (c_K * advantages.mask_NK).T / (N * timesteps)
    in_a_N = half_N == 0
    phi0_RN = np.concatenate([phi0_KN * in_a_N, phi0_KN * ~in_a_N])
    return phi0_RN, phi0_RN * np.concatenate([advantages.A_NK.T] * 2)


def halves(batch: PromptBatch) -> np.ndarray:
    """0 or 1 for each image: two halves of the prompts, balanced by source, a prompt's images always together."""
    seen: dict[str, int] = {}
    half_M = np.zeros(len(batch.prompts), dtype=int)
    for m, prompt in enumerate(batch.prompts):
        half_M[m] = seen[prompt.source] = 1 - seen.get(prompt.source, len(seen) % 2)
    return half_M[batch.group_N]


def per_row(policy: Policy, rollout: Rollout, phi0_RN: np.ndarray, phi1_RN: np.ndarray, config: LossConfig) -> Passes:
    """Gradients of R rows, sum_i phi0_ri J_i^T q0_i + phi1_ri J_i^T q1_i over all images and timesteps, and as row R + 1
    the KL's: two backward passes, one where ``old`` equals ``default``, and the KL's share of a third."""
    rows = len(phi0_RN)
    gradients = RowGradients(policy.layers_of("default"), rows + 1)
    phi0_RN, phi1_RN = (torch.as_tensor(np.vstack([phi, np.zeros(phi.shape[1])]), dtype=torch.float32) for phi in (phi0_RN, phi1_RN))
    kl_row = torch.zeros(rows + 1, 1)
    kl_row[rows] = config.kl_beta
    forwards = 0
    for part in _micro_batches(rollout, config):
        v_old, v_ref, used = _references(policy, part)
        with policy.using("default") as model, gradients.listening():
            v, inputs = _velocity(model, part)
        q = nft(v, v_old, part.x_BCHW, part.x0_BCHW, part.t_B, config.beta, config.advantage_max)
        passes = [(q.q1_BCHW, phi1_RN[:, part.images_B])]
        if q.q0_BCHW is not None:
            passes.append((q.q0_BCHW, phi0_RN[:, part.images_B]))
        if v_ref is not None:
            passes.append((part.kl_scale * kl(v, v_ref), kl_row.expand(-1, len(part.images_B))))
        for n, (cotangent, weights_RB) in enumerate(passes, 1):
            gradients.backward(v, inputs, cotangent, weights_RB, again=n < len(passes))
        forwards += used + 1
    return Passes(gradients, forwards, gradients.backwards)


def mixed(policy: Policy, rollout: Rollout, phi0_N: np.ndarray, phi1_N: np.ndarray, config: LossConfig) -> Passes:
    """The one-backward form (MARBLE, Prop. 1): the gradient of mean_it[phi0_i L0 + phi1_i L1] and the KL, as one row."""
    gradients = RowGradients(policy.layers_of("default"), 1)
    phi0, phi1 = (torch.as_tensor(phi, dtype=torch.float32)[:, None, None, None] for phi in (phi0_N, phi1_N))
    forwards = 0
    for part in _micro_batches(rollout, config):
        v_old, v_ref, used = _references(policy, part)
        with policy.using("default") as model, gradients.listening():
            v, inputs = _velocity(model, part)
        q = nft(v, v_old, part.x_BCHW, part.x0_BCHW, part.t_B, config.beta, config.advantage_max)
        cotangent = phi1[part.images_B] * q.q1_BCHW
        if q.q0_BCHW is not None:
            cotangent += phi0[part.images_B] * q.q0_BCHW
        if v_ref is not None:
            cotangent += config.kl_beta * part.kl_scale * kl(v, v_ref)
        gradients.backward(v, inputs, cotangent, torch.ones(1, len(part.images_B)))
        forwards += used + 1
    return Passes(gradients, forwards, gradients.backwards)


def _references(policy: Policy, part: _MicroBatch) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
    """v_old (None where it equals v), v_ref (None where this micro-batch carries no KL), and the forwards they took."""
    v_old = v_ref = None
    with torch.no_grad():
        if not policy.old_is_default:
            with policy.using("old") as model:
                v_old = model.velocity(part.x_BCHW, part.t_B, part.conditioning)
        if part.kl_scale:
            with policy.using("off") as model:
                v_ref = model.velocity(part.x_BCHW, part.t_B, part.conditioning)
    return v_old, v_ref, (v_old is not None) + (v_ref is not None)


def _velocity(model: DiffusionModel, part: _MicroBatch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    x = part.x_BCHW.clone().requires_grad_(True)
    tokens = part.conditioning.tokens.clone().requires_grad_(True)
    return model.velocity(x, part.t_B, Conditioning(tokens, part.conditioning.pooled)), [x, tokens]


def _micro_batches(rollout: Rollout, config: LossConfig) -> Iterator[_MicroBatch]:
    """All (image, timestep) pairs; timesteps and noise are functions of (seed, step, image, timestep).

    Each image has its own: shared by the images of a prompt, they would leave a correlated error (measured on the demo
    model at T = 5: cosine with the gradient over many draws .47 shared, .83 independent).
    """
    batch, N = rollout.batch, len(rollout.batch)
    seed, step = batch.seed, batch.step
    group_N = torch.as_tensor(batch.group_N)
    t_NT = torch.stack([rollout.t_S[_choice(len(rollout.t_S), config.timesteps, derive(seed, "times", step, i))] for i in range(N)])
    starts = range(0, N, config.micro_batch)
    count = len(starts) * config.timesteps
    carriers = _kl_carriers(count, config, derive(seed, "kl", step))
    taken = sum(min(config.micro_batch, N - starts[n % len(starts)]) for n in carriers)
    for n in range(count):
        j, start = divmod(n, len(starts))
        images_B = torch.arange(starts[start], min(starts[start] + config.micro_batch, N))
        x0, t_B = rollout.x0_NCHW[images_B], t_NT[images_B, j]
        eps = noise([derive(seed, "eps", step, i, j) for i in images_B.tolist()], tuple(x0.shape[1:]))
        scale = 1 / taken if n in carriers else 0.0  # N T / taken, over N T
        yield _MicroBatch(images_B, x0, noisy(x0, eps, t_B), t_B, rollout.conditioning[group_N[images_B]], scale)


def _kl_carriers(count: int, config: LossConfig, seed: int) -> set[int]:
    if not config.kl_beta:
        return set()
    return set(_choice(count, math.ceil(config.kl_fraction * count), seed).tolist())


def _choice(size: int, count: int, seed: int) -> torch.Tensor:
    """``count`` distinct numbers below ``size``."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count]
