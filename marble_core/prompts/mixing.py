"""The mix of an optimizer step: prompts of every source, in the shares that the configuration gives them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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
    sources: Collection[str] | None = None,
) -> PromptBatch:
    """The ``count`` prompts of optimizer step ``step`` (from 0), a pure function of (seed, step).

    ``shares`` are those of the sources, in any unit, 1 where a source has none: as many prompts of each as of every other by
    default, the nearest whole numbers where they do not divide ``count``. The sources are spread evenly over the step, so that
    equal ones come in turn. ``sources`` are those that the step takes prompts of, by default all.

    A source is gone through in epochs of whole steps, whose order depends on (seed, source, epoch) and not on the other
    sources. Every prompt comes once an epoch; places that are left over in it go to prompts that come again. No text comes
    twice in a step, unless the source has too few texts for that or one of them more often than the epoch has steps.
    Raises MarbleError for fewer prompts than sources.
    """
    pool = _pool(prompts)
    taken = [source for source in pool.by_source if sources is None or source in sources]
    counts = counts_of(taken, shares or {}, count)
    drawn = [pool.draw(source, counts[source], step, seed) for source in taken]
    return PromptBatch(tuple(_spread(drawn)), images_per_prompt, step, seed)


def by_source(prompts: Sequence[Prompt]) -> Mapping[str, Sequence[Prompt]]:
    """The prompts of each source, the preset's sources first. Of a tuple it is made once."""
    return _pool(prompts).by_source


class _Pool:
    """Prompts by source, and the order of each source's newest epoch: of 10^6 prompts both take seconds, and a step must not."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts
        found: dict[str, list[Prompt]] = {}
        for prompt in prompts:
            found.setdefault(prompt.source, []).append(prompt)
        self.by_source = {source: found[source] for source in in_order(found)}
        self._dealt: dict[str, tuple[tuple[int, int, int], list[Prompt], np.ndarray]] = {}

    def draw(self, source: str, share: int, step: int, seed: int) -> Sequence[Prompt]:
        """The ``share`` prompts of one source in one step."""
        own = self.by_source[source]
        steps = -(-len(own) // share)
        epoch, position = divmod(step, steps)
        key = (share, epoch, seed)
        if source not in self._dealt or self._dealt[source][0] != key:
            self._dealt[source] = (key, *_deal(own, steps, share, np.random.default_rng(derive(seed, "mix", source, epoch))))
        _, row, order = self._dealt[source]
        return row[order[position] :: steps]


_kept: list[_Pool] = []  # the newest one, of prompts that cannot change


def _pool(prompts: Sequence[Prompt]) -> _Pool:
    if _kept and _kept[0].prompts is prompts:
        return _kept[0]
    pool = _Pool(prompts)
    if isinstance(prompts, tuple):
        _kept[:] = [pool]
    return pool


def _spread(columns: Iterable[Sequence[Prompt]]) -> list[Prompt]:
    """Each source's prompts at even distances, the first source first where two fall together."""
    placed = [((j + 0.5) / len(own), i, p) for i, own in enumerate(columns) for j, p in enumerate(own)]
    return [p for _, _, p in sorted(placed, key=lambda at: at[:2])]


def _deal(own: Sequence[Prompt], steps: int, share: int, rng: np.random.Generator) -> tuple[list[Prompt], np.ndarray]:
    """One source's epoch: its prompts in a row, equal texts side by side, and the order in which its steps take every
    ``steps``-th of them, like cards: so equal texts go to different steps."""
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
    return [prompt for group in groups for prompt in group], rng.permutation(steps)
