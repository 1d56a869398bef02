"""Gain against diversity: what guidance and the LoRA's strength buy, beside what training bought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from marble_core.evaluation.results import Estimate, Evaluation
from marble_core.report.drawing import DASHES, INK, LEGIBLE, MARKERS, Figure, canvas, label_spots, placeholder, to_svg


@dataclass(frozen=True)
class Spot:
    """A model's change of diversity and mean gain over the base, each with its interval or as a point."""

    label: str
    change: Estimate
    gain: Estimate


@dataclass(frozen=True)
class Curve:
    """Models that differ in one thing, in its order; a line joins them."""

    name: str
    spots: tuple[Spot, ...]
    ink: int | None = None
    style: int = 0


def gain_against_diversity(evaluation: Evaluation) -> Figure | None:
    """The figure of all models; None where there are no variants, or diversity was not measured."""
    found = curves(evaluation)
    return draw(found, "gain-diversity") if len(found) > 1 else None


def curves(evaluation: Evaluation) -> list[Curve]:
    """Guidance of the base, guidance of the trained model, the LoRA's strength, pairs of both, the champion."""
    d = evaluation.diversity
    if not d or not evaluation.variants:
        return []
    zero = Estimate(0.0, 0.0, 0.0)
    base, trained = Spot("base", zero, zero), Spot("trained", d.change, evaluation.mean_gain)
    kinds: dict[str, list[tuple[float, Spot]]] = {"base": [(1.0, base)], "guided": [], "strength": [], "pairs": []}
    for v in evaluation.variants:
        if v.diversity:
            both = v.strength == v.guidance == 1  # the plain LoRA, where another strength was chosen
            kind = "base" if v.model == "base" else "guided" if v.strength == 1 else "strength" if v.guidance == 1 else "pairs"
            label = f"s {v.strength:g}" if v.model == "trained" and (both or v.strength != 1) else f"g {v.guidance:g}"
            label += f", g {v.guidance:g}" if kind == "pairs" else ""
            spot = Spot(label, v.diversity.change, v.mean_gain)
            kinds[kind].append((v.strength if kind == "strength" else v.guidance, spot))
            if both:
                kinds["strength"].append((1.0, spot))
    if evaluation.strength == 1:
        kinds["guided"].append((1.0, trained))
    if kinds["strength"]:
        kinds["strength"] += [(0.0, base), (evaluation.strength, trained)]
    ordered = {kind: tuple(s for _, s in sorted(own, key=lambda pair: pair[0])) for kind, own in kinds.items()}
    found = [Curve("base under guidance", ordered["base"], None, 1)]
    found += [Curve("trained under guidance", ordered["guided"], 0)] if ordered["guided"] else []
    found += [Curve("LoRA by strength", ordered["strength"], 1, 2)] if ordered["strength"] else []
    found += [Curve(f"strength and guidance {spot.label}", (spot,), 4) for spot in ordered["pairs"]]
    if (c := evaluation.champion) and d.champion is not None and d.base:
        change, gain = d.champion / d.base - 1, evaluation.mean_gain.mean - c.mean_gain.mean
        found.append(Curve("champion", (Spot("champion", Estimate(*[change] * 3), Estimate(*[gain] * 3)),), 2))
    return found


def draw(found: Sequence[Curve], key: str, title: str = "Gain against diversity") -> Figure:
    """Up and to the right is better. Every spot once, though it may end several curves."""
    figure, axes = canvas(6.4, 3.8)
    axes.grid(axis="x", color=INK, alpha=0.14, linewidth=0.6)
    seen: set[Spot] = set()
    spots: list[tuple[float, float, str]] = []
    for k, curve in enumerate(found):
        ink = placeholder(curve.ink)
        xs, ys = [100 * s.change.mean for s in curve.spots], [s.gain.mean for s in curve.spots]
        axes.plot(xs, ys, color=ink, linewidth=1.1, linestyle=DASHES[curve.style % len(DASHES)], alpha=0.8, zorder=1)
        for spot, x, y in zip(curve.spots, xs, ys, strict=True):
            if spot in seen:
                continue
            seen.add(spot)
            # A percentile interval of few and skewed values may leave its mean out.
            reach = {
                "xerr": [[max(0.0, x - 100 * spot.change.low)], [max(0.0, 100 * spot.change.high - x)]],
                "yerr": [[max(0.0, y - spot.gain.low)], [max(0.0, spot.gain.high - y)]],
            }
            axes.errorbar(x, y, **reach, fmt="none", ecolor=ink, elinewidth=0.8, alpha=0.4, zorder=2)
            face = {"facecolors": "none" if spot.label == "base" else ink, "edgecolors": ink}
            axes.scatter(x, y, s=34, marker=MARKERS[k % len(MARKERS)], linewidths=1.2, zorder=3, **face)
            spots.append((x, y, spot.label))
    axes.margins(0.12)
    axes.set_xlabel("change of diversity, % of the base's →", fontsize=LEGIBLE + 0.5, color=INK)
    axes.set_ylabel("mean gain, base stds →", fontsize=LEGIBLE + 0.5, color=INK)
    label_spots(figure, axes, spots)
    said = "; ".join(
        f"{curve.name}: " + ", ".join(f"{s.label} at {100 * s.change.mean:+.0f} % and {s.gain.mean:+.2f}" for s in curve.spots)
        for curve in found
    )
    return Figure(title, "", to_svg(figure, key, f"Mean gain against the change of diversity. {said}."))
