"""The 1:1:1 mix of an optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np

from marble_core.runtime.seeding import derive
from marble_core.types import SOURCES, MarbleError, Prompt, PromptBatch


def mix(prompts: Sequence[Prompt], count: int, images_per_prompt: int, step: int, seed: int) -> PromptBatch:
    """The ``count`` prompts of optimizer step ``step`` (from 0), sources in turn, so 1:1:1: a pure function of (seed, step).

    A source is gone through in epochs of whole steps, whose order depends on (seed, source, epoch) and not on the other
    sources. Every prompt comes once an epoch; places that are left over in it go to prompts that come again. No text comes
    twice in a step, unless the source has too few texts for that or one of them more often than the epoch has steps.
    Raises MarbleError if ``count`` is no multiple of the number of sources.
    """
    by_source = {s: own for s in SOURCES if (own := [p for p in prompts if p.source == s])}
    if not by_source or count % len(by_source):
        raise MarbleError(f"{count} prompts a step cannot be mixed 1:1 over {len(by_source)} sources; use a multiple.")
    columns = [_draw(source, own, count // len(by_source), step, seed) for source, own in by_source.items()]
    return PromptBatch(tuple(p for row in zip(*columns, strict=True) for p in row), images_per_prompt, step, seed)


def _draw(source: str, own: Sequence[Prompt], share: int, step: int, seed: int) -> list[Prompt]:
    """The ``share`` prompts of one source in one step.

    The epoch's prompts are laid in a row, equal texts side by side, and dealt to its steps like cards: so equal texts go to
    different steps.
    """
    steps = -(-len(own) // share)
    epoch, position = divmod(step, steps)
    rng = np.random.default_rng(derive(seed, "mix", source, epoch))
    copies: dict[str, list[Prompt]] = {}
    for prompt in own:
        copies.setdefault(prompt.text, []).append(prompt)
    groups = list(copies.values())
    groups = [groups[i] for i in rng.permutation(len(groups))]
    missing = steps * share - len(own)
    too_few = len(groups) < share
    for group in cycle(groups):
        if not missing:
            break
        if too_few or len(group) < steps:
            group.append(group[0])
            missing -= 1
    row = [prompt for group in groups for prompt in group]
    return row[rng.permutation(steps)[position] :: steps]
