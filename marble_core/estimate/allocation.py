"""Where a step's images and timesteps are best spent, by where its noise comes from (a bank of ``marble bench signal``)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marble_core.config.schema import RunConfig
from marble_core.estimate.work import timestep_forwards
from marble_core.types import MarbleError


@dataclass(frozen=True)
class Components:
    """A reward's noise in units of its signal's energy: of one prompt, of one image of it, and of one (t, eps) of that. A step of M
    prompts, N images and T timesteps has the noise prompt / M + image / N + draw / (N T).
    """

    prompt: float
    image: float
    draw: float

    def noise(self, prompts: int, images: float, timesteps: float) -> float:
        return self.prompt / prompts + self.image / images + self.draw / (images * timesteps)


@dataclass(frozen=True)
class Allocation:
    """``timesteps`` that make the noise least at the configured cost, the ``images`` that are left for them, that noise over the
    configured one, and the images at which a step's gradient would be half signal (with images per prompt as they are).
    """

    timesteps: int
    images: int
    noise: float
    images_for_half: int


def allocate(own: Components, config: RunConfig) -> Allocation:
    """The noise per cost, (image + draw / T) (c + T), is least at T* = sqrt(draw / image * c), c the cost of an image in timesteps:
    sampling it takes ``rollout.steps`` forwards, scoring is left out. T* is at least 1 and at most ``rollout.steps``.
    """
    M, G, T = config.rollout.prompts, config.rollout.images_per_prompt, config.loss.timesteps
    cost = config.rollout.steps / timestep_forwards(config, config.balance.weighs_gradients)

    def noise(timesteps: int) -> float:
        return (own.image + own.draw / timesteps) * (cost + timesteps)

    best = min(range(1, config.rollout.steps + 1), key=noise)
    images = M * G * (cost + T) / (cost + best)
    half = own.prompt * G + own.image + own.draw / best
    return Allocation(best, round(images), own.noise(M, images, best) / own.noise(M, M * G, T), math.ceil(half))


def components(found: Mapping[str, Any]) -> dict[str, Components]:
    """Of signal.json, by reward; one whose noise of images is not known to be above 0 is left out."""
    configuration = found["bank"]["configuration"]
    M, G, T = (int(configuration[k]) for k in ("rollout.prompts", "rollout.images_per_prompt", "loss.timesteps"))
    step = {part: found["one_step"][part]["value"] for part in ("between_prompts", "between_images", "t_eps")}
    own = {}
    for k, name in enumerate(found["names"]):
        prompt, image, draw = (step[part][k] for part in step)
        if image is not None and draw is not None and image > 0 and draw > 0:
            own[name] = Components(max(prompt or 0.0, 0.0) * M, image * M * G, draw * M * G * T)
    return own


def lines(config: RunConfig, signal: Path) -> Iterator[str]:
    """For people. Raises MarbleError where ``signal`` is not what marble bench signal wrote, or knows none of the rewards."""
    try:
        own = components(json.loads(signal.read_bytes()))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise MarbleError(
            f"{signal} is no signal.json of marble bench signal ({type(error).__name__}): give that file."
        ) from None
    known = {name: own[name] for name in config.reward_names if name in own}
    if not known:
        raise MarbleError(f"{signal} says nothing of {', '.join(config.reward_names)}: make a bank of these rewards.")
    yield f"allocation   by {signal}; a step has {config.rollout.prompts * config.rollout.images_per_prompt} images x {config.loss.timesteps} timesteps"
    width = max(map(len, known))
    yield f"  {'':{width}}{'T*':>5}{'images, same cost':>20}{'noise of now':>14}{'images for half signal':>24}"
    for name, one in known.items():
        a = allocate(one, config)
        yield f"  {name:{width}}{a.timesteps:>5}{a.images:>20}{a.noise:>13.0%} {a.images_for_half:>24}"
