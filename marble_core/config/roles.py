"""The further models of an evaluation. Marks as in schema.py."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from marble_core.config.section import Section

Guidance = Annotated[float, Field(ge=1, le=100)]
Strength = Annotated[float, Field(gt=0, le=10)]


class RolesConfig(Section):
    """Further models that the evaluation holds against base and trained one. Each costs as much as one of those, with guidance twice."""

    base_guidance: tuple[Guidance, ...] = ()
    """Guidance scales of the base, which cost no training, such as [1.5, 2, 3]. [O]"""
    trained_guidance: tuple[Guidance, ...] = ()
    """Guidance scales of the trained model, as people sample, such as [1.5, 3, 4.5]. [O]"""
    strengths: tuple[Strength, ...] = ()
    """Strengths of the LoRA, such as [0.5, 0.75, 1.25]. [O]"""
    pairs: bool = False
    """Each strength with each guidance scale too. [O]"""

    @property
    def passes(self) -> int:
        """What the models of an evaluation cost together, base and trained one too, in samplings without guidance."""
        guided, strengths = 2 * len(self.trained_guidance), len(self.strengths)
        return 2 + 2 * len(self.base_guidance) + guided + strengths * (1 + self.pairs * guided)
