"""What all figures share: the canvas, the stand-in colours, and the way from matplotlib to an SVG in a page.

A figure's colours are CSS variables of the page, so that it follows light, dark and print.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SERIES = 8  # colours var(--s0) ... var(--s7) of the style sheet, by a reward's place in the configuration, or a run's
MARKERS = "osD^vPX*"  # beside the colours, for who cannot tell these apart
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
INK = "#fd0000"  # stands for currentColor until the SVG is written
LEGIBLE = 10.6  # points of the tick labels: 11 px or more wherever the page puts the figure


@dataclass(frozen=True)
class Figure:
    """``svg`` is ready to stand in a page; ``colour`` is the series' number where the figure shows one reward."""

    title: str
    caption: str
    svg: str
    colour: int | None = None


def colour(k: int) -> str:
    """The colour of series ``k`` in the style sheet."""
    return f"var(--s{k % SERIES})"


def placeholder(k: int | None) -> str:
    """The colour of series ``k`` for matplotlib; None is the colour of the text."""
    return INK if k is None else f"#fe00{k % SERIES:02d}"


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """A figure and its axes, in inches; with few lines, which is what a small plot can bear."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    figure = Canvas(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y", color=INK, alpha=0.14, linewidth=0.6)
    axes.tick_params(length=0, labelsize=LEGIBLE, labelcolor=INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(INK)
        spine.set_alpha(0.4)
    return figure, axes


_BESIDE = (  # offsets in points from a spot to its label, and how the text is anchored there; the first that is free is taken
    *((7, -11, "left"), (7, 5, "left"), (-7, -11, "right"), (-7, 5, "right"), (0, 10, "center"), (0, -18, "center")),
    *((12, -24, "left"), (12, 18, "left"), (-12, -24, "right"), (-12, 18, "right"), (0, 24, "center"), (0, -32, "center")),
)


def label_spots(figure: Any, axes: Any, spots: Sequence[tuple[float, float, str]], size: float = LEGIBLE) -> None:
    """Write each text beside its spot (x, y, text), over no other text and no other spot where there is such a place, and within the axes.

    For when everything else is drawn. A spot without a text is only kept free.
    """
    figure.draw_without_rendering()  # the layout stands from now on
    inside, points = axes.get_window_extent(), [axes.transData.transform((x, y)) for x, y, _ in spots]
    scale = figure.dpi / 72
    taken: list[Sequence[float]] = []
    marks = [(px - 4 * scale, py - 4 * scale, px + 4 * scale, py + 4 * scale) for px, py in points]
    for k, (x, y, text) in enumerate(spots):
        if not text:
            continue
        others = [*taken, *(mark for i, mark in enumerate(marks) if i != k)]
        best = None
        for dx, dy, anchor in _BESIDE:
            label = axes.annotate(
                text, (x, y), (dx, dy), textcoords="offset points", ha=anchor, fontsize=size, color=INK, parse_math=False
            )
            box = label.get_window_extent().extents
            out = (
                max(inside.x0 - box[0], 0)
                + max(box[2] - inside.x1, 0)
                + max(inside.y0 - box[1], 0)
                + max(box[3] - inside.y1, 0)
            )
            cost = out + sum(_common(box, other) for other in others)
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, label, box)
            else:
                label.remove()
            if cost == 0:
                break
        assert best is not None
        taken.append(best[2])


def _common(a: Sequence[float], b: Sequence[float]) -> float:
    """The area of two boxes (left, low, right, high) over each other."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def to_svg(figure: Any, key: str, alt: str) -> str:
    """The figure without prolog and metadata, with ids of its own (from ``key``), theme colours, real text, and ``alt`` as label."""
    import matplotlib

    salt = re.sub(r"\W", "", key).lower()
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)  # styles would rule the whole page
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)  # coordinates, and no number to read
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{salt}-", text)
    text = re.sub(r"#fe00(\d\d)", lambda m: colour(int(m[1])), text).replace(INK, "currentColor")
    head, rest = text.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'{head} role="img" aria-label="{label}">{rest}'
