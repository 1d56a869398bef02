"""The project's targets, and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from marble_core.bench.costs import REWARDS, Parts, Schedule, with_halves

QP_MS = {5: 5.0, 64: 40.0}  # after the first call
MEASURED_WITHIN = {5: 0.15, 16: 0.15, 64: 0.25}  # of the counted ratio
MEMORY_BEYOND_ROWS = 0.02  # share of the plain step's peak


@dataclass(frozen=True)
class Target:
    """``value`` is to be at most ``limit``."""

    name: str
    value: float
    limit: float

    @property
    def reached(self) -> bool:
        return self.value <= self.limit


def counted(parts: Parts[float]) -> list[Target]:
    """Whole steps on SD3.5-Medium's shape, halves included; where K is not named, the dearest of 2, 5, 16 and 64."""
    published = Schedule(kl_fraction=1)
    ours = Schedule()
    exact = {K: ours.exact(parts, with_halves(K)) for K in REWARDS}
    dearest = max(exact.values())
    return [
        Target("exact / plain, KL on 1/8 in both", _ratio(parts, ours), 1.31),
        Target("exact / plain, KL everywhere in both", _ratio(parts, published), 1.45),
        Target("exact / plain, checkpointing, one recompute", _ratio(parts, Schedule(recompute="once")), 1.30),
        Target("exact, dearest K / cheapest K", dearest / min(exact.values()), 1.015),
        Target("exact, KL on 1/8 / published plain loop", dearest / published.plain(parts), 1.09),
        Target("amortised, a QP in 10 steps / plain", ours.amortised(parts, with_halves(64)) / ours.plain(parts), 1.04),
    ]


def measured(found: Mapping[str, float], expected: Mapping[str, float]) -> list[Target]:
    """How far the measured ratios lie from the counted ones of the same shape, as a share."""
    return [
        Target(f"{name}: |measured / counted - 1|", abs(found[name] / expected[name] - 1), limit)
        for name, limit in ((f"exact, K = {K}", limit) for K, limit in MEASURED_WITHIN.items())
    ]


def memory(peaks: Mapping[int, int], lora_bytes: int) -> list[Target]:
    """Peak bytes by rows of accumulators (0: the plain step, with its one gradient): what lies beyond the plain step's and
    the accumulators' own, as a share of the plain step's."""
    plain = peaks[0]
    return [
        Target(
            f"memory beyond plain + {rows - 1} LoRAs, share of plain",
            (peak - plain - (rows - 1) * lora_bytes) / plain,
            MEMORY_BEYOND_ROWS,
        )
        for rows, peak in peaks.items()
        if rows
    ]


def ratios(parts: Parts[float], schedule: Schedule) -> dict[str, float]:
    """Whole steps over the plain one: everything that the table shows of a schedule."""
    plain = schedule.plain(parts)
    table = {"plain through RowGradients": schedule.mixed(parts)}
    table |= {f"exact, K = {K}": schedule.exact(parts, with_halves(K)) for K in REWARDS}
    table |= {f"amortised, K = {K}": schedule.amortised(parts, with_halves(K)) for K in REWARDS}
    table |= {f"{K} + 1 separate passes": schedule.separate(parts, K) for K in REWARDS}
    table |= {f"TorchJD's autojac, K = {K}": schedule.jacobian(parts, K) for K in parts.jacobian}
    return {name: cost / plain for name, cost in table.items()}


def _ratio(parts: Parts[float], schedule: Schedule) -> float:
    return max(schedule.exact(parts, with_halves(K)) for K in REWARDS) / schedule.plain(parts)
