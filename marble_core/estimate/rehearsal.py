"""How long the GPUs of a rehearsal compute, by the same arithmetic as the hours of a run."""

from __future__ import annotations

from marble_core.config.rehearsal import prompts_of, rehearsed
from marble_core.config.schema import RunConfig
from marble_core.estimate.sizes import Sizes
from marble_core.estimate.work import flop_of_step, flop_of_velocity, images_of_look, looks_of


def rehearsal_seconds(config: RunConfig, sizes: Sizes) -> float:
    """Of its steps, its looks, and its evaluation on one GPU; without loading and scoring."""
    short, evaluation, hardware = rehearsed(config), config.evaluation, config.hardware
    look = looks_of(short) * images_of_look(short) * evaluation.steps
    held_out = prompts_of(config)
    images = held_out + min(evaluation.diversity_prompts, held_out) * evaluation.diversity_images
    velocity = flop_of_velocity(config, sizes)
    trained = short.train.steps * flop_of_step(short, sizes, config.balance.weighs_gradients) + look * velocity
    judged = evaluation.roles.passes * images * evaluation.steps * velocity
    speed = 1e12 * hardware.tflops * hardware.utilisation
    return trained / (speed * max(1, hardware.gpus)) + judged / speed
