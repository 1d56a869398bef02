"""The data report: how many prompts of what kind and length a run has, and what was left out. As JSON and as one page.

The page fetches nothing and runs no script; how it looks is in data_report.html.j2.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from marble_core.prompts.filters import normal
from marble_core.prompts.overlap import overlap
from marble_core.prompts.token_lengths import TextEncoder
from marble_core.types import Placed, Prompt, without_secrets

LENGTHS = 20  # bars of a histogram of lengths
NAMED = 3  # places in a warning
PLACES = 200  # of a kind in the report: of 10^6 prompts all would be 140 MB


@dataclass(frozen=True)
class SourceData:
    """One source of one set: the prompts that stay, and those that hold blocked words or came before."""

    source: str
    uri: str
    kept: tuple[Placed, ...]
    blocked: tuple[Placed, ...] = ()
    repeated: tuple[Placed, ...] = ()

    @property
    def prompts(self) -> list[Prompt]:
        return [placed.prompt for placed in self.kept]


def data_report(sets: Mapping[str, Sequence[SourceData]], encoders: Sequence[TextEncoder]) -> dict[str, Any]:
    """By set and source, ready for JSON: counts, tags, lengths in characters and in tokens, examples, and the number and first
    places of what is cut by a text encoder or was dropped; of a held-out source how near it comes to the training prompts."""
    report = {name: {own.source: _describe(own, encoders) for own in sources} for name, sources in sets.items()}
    trained = [prompt.text for own in sets.get("train", ()) for prompt in own.prompts]
    for own in sets.get("evaluation", ()):
        report["evaluation"][own.source]["overlap"] = overlap([prompt.text for prompt in own.prompts], trained)
    return report


def warnings(report: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that the user should know of."""
    said = []
    for name, sources in report.items():
        for source, d in sources.items():
            for found, one, many in _findings(d):
                if count := found["count"]:
                    what, verb = ("prompt", one) if count == 1 else ("prompts", many)
                    said.append(f"{count} {source} {what} of {name} ({d['from']}) {verb}: {_listed(count, found['first'])}.")
    return said


def _findings(described: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str, str]]:
    """What was dropped or is cut of a source, each with what to say of one prompt and of several."""
    yield described["blocked"], "holds blocked words and was dropped", "hold blocked words and were dropped"
    yield described["repeated"], "came before and was dropped", "came before and were dropped"
    for encoder, lengths in described["tokens"].items():
        more = f"more than {lengths['limit']} {encoder} tokens"
        yield lengths["over_long"], f"has {more} and is cut", f"have {more} and are cut"


def write_page(
    path: Path, report: Mapping[str, Any], answers: Sequence[tuple[str, str]] = (), said: Sequence[str] | None = None
) -> None:
    """Write the report as one HTML page; ``answers`` is the table of what was asked of the servers, ``said`` are all warnings of the run,
    by default those of the report."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("marble_core.prompts").joinpath("data_report.html.j2").read_text(encoding="utf-8")
    path.write_text(
        environment.from_string(source).render(
            report=report, warnings=warnings(report) if said is None else said, answers=answers, counts=_counts(report)
        ),
        encoding="utf-8",
    )


def _describe(own: SourceData, encoders: Sequence[TextEncoder]) -> dict[str, Any]:
    texts = [prompt.text for prompt in own.prompts]
    return {
        "from": without_secrets(own.uri),
        "read": len(own.kept) + len(own.blocked) + len(own.repeated),
        "prompts": len(texts),
        "distinct": len({normal(text) for text in texts}),
        "tags": dict(sorted(Counter(tag for p in own.prompts if (tag := p.metadata.get("tag"))).items())),
        "metadata": dict(sorted(Counter(key for p in own.prompts for key in p.metadata).items())),
        "characters": _spread([len(text) for text in texts]),
        "tokens": {encoder.name: _tokens(own.kept, encoder) for encoder in encoders},
        "examples": texts[:: max(1, len(texts) // 4)][:4],
        "blocked": _places([placed.where for placed in own.blocked]),
        "repeated": _places([placed.where for placed in own.repeated]),
    }


def _tokens(prompts: Sequence[Placed], encoder: TextEncoder) -> dict[str, Any]:
    """Lengths in one encoder's tokens, and the places of what it cuts, each with its length."""
    counts = encoder.count([placed.prompt.text for placed in prompts])
    over = [f"{placed.where} ({n})" for placed, n in zip(prompts, counts, strict=True) if n > encoder.limit]
    return {"limit": encoder.limit, **_spread(counts), "over_long": _places(over)}


def _places(all_: Sequence[str]) -> dict[str, Any]:
    return {"count": len(all_), "first": list(all_[:PLACES])}


def _spread(numbers: Sequence[int]) -> dict[str, Any]:
    """``histogram`` counts whole numbers from ``min`` on in at most 20 equal steps of ``width``."""
    low, high = min(numbers), max(numbers)
    width = -(-(high - low + 1) // LENGTHS)
    histogram = [0] * -(-(high - low + 1) // width)
    for number in numbers:
        histogram[(number - low) // width] += 1
    return {"min": low, "median": statistics.median(numbers), "max": high, "width": width, "histogram": histogram}


def _counts(report: Mapping[str, Any]) -> dict[str, int]:
    return {name: sum(d["prompts"] for d in sources.values()) for name, sources in report.items()}


def _listed(count: int, places: Sequence[str]) -> str:
    more = count - NAMED
    return ", ".join(places[:NAMED]) + (f" and {more} more, see the data report" if more > 0 else "")
