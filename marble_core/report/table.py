"""The table of rewards: numbers, what the gate made of them, and their places on one axis of base standard deviations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from marble_core.config.schema import RegistryConfig, RunConfig
from marble_core.evaluation.gate import best_guided, short_of, unconvinced, unmet_floors
from marble_core.evaluation.results import Estimate, Evaluation, RewardResult, Versus
from marble_core.report.drawing import colour
from marble_core.report.words import effect, signed


@dataclass(frozen=True)
class Span:
    """An interval on the common axis, in percent of its width."""

    left: float
    width: float
    point: float


@dataclass(frozen=True)
class Axis:
    """From -limit to +limit base standard deviations, 0 in the middle."""

    limit: float

    @classmethod
    def around(cls, estimates: Sequence[Estimate], margin: float) -> Axis:
        """All intervals fit, and the gate's margin unless it would leave them too little room."""
        reach = max(0.2, *(abs(end) for e in estimates for end in (e.low, e.high)))
        return cls(1.08 * max(reach, min(1.5 * margin, 2 * reach)))

    def position(self, value: float) -> float:
        return float(np.clip(50 + 50 * value / self.limit, 0, 100))

    def span(self, d: Estimate) -> Span:
        left, right, point = (self.position(value) for value in (d.low, d.high, d.mean))
        return Span(left, right - left, point)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        step = next(s for s in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 1e9) if self.limit / s < 3.5)
        values = [i * step for i in range(-3, 4) if abs(i * step) < self.limit]
        return [(self.position(v), "0" if v == 0 else signed(v, 2 if step < 0.1 else 1)) for v in values]


@dataclass(frozen=True)
class Row:
    """One line: a reward's result and effect ("better", "worse", "same"), its place on the axis and the champion's.

    ``harmed_over`` are those of "base" and "champion" that the model is shown to be worse than by the gate's margin.
    """

    name: str
    result: RewardResult
    effect: str
    colour: str
    span: Span | None
    versus: Versus | None = None
    champion_at: float | None = None
    harmed_over: tuple[str, ...] = ()


def in_base_stds(d: Estimate, result: RewardResult) -> Estimate | None:
    """A difference in the reward's units as one in the base's standard deviations; None where the base has no spread."""
    std = result.base_std
    return Estimate(d.mean / std, d.low / std, d.high / std) if std > 0 else None


def axis_of(evaluation: Evaluation, margin: float) -> Axis:
    own = [in_base_stds(r.difference, r) for r in evaluation.measured.values()]
    return Axis.around([evaluation.mean_gain, *(d for d in own if d)], margin)


def rows(
    results: Mapping[str, RewardResult], versus: Mapping[str, Versus], config: RunConfig, axis: Axis, judged: bool
) -> list[Row]:
    """In the order given. A side value ("geneval/strict") has its reward's colour. The gate judges whole sets of prompts only."""
    names = [r.name for r in config.measured]
    found = []
    for name, result in results.items():
        scaled, other = in_base_stds(result.difference, result), versus.get(name)
        at = axis.position((other.mean - result.base) / result.base_std) if other and result.base_std > 0 else None
        over = {"base": result.difference} | ({"champion": other.difference} if other else {})
        limit = -config.registry.margin * result.base_std
        harmed = tuple(rival for rival, difference in over.items() if judged and difference.high < limit)
        own = colour(names.index(name.partition("/")[0]))
        span = axis.span(scaled) if scaled else None
        found.append(Row(name, result, effect(result.difference), own, span, other, at, harmed))
    return found


@dataclass(frozen=True)
class Condition:
    """Something that the gate asks of a model, what was found, and whether that is enough."""

    asked: str
    found: str
    met: bool


def conditions(evaluation: Evaluation, judged: Sequence[Row], config: RegistryConfig) -> list[Condition]:
    """All that the gate asks, in the order in which it decides (gate.decide); each reason of a refusal is a line of its own.

    What was found is said without numbers, which stand in the table of rewards.
    """
    rivals = ["base", *(["champion"] if evaluation.champion else [])]
    found = []
    for rival in rivals:
        names = [row.name for row in judged if rival in row.harmed_over]
        asked = f"No reward is shown to be worse than the {rival} by {config.margin:g} standard deviations"
        found += [Condition(asked, name, False) for name in names] or [Condition(asked, "none is", True)]
    lost = {name: "values are missing, see the alarm" for name in evaluation.lacking if _alarmed(evaluation, name)}
    lost |= dict.fromkeys(evaluation.missing, "it applies to no held-out prompt")
    asked = "Every reward is measured"
    found += [Condition(asked, f"{name}: {why}", False) for name, why in lost.items()] or [Condition(asked, "all are", True)]
    for floor in config.floors:
        met = not list(unmet_floors(evaluation, (floor,)))
        found.append(Condition(floor, "it holds" if met else "it does not hold", met))
    short = short_of(evaluation, config)
    if config.diversity_loss is not None:
        change = evaluation.diversity.change if evaluation.diversity else None
        said = f"{signed(100 * change.mean, 0)} %" if change else "not measured"
        met = change is not None and change.mean >= -config.diversity_loss
        found.append(Condition(f"At most {100 * config.diversity_loss:g} % of the base's diversity is lost", said, met))
    if config.beat_guidance:
        best, met = best_guided(evaluation), short is None or short[0] == "less diverse"
        said = (
            f"{signed(best.lead_gain.mean)} over guidance {best.guidance:g}"
            if best
            else evaluation.no_guidance or "not measured"
        )
        found.append(Condition("Better than the best guided base at no less diversity", said, met))
    if config.votes is not None:
        said = f"{evaluation.votes.win_rate.mean:.0%}" if evaluation.votes else "nobody voted yet"
        asked = f"Blind votes show that more than {config.votes:.0%} prefer it"
        found.append(Condition(asked, said, unconvinced(evaluation, config) is None))
    gain = evaluation.champion.mean_gain if evaluation.champion else evaluation.mean_gain
    asked = f"The mean gain over the {rivals[-1]} is shown to be above 0"
    return [*found, Condition(asked, "it is" if gain.low > 0 else "it is not", gain.low > 0)]


def _alarmed(evaluation: Evaluation, name: str) -> bool:
    return any(alarm.kind == "missing values" and alarm.text.startswith(f"{name} ") for alarm in evaluation.alarms)
