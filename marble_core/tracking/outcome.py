"""What came of a run: the decision, the version if one was registered, and the page that says so. Imports no template engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path

from marble_core.config.schema import CHAMPION
from marble_core.evaluation.gate import NOTHING_NEW, Decision
from marble_core.evaluation.results import Evaluation

STYLE = "body{font:16px/1.5 system-ui,sans-serif;margin:2rem;max-width:48rem}dt{font-weight:600}dd{margin:0 0 .6rem}"


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
        *(f"<p>{escape(sentence)}</p>" for sentence in sentences),
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in shown.items()) + "</dl>",
    ]
    if links:
        body.append("<p class=framed hidden>Links do not open in this frame: copy an address into a new tab.</p>")
        body.append(f"<script>\n{files('marble_core.tracking').joinpath('framed.js').read_text(encoding='utf-8')}</script>")
    head = f'<meta charset="utf-8"><title>MARBLE: {escape(title)}</title><style>{STYLE}</style>'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["<!doctype html>", head, *body]) + "\n", encoding="utf-8")
