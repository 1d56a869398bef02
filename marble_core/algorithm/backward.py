"""The forward and backward passes of one optimizer step, a micro-batch of (image, timestep) pairs at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from marble_core.algorithm.advantages import Advantages
from marble_core.algorithm.losses import LOSSES, Phi, Point, Term, kl, noisy
from marble_core.algorithm.row_gradients import Pass, RowGradients
from marble_core.config.loss import LossConfig
from marble_core.models.policy import Policy
from marble_core.runtime import distributed
from marble_core.runtime.seeding import derive, noise
from marble_core.runtime.transfer import to_device
from marble_core.types import Conditioning, Rollout


@dataclass(frozen=True)
class Rows:
    """J weightings of the step's images: row j's gradient is sum_i weight_JN[j, i] times that of image i at A_JN[j, i].

    ``common_N`` says what every image adds to the last, unbalanced row beside the KL: the part of the loss that no advantage
    weighs, once for all rewards. Where it is not zero the rows leave that part out (``subtract_common``).
    """

    weight_JN: np.ndarray
    A_JN: np.ndarray
    common_N: np.ndarray

    def weigh(self, phi: Phi) -> np.ndarray:
        """Weights (J + 1, N) of a term of the loss; the last row is the unbalanced one."""
        common = phi(np.zeros(1))
        left = common if self.common_N.any() else 0.0
        return np.vstack([self.weight_JN * (phi(self.A_JN) - left), self.common_N * common])


@dataclass(frozen=True)
class Passes:
    """``gradients`` by row, and how many forwards and backwards of a micro-batch it took."""

    gradients: RowGradients
    forwards: int
    backwards: int


def reward_rows(
    advantages: Advantages, half_N: np.ndarray | None, timesteps: int, subtract_common: bool = False, with_mixed: bool = False
) -> Rows:
    """2K rows (reward k over half a; reward k over half b), so that g_k is the sum of its two; K rows without halves.

    Weights are c_k m_ik / (N T) with c_k = N / n_k over the whole step: a specialist reward is averaged over the images it
    applies to, not shrunk by those it does not. ``with_mixed`` adds the mixed advantage as if it were the last reward.
    """
    weight_KN = (advantages.mask_NK / np.maximum(advantages.count_K, 1)).T / timesteps
    A_KN, N = advantages.A_NK.T, len(advantages.A_N)
    if with_mixed:
        mean = mean_row(advantages, timesteps)
        weight_KN, A_KN = np.concatenate([weight_KN, mean.weight_JN]), np.concatenate([A_KN, mean.A_JN])
    common_N = _mean_over(advantages.seen_N, timesteps) if subtract_common else np.zeros(N)
    if half_N is None:
        return Rows(weight_KN, A_KN, common_N)
    in_a_N = half_N == 0
    return Rows(np.concatenate([weight_KN * in_a_N, weight_KN * ~in_a_N]), np.concatenate([A_KN, A_KN]), common_N)


def mean_row(advantages: Advantages, timesteps: int) -> Rows:
    """One row: the mean over timesteps and the images that lack no value, with one advantage an image."""
    return Rows(_mean_over(advantages.whole_N, timesteps)[None], advantages.A_N[None], np.zeros(len(advantages.A_N)))


def _mean_over(chosen_N: np.ndarray, timesteps: int) -> np.ndarray:
    """Weights (N,) of a mean over the chosen images and their timesteps."""
    return chosen_N / (max(int(chosen_N.sum()), 1) * timesteps)


def per_reward(policy: Policy, rollout: Rollout, rows: Rows, config: LossConfig, share: float = 1.0) -> Passes:
    """The gradients of all J rows, and as the last row the KL's, from one backward pass a term of the loss.

    For NFT that is two passes whatever J, one where ``old`` equals ``default``, and the KL's share of a third. A term that
    only the last row wants rides with the KL. ``share`` of the micro-batches, drawn by (seed, step), are gone through.
    """
    alone = torch.zeros(len(rows.weight_JN) + 1, 1, dtype=torch.float64)
    alone[-1] = 1.0

    def plan(images_B: np.ndarray, terms: Sequence[Term], last_BCHW: torch.Tensor | None) -> list[Pass]:
        passes = []
        for term in terms:
            weights_JB = torch.as_tensor(rows.weigh(term.phi)[:, images_B])
            if weights_JB[:-1].any():
                passes.append(Pass(term.q_BCHW, weights_JB))
            elif weights_JB.any():
                ridden = _times(weights_JB[-1], term.q_BCHW)
                last_BCHW = ridden if last_BCHW is None else last_BCHW + ridden
        if last_BCHW is not None:
            passes.append(Pass(last_BCHW, alone.expand(-1, len(images_B))))
        return passes

    return _accumulate(policy, rollout, len(alone), plan, config, share)


def weighted_sum(policy: Policy, rollout: Rollout, rows: Rows, w_J: np.ndarray, config: LossConfig) -> Passes:
    """The gradient of sum_r w_r row_r, of the common part and of the KL as one row, from one backward pass (Prop. 1)."""

    def plan(images_B: np.ndarray, terms: Sequence[Term], kl_BCHW: torch.Tensor | None) -> list[Pass]:
        weighed = [_times(torch.as_tensor(np.append(w_J, 1.0) @ rows.weigh(t.phi)[:, images_B]), t.q_BCHW) for t in terms]
        like_BCHW = terms[0].q_BCHW if kl_BCHW is None else kl_BCHW
        q_BCHW = sum(weighed if kl_BCHW is None else [*weighed, kl_BCHW], start=torch.zeros_like(like_BCHW))
        return [Pass(q_BCHW, torch.ones(1, len(images_B)))]

    return _accumulate(policy, rollout, 1, plan, config)


Plan = Callable[[np.ndarray, Sequence[Term], torch.Tensor | None], list[Pass]]


def _accumulate(policy: Policy, rollout: Rollout, rows: int, plan: Plan, config: LossConfig, share: float = 1.0) -> Passes:
    """Every micro-batch's forwards, and the backward passes that ``plan`` makes of the loss's terms and the KL's cotangent."""
    gradients = RowGradients(policy.layers_of("default"), rows, policy.transformer if policy.checkpointing else None)
    with gradients.capturing():
        forwards = sum(
            _micro_batch_gradients(policy, part, gradients, plan, config) for part in _micro_batches(rollout, config, share)
        )
    distributed.sum_by_layer(gradients.sums)
    forwards, backwards = distributed.sum_array(np.array([forwards, gradients.backwards])).tolist()
    return Passes(gradients, forwards, backwards)


def _micro_batch_gradients(policy: Policy, part: _MicroBatch, gradients: RowGradients, plan: Plan, config: LossConfig) -> int:
    """Returns the number of forwards. The graph is freed on return, before the next micro-batch makes its own."""
    v_old = v_ref = None
    with torch.no_grad():
        if not policy.old_is_default:
            with policy.using("old") as model:
                v_old = model.velocity(part.x_BCHW, part.t_B, part.conditioning)
        if part.kl_scale and part.base is None:
            with policy.using("off") as model:
                v_ref = model.velocity(part.x_BCHW, part.t_B, part.conditioning)
    # Two backward passes over one graph, with layers that look on, are nothing for torch.compile.
    with policy.using("default") as model, torch.compiler.set_stance("force_eager"):
        v = model.velocity(part.x_BCHW, part.t_B, part.conditioning)
        terms = LOSSES[config.name](Point(v.detach(), v_old, part.x_BCHW, part.x0_BCHW, part.t_B), config)
        kl_BCHW = None if v_ref is None else _kl(v, v_ref, part, config)
        gradients.backward(v, plan(part.images_B, terms, kl_BCHW))
    forwards = 1 + (v_old is not None) + (v_ref is not None)
    return forwards if part.base is None else forwards + _kl_at_base(policy, part, part.base, gradients, plan, config)


def _kl_at_base(
    policy: Policy,
    part: _MicroBatch,
    base: tuple[torch.Tensor, Conditioning],
    gradients: RowGradients,
    plan: Plan,
    config: LossConfig,
) -> int:
    """The KL's own forwards and backward, at noised images of the base."""
    x_BCHW, conditioning = base
    with policy.using("off") as model, torch.no_grad():
        v_ref = model.velocity(x_BCHW, part.t_B, conditioning)
    with policy.using("default") as model, torch.compiler.set_stance("force_eager"):
        v = model.velocity(x_BCHW, part.t_B, conditioning)
        gradients.backward(v, plan(part.images_B, (), _kl(v, v_ref, part, config)))
    return 2


def _kl(v: torch.Tensor, v_ref: torch.Tensor, part: _MicroBatch, config: LossConfig) -> torch.Tensor:
    q_BCHW = config.kl_beta * part.kl_scale * kl(v.detach(), v_ref)
    if not config.kl_power:
        return q_BCHW
    return _times((1 + config.kl_power) * part.t_B.double() ** config.kl_power, q_BCHW)


@dataclass(frozen=True)
class _MicroBatch:
    images_B: np.ndarray  # indices into the step's N images
    x0_BCHW: torch.Tensor
    x_BCHW: torch.Tensor
    t_B: torch.Tensor
    conditioning: Conditioning
    kl_scale: float  # 0 where this micro-batch does not carry the KL
    base: tuple[torch.Tensor, Conditioning] | None = None  # x_t of the base's images, where the KL is taken at those


def _micro_batches(rollout: Rollout, config: LossConfig, share: float = 1.0) -> Iterator[_MicroBatch]:
    """All (image, timestep) pairs, or those of a share of the micro-batches; timesteps and noise are functions of (seed, step, image, timestep).

    Each image has its own: shared by the images of a prompt, they would leave a correlated error (measured on the demo
    model at T = 5: cosine with the gradient over many draws .47 shared, .83 independent). The micro-batches, and which of
    them carry the KL, are the whole step's: of several processes each yields its own images of them.
    """
    batch, N = rollout.batch, len(rollout.batch)
    seed, step = batch.seed, batch.step
    t_NT = torch.stack([_training_times(rollout.t_S, config, seed, step, i) for i in range(N)])
    starts = range(0, N, config.micro_batch)
    count = len(starts) * config.timesteps
    carriers = kl_carriers(len(starts), config, derive(seed, "kl", step))
    taken = sum(min(config.micro_batch, N - starts[n % len(starts)]) for n in carriers)
    for n in (
        range(count) if share == 1 else sorted(_choice(count, math.ceil(share * count), derive(seed, "qp", step)).tolist())
    ):
        j, s = divmod(n, len(starts))
        images_B = np.intersect1d(np.arange(starts[s], min(starts[s] + config.micro_batch, N)), rollout.index_N)
        if not len(images_B):
            continue
        device, rows_B = rollout.x0_NCHW.device, torch.as_tensor(images_B - rollout.first)
        x0, t_B = rollout.x0_NCHW[to_device(rows_B, device)], to_device(t_NT[images_B, j], device)
        eps = to_device(noise([derive(seed, "eps", step, i, j) for i in images_B.tolist()], tuple(x0.shape[1:])), device)
        scale = 1 / taken if n in carriers else 0.0  # N T / taken, over N T
        base = None
        if scale and rollout.base:
            x0_base = rollout.base.x0_NCHW[to_device(rows_B, device)]
            own = noise([derive(seed, "base eps", step, i, j) for i in images_B.tolist()], tuple(x0.shape[1:]))
            base = noisy(x0_base, to_device(own, device), t_B), _conditioning(rollout.base, images_B)
        yield _MicroBatch(images_B, x0, noisy(x0, eps, t_B), t_B, _conditioning(rollout, images_B), scale, base)


def _conditioning(rollout: Rollout, images_B: np.ndarray) -> Conditioning:
    return rollout.conditioning[to_device(torch.as_tensor(rollout.rows_of(images_B)), rollout.x0_NCHW.device)]


def _training_times(t_S: torch.Tensor, config: LossConfig, seed: int, step: int, image: int) -> torch.Tensor:
    """T distinct times of the solver, or one between each of these (included) and the next, which is 0 after the last (not included)."""
    drawn = _choice(len(t_S), config.timesteps, derive(seed, "times", step, image))
    if config.times == "solver":
        return t_S[drawn]
    next_S = torch.cat([t_S[1:], torch.zeros(1)])
    share = torch.rand(len(drawn), generator=torch.Generator().manual_seed(derive(seed, "between", step, image)))
    return t_S[drawn] - share * (t_S - next_S)[drawn]


def kl_carriers(starts: int, config: LossConfig, seed: int) -> set[int]:
    """Numbers n = j * starts + s of the micro-batches that carry the KL, s by images and j by timesteps, each as likely as any other.

    They lie at equal distances along the images, from a random offset, so that processes, whose images are consecutive, have
    equal shares of the extra passes (systematic sampling).
    """
    if not config.kl_beta:
        return set()
    T, generator = config.timesteps, torch.Generator().manual_seed(seed)
    total, taken = starts * T, math.ceil(config.kl_fraction * starts * T)
    offset = torch.rand((), generator=generator).item()
    order_sT = [torch.randperm(T, generator=generator).tolist() for _ in range(starts)]
    places = (divmod(int((i + offset) * total / taken), T) for i in range(taken))
    return {order_sT[s][place] * starts + s for s, place in places}


def _choice(size: int, count: int, seed: int) -> torch.Tensor:
    """``count`` distinct numbers below ``size``."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count]


def _times(weight_B: torch.Tensor, q_BCHW: torch.Tensor) -> torch.Tensor:
    return to_device(weight_B.to(q_BCHW.dtype), q_BCHW.device)[:, None, None, None] * q_BCHW
