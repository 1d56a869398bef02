"""The pictures of an evaluation, small enough for a page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marble_core.config.stage_files import SCORES
from marble_core.evaluation.results import ROLES, Evaluation
from marble_core.types import in_order

PICTURE_BYTES = 1_900_000  # of encoded pictures; of the page's 3 MB the rest is for curves and text
SHOWN = 6  # first pictures of a source; as many again that changed most
SIZES = (256, 192, 128, 96, 64)  # pixels a side, the first that fits
NOTEWORTHY = 0.25  # base stds by which a picture's reward must change for an arrow


@dataclass(frozen=True)
class Shot:
    """One model's picture, as a data URI. ``crisp``: it is shown pixel by pixel."""

    role: str
    uri: str

    @property
    def crisp(self) -> bool:
        return self.uri.startswith("data:image/png")


@dataclass(frozen=True)
class Score:
    """A reward of each model's picture, in the order of the pictures, and what became of it from first to last."""

    name: str
    values: tuple[float, ...]
    effect: str
    digits: int


@dataclass(frozen=True)
class Case:
    """One prompt: a picture of each model, and the rewards that apply to it."""

    prompt: str
    shots: tuple[Shot, ...]
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Gallery:
    """A source's pictures: its first prompts, which nobody chose, and those whose rewards rose and fell most."""

    source: str
    first: tuple[Case, ...]
    rose: tuple[Case, ...]
    fell: tuple[Case, ...]


Line = Mapping[str, Any]  # of scores.jsonl


def galleries(directory: Path, evaluation: Evaluation) -> list[Gallery]:
    """Of every source of which there are pictures."""
    lines = pictured(directory)
    sources = in_order(line["source"] for line in lines)
    chosen = {s: own for s in sources if (own := _choose([line for line in lines if line["source"] == s], evaluation))}
    roles = [role for role in ROLES if all(role in line["pictures"] for line in lines)]
    files = [directory / line["pictures"][role] for kinds in chosen.values() for own in kinds for line in own for role in roles]
    uris = encode(files)

    def cases(own: Sequence[Line]) -> tuple[Case, ...]:
        return tuple(
            Case(
                line["prompt"],
                tuple(Shot(role, uris[directory / line["pictures"][role]]) for role in roles),
                tuple(_scores(line, roles, evaluation)),
            )
            for line in own
        )

    return [Gallery(source, *(cases(own) for own in kinds)) for source, kinds in chosen.items()]


def pictured(directory: Path) -> list[Line]:
    """The lines of scores.jsonl that have pictures; none where there is no such file."""
    scores = directory / SCORES
    lines = scores.read_text(encoding="utf-8").split("\n") if scores.is_file() else []
    return [line for text in lines if text.strip() and "pictures" in (line := json.loads(text))]


def shown_files(directory: Path) -> list[Path]:
    """scores.jsonl and the pictures of each source's first prompts: what a later comparison of runs shows."""
    lines = pictured(directory)
    sources = in_order(line["source"] for line in lines)
    first = [line for s in sources for line in [line for line in lines if line["source"] == s][:SHOWN]]
    return [directory / SCORES, *(directory / name for line in first for name in line["pictures"].values())]


def _choose(lines: Sequence[Line], evaluation: Evaluation) -> tuple[list[Line], ...]:
    """(the first; of the others, those that rose most; those that fell most), by mean change in base stds."""
    if not lines:
        return ()
    first, rest = list(lines[:SHOWN]), sorted(lines[SHOWN:], key=lambda line: _change(line, evaluation))
    half = min(SHOWN // 2, len(rest) // 2)
    fell = [line for line in rest[:half] if _change(line, evaluation) < 0]
    rose = [line for line in rest[::-1][:half] if _change(line, evaluation) > 0]
    return first, rose, fell


def _change(line: Line, evaluation: Evaluation) -> float:
    units = {n: r.base_std for n, r in evaluation.measured.items() if r.base_std > 0}
    changes = [(line["trained"][n] - b) / units[n] for n, b in line["base"].items() if n in units]
    return float(np.mean(changes)) if changes else 0.0


def _scores(line: Line, roles: Sequence[str], evaluation: Evaluation) -> Iterator[Score]:
    for name, base in line["base"].items():
        trained, result = line["trained"][name], evaluation.measured[name]
        moved = abs(trained - base) > NOTEWORTHY * result.base_std
        effect = "same" if not moved else "better" if trained > base else "worse"
        yield Score(name, tuple(line[role][name] for role in roles), effect, max(2, result.digits - 1))


def encode(files: Sequence[Path]) -> dict[Path, str]:
    """Data URIs by file, of the largest of SIZES at which all of them fit into the page; small ones stay PNG as they are."""
    from PIL import Image

    uris: dict[Path, str] = {}
    for size in SIZES:
        uris = {}
        for file in dict.fromkeys(files):
            with Image.open(file) as image:
                if max(image.size) <= min(size, 128):
                    kind, data = "png", file.read_bytes()
                else:
                    image.thumbnail((size, size), Image.Resampling.LANCZOS)
                    buffer = io.BytesIO()
                    image.convert("RGB").save(buffer, "WEBP", quality=85)
                    kind, data = "webp", buffer.getvalue()
            uris[file] = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        if sum(len(uris[file]) for file in files) <= PICTURE_BYTES:
            break
    return uris
