"""How long the GPUs of a rehearsal compute, by the same arithmetic as the hours of a run."""

from __future__ import annotations

from marble_core.config.rehearsal import prompts_of, rehearsed
from marble_core.config.schema import RunConfig
from marble_core.estimate.hours import hours_of
from marble_core.estimate.sizes import Sizes


def rehearsal_seconds(config: RunConfig, sizes: Sizes) -> float:
    """Of its steps, its looks, and its evaluation, at most; without loading and scoring."""
    short, evaluation = rehearsed(config), config.evaluation
    hours, held_out = hours_of(short, sizes), prompts_of(config)
    own, varied = (-(-n // hours.evaluators) for n in (held_out, min(evaluation.diversity_prompts, held_out)))
    images = own + varied * evaluation.diversity_images  # of the process with most
    counted = 2 * len(config.data.evaluation) * config.data.evaluation_size / hours.evaluators  # of hours.evaluation
    return 3600 * (hours.high + hours.evaluation * evaluation.roles.passes * images / counted)
