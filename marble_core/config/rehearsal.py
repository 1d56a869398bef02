"""The configuration of a rehearsal: two steps and a few prompts of a run, on its own weights, rewards and GPUs."""

from __future__ import annotations

from typing import TypeVar

from marble_core.config.balance import BalanceConfig
from marble_core.config.schema import RunConfig
from marble_core.config.section import Section
from marble_core.config.shares import unit_of

STEPS, PROMPTS = 2, 8
LOOK = 2  # prompts of each source, and images of each, of a look at held-out prompts
SCRATCH = "-rehearsal"  # after the name of the registered model

S = TypeVar("S", bound=Section)


def rehearsed(config: RunConfig) -> RunConfig:
    """Everything that takes memory stays as it is: images of a prompt, batch sizes, timesteps, rewards, processes.

    A step has PROMPTS prompts, or the next number that the sources share evenly and that every GPU has one of; never more than
    the run's own.
    """
    train, watch = config.train, config.watch
    changed = {
        "rollout": _with(config.rollout, prompts=prompts_of(config)),
        "balance": _balance(config.balance),
        "train": _with(
            train,
            steps=STEPS,
            checkpoint_every=STEPS,
            samples_every=min(train.samples_every, STEPS),
            max_silent_steps=max(train.max_silent_steps, STEPS + 1),
        ),
        "watch": _with(watch, every=min(watch.every, STEPS), prompts=min(watch.prompts, LOOK), images=min(watch.images, LOOK)),
        "registry": _with(config.registry, model=config.registry.model + SCRATCH),
    }
    return config.model_copy(update=changed)


def prompts_of(config: RunConfig) -> int:
    """Of a step of the rehearsal."""
    unit = unit_of(config.data.train, config.data.shares)
    least = max(PROMPTS, config.hardware.gpus, config.train.nodes * config.train.processes)
    return min(config.rollout.prompts, -(-least // unit) * unit)


def _balance(balance: BalanceConfig) -> BalanceConfig:
    """The stages of ``sequential`` get a step each, of the first two; no step is one of a last uniform stage."""
    stages = balance.stages[:STEPS]
    steps = [STEPS // len(stages)] * len(stages) if stages else []
    short = tuple(_with(stage, steps=count) for stage, count in zip(stages, steps, strict=True))
    return _with(balance, stages=short, final_uniform_steps=0)


def _with(section: S, **values: object) -> S:
    return section.model_copy(update=values)
