"""What evaluate leaves for people: the report, the explorer and the blind vote; and the report anew, once votes are in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import EXPLORER, IMAGES, REPORT, REPORT_INPUTS, VOTE
from marble_core.evaluation.gate import Decision
from marble_core.evaluation.results import Evaluation
from marble_core.evaluation.votes import Ballot
from marble_core.report.explorer import write_explorer
from marble_core.report.page import write_report
from marble_core.report.vote import write_vote
from marble_core.tracking.past_runs import PastRun

_PAST = TypeAdapter(list[PastRun])


def write_pages(
    out: Path,
    evaluation: Evaluation,
    decision: Decision,
    history_path: Path,
    config: RunConfig,
    past: Sequence[PastRun],
    run: str,
    links: Mapping[str, str],
) -> list[Path]:
    """Write report.html, explorer.html and, where there are images, vote.html into ``out``, where run_evaluation left its images;
    returns their paths."""
    vote, ballot = out / VOTE, Ballot.of(run, out / IMAGES)
    beside = {"Explorer: every prompt": EXPLORER} | ({"Blind vote": VOTE} if ballot.pairs else {}) | dict(links)
    inputs = {"run": run, "links": beside, "past": [asdict(each) for each in past]}
    (out / REPORT_INPUTS).write_text(json.dumps(inputs, indent=1) + "\n", encoding="utf-8")
    pages = rewrite_pages(out, evaluation, decision, history_path, config)
    if ballot.pairs:
        write_vote(vote, ballot, out / IMAGES)
    return [*pages, *([vote] if ballot.pairs else [])]


def rewrite_pages(
    out: Path, evaluation: Evaluation, decision: Decision, history_path: Path | None, config: RunConfig
) -> list[Path]:
    """report.html and explorer.html, of the images and the report.json that write_pages left in ``out``."""
    images = out / IMAGES
    inputs = json.loads((out / REPORT_INPUTS).read_bytes())
    past, run = _PAST.validate_python(inputs["past"]), inputs["run"]
    write_report(out / REPORT, evaluation, decision, history_path, images, config, past, run, inputs["links"])
    write_explorer(out / EXPLORER, evaluation, decision, history_path, images, config, run)
    return [out / REPORT, out / EXPLORER]
