"""The further models of an evaluation. Marks as in schema.py."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from marble_core.config.section import Section

Guidance = Annotated[float, Field(ge=1, le=100)]
Strength = Annotated[float, Field(gt=0, le=10)]


class RolesConfig(Section):
    """Further models that the evaluation holds against base and trained one. Each costs as much as one of those, with guidance twice."""

    base_guidance: tuple[Guidance, ...] = ()  # [O] the base under guidance, which costs no training: [1.5, 2, 3]
    trained_guidance: tuple[Guidance, ...] = ()  # [O] the trained model under guidance, as people sample: [1.5, 3, 4.5]
    strengths: tuple[Strength, ...] = ()  # [O] the LoRA at these strengths: [0.5, 0.75, 1.25]
    pairs: bool = False  # [O] each strength with each guidance too

    @property
    def passes(self) -> int:
        """What the models of an evaluation cost together, base and trained one too, in samplings without guidance."""
        guided, strengths = 2 * len(self.trained_guidance), len(self.strengths)
        return 2 + 2 * len(self.base_guidance) + guided + strengths * (1 + self.pairs * guided)
