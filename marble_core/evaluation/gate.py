"""The gate: whether a trained model may replace the champion. A pure function of the evaluation and the configuration.

The margin and the gain are in units of the base's standard deviation over prompts, so they mean the same for every reward.
Harm is judged against the base and against the champion: a team that promotes must lose neither what the base could do nor
what the last model had won, and one of them alone would let a reward slide by a margin at every promotion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from marble_core.config.constraints import parse
from marble_core.config.schema import RegistryConfig
from marble_core.evaluation.results import Estimate, Evaluation, Variant
from marble_core.evaluation.statistics import FEW_PROMPTS, interval

NOTHING_NEW: Literal["nothing new"] = (
    "nothing new"  # the verdict of a run that trained nothing, of which there is no evaluation
)
REHEARSED: Literal["rehearsed"] = "rehearsed"  # the verdict of a rehearsal, whatever its few images show


@dataclass(frozen=True)
class Decision:
    """The gate's answer. ``reasons`` are whole sentences with the numbers in them, the deciding ones first."""

    promote: bool
    verdict: Literal[
        "promoted",
        "worse",
        "no gain",
        "not measured",
        "below a floor",
        "less diverse",
        "no better than guidance",
        "not preferred",
        "nothing new",
        "rehearsed",
    ]
    reasons: tuple[str, ...]

    @property
    def summary(self) -> str:
        if self.verdict == NOTHING_NEW:
            return "nothing to train on"
        if self.verdict == REHEARSED:
            return "rehearsed"
        return "promoted" if self.promote else f"refused: {self.verdict}"


def rehearsed(decision: Decision) -> Decision:
    """What becomes of a decision on a rehearsal: its model is registered under a scratch name, and is never champion."""
    said = f"This is a rehearsal, whose numbers say nothing of the whole run; by them the gate would say: {decision.summary}."
    return Decision(False, REHEARSED, (said, *decision.reasons))


def decide(evaluation: Evaluation, config: RegistryConfig) -> Decision:
    """Promote, unless harm is shown, a reward was not measured, a floor is not met, or the gain is not shown.

    Harm is shown in a reward, trained on or held out, if its whole 95 % interval against the base or the champion lies below
    -margin base standard deviations. A gain is shown if the interval of the mean gain over the champion, or over the base where
    there is no champion to compare with, lies above 0. Alarms are said and do not decide, but
    for one: a reward that lacks more values than its ``max_missing`` counts as not measured. ``diversity_loss`` and
    ``beat_guidance`` ask for more, see ``short_of``; and so does ``votes``, see ``unconvinced``.
    """
    gain, over = evaluation.mean_gain, "the base"
    if evaluation.champion:
        gain, over = evaluation.champion.mean_gain, f"the champion, version {evaluation.champion_version},"
    gained = f"The mean gain over {over} is {interval(gain)} base standard deviations"
    said = [f"Alarm, {a.kind}: {a.text}" for a in evaluation.alarms if a.kind != "missing values"]
    lost = [a.text for a in evaluation.alarms if a.kind == "missing values"]
    people = f"Of people: {evaluation.votes}." if evaluation.votes else ""
    after = tuple(filter(None, (evaluation.no_champion, people, *said)))

    if harmed := list(_harmed(evaluation, config.margin)):
        return Decision(False, "worse", (*harmed, f"{gained}.", *lost, *after))
    if lost:
        return Decision(False, "not measured", (*lost, f"{gained}.", *after))
    if evaluation.missing:
        names = ", ".join(evaluation.missing)
        reason = f"{names} applies to no held-out prompt, so harm to it cannot be excluded; add held-out prompts for it."
        return Decision(False, "not measured", (reason, f"{gained}.", *after))
    if unmet := list(unmet_floors(evaluation, config.floors)):
        return Decision(False, "below a floor", (*unmet, f"{gained}.", *after))
    if found := short_of(evaluation, config):
        return Decision(False, found[0], (found[1], f"{gained}.", *after))
    if asked := unconvinced(evaluation, config):
        return Decision(False, asked[0], (asked[1], f"{gained}.", *after))
    if gain.low <= 0:
        return Decision(False, "no gain", (f"{gained}, an interval that does not lie above 0.", *after))
    reasons = [f"{gained}, an interval that lies above 0.", *_better(evaluation), *_possible_harm(evaluation, config.margin)]
    reasons.append(f"No reward is shown to be worse by more than {config.margin:g} base standard deviations.")
    if config.beat_guidance and (best := best_guided(evaluation)):
        reasons.append(f"It is ahead of the best base under guidance, {_versus(best)}.")
    if evaluation.strength != 1:
        reasons.append(f"This is the LoRA at strength {evaluation.strength:g}, the strongest that keeps its diversity.")
    return Decision(True, "promoted", (*reasons, *after))


Short = Literal["not measured", "less diverse", "no better than guidance"]


def short_of(evaluation: Evaluation, config: RegistryConfig) -> tuple[Short, str] | None:
    """What ``diversity_loss`` and ``beat_guidance`` miss, in a sentence; None where they are met or not asked for.

    The loss of diversity is held against its limit as measured. The best guided base is the one of greatest mean gain: the
    trained model must be shown to be ahead of it, and must not be shown to be less diverse.
    """
    if config.diversity_loss is None and not config.beat_guidance:
        return None
    d = evaluation.diversity
    if d is None:
        return "not measured", "Diversity was not measured; add clipscore to evaluation.rewards."
    if config.diversity_loss is not None and d.change.mean < -config.diversity_loss:
        return "less diverse", f"Diversity changed by {_percent(d.change)}, a loss above {100 * config.diversity_loss:g} %."
    if not config.beat_guidance or evaluation.no_guidance:
        return None
    best = best_guided(evaluation)
    if best is None or best.lead_diversity is None:
        return "not measured", "No base under guidance was measured; set evaluation.roles.base_guidance."
    if best.lead_gain.low <= 0 or best.lead_diversity.high < 0:
        return "no better than guidance", f"It is not shown to beat the base under guidance: {_versus(best)}."
    return None


def unconvinced(evaluation: Evaluation, config: RegistryConfig) -> tuple[Literal["not measured", "not preferred"], str] | None:
    """What blind votes lack of what ``registry.votes`` asks, in a sentence; None where they show it, or are not asked for.

    They show it where the whole interval of the win rate lies above the share, and enough prompts were voted on.
    """
    asked, votes = config.votes, evaluation.votes
    if asked is None:
        return None
    if votes is None:
        how = "let people answer vote.html, then: marble votes add RUN votes.json"
        return "not measured", f"registry.votes asks for blind votes, and none is in; {how}."
    if votes.prompts < FEW_PROMPTS:
        return (
            "not measured",
            f"Blind votes are on only {votes.prompts} prompts; registry.votes asks for {FEW_PROMPTS} at least.",
        )
    if votes.win_rate.low <= asked:
        return "not preferred", f"People are not shown to prefer it on more than {100 * asked:g} % of the pairs: {votes}."
    return None


def best_guided(evaluation: Evaluation) -> Variant | None:
    """The guided base of greatest mean gain."""
    return max((v for v in evaluation.variants if v.model == "base"), key=lambda v: v.mean_gain.mean, default=None)


def _versus(best: Variant) -> str:
    change = _percent(best.lead_diversity) if best.lead_diversity else "unknown"
    return f"at guidance {best.guidance:g}, by {interval(best.lead_gain)} base standard deviations at a change of diversity of {change}"


def _percent(change: Estimate) -> str:
    return f"{interval(Estimate(100 * change.mean, 100 * change.low, 100 * change.high), 0)} %"


@dataclass(frozen=True)
class _Paired:
    """One reward's difference to the base or to the champion."""

    name: str
    over: Literal["the base", "the champion"]
    difference: Estimate
    base_std: float
    digits: int

    def __str__(self) -> str:
        return f"{self.name} {interval(self.difference, self.digits)}"


def _differences(evaluation: Evaluation) -> Iterator[_Paired]:
    for name, r in evaluation.measured.items():
        yield _Paired(name, "the base", r.difference, r.base_std, r.digits)
        if evaluation.champion:
            yield _Paired(name, "the champion", evaluation.champion.rewards[name].difference, r.base_std, r.digits)


def _harmed(evaluation: Evaluation, margin: float) -> Iterator[str]:
    for d in _differences(evaluation):
        limit = -margin * d.base_std
        if d.difference.high < limit:
            yield (
                f"{d.name} is worse than {d.over} by {interval(d.difference, d.digits)}, an interval that lies wholly below "
                f"{limit:+.{d.digits}f}, which is {margin:g} of the base's standard deviation."
            )


def _possible_harm(evaluation: Evaluation, margin: float) -> Iterator[str]:
    found = [d for d in _differences(evaluation) if d.difference.low < -margin * d.base_std]
    if found:
        said = ", ".join(f"{d} against {d.over}" for d in found)
        yield f"Harm is not shown, but not excluded either, where an interval reaches below the margin: {said}."


def _better(evaluation: Evaluation) -> Iterator[str]:
    over = "the champion" if evaluation.champion else "the base"
    better = [str(d) for d in _differences(evaluation) if d.over == over and d.difference.low > 0]
    if better:
        yield f"Shown to be better than {over}: {', '.join(better)}."


def unmet_floors(evaluation: Evaluation, floors: tuple[str, ...]) -> Iterator[str]:
    """Floors are held against the trained model's means."""
    measured = evaluation.measured
    means_K = np.array([r.trained for r in measured.values()])
    for floor in floors:
        rows = parse(floor, tuple(measured), "floor")
        if any(row_K @ means_K > bound for row_K, bound in rows):
            named = np.any([row_K != 0 for row_K, _ in rows], axis=0)
            means = ", ".join(
                f"{n} is {r.trained:.{r.digits}f}" for (n, r), used in zip(measured.items(), named, strict=True) if used
            )
            yield f"The floor {floor} is not met: {means}."
