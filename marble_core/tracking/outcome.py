"""What came of a run: the decision, the version if one was registered, and the page that says so. Imports no template engine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path

from marble_core.config.schema import CHAMPION
from marble_core.evaluation.gate import NOTHING_NEW, Decision
from marble_core.evaluation.results import Evaluation


@dataclass(frozen=True)
class Outcome:
    """``version`` and ``alias`` are empty where nothing was registered; ``links`` are further pages by their names."""

    run_id: str
    model: str
    decision: Decision
    evaluation: Evaluation | None = None
    version: str = ""
    alias: str = ""
    notes: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        if self.version:
            return f"Version {self.version} of {self.model} is registered as {self.alias}."
        if self.decision.verdict == NOTHING_NEW:
            return "Nothing was trained, and nothing is registered."
        return f"The model is not registered: {self.decision.verdict}."

    @property
    def metrics(self) -> dict[str, float]:
        """``promoted`` is 1 where the model is the champion now, else 0; ``gain`` is that over the champion, or the base, which decided."""
        found = {"promoted": float(self.alias == CHAMPION)}
        if self.evaluation:
            over = self.evaluation.champion or self.evaluation
            found |= {"gain": over.mean_gain.mean, "gain_low": over.mean_gain.low}
        return found

    def write_page(self, path: Path) -> None:
        facts = {"Run": self.run_id, "Decision": self.decision.summary, "Model": self.model}
        if self.version:
            facts |= {"Version": self.version, "Alias": self.alias}
        write_page(path, self.sentence, [*self.decision.reasons, *self.notes], facts, self.links)


def write_page(
    path: Path, title: str, sentences: Sequence[str], facts: Mapping[str, str], links: Mapping[str, str] | None = None
) -> None:
    """An HTML page that fetches nothing: a heading, sentences, facts by their names, and links."""
    shown = {name: escape(value) for name, value in facts.items()}
    shown |= {name: f'<a href="{escape(url)}" target="_blank">{escape(url)}</a>' for name, url in (links or {}).items()}
    body = [
        f"<h1>{escape(title)}</h1>",
        "<ul>" + "".join(f"<li>{escape(_typeset(sentence))}</li>" for sentence in sentences) + "</ul>" if sentences else "",
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in shown.items()) + "</dl>",
    ]
    source = files("marble_core.tracking")
    if links:
        body.append("<p class=framed hidden>Links do not open in this frame: copy an address into a new tab.</p>")
        body.append(f"<script>\n{source.joinpath('framed.js').read_text(encoding='utf-8')}</script>")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>MARBLE: {escape(title)}</title><style>\n{source.joinpath('outcome.css').read_text(encoding='utf-8')}</style>"
    )
    page = ["<!doctype html>", f'<html lang="en"><head>{head}</head><body><main>', *filter(None, body), "</main></body></html>"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(page) + "\n", encoding="utf-8")


def _typeset(text: str) -> str:
    """With a typographic minus before each negative number, as on the other pages."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\N{MINUS SIGN}", text)
