"""The families of models that are built in: the one table of what ``model.family`` may say instead of an import path."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from marble_core.config.section import DottedPath


@dataclass(frozen=True)
class Family:
    """``path`` is the import path of its class, ``says`` one sentence for those who choose."""

    path: str
    says: str


FAMILIES: dict[str, Family] = {
    "sd3": Family("marble_core.models.sd3:SD3", "Stable Diffusion 3 and 3.5, Medium and Large, and the demo model."),
    "flux": Family("marble_core.models.flux:Flux", "FLUX.1, which reads its guidance scale as an input."),
}


def _path(said: Any) -> Any:
    """The import path of a family's name; everything else as it is, so that a file that was written with the path stays valid."""
    if not isinstance(said, str) or ":" in said:
        return said
    bare = said.lower() if said.lower() in FAMILIES else re.sub(r"[^a-z]", "", said.lower())  # FLUX.1 is flux
    if found := FAMILIES.get(bare):
        return found.path
    near = difflib.get_close_matches(bare, FAMILIES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? Else give" if near else f"give {', '.join(FAMILIES)} or"
    raise ValueError(f"{said!r} is no family of models: {hint} the import path of a class of your own, package.module:Class")


FamilyPath = Annotated[DottedPath, BeforeValidator(_path, json_schema_input_type=str)]
