"""Losses that are affine in functions of the advantage, each given by its (cotangent, weight of A) pairs.

A loss l(A) = sum_j phi_j(A) L_j of one image at one time needs no more than the terms (q_j = dL_j/dv, phi_j): every
reward's gradient is sum_i phi_j(A_ik) J_i^T q_ij, so all rewards share one backward pass a term. To add a loss is to
give its terms, and its name in ``LOSSES``. Common to all: x_t = (1-t) x0 + t eps on the straight path from data to noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from marble_core.config.loss import LossConfig

SMALLEST_SCALE = 1e-5  # [C]
Phi = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Term:
    """``q_BCHW`` = dL_j/dv of each image of a micro-batch, and ``phi``, its weight as a function of the advantage."""

    q_BCHW: torch.Tensor
    phi: Phi


@dataclass(frozen=True)
class Point:
    """Where a loss is taken: velocities of ``default`` and ``old`` (None where they are equal) at x_t, and the clean x0."""

    v_BCHW: torch.Tensor
    v_old_BCHW: torch.Tensor | None
    x_BCHW: torch.Tensor
    x0_BCHW: torch.Tensor
    t_B: torch.Tensor

    @property
    def t(self) -> torch.Tensor:
        return self.t_B[:, None, None, None]

    @property
    def size(self) -> int:
        return self.x0_BCHW[0].numel()

    @property
    def target(self) -> torch.Tensor:
        """eps - x0, the velocity of the straight path through x_t and x0."""
        return (self.x_BCHW - self.x0_BCHW) / self.t

    def error(self, v: torch.Tensor) -> torch.Tensor:
        """xhat - x0, where xhat = x_t - t v is the clean image that a velocity predicts."""
        return self.x_BCHW - self.t * v - self.x0_BCHW


def noisy(x0_BCHW: torch.Tensor, eps_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
    """x_t on the straight path from data (t = 0) to noise (t = 1)."""
    t = t_B[:, None, None, None]
    return (1 - t) * x0_BCHW + t * eps_BCHW


def identity(A: np.ndarray) -> np.ndarray:
    return A


def nft(at: Point, config: LossConfig) -> Sequence[Term]:
    """DiffusionNFT (arXiv 2509.16117), with both cotangents in closed form.

        v+- = v_old +- b (v - v_old),   L+- = mean[(xhat+- - x0)^2 / sg(max(mean|xhat+- - x0|, 1e-5))]
        l(A) = A_max [r L+ + (1-r) L-] / b,   r = 1/2 + A / (2 A_max)
             = A_max (L+ + L-) / (2b)  +  A (L+ - L-) / (2b)

    Where old equals default, L+ = L- and the first term's cotangent is zero to the bit: it is left out.
    """

    def scaled_error(v: torch.Tensor) -> torch.Tensor:
        error = at.error(v)
        return error / error.abs().mean((1, 2, 3), keepdim=True).clamp_min(SMALLEST_SCALE)

    if at.v_old_BCHW is None:
        return [Term((-2 * at.t / at.size) * scaled_error(at.v_BCHW), identity)]
    step = config.beta * (at.v_BCHW - at.v_old_BCHW)
    plus, minus = scaled_error(at.v_old_BCHW + step), scaled_error(at.v_old_BCHW - step)
    return [
        Term((-at.t / at.size) * (plus + minus), identity),
        Term((-at.t * config.advantage_max / at.size) * (plus - minus), np.ones_like),
    ]


def awm(at: Point, config: LossConfig) -> Sequence[Term]:
    """Advantage-weighted matching: l(A) = A mean[(v - (eps - x0))^2].

    For A < 0 it is unbounded below, so it needs the KL (the configuration sees to it).
    """
    return [Term((2 / at.size) * (at.v_BCHW - at.target), identity)]


def awm_clipped(at: Point, config: LossConfig) -> Sequence[Term]:
    """Its clipped form, l(A) = -min(rho A, clip(rho, 1 - c, 1 + c) A), with the ratio rho = exp(L_old - L) of the matching losses.

    Where A > 0 an image stops pulling once rho > 1 + c, where A < 0 once rho < 1 - c.
    """
    q_BCHW = (2 / at.size) * (at.v_BCHW - at.target)
    if at.v_old_BCHW is None:
        return [Term(q_BCHW, identity)]
    old, new = ((v - at.target).pow(2).mean((1, 2, 3), keepdim=True) for v in (at.v_old_BCHW, at.v_BCHW))
    rho = (old - new).exp()
    return [
        Term(torch.where(rho <= 1 + config.clip_range, rho, 0.0) * q_BCHW, lambda A: np.maximum(A, 0)),
        Term(torch.where(rho >= 1 - config.clip_range, rho, 0.0) * q_BCHW, lambda A: np.minimum(A, 0)),
    ]


LOSSES: dict[str, Callable[[Point, LossConfig], Sequence[Term]]] = {"nft": nft, "awm": awm, "awm_clipped": awm_clipped}


def kl(v_BCHW: torch.Tensor, v_ref_BCHW: torch.Tensor) -> torch.Tensor:
    """Cotangent of mean[(v - v_ref)^2], the KL of two flows up to its weight."""
    return (2 / v_BCHW[0].numel()) * (v_BCHW - v_ref_BCHW)
