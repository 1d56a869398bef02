"""The families of models that are built in: the one table of what ``model.family`` may say instead of an import path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from marble_core.config.nearest import choose_one_of
from marble_core.config.section import DottedPath
from marble_core.types import MarbleError


@dataclass(frozen=True)
class Family:
    """``path`` is the import path of its class, ``pipeline`` that class's ``pipeline_class``, known without importing it; ``says`` is one
    sentence for those who choose, ``guided`` the arguments of that pipeline's call that set its guidance."""

    path: str
    pipeline: str
    says: str
    guided: str = "guidance_scale={scale:.4g}"


FAMILIES: dict[str, Family] = {
    "sd3": Family(
        "marble_core.models.sd3:SD3",
        "StableDiffusion3Pipeline",
        "Stable Diffusion 3 and 3.5, Medium and Large, and the demo model.",
    ),
    "flux": Family("marble_core.models.flux:Flux", "FluxPipeline", "FLUX.1, which reads its guidance scale as an input."),
    "qwen-image": Family(
        "marble_core.models.qwen_image:QwenImage",
        "QwenImagePipeline",
        "Qwen-Image, whose text encoder is a language model.",
        'true_cfg_scale={scale:.4g}, negative_prompt=" "',
    ),
}


def _path(said: Any) -> Any:
    """The import path of a family's name; everything else as it is, so that a file that was written with the path stays valid."""
    if not isinstance(said, str) or ":" in said:
        return said
    plain = said.lower().replace("_", "-")
    bare = plain if plain in FAMILIES else re.sub(r"[^a-z-]", "", plain)  # FLUX.1 is flux
    if found := FAMILIES.get(bare):
        return found.path
    raise ValueError(f"{said!r} is no family of models: {choose_one_of(bare, FAMILIES)}, or package.module:Class")


def check_pipeline(path: str, pipeline: str, model: str) -> None:
    """Raises MarbleError where a model that says it is a ``pipeline`` of one built-in family was given to the class of another."""
    own = [name for name, family in FAMILIES.items() if family.path == path]
    right = [name for name, family in FAMILIES.items() if family.pipeline == pipeline]
    if own and right and own != right:
        raise MarbleError(f"The model {model} is a {pipeline}, and model.family is {own[0]}: give model.family={right[0]}.")


def guided_call(path: str, scale: float) -> str:
    """How a user's call of diffusers' pipeline sets the guidance, for the family with this import path."""
    found = next((family.guided for family in FAMILIES.values() if family.path == path), Family.guided)
    return found.format(scale=scale)


FamilyPath = Annotated[DottedPath, BeforeValidator(_path, json_schema_input_type=str)]
