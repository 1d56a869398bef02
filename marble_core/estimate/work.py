"""How much a step computes: images, micro-batches, forwards and backwards, and floating-point operations."""

from __future__ import annotations

import math
from dataclasses import dataclass

from marble_core.config.schema import RunConfig
from marble_core.estimate.memory import processes_of, share_of
from marble_core.estimate.sizes import Sizes

TERMS = {"nft": 2, "awm": 1, "awm_clipped": 2}  # of the losses in loss.py: a backward pass each
BACKWARD = 1.13 * 1.01  # of a forward: to the LoRA's layers, whose rows are weighted; docs/algorithm.md, section 5


@dataclass(frozen=True)
class Work:
    """One optimizer step over all processes, on a step whose gradients are balanced. Micro-batches are of one process.

    ``flop`` is a mean over steps, without scoring and the text encoders; None where the model's sizes are not known. Of ``watch``: images of a look, looks with the one at the base, and all
    of them as a share of the steps' ``flop``.
    """

    images: int
    images_per_process: int
    batches: int
    micro_batches: int
    forwards: int
    backwards: int
    flop: float | None
    images_per_look: int = 0
    looks: int = 0
    watching: float = 0.0


def work_of(config: RunConfig, sizes: Sizes | None) -> Work:
    _, images = share_of(config)
    rollout, loss = config.rollout, config.loss
    micro_batches = -(-images // loss.micro_batch) * loss.timesteps
    every = micro_batches * processes_of(config)
    carriers = math.ceil(loss.kl_fraction * every) if loss.kl_beta else 0
    solves, share = config.balance.weighs_gradients, config.balance.qp_share
    at_base = carriers if loss.kl_states == "base" else 0  # a forward and a backward of their own
    again = (
        math.ceil(share * every) if solves and share < 1 else 0
    )  # micro-batches that the QP sees, before the step's own pass
    step = flop_of_step(config, sizes, solves) if sizes else None
    looks = looks_of(config)
    images_per_look = images_of_look(config) if looks else 0
    look = images_per_look * config.evaluation.steps * flop_of_velocity(config, sizes) if sizes else 0.0
    watching = looks * look / (step * config.train.steps) if step else 0.0
    return Work(
        images=rollout.prompts * rollout.images_per_prompt,
        images_per_process=images,
        batches=-(-images // rollout.batch_size),
        micro_batches=micro_batches,
        forwards=_velocities(config) * (every + again) + carriers + at_base,
        backwards=_terms(config) * every + carriers if solves and not again else every + at_base + _terms(config) * again,
        flop=step,
        images_per_look=images_per_look,
        looks=looks,
        watching=watching,
    )


def looks_of(config: RunConfig) -> int:
    """Looks of ``watch`` in a whole training, with the one at the base."""
    every, train = config.watch.every, config.train
    if not every:
        return 0
    looks = train.steps // every + (train.keep_best and train.steps % every > 0)
    return looks + 1 if looks else 0


def images_of_look(config: RunConfig) -> int:
    """Where every source has as many held-out prompts as are wanted."""
    return config.watch.prompts * len(config.data.evaluation) * config.watch.images


def flop_of_step(config: RunConfig, sizes: Sizes, solves: bool) -> float:
    rollout = config.rollout
    images, each = rollout.prompts * rollout.images_per_prompt, flop_of_velocity(config, sizes)
    return images * each * (rollout.steps + config.loss.timesteps * timestep_forwards(config, solves))


def timestep_forwards(config: RunConfig, solves: bool = True) -> float:
    """What a training timestep of an image costs, in forwards of that image: velocities, recomputation and backward passes."""
    velocities, passes = of_a_timestep(config, solves)
    return velocities + passes * BACKWARD


def of_a_timestep(config: RunConfig, solves: bool = True) -> tuple[float, float]:
    """Forwards, recomputation among them, and backward passes of an image at a training timestep, as a mean over steps."""
    loss = config.loss
    kl = loss.kl_fraction if loss.kl_beta else 0.0
    at_base = kl if loss.kl_states == "base" else 0.0
    passes, share, again = 1.0, config.balance.qp_share, 0.0
    if solves:
        again = share if share < 1 else 0.0
        solved = 1 + again * _terms(config) if again else _terms(config) + kl
        passes = (solved + config.balance.every - 1) / config.balance.every
        again /= config.balance.every
    if at_base and not (solves and config.balance.every == 1 and not again):
        passes += at_base
    velocities = (_velocities(config) + config.model.gradient_checkpointing) * (1 + again) + kl + at_base
    if config.balance.observe:  # all gradients beside the step's own, on steps without a QP
        observed = (1 - 1 / config.balance.every if solves else 1) / config.balance.observe
        velocities, passes = velocities * (1 + observed), passes + observed * (_terms(config) + kl)
    return velocities, passes


def _velocities(config: RunConfig) -> int:
    """Of ``default``, and of ``old`` where it is another one."""
    return 1 if config.optimizer.eta_rate == 0 else 2


def _terms(config: RunConfig) -> int:
    """Backward passes for all rewards. NFT's second is 0 where ``old`` is ``default``."""
    return 1 if config.loss.name == "nft" and config.optimizer.eta_rate == 0 else TERMS[config.loss.name]


def flop_of_velocity(config: RunConfig, sizes: Sizes) -> float:
    """Of one image: a multiplication and its addition are 2."""
    image, text, d = sizes.image_tokens(config.model.height, config.model.width), sizes.text_tokens, sizes.width
    tokens, lora = image + text, 2 * 2 * config.lora.rank * d
    joint = tokens * (24 * d * d + 4 * lora) + 4 * tokens**2 * d
    last = text * (18 * d * d + lora) if sizes.ends_in_image else 0
    second = image * 8 * d * d + 4 * image**2 * d
    one_stream = tokens * (24 * d * d + 3 * lora) + 4 * tokens**2 * d
    return float(
        sizes.blocks * joint - last + sizes.dual * second + sizes.single * one_stream + 2 * text * sizes.text_width * d
    )
