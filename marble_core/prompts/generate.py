"""Prompts that are made, not read: ``generate://geneval`` and ``generate://ocr``.

A kind of prompt is a space of choices, every one of which is one text or none. Prompts are drawn from it without replacement
and without listing it, since GenEval's colours of two objects alone are half a million texts. A third of the texts is held out
by a hash, so that training and held-out prompts are disjoint for every seed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import cycle, islice
from random import Random

from marble_core.config.imports import import_named
from marble_core.prompts.filters import normal
from marble_core.prompts.kinds import Generator, apportion, is_held_out
from marble_core.types import MarbleError, Prompt

GENERATORS = {"geneval": "marble_core.prompts.geneval:GENERATOR", "ocr": "marble_core.prompts.ocr:GENERATOR"}


def generate(kind: str, count: int, seed: int, held_out: bool, avoid: Collection[Prompt] = ()) -> list[Prompt]:
    """``count`` prompts of ``geneval`` or ``ocr``, the same for the same arguments.

    None means what a prompt of the public test set or of ``avoid`` means. Kinds come in the proportions of the generator's
    shares; a text is repeated only where its kind has fewer than are asked for, and then all of that kind equally often, up
    to one. Raises MarbleError for another generator, and where ``avoid`` leaves nothing of a kind.
    """
    generator = _generator(kind)
    rng = Random(f"generate/{kind}/{seed}/{held_out}")
    avoided = {normal(p.text) for p in avoid} | {generator.meaning(p) for p in avoid}

    def fits(prompt: Prompt) -> bool:
        meaning = generator.meaning(prompt)
        return (
            is_held_out(meaning) == held_out
            and not generator.is_test(meaning)
            and meaning not in avoided
            and normal(prompt.text) not in avoided
        )

    chosen: list[Prompt] = []
    for name, wanted in apportion(generator.shares, count).items():
        space = generator.kinds[name]
        made = (prompt for i in _shuffled(len(space), rng) if (prompt := space[i]) is not None)
        found = list(islice(filter(fits, made), wanted))
        if wanted and not found:
            raise MarbleError(f"The held-out prompts leave nothing to generate of the kind {name!r} of {kind!r}; use a file.")
        chosen += islice(cycle(found), wanted)
    rng.shuffle(chosen)
    return chosen


def _generator(kind: str) -> Generator:
    if kind not in GENERATORS:
        raise MarbleError(
            f"There is no generator {kind!r}; write generate://{' or generate://'.join(GENERATORS)}, or name a file."
        )
    return import_named(GENERATORS[kind], Generator, f"generate://{kind}")


def _shuffled(size: int, rng: Random) -> Iterator[int]:
    """0 .. size - 1 in random order, made as it is asked for (Fisher and Yates on a sparse array)."""
    moved: dict[int, int] = {}
    for i in range(size):
        j = rng.randrange(i, size)
        yield moved.get(j, j)
        moved[j] = moved.get(i, i)
