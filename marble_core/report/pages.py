"""What evaluate leaves for people: the report, and the explorer beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import EXPLORER, IMAGES, REPORT
from marble_core.evaluation.gate import Decision
from marble_core.evaluation.results import Evaluation
from marble_core.report.explorer import write_explorer
from marble_core.report.page import write_report
from marble_core.tracking.past_runs import PastRun


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
    """Write report.html and explorer.html into ``out``, where run_evaluation left its images; returns their paths."""
    report, explorer, images = out / REPORT, out / EXPLORER, out / IMAGES
    beside = {"Explorer: every prompt": EXPLORER, **links}
    write_report(report, evaluation, decision, history_path, images, config, past, run, beside)
    write_explorer(explorer, evaluation, decision, history_path, images, config, run)
    return [report, explorer]
