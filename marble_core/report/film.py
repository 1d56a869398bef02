"""The images of training as it went: grids of the same prompts from the same noise, which train leaves beside its history."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marble_core.config.stage_files import SAMPLES
from marble_core.report.thumbnails import Thumbnails

FRAMES = 12


@dataclass(frozen=True)
class Film:
    """``frames`` are (step, data URI of a grid); ``prompts`` row by row, ``columns`` of them in each."""

    frames: Sequence[tuple[int, str]] = ()
    prompts: Sequence[str] = ()
    columns: int = 1

    @classmethod
    def load(cls, directory: Path | None, budget: int) -> Film:
        """At most 12 frames, the first and the last among them; empty where train left none."""
        place = directory / SAMPLES if directory else None
        if place is None or not (place / "prompts.json").is_file():
            return cls()
        rows: list[list[str]] = json.loads((place / "prompts.json").read_text(encoding="utf-8"))
        found = sorted(place.glob("step-*.png"))
        chosen = [found[k] for k in np.unique(np.linspace(0, len(found) - 1, min(FRAMES, len(found))).round().astype(int))]
        width = len(rows[0])
        uris = Thumbnails(chosen, [side * max(width, len(rows)) for side in (128, 96, 64, 32)], budget).uris
        frames = [(int(path.stem.removeprefix("step-")), uris[path]) for path in chosen]
        return cls(frames, [text for row in rows for text in row], width)

    def as_data(self) -> dict[str, Any]:
        frames = [{"step": step, "uri": uri} for step, uri in self.frames]
        rows = -(-len(self.prompts) // self.columns)
        return {"frames": frames, "prompts": list(self.prompts), "columns": self.columns, "rows": rows}
