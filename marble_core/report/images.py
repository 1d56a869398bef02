"""The images of an evaluation, small enough for a page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marble_core.config.stage_files import SCORES
from marble_core.evaluation.results import ROLES, Evaluation
from marble_core.report.changes import change
from marble_core.types import in_order

IMAGE_BYTES = 1_900_000  # of encoded images; of the page's 3 MB the rest is for curves and text
LARGE_BYTES = 700_000  # of them, for the four pairs that stand first
SHOWN = 6  # first images of a source
SIZES = (256, 192, 128, 96, 64)  # pixels a side, the first that fits
LARGE_SIZES = (512, 384, 320, *SIZES)
NOTEWORTHY = 0.25  # base stds by which an image's reward must change for an arrow


@dataclass(frozen=True)
class Shot:
    """One model's image, as a data URI. ``crisp``: it is shown pixel by pixel."""

    role: str
    uri: str

    @property
    def crisp(self) -> bool:
        return self.uri.startswith("data:image/png")


@dataclass(frozen=True)
class Score:
    """A reward of each model's image, in the order of the images, and what became of it from first to last."""

    name: str
    values: tuple[float, ...]
    effect: str
    digits: int


@dataclass(frozen=True)
class Case:
    """One prompt: an image of each model, and the rewards that apply to it."""

    prompt: str
    shots: tuple[Shot, ...]
    scores: tuple[Score, ...]
    label: str = ""


@dataclass(frozen=True)
class Gallery:
    """A source's images of its first prompts, which nobody chose."""

    source: str
    first: tuple[Case, ...]


Line = Mapping[str, Any]  # of scores.jsonl


def galleries(directory: Path, evaluation: Evaluation) -> list[Gallery]:
    """Of every source of which there are images."""
    lines = with_images(directory)
    sources = in_order(line["source"] for line in lines)
    chosen = {s: [line for line in lines if line["source"] == s][:SHOWN] for s in sources}
    roles = [role for role in ROLES if all(role in line["pictures"] for line in lines)]
    files = [directory / line["pictures"][role] for own in chosen.values() for line in own for role in roles]
    uris = encode(files, SIZES, IMAGE_BYTES - LARGE_BYTES)
    return [
        Gallery(source, tuple(_case(line, roles, uris, directory, evaluation) for line in own))
        for source, own in chosen.items()
    ]


def large_pairs(directory: Path, evaluation: Evaluation) -> list[Case]:
    """Base and trained of four prompts: those that won and lost most on average, and the first that nobody chose."""
    every = scored(directory)
    lines = [line for line in every if "pictures" in line]
    ranked = sorted(lines, key=lambda line: change(line, evaluation))
    of = "" if len(lines) == len(every) else f" of the {len(lines)} prompts with images"
    labelled = [(f"Largest win{of}", ranked[-1]), (f"Largest loss{of}", ranked[0])] if len(ranked) > 1 else []
    firsts = {line["source"]: line for line in reversed(lines)}
    labelled += [(f"First of {s}, not chosen", firsts[s]) for s in in_order(line["source"] for line in lines)]
    taken = {line["index"]: (label, line) for label, line in reversed(labelled)}
    shown = [pair for pair in labelled if taken[pair[1]["index"]] == pair][:4]
    roles = ["base", "trained"]
    uris = encode([directory / line["pictures"][role] for _, line in shown for role in roles], LARGE_SIZES, LARGE_BYTES)
    return [_case(line, roles, uris, directory, evaluation, label) for label, line in shown]


def _case(
    line: Line, roles: Sequence[str], uris: Mapping[Path, str], directory: Path, evaluation: Evaluation, label: str = ""
) -> Case:
    shots = tuple(Shot(role, uris[directory / line["pictures"][role]]) for role in roles)
    return Case(line["prompt"], shots, tuple(_scores(line, roles, evaluation)), label)


def scored(directory: Path) -> list[Line]:
    """The lines of scores.jsonl; none where there is no such file."""
    scores = directory / SCORES
    lines = scores.read_text(encoding="utf-8").split("\n") if scores.is_file() else []
    return [json.loads(text) for text in lines if text.strip()]


def with_images(directory: Path) -> list[Line]:
    """The lines that have images."""
    return [line for line in scored(directory) if "pictures" in line]


def shown_files(directory: Path) -> list[Path]:
    """scores.jsonl and the images of each source's first prompts: what a later comparison of runs shows."""
    lines = with_images(directory)
    sources = in_order(line["source"] for line in lines)
    first = [line for s in sources for line in [line for line in lines if line["source"] == s][:SHOWN]]
    return [directory / SCORES, *(directory / name for line in first for name in line["pictures"].values())]


def _scores(line: Line, roles: Sequence[str], evaluation: Evaluation) -> Iterator[Score]:
    for name, base in line["base"].items():
        if not all(name in line[role] for role in roles):
            continue  # a scorer gave one of the images no value
        trained, result = line["trained"][name], evaluation.measured[name]
        moved = abs(trained - base) > NOTEWORTHY * result.base_std
        effect = "same" if not moved else "better" if trained > base else "worse"
        yield Score(name, tuple(line[role][name] for role in roles), effect, max(2, result.digits - 1))


def encode(files: Sequence[Path], sizes: Sequence[int] = SIZES, budget: int = IMAGE_BYTES) -> dict[Path, str]:
    """Data URIs by file, of the largest of ``sizes`` at which all of them are no longer than ``budget``; small ones stay PNG."""
    from PIL import Image

    uris: dict[Path, str] = {}
    for size in sizes:
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
        if sum(len(uris[file]) for file in files) <= budget:
            break
    return uris
