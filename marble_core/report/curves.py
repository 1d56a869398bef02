"""Curves by training step.

A step that was skipped, or that lacks a metric, is a gap in the curve: nothing is drawn across it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from marble_core.report.drawing import DASHES, INK, LEGIBLE, Figure, canvas, placeholder, to_svg
from marble_core.tracking.step_history import History

NARROW, WIDE = (3.4, 1.95), (4.2, 2.1)  # inches, of the panels that stand three and two in a row
_MANY = 60  # from so many steps on, a running mean is drawn over the single values


@dataclass(frozen=True)
class Line:
    """One curve: ``values`` at ``steps``, one each. Ink None is the colour of the text; ``style`` counts kinds of dashes."""

    steps: np.ndarray
    values: np.ndarray
    ink: int | None = None
    style: int = 0


def reward_figures(history: History, names: Sequence[str], planned: int) -> list[Figure]:
    """One panel a reward: its mean over the step's images."""
    history = history.thinned()
    figures = []
    for k, name in enumerate(names):
        if (values := history.get(f"reward/{name}/mean")) is not None:
            what = f"mean of {name} over the step's images"
            svg, change = _one(history, values, planned, what, f"reward_{name}", k)
            figures.append(Figure(name, change, svg, k))
    return figures


def balance_figures(history: History, names: Sequence[str], planned: int) -> list[Figure]:
    """Stacked alpha, the worst cosines, and each reward's self-consistency: those of them that the method has."""
    history = history.thinned()
    figures = []
    alphas = {k: a for k, n in enumerate(names) if (a := history.get(f"alpha/{n}")) is not None}
    if alphas:
        figures.append(_stack(history, names, alphas, planned))
    for title, name, what in (
        ("Worst cosine", "cosine/worst", "worst cosine between the direction and a reward's gradient"),
        (
            "Held-out cosine",
            "held_out/worst",
            "worst cosine between a direction found on half of the prompts and a reward's gradient on the other half",
        ),
    ):
        if (values := history.get(name)) is not None:
            svg, change = _one(history, values, planned, what, title, zero=True)
            figures.append(Figure(title, change, svg))
    halves = [(k, c) for k, n in enumerate(names) if (c := history.get(f"consistency/{n}")) is not None]
    if halves:
        lines = [Line(history.steps, values, k) for k, values in halves]
        said = f"Curves of the cosine between the gradients of the two halves of a step, for each reward, {_over(history)}."
        drawn = panel(lines, planned, history.skipped, zero=True, smooth=True, size=WIDE)
        figures.append(Figure("Self-consistency", "signal near 1, noise near 0", to_svg(drawn, "Self-consistency", said)))
    return figures


def panel(
    lines: Sequence[Line],
    planned: int,
    skipped: Sequence[int] = (),
    zero: bool = False,
    smooth: bool = False,
    faint: bool = False,
    size: tuple[float, float] = NARROW,
) -> Any:
    """Lines over the steps; long ones as running means, with the single values behind them where ``faint``."""
    figure, axes = step_axes(max([planned, *(int(line.steps[-1]) for line in lines)]), skipped, size)
    for line in lines:
        count, look = len(line.steps), {"color": placeholder(line.ink), "linestyle": DASHES[line.style % len(DASHES)]}
        window = max(3, count // 12) | 1
        if (smooth or count > _MANY) and count >= window:
            if faint:
                axes.plot(line.steps, line.values, color=look["color"], linewidth=0.6, alpha=0.35)
            axes.plot(line.steps, running_mean(line.values, window), linewidth=1.6, **look)
        else:
            axes.plot(line.steps, line.values, linewidth=1.4, marker="o" if count <= _MANY else "", markersize=2.6, **look)
    if zero:
        axes.axhline(0, color=INK, linewidth=0.7, alpha=0.6)
    axes.margins(y=0.12)
    return figure


def step_axes(last: int, skipped: Sequence[int], size: tuple[float, float]) -> tuple[Any, Any]:
    """Axes over steps 1 to ``last``, with a cross for each step that was skipped."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = canvas(*size)
    axes.set_xlim(0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("optimizer step", fontsize=LEGIBLE, color=INK)
    if skipped:
        cross = {"s": 18, "c": INK, "marker": "x", "clip_on": False, "zorder": 5}
        axes.scatter(skipped, np.zeros(len(skipped)), transform=axes.get_xaxis_transform(), **cross)
    return figure, axes


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over ``window`` steps of those that have a value; NaN where the step itself has none."""
    there = ~np.isnan(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(there, values, 0.0), kernel, "same")
    count = np.convolve(there.astype(float), kernel, "same")
    return np.where(there, total / np.maximum(count, 1), np.nan)


def ends(values: np.ndarray) -> tuple[float, float]:
    """The means of the first and of the last fifth of the values there are."""
    there = values[~np.isnan(values)]
    fifth = max(1, len(there) // 5)
    return float(there[:fifth].mean()), float(there[-fifth:].mean())


def _one(
    history: History, values: np.ndarray, planned: int, what: str, key: str, ink: int | None = None, zero: bool = False
) -> tuple[str, str]:
    """A single curve as SVG, and from where to where it went."""
    first, last = ends(values)
    said = f"Curve of the {what}: from {first:#.3g} to {last:#.3g} {_over(history)}."
    drawn = panel(
        [Line(history.steps, values, ink)], planned, history.skipped, zero, faint=True, size=NARROW if ink is not None else WIDE
    )
    return to_svg(drawn, key, said), f"{first:#.3g} → {last:#.3g}"


def _stack(history: History, names: Sequence[str], alphas: Mapping[int, np.ndarray], planned: int) -> Figure:
    """Alpha as a stack of steps, so that a single step between two skipped ones still shows."""
    figure, axes = step_axes(max(planned, int(history.steps[-1])), history.skipped, WIDE)
    width = history.steps[1] - history.steps[0] if len(history.steps) > 1 else 1
    edges = np.repeat(history.steps + 0.5, 2) - np.tile([width, 0], len(history.steps))
    missing = np.isnan(np.stack(list(alphas.values()))).all(0)
    below = np.zeros(len(edges))
    for k, alpha in alphas.items():
        above = below + np.repeat(np.nan_to_num(alpha), 2)
        axes.fill_between(edges, below, above, where=~np.repeat(missing, 2), color=placeholder(k), linewidth=0)
        below = above
    axes.set_ylim(0, 1)
    means = ", ".join(f"{names[k]} {float(np.nanmean(alpha)):.2f}" for k, alpha in alphas.items())
    alt = f"Stacked weights alpha of the rewards {_over(history)}; their means are {means}."
    return Figure("Alpha", "weights, from the bottom as listed", to_svg(figure, "Alpha", alt))


def _over(history: History) -> str:
    skipped = f", {len(history.skipped)} of them skipped and left blank" if history.skipped else ""
    return f"over {history.steps[-1]} steps{skipped}"
