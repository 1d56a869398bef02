"""The explorer across runs: the same prompts and noise, drawn by the base and by each run's trained model, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from marble_core.report.explorer import MAX_ROLES, cases_of, left_out, units, write_data
from marble_core.report.film import Film
from marble_core.report.images import Line, scored
from marble_core.tracking.finished_runs import FinishedRun

MOST = MAX_ROLES  # runs that have images in the page, beside the base


def write_runs_explorer(path: Path, runs: Sequence[FinishedRun], headline: str) -> None:
    """Write the page, at most 6 MB, of runs that were evaluated on the same prompts and noise. It opens with the first two runs."""
    roles = roles_of_runs(runs)
    lines = merged(dict(zip(roles, runs, strict=True)))
    shown = ["base", *roles[:MOST]]
    cases, sizes = cases_of(lines, Path(), runs[0].evaluation, shown, (roles[0], roles[1]))
    for case in cases:
        case.pop("files", None)  # they lie beside the runs, not beside this page
    remarks = left_out(sizes, lines)
    if roles[MOST:]:
        remarks.append(f"Images are of the base and of {MOST} runs; left out: {', '.join(roles[MOST:])}.")
    data = {
        "roles": shown,
        "shown": roles[:2],
        "rewards": units(runs[0].evaluation),
        "cases": cases,
        "remarks": remarks,
        "beside": "",
        "film": Film().as_data(),
        **_training(dict(zip(roles, runs, strict=True))),
        "models": _models(dict(zip(roles, runs, strict=True))),
    }
    write_data(path, data, headline, f"{len(runs)} runs")


def roles_of_runs(runs: Sequence[FinishedRun]) -> list[str]:
    """What the page calls each: its name, numbered where another has it, or where it is that of the base."""
    taken, found = {"base"}, []
    for k, run in enumerate(runs, 1):
        found.append(run.name if run.name not in taken else f"{run.name} ({k})")
        taken.add(found[-1])
    return found


def merged(runs: Mapping[str, FinishedRun]) -> list[Line]:
    """Of the prompts that all runs scored, a line each as in scores.jsonl: the base of the first run, and each run's trained model by
    the run's role. Images are given by their whole paths, where all of them are there."""
    own = {role: {line["index"]: line for line in scored(run.images)} for role, run in runs.items()}
    first, places = next(iter(own)), {role: run.images.resolve() for role, run in runs.items()}
    lines: list[Line] = []
    for index, line in own[first].items():
        if not all(index in lines_ for lines_ in own.values()):
            continue
        merged_line: dict[str, Any] = {k: line[k] for k in ("index", "prompt", "source")} | {"base": line["base"]}
        merged_line |= {role: lines_[index]["trained"] for role, lines_ in own.items()}
        files = {"base": places[first] / line.get("pictures", {}).get("base", "none")}
        files |= {role: places[role] / lines_[index].get("pictures", {}).get("trained", "none") for role, lines_ in own.items()}
        if all(file.is_file() for file in files.values()):
            merged_line["pictures"] = {role: str(file) for role, file in files.items()}
        lines.append(merged_line)
    return lines


def _training(runs: Mapping[str, FinishedRun]) -> dict[str, Any]:
    """The rewards' curves over each other, at the steps that any run has."""
    histories = {role: run.history.thinned() for role, run in runs.items() if len(run.history.steps)}
    steps = sorted({int(step) for history in histories.values() for step in history.steps})
    names = list(next(iter(runs.values())).evaluation.rewards)
    panels = []
    for title, metric in ((name, f"reward/{name}/mean") for name in names):
        series = {}
        for role, history in histories.items():
            if (values := history.get(metric)) is not None:
                at = {int(s): float(v) for s, v in zip(history.steps, values, strict=True) if not np.isnan(v)}
                series[role] = [round(at[s], 5) if s in at else None for s in steps]
        if series:
            panels.append(
                {"title": title, "said": "mean over a step's images", "stacked": False, "zero": False, "series": series}
            )
    return {"steps": steps, "training": panels}


def _models(runs: Mapping[str, FinishedRun]) -> list[dict[str, Any]]:
    known = {role: run.evaluation for role, run in runs.items() if run.evaluation.diversity}
    found = [{"line": "", "name": "base", "change": 0.0, "gain": 0.0}] if known else []
    for role, evaluation in known.items():
        assert evaluation.diversity is not None
        change = 100 * evaluation.diversity.change.mean
        found.append({"line": role, "name": role, "change": change, "gain": evaluation.mean_gain.mean})
    return found
