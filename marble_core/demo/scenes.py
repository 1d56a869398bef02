"""Scenes of the synthetic world: shapes on a ground, a written word, a pattern; what there is to draw. No PIL, no torch."""

from __future__ import annotations

from dataclasses import dataclass

RGB = tuple[int, int, int]
Point = tuple[float, float]

SIZE = 64  # pixels

COLORS: dict[str, RGB] = {
    "red": (222, 34, 34),
    "green": (34, 160, 62),
    "blue": (38, 70, 222),
    "yellow": (248, 214, 36),
    "purple": (142, 44, 172),
    "orange": (246, 130, 24),
}
GREYS: dict[str, RGB] = {"white": (250, 250, 250), "black": (16, 16, 16), "gray": (150, 150, 150)}
PALETTE: dict[str, RGB] = {**COLORS, **GREYS}
SHAPES = ("circle", "square", "triangle", "star")

ROW: tuple[Point, ...] = ((17, 32), (47, 32))
COLUMN: tuple[Point, ...] = ((32, 17), (32, 47))
LAYOUTS: dict[int, tuple[tuple[Point, ...], ...]] = {
    1: (((32, 32),),),
    2: (ROW, COLUMN),
    3: (((18, 20), (46, 20), (32, 45)), ((32, 19), (18, 44), (46, 44))),
    4: (((18, 18), (46, 18), (18, 46), (46, 46)),),
}


@dataclass(frozen=True)
class Thing:
    color: str
    shape: str


@dataclass(frozen=True)
class Shapes:
    """Up to four things on a plain ground. Without ``layout`` one of those for their number is drawn by lot."""

    things: tuple[Thing, ...]
    ground: str
    layout: tuple[Point, ...] | None = None
    size: str | None = None


@dataclass(frozen=True)
class Word:
    text: str
    letters: str
    ground: str


@dataclass(frozen=True)
class Pattern:
    """``kind`` is stripes, checks or ring."""

    kind: str
    color: str
    ground: str


Scene = Shapes | Word | Pattern
