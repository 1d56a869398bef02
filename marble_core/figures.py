"""The report's curves by training step, as SVG whose colours are the page's CSS variables, so that they follow its theme.

A step that was skipped, or that lacks a metric, is a gap in the curve: nothing is drawn across it.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SERIES = 8  # colours var(--s0) ... var(--s7) of the style sheet, by a reward's place in the configuration
_INK = "#fd0000"  # stands for currentColor until the SVG is written
_POINTS = 400  # of a curve; longer histories are drawn by the means of blocks of steps
_MANY = 60  # from so many steps on, a running mean is drawn over the single values


@dataclass(frozen=True)
class History:
    """Training by step: ``steps`` (S,) without holes, and each metric (S,) with NaN where a step does not have it."""

    steps: np.ndarray
    metrics: Mapping[str, np.ndarray]
    notes: tuple[tuple[int, str], ...] = ()
    skipped: tuple[int, ...] = ()

    @classmethod
    def load(cls, path: Path | None) -> History:
        """Read train's JSON lines; of a step that was trained twice (a resumed run) the later line counts.

        A file that is not there is an empty history, and a last line that a killed run left unfinished is dropped.
        """
        lines: dict[int, Mapping[str, Any]] = {}
        text = path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            lines[int(row["step"])] = row
        if not lines:
            return cls(np.arange(0), {})
        first = min(lines)
        steps = np.arange(first, max(lines) + 1)
        names = dict.fromkeys(name for row in lines.values() for name in row["metrics"])
        metrics = {name: np.full(len(steps), np.nan) for name in names}
        for step, row in lines.items():
            for name, value in row["metrics"].items():
                metrics[name][step - first] = np.nan if value is None or not np.isfinite(value) else value
        notes = tuple((step, note) for step, row in sorted(lines.items()) for note in row.get("notes", ()))
        skipped = tuple(int(s) for s in steps if s not in lines or lines[int(s)]["metrics"].get("skipped"))
        return cls(steps, metrics, notes, skipped)

    def get(self, name: str) -> np.ndarray | None:
        """A metric that at least one step has."""
        values = self.metrics.get(name)
        return None if values is None or np.isnan(values).all() else values

    def thinned(self, points: int = _POINTS) -> History:
        """At most ``points`` block means, each at the last step of its block; a block without a value is a gap."""
        width = -(-len(self.steps) // points)
        if width <= 1:
            return self
        pad = -len(self.steps) % width
        blocks = {n: np.pad(v, (pad, 0), constant_values=np.nan).reshape(-1, width) for n, v in self.metrics.items()}
        counts = {n: (~np.isnan(b)).sum(1) for n, b in blocks.items()}
        means = {n: np.where(counts[n] > 0, np.nansum(b, 1) / np.maximum(counts[n], 1), np.nan) for n, b in blocks.items()}
        return History(self.steps[width - 1 - pad :: width], means, self.notes, self.skipped)


@dataclass(frozen=True)
class Figure:
    """``svg`` is ready to stand in a page; ``colour`` is the series' number where the figure shows one reward."""

    title: str
    caption: str
    svg: str
    colour: int | None = None


def reward_figures(history: History, names: Sequence[str], planned: int) -> list[Figure]:
    """One panel a reward: its mean over the step's images."""
    history = history.thinned()
    return [
        _panel(history, name, {k: values}, planned, f"mean of {name} over the step's pictures", k)
        for k, name in enumerate(names)
        if (values := history.get(f"reward/{name}/mean")) is not None
    ]


def balance_figures(history: History, names: Sequence[str], planned: int) -> list[Figure]:
    """Stacked alpha, the worst cosines, and each reward's self-consistency: those of them that the method has."""
    history = history.thinned()
    figures = []
    alphas = {k: a for k, n in enumerate(names) if (a := history.get(f"alpha/{n}")) is not None}
    if alphas:
        figures.append(_stack(history, names, alphas, planned))
    if (worst := history.get("cosine/worst")) is not None:
        what = "worst cosine between the direction and a reward's gradient"
        figures.append(_panel(history, "Worst cosine", {None: worst}, planned, what, zero=True))
    if (held_out := history.get("held_out/worst")) is not None:
        what = "worst cosine between a direction found on half of the prompts and a reward's gradient on the other half"
        figures.append(_panel(history, "Held-out cosine", {None: held_out}, planned, what, zero=True))
    halves: dict[int | None, np.ndarray] = {}
    halves |= {k: c for k, n in enumerate(names) if (c := history.get(f"consistency/{n}")) is not None}
    if halves:
        what = "cosine between the gradients of the two halves of a step, for each reward"
        figures.append(_panel(history, "Self-consistency", halves, planned, what, zero=True, smooth=True))
    return figures


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


def colour(k: int) -> str:
    return f"var(--s{k % SERIES})"


def _panel(
    history: History,
    title: str,
    series: Mapping[int | None, np.ndarray],
    planned: int,
    what: str,
    own: int | None = None,
    zero: bool = False,
    smooth: bool = False,
) -> Figure:
    """Lines over the steps; None as a key is drawn in the colour of the text."""
    figure, axes = _axes(history, planned)
    count = len(history.steps)
    smooth = smooth or count > _MANY
    window = max(3, count // 12) | 1
    for k, values in series.items():
        ink = _INK if k is None else _placeholder(k)
        marker = "o" if count <= _MANY else ""
        if smooth and count >= window:
            if len(series) == 1:
                axes.plot(history.steps, values, color=ink, linewidth=0.6, alpha=0.35)
            axes.plot(history.steps, running_mean(values, window), color=ink, linewidth=1.6)
        else:
            axes.plot(history.steps, values, color=ink, linewidth=1.4, marker=marker, markersize=2.6)
    if zero:
        axes.axhline(0, color=_INK, linewidth=0.7, alpha=0.6)
    axes.margins(y=0.12)
    if len(series) == 1:
        first, last = ends(next(iter(series.values())))
        caption = f"{first:#.3g} → {last:#.3g}"
        alt = f"Curve of the {what}: from {first:#.3g} to {last:#.3g} over {history.steps[-1]} steps{_skips(history)}."
    else:
        caption = "signal near 1, noise near 0"
        alt = f"Curves of the {what}, over {history.steps[-1]} steps{_skips(history)}."
    return Figure(title, caption, _svg(figure, title if own is None else f"reward_{title}", alt), own)


def _stack(history: History, names: Sequence[str], alphas: Mapping[int, np.ndarray], planned: int) -> Figure:
    """Alpha as a stack of steps, so that a single step between two skipped ones still shows."""
    figure, axes = _axes(history, planned)
    width = history.steps[1] - history.steps[0] if len(history.steps) > 1 else 1
    edges = np.repeat(history.steps + 0.5, 2) - np.tile([width, 0], len(history.steps))
    missing = np.isnan(np.stack(list(alphas.values()))).all(0)
    below = np.zeros(len(edges))
    for k, alpha in alphas.items():
        above = below + np.repeat(np.nan_to_num(alpha), 2)
        axes.fill_between(edges, below, above, where=~np.repeat(missing, 2), color=_placeholder(k), linewidth=0)
        below = above
    axes.set_ylim(0, 1)
    means = {names[k]: float(np.nanmean(alpha)) for k, alpha in alphas.items()}
    listed = ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())
    alt = f"Stacked weights alpha of the rewards over {history.steps[-1]} steps{_skips(history)}; their means are {listed}."
    return Figure("Alpha", "weights, from the bottom as listed", _svg(figure, "Alpha", alt))


def _axes(history: History, planned: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    figure = Canvas(figsize=(3.7, 1.75), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlim(0.5, max(planned, int(history.steps[-1])) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y", color=_INK, alpha=0.14, linewidth=0.6)
    axes.tick_params(length=0, labelsize=7.5, labelcolor=_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_INK)
        spine.set_alpha(0.4)
    if history.skipped:
        on_axis = axes.get_xaxis_transform()
        axes.scatter(
            history.skipped,
            np.zeros(len(history.skipped)),
            s=18,
            c=_INK,
            marker="x",
            transform=on_axis,
            clip_on=False,
            zorder=5,
        )
    return figure, axes


def _skips(history: History) -> str:
    return f", {len(history.skipped)} of them skipped and left blank" if history.skipped else ""


def _placeholder(k: int) -> str:
    return f"#fe00{k % SERIES:02d}"


def _svg(figure: Any, key: str, alt: str) -> str:
    """The figure without prolog and metadata, with ids of its own, theme colours, real text, and ``alt`` as its label."""
    import matplotlib

    salt = re.sub(r"\W", "", key).lower()
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)  # styles would rule the whole page
    text = re.sub(r"(\d\.\d\d)\d+", r"\1", text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{salt}-", text)
    text = re.sub(r"#fe00(\d\d)", lambda m: colour(int(m[1])), text).replace(_INK, "currentColor")
    head, rest = text.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'{head} role="img" aria-label="{label}">{rest}'
