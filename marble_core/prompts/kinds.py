"""Kinds of generated prompts: a space of choices, every one of which is one text or none."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from marble_core.types import Prompt


@dataclass(frozen=True)
class Kind:
    """``make`` takes one of each of ``choices``, and returns None where these do not go together."""

    choices: tuple[Sequence[Any], ...]
    make: Callable[..., Prompt | None]

    def __len__(self) -> int:
        return prod(map(len, self.choices))

    def __getitem__(self, index: int) -> Prompt | None:
        chosen = []
        for options in self.choices:
            index, digit = divmod(index, len(options))
            chosen.append(options[digit])
        return self.make(*chosen)


@dataclass(frozen=True)
class Generator:
    """``shares`` of the kinds, in any unit; ``meaning`` is equal for prompts that ask for the same image.

    ``is_test`` says whether a meaning is one of a public test set's, which is never generated.
    """

    kinds: Mapping[str, Kind]
    shares: Mapping[str, float]
    meaning: Callable[[Prompt], str]
    is_test: Callable[[str], bool]


def is_held_out(text: str) -> bool:
    return zlib.crc32(text.encode()) % 3 == 0


def apportion(shares: Mapping[str, float], count: int) -> dict[str, int]:
    """Whole numbers that sum to ``count``, by largest remainder."""
    exact = {kind: count * share / sum(shares.values()) for kind, share in shares.items()}
    whole = {kind: int(number) for kind, number in exact.items()}
    for kind in sorted(exact, key=lambda kind: whole[kind] - exact[kind])[: count - sum(whole.values())]:
        whole[kind] += 1
    return whole
