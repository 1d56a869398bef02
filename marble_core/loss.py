"""The DiffusionNFT loss, affine in the advantage: l(A) = L0 + A L1, by the cotangents of its two parts.

For one image at time t (arXiv 2509.16117):

    x_t = (1-t) x0 + t eps,   v+- = v_old +- b (v - v_old),   xhat+- = x_t - t v+-
    L+- = mean[(xhat+- - x0)^2 / sg(max(mean|xhat+- - x0|, 1e-5))]
    l(A) = A_max [r L+ + (1-r) L-] / b,   r = 1/2 + A / (2 A_max)
         = A_max (L+ + L-) / (2b)  +  A (L+ - L-) / (2b)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SMALLEST_SCALE = 1e-5  # [C]


@dataclass(frozen=True)
class Cotangents:
    """dL0/dv (``q0_BCHW``; None where it is exactly zero) and dL1/dv (``q1_BCHW``) of each image of a micro-batch."""

    q0_BCHW: torch.Tensor | None
    q1_BCHW: torch.Tensor


def noisy(x0_BCHW: torch.Tensor, eps_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
    """x_t on the straight path from data (t = 0) to noise (t = 1)."""
    t = t_B[:, None, None, None]
    return (1 - t) * x0_BCHW + t * eps_BCHW


def nft(
    v_BCHW: torch.Tensor,
    v_old_BCHW: torch.Tensor | None,
    x_BCHW: torch.Tensor,
    x0_BCHW: torch.Tensor,
    t_B: torch.Tensor,
    beta: float,
    advantage_max: float,
) -> Cotangents:
    """Both cotangents in closed form. ``v_old`` None says that it equals v: then L+ = L- and q0 is zero to the bit."""
    t = t_B[:, None, None, None]
    size = x0_BCHW[0].numel()

    def scaled_error(v: torch.Tensor) -> torch.Tensor:
        error = x_BCHW - t * v - x0_BCHW
        return error / error.abs().mean((1, 2, 3), keepdim=True).clamp_min(SMALLEST_SCALE)

    v = v_BCHW.detach()
    if v_old_BCHW is None:
        return Cotangents(None, (-2 * t / size) * scaled_error(v))
    step = beta * (v - v_old_BCHW)
    plus, minus = scaled_error(v_old_BCHW + step), scaled_error(v_old_BCHW - step)
    return Cotangents((-t * advantage_max / size) * (plus - minus), (-t / size) * (plus + minus))


def kl(v_BCHW: torch.Tensor, v_ref_BCHW: torch.Tensor) -> torch.Tensor:
    """Cotangent of mean[(v - v_ref)^2], the KL of two flows up to its weight."""
    return (2 / v_BCHW[0].numel()) * (v_BCHW.detach() - v_ref_BCHW)
