"""Two rewards against each other: what the base, the champion, earlier runs and this one reach, and which of them nobody beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from marble_core.evaluation.results import Estimate, RewardResult
from marble_core.report.drawing import INK, LEGIBLE, MARKERS, canvas, label_spots, placeholder, to_svg


@dataclass(frozen=True)
class Point:
    """A model's means in two rewards. ``label`` is written beside it where not empty; ``marker`` counts MARKERS.

    ``spread`` are the 95 % intervals of its differences to the base, which become a cross around it.
    """

    name: str
    x: float
    y: float
    ink: int | None = None
    marker: int = 0
    label: str = ""
    hollow: bool = False
    small: bool = False
    spread: tuple[Estimate, Estimate] | None = None


def trained_point(
    name: str, x: RewardResult, y: RewardResult, ink: int | None = None, marker: int = 0, label: str = ""
) -> Point:
    return Point(name, x.trained, y.trained, ink, marker, label, spread=(x.difference, y.difference))


def furthest_apart(results: Mapping[str, RewardResult]) -> tuple[str, str] | None:
    """The rewards that gained least and most in base stds; None where there are no two."""
    gains = {n: r.difference.mean / r.base_std for n, r in results.items() if r.base_std > 0}
    names = sorted(gains, key=lambda n: gains[n])
    return (names[0], names[-1]) if len(names) > 1 else None


def scatter(points: Sequence[Point], x_name: str, y_name: str, key: str) -> str:
    """An SVG; the line joins the points that no other beats in both rewards (the Pareto front)."""
    figure, axes = canvas(4.2, 3.2)
    axes.grid(axis="x", color=INK, alpha=0.14, linewidth=0.6)
    axes.spines["left"].set(visible=True, color=INK, alpha=0.4)
    front = pareto_front(points)
    axes.plot(
        [p.x for p in front], [p.y for p in front], color=INK, linewidth=0.9, linestyle=(0, (1.5, 2)), alpha=0.7, zorder=1
    )
    for p in points:
        ink = placeholder(p.ink)
        if p.spread:
            over = [[e.mean - e.low, e.high - e.mean] for e in p.spread]
            reach = {"xerr": [[low] for low in over[0]], "yerr": [[low] for low in over[1]]}
            axes.errorbar(p.x, p.y, **reach, fmt="none", ecolor=ink, elinewidth=1.1, alpha=0.55, zorder=2)
        face = {"facecolors": "none" if p.hollow else ink, "edgecolors": ink}
        axes.scatter(
            p.x, p.y, s=14 if p.small else 42, marker=MARKERS[p.marker % len(MARKERS)], linewidths=1.4, zorder=3, **face
        )
    axes.margins(0.16)
    for set_label, name in ((axes.set_xlabel, x_name), (axes.set_ylabel, y_name)):
        set_label(f"{name} →", fontsize=LEGIBLE + 0.5, color=INK)
    label_spots(figure, axes, [(p.x, p.y, p.label) for p in points], LEGIBLE + 0.5)
    where = "; ".join(f"{p.name} at {p.x:.3g} and {p.y:.3g}" for p in points)
    return to_svg(figure, key, f"Scatter of {x_name} and {y_name} on held-out prompts: {where}.")


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other reaches or exceeds in both rewards, from left to right."""
    front: list[Point] = []
    for p in sorted(points, key=lambda p: (-p.x, -p.y)):
        if not front or p.y > front[-1].y:
            front.append(p)
    return front[::-1]
