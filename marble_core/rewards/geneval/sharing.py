"""Which objects each wish is judged by: wishes of one class share out the objects of that class, and none serves two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb
from typing import Any

from marble_core.rewards.geneval.boxes import Box


@dataclass(frozen=True)
class Found:
    """A detection as the rules see it."""

    box: Box
    color: str | None = None


Objects = Mapping[str, Sequence[Found]]  # by class, best first
Wishes = Sequence[Mapping[str, Any]]  # include or exclude of a prompt
Handed = list[Sequence[Found] | None]  # by wish; None where the class has the wrong number of objects


def totals(include: Wishes) -> Counter[str]:
    """How many objects of each class all wishes together want."""
    wanted: Counter[str] = Counter()
    for wish in include:
        wanted[wish["class"]] += wish["count"]
    return wanted


def shared_out(include: Wishes, objects: Objects, exact: bool) -> Iterator[Handed]:
    """The ways to hand the objects of each class to the wishes that name it; an image is worth its best way.

    A class has the right number of objects where it has what its wishes want together: with ``exact`` no more, else at least that,
    and the best of them are handed out. Where a position touches a class that several wishes name, every way comes. Elsewhere
    only colours tell the ways apart, and the one with the most right colours comes alone.
    """
    of_class: dict[str, list[int]] = {}
    for i, wish in enumerate(include):
        of_class.setdefault(wish["class"], []).append(i)
    placed = _placed(include)
    wanted = totals(include)
    ways: list[list[dict[int, Sequence[Found] | None]]] = []
    for label, indices in of_class.items():
        chosen = right_number(objects.get(label, ()), wanted[label], exact)
        if chosen is None:
            ways.append([dict.fromkeys(indices)])
        elif len(indices) == 1:
            ways.append([{indices[0]: chosen}])
        elif placed.intersection(indices):
            parts = _splits([include[i]["count"] for i in indices], chosen)
            ways.append([dict(zip(indices, part, strict=True)) for part in parts])
        else:
            ways.append([_by_color(indices, include, chosen)])
    for way in product(*ways):
        handed = {i: found for of_one_class in way for i, found in of_one_class.items()}
        yield [handed[i] for i in range(len(include))]


def each_alone(include: Wishes, objects: Objects, exact: bool) -> Iterator[Handed]:
    """The released rules' one way: each wish is handed all objects of its class, whoever else names that class."""
    yield [right_number(objects.get(wish["class"], ()), wish["count"], exact) for wish in include]


def right_number(found: Sequence[Found], wanted: int, exact: bool) -> Sequence[Found] | None:
    """The best ``wanted`` of them; None where they are fewer, or with ``exact`` more."""
    return found[:wanted] if (len(found) == wanted if exact else len(found) >= wanted) else None


def count_ways(include: Wishes) -> int:
    """How many ways ``shared_out`` gives for an image with the right number of objects."""
    placed, wanted, number = _placed(include), totals(include), 1
    for label in {include[i]["class"] for i in placed}:
        left = wanted[label]
        for wish in include:
            if wish["class"] == label:
                number *= comb(left, wish["count"])
                left -= wish["count"]
    return number


def _placed(include: Wishes) -> set[int]:
    """The wishes that a position touches: those that have one, and those that it refers to."""
    return {j for i, wish in enumerate(include) if "position" in wish for j in (i, wish["position"][1])}


def _splits(counts: Sequence[int], found: Sequence[Found]) -> Iterator[list[list[Found]]]:
    """All ways to cut the objects into parts of these sizes."""
    if not counts:
        yield []
        return
    for first in combinations(range(len(found)), counts[0]):
        rest = [item for i, item in enumerate(found) if i not in first]
        for others in _splits(counts[1:], rest):
            yield [[found[i] for i in first], *others]


def _by_color(indices: Sequence[int], include: Wishes, found: Sequence[Found]) -> dict[int, Sequence[Found] | None]:
    """The way whose colour terms (right ones / wanted) have the greatest sum.

    Wishes take what has their colour, the smallest wish first, to whose term an object adds most; what is left fits nobody's
    colour that still has room, so it goes anywhere.
    """
    left = list(found)
    handed: dict[int, list[Found]] = {i: [] for i in indices}
    for i in sorted(indices, key=lambda i: include[i]["count"]):
        if "color" in include[i]:
            handed[i] = [item for item in left if item.color == include[i]["color"]][: include[i]["count"]]
            for item in handed[i]:
                left.remove(item)
    for i in indices:
        missing = include[i]["count"] - len(handed[i])
        handed[i] += left[:missing]
        left = left[missing:]
    return {i: handed[i] for i in indices}
