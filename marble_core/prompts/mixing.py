"""The mix of an optimizer step: prompts of every source, in the shares that the configuration gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

import numpy as np

from marble_core.config.shares import counts_of
from marble_core.runtime.seeding import derive
from marble_core.types import Prompt, PromptBatch, in_order


def mix(
    prompts: Sequence[Prompt],
    count: int,
    images_per_prompt: int,
    step: int,
    seed: int,
    shares: Mapping[str, float] | None = None,
) -> PromptBatch:
    """The ``count`` prompts of optimizer step ``step`` (from 0), a pure function of (seed, step).

    ``shares`` are those of the sources, in any unit, 1 where a source has none: as many prompts of each as of every other by
    default, the nearest whole numbers where they do not divide ``count``. The sources are spread evenly over the step, so that
    equal ones come in turn.

    A source is gone through in epochs of whole steps, whose order depends on (seed, source, epoch) and not on the other
    sources. Every prompt comes once an epoch; places that are left over in it go to prompts that come again. No text comes
    twice in a step, unless the source has too few texts for that or one of them more often than the epoch has steps.
    Raises MarbleError for fewer prompts than sources.
    """
    by_source = {s: [p for p in prompts if p.source == s] for s in in_order(p.source for p in prompts)}
    counts = counts_of(by_source, shares or {}, count)
    drawn = [_draw(source, own, counts[source], step, seed) for source, own in by_source.items()]
    return PromptBatch(tuple(_spread(drawn)), images_per_prompt, step, seed)


def _spread(columns: Iterable[Sequence[Prompt]]) -> list[Prompt]:
    """Each source's prompts at even distances, the first source first where two fall together."""
    placed = [((j + 0.5) / len(own), i, p) for i, own in enumerate(columns) for j, p in enumerate(own)]
    return [p for _, _, p in sorted(placed, key=lambda at: at[:2])]


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
