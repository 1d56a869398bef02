"""The models of an evaluation: base, champion and trained one, and what is free or in use beside them (``evaluation.roles``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from marble_core.config.roles import RolesConfig


@dataclass(frozen=True)
class Role:
    """``adapter`` is the policy's name of the LoRA, ``off`` without one; ``strength`` multiplies it. Guidance 1 is none."""

    name: str
    adapter: str
    guidance: float = 1.0
    strength: float = 1.0

    @property
    def is_free_of_training(self) -> bool:
        return self.adapter == "off"

    @property
    def model(self) -> Literal["base", "trained"]:
        return "base" if self.is_free_of_training else "trained"

    def of(self, model: Role) -> Role:
        """This role of the trained model as one of another LoRA's."""
        return Role(model.name + self.name.removeprefix(TRAINED.name), model.adapter, self.guidance, self.strength)


BASE, CHAMPION, TRAINED = Role("base", "off"), Role("champion", "champion"), Role("trained", "default")


def variants_of(config: RolesConfig, no_guidance: str = "") -> list[Role]:
    """The further roles, each once: ``base-g2``, ``trained-g1.5``, ``trained-s0.5``, ``trained-s0.5-g1.5``.

    Guidance 1 at strength 1 is the base or the trained model itself. With ``no_guidance`` those under guidance are left out.
    """
    found = [*_guided(BASE, config.base_guidance), *_guided(TRAINED, config.trained_guidance)]
    for strength in dict.fromkeys(config.strengths):
        if strength != 1:
            weaker = Role(f"trained-s{strength:g}", "default", strength=strength)
            found += [weaker, *(_guided(weaker, config.trained_guidance) if config.pairs else ())]
    return [role for role in found if role.guidance == 1 or not no_guidance]


def asks_for_guidance(config: RolesConfig) -> bool:
    return any(scale != 1 for scale in (*config.base_guidance, *config.trained_guidance))


def _guided(role: Role, scales: tuple[float, ...]) -> Iterator[Role]:
    for scale in dict.fromkeys(scales):
        if scale != 1:
            yield Role(f"{role.name}-g{scale:g}", role.adapter, scale, role.strength)


def strongest_within(losses: Mapping[float, float], limit: float) -> float:
    """Of strengths with the share of the base's diversity that each loses, the greatest that loses no more than ``limit``; where none
    does, the least."""
    within = [strength for strength, loss in losses.items() if loss <= limit]
    return max(within) if within else min(losses)
