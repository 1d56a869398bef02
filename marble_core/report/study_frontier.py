"""Gain against diversity of a study's arms over their seeds, beside what guidance and the LoRA's strength do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from marble_core.evaluation.cell import Cell
from marble_core.evaluation.over_seeds import MEAN, OverSeeds, diversity_change, gains
from marble_core.evaluation.results import Estimate, Variant
from marble_core.report.drawing import Figure
from marble_core.report.frontier import Curve, Spot, draw


def _variants(cells: Sequence[Cell], step: int) -> dict[str, Variant]:
    """Of an arm's cells the further roles, by name."""
    return {v.name: v for cell in cells if step in cell.evaluations for v in cell.evaluations[step].variants}


def roles_of(cells: Sequence[Cell], step: int) -> dict[str, dict[str, OverSeeds]]:
    """Each further role's gains over the base, by its name."""
    return {name: found for name in _variants(cells, step) if (found := gains(cells, step, name))}


def frontier(by_arm: Mapping[str, Sequence[Cell]], step: int) -> Figure | None:
    """The guided base, which is the same for all arms, and each arm's own roles. None where nothing was measured."""
    zero = Estimate(0.0, 0.0, 0.0)
    base, found = Spot("base", zero, zero), []
    guided: list[tuple[float, Spot]] = []
    for k, (arm, own) in enumerate(by_arm.items()):
        by_strength: list[tuple[float, Spot]] = []
        by_guidance: list[tuple[float, Spot]] = []
        if trained := _spot(own, step, "trained", arm):
            by_guidance.append((1.0, trained))
        for v in _variants(own, step).values():
            label = f"g {v.guidance:g}" if v.strength == 1 else f"s {v.strength:g}"
            if (v.strength != 1 and v.guidance != 1) or not (spot := _spot(own, step, v.name, label)):
                continue
            if v.model == "base":
                guided += [(v.guidance, spot)] if v.guidance not in dict(guided) else []
            else:
                (by_guidance if v.strength == 1 else by_strength).append((v.strength * v.guidance, spot))
        if by_strength and trained:
            by_strength += [(0.0, base), (1.0, trained)]
        for style, curve in ((2, by_strength), (0, by_guidance)):
            spots = tuple(spot for _, spot in sorted(curve, key=lambda pair: pair[0]))
            if spots:
                found.append(Curve(f"{arm} by {'strength' if style else 'guidance'}", spots, k, style))
    free = tuple(spot for _, spot in sorted([(1.0, base), *guided], key=lambda pair: pair[0]))
    return draw([Curve("base under guidance", free, None, 1), *found], "gain-diversity") if found else None


def _spot(cells: Sequence[Cell], step: int, role: str, label: str) -> Spot | None:
    gain, change = gains(cells, step, role), diversity_change(cells, step, role)
    return Spot(label, change.estimate, gain[MEAN].estimate) if change and MEAN in gain else None
