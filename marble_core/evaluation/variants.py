"""What further roles were found to be (``evaluation.roles``), and which pair of guidance and strength is to be recommended. Pure numpy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from marble_core.evaluation.results import Diversity, Estimate, Evaluation, RewardResult, Variant
from marble_core.evaluation.roles import Role
from marble_core.evaluation.statistics import COLLAPSE, Bootstrap, diversity
from marble_core.types import Prompt, RewardTable


@dataclass(frozen=True)
class Measured:
    """What all roles share. ``tables`` and ``distances`` are by the role's name; ``rewards`` were trained on."""

    prompts: Sequence[Prompt]
    tables: Mapping[str, RewardTable]
    varied: Sequence[Prompt]
    distances: Mapping[str, np.ndarray]
    rewards: Collection[str]
    images: int
    resamples: int
    seed: int

    def variants(self, roles: Sequence[Role]) -> tuple[Variant, ...]:
        """Each over the base, and the trained model over each; same resamples as compare's."""
        draws = Bootstrap(self.prompts, self.resamples, self.seed)
        return tuple(self._variant(role, draws) for role in roles)

    def _variant(self, role: Role, draws: Bootstrap) -> Variant:
        base, own, trained = (self._columns(name) for name in ("base", role.name, "trained"))
        gaining = [name for name in base if name in self.rewards]
        return Variant(
            role.name,
            role.model,
            role.guidance,
            role.strength,
            {name: draws.result(base[name], own[name]) for name in base},
            draws.mean_gain([(own[name] - base[name], base[name]) for name in gaining]),
            draws.together([own[name] - base[name] for name in gaining]),
            self._diversity("base", role.name),
            {name: draws.versus(own[name], trained[name]).difference for name in base},
            draws.mean_gain([(trained[name] - own[name], base[name]) for name in gaining]),
            lead.change if (lead := self._diversity(role.name, "trained")) else None,
        )

    def _columns(self, role: str) -> dict[str, np.ndarray]:
        """The rewards that apply to a prompt, by name."""
        table = self.tables[role]
        return {n: r_N for n, r_N in zip(table.names, table.R_NK.T, strict=True) if not np.isnan(r_N).all()}

    def _diversity(self, before: str, after: str) -> Diversity | None:
        if not self.varied:
            return None
        pair = {"base": self.distances[before], "trained": self.distances[after]}
        return diversity(pair, self.varied, self.images, self.resamples, self.seed)


@dataclass(frozen=True)
class Pair:
    """A way to sample the trained model: the pipeline's guidance scale, the LoRA's strength, and what they bring over the base."""

    guidance: float
    strength: float
    mean_gain: Estimate
    diversity: Estimate | None
    harms: tuple[str, ...]

    @property
    def keeps(self) -> bool:
        """Whether at least four fifths of the base's diversity are left, where it was measured."""
        return self.diversity is None or self.diversity.mean >= COLLAPSE


def pairs(evaluation: Evaluation) -> Iterator[Pair]:
    """All that were measured of the trained model, the plain one first."""
    d = evaluation.diversity
    yield Pair(1.0, evaluation.strength, evaluation.mean_gain, d.change if d else None, _harmed(evaluation.measured))
    for v in evaluation.variants:
        if v.model == "trained":
            change = v.diversity.change if v.diversity else None
            yield Pair(v.guidance, v.strength, v.mean_gain, change, _harmed(v.rewards))


def recommended(evaluation: Evaluation) -> Pair:
    """Of the pairs that keep four fifths of the base's diversity, and of those the ones that are not shown to lower a reward, the
    one of greatest mean gain. Where none keeps as much, the one that keeps most.
    """
    found = list(pairs(evaluation))
    if not any(pair.keeps for pair in found):
        return max(found, key=lambda pair: pair.diversity.mean if pair.diversity else 0.0)
    return max((pair for pair in found if pair.keeps), key=lambda pair: (not pair.harms, pair.mean_gain.mean))


def _harmed(rewards: Mapping[str, RewardResult]) -> tuple[str, ...]:
    return tuple(name for name, r in rewards.items() if r.difference.high < 0)
