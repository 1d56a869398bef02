"""Sampling: the probability-flow ODE from noise to clean latents, without guidance, deterministic given its noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from marble_core.models import DiffusionModel
from marble_core.runtime.seeding import noise
from marble_core.types import Conditioning, MarbleError


def make_scheduler(solver: str, steps: int, flow_shift: float) -> Any:
    """diffusers' scheduler with its timesteps set: Euler, or DPM-Solver++ 2M.

    ``dpm2`` walks DPMSolverMultistepScheduler's own flow sigmas [O], which has its own key for SD3's ``shift``: ``flow_shift``.
    ``dpm2_nft`` walks FlowMatchEulerDiscreteScheduler's [N]: from 1, where its second step is of first order, to a last time near 0.
    """
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    euler: Any = FlowMatchEulerDiscreteScheduler(shift=flow_shift)
    euler.set_timesteps(steps)
    if solver == "euler":
        return euler
    scheduler: Any = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=flow_shift,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    if solver == "dpm2_nft":
        scheduler.sigmas, scheduler.timesteps = euler.sigmas, euler.timesteps
    return scheduler


@torch.no_grad()
def solve(
    model: DiffusionModel, noise_NCHW: torch.Tensor, conditioning: Conditioning, solver: str, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean latents x0_NCHW and the solver's times t_S in (0, 1]; ``conditioning`` has one row an image."""
    scheduler = make_scheduler(solver, steps, model.flow_shift)
    x_NCHW = noise_NCHW
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        v_NCHW = model.velocity(x_NCHW, sigma.float().to(x_NCHW.device).expand(len(x_NCHW)), conditioning)
        x_NCHW = scheduler.step(v_NCHW, timestep, x_NCHW, return_dict=False)[0]
    return x_NCHW, scheduler.sigmas[:-1].float()


def sample(
    model: DiffusionModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    solver: str,
    steps: int,
    batch_size: int,
    show: Callable[[np.ndarray], None] = lambda _: None,
    precision: str | None = None,
    owner_N: np.ndarray | None = None,
) -> tuple[torch.Tensor, np.ndarray, torch.Tensor, Conditioning]:
    """N images of M prompts, each prompt encoded once. ``owner_N`` is each image's prompt; without it every prompt has equally many,
    which lie together.

    Returns x0_NCHW, images_NHWC (uint8), the times t_S and the conditioning of the M prompts. The noise of an image
    depends on its seed alone, so neither batch size nor order changes it. ``show`` gets each batch's images once they are there.
    With a ``precision``, the model's, latents or an image that is not finite is a MarbleError; without one it has latents that are
    not finite, for which a training step is skipped.
    """
    conditioning = model.encode(list(prompts))
    if owner_N is None:
        owner_N = np.repeat(np.arange(len(prompts)), len(seeds) // len(prompts))
    latents, images = [], []
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        x_T = noise(seeds[part], model.latent_shape).to(model.device)
        x0, t_S = solve(model, x_T, conditioning[torch.as_tensor(owner_N[part])], solver, steps)
        latents.append(x0)
        images.append(model.decode(x0))
        if precision:
            _require_finite(x0, [prompts[m] for m in owner_N[part]], precision)
        show(images[-1])
    return torch.cat(latents), np.concatenate(images), t_S, conditioning


def finite(x_NCHW: torch.Tensor) -> torch.Tensor:
    """(N,) bool: whether all values of an image, or of its latents, are finite."""
    return x_NCHW.isfinite().flatten(1).all(1)


def _require_finite(x0_NCHW: torch.Tensor, prompts: Sequence[str], precision: str) -> None:
    bad = (~finite(x0_NCHW)).nonzero().flatten().tolist()
    if bad:
        wider = {"fp16": "set bf16 or fp32", "bf16": "set fp32, and check the LoRA and the model's files"}
        more = f", nor are those of {len(bad) - 1} more" if len(bad) > 1 else ""
        raise MarbleError(
            f"The latents or pixels of the prompt {prompts[bad[0]]!r} are not finite{more}, with model.precision {precision}: "
            f"{wider.get(precision, 'check the LoRA and the files of the model')}."
        )
