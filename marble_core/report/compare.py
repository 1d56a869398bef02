"""One page on several runs: gains side by side, what they were set to otherwise, images, curves over each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from marble_core.evaluation.results import Estimate
from marble_core.report.curves import NARROW, WIDE, Line, panel
from marble_core.report.drawing import DASHES, Figure, to_svg
from marble_core.report.explorer_of_runs import write_runs_explorer
from marble_core.report.images import SHOWN, Case, Score, Shot, encode, with_images
from marble_core.report.page import cost_of
from marble_core.report.rendering import render
from marble_core.report.scatter import Point, furthest_apart, scatter, trained_point
from marble_core.report.table import Axis, Span, in_base_stds
from marble_core.report.words import effect, number, signed
from marble_core.tracking.finished_runs import FinishedRun, has_images
from marble_core.types import MarbleError, in_order

SHORT = 14  # letters of a name that fits beside a point
NOT_WORTH_SAYING = ("storage.", "train.samples_every")  # settings that change no number


@dataclass(frozen=True)
class Result:
    """What one run reached in one reward: its mean, and its gain in base stds on the common axis."""

    run: int
    mean: str
    gain: Estimate
    effect: str
    span: Span


def write_comparison(path: Path, runs: Sequence[FinishedRun], pair: tuple[str, str] | None = None) -> list[Path]:
    """Write the page, at most 3 MB, and the explorer of the runs beside it (PAGE-explorer.html) where they drew the same prompts from
    the same noise; returns what was written. ``pair`` are the rewards of the scatter; by default those whose gradients agree least.

    Raises MarbleError where the runs have no reward in common, or not those of ``pair``.
    """
    names = [n for n in runs[0].evaluation.measured if all(n in run.evaluation.measured for run in runs)]
    if not names:
        raise MarbleError(
            f"The runs {', '.join(run.name for run in runs)} have no reward in common, so nothing can be compared."
        )
    for name in pair or ():
        if name not in names:
            raise MarbleError(f"Not all of the runs were measured in {name!r}; their common rewards are {', '.join(names)}.")
    fair = not (said := differences_in_measuring(runs, names))
    axis = Axis.around([e for run in runs for e in _gains(run, names).values()], 0.0)
    opposed = (found for run in runs if (found := run.history.most_opposed(names)))
    pair = pair or next(opposed, None) or furthest_apart({n: runs[0].evaluation.measured[n] for n in names})
    explorer, explored = path.with_name(f"{path.stem}-explorer.html"), all(has_images(run) for run in runs)
    page = render(
        "compare.html.j2",
        headline=headline(runs),
        remarks=said + ([] if fair else ["Their images are of other prompts or noise, so none stand side by side."]),
        explorer=explorer.name if fair and explored else "",
        runs=runs,
        styles=[k % len(DASHES) for k in range(len(runs))],
        costs=[cost_of(run.history, _images(run)) for run in runs],
        axis=axis,
        results={name: _results(runs, name, axis) for name in ("Mean gain", *names)},
        settings=differing_settings(runs),
        pair=pair,
        scatter=scatter(_points(runs, pair), *pair, "tradeoff") if pair else "",
        numbered=_mark(runs, 0) != runs[0].name,
        galleries=_galleries(runs) if fair else {},
        reward_figures=[f for n in names if (f := _overlay(runs, n, f"reward/{n}/mean", f"mean of {n} over a step's images"))],
        balance_figures=[
            f
            for title, metric, what in (
                ("Worst cosine", "cosine/worst", "worst cosine between the direction and a reward's gradient"),
                ("Held-out cosine", "held_out/worst", "the same for gradients of the other half of the prompts"),
            )
            if (f := _overlay(runs, title, metric, what, zero=True))
        ],
    )
    path.write_text(page, encoding="utf-8")
    if not (fair and explored):
        return [path]
    write_runs_explorer(explorer, runs, headline(runs))
    return [path, explorer]


def headline(runs: Sequence[FinishedRun]) -> str:
    """Which run gained most, and whether the intervals tell it from the next."""
    first, second = sorted(runs, key=lambda run: -run.evaluation.mean_gain.mean)[:2]
    a, b = first.evaluation.mean_gain, second.evaluation.mean_gain
    said = f"Run {first.name} gained most over the base: {signed(a.mean)} standard deviations ({signed(a.low)} to {signed(a.high)})"
    if a.low > b.high:
        return f"{said}, clear of {second.name} ({signed(b.mean)})."
    return f"{said}; its interval overlaps that of {second.name} ({signed(b.mean)}), so the order may be chance."


def differences_in_measuring(runs: Sequence[FinishedRun], names: Sequence[str]) -> list[str]:
    """Why the runs' numbers cannot be held against each other, a sentence each; none where they can."""
    said, first = [], runs[0].evaluation
    for key, what in (
        ("prompts_sha256", "the same prompts"),
        ("noise_seed", "the same noise"),
        ("steps", "as many sampling steps"),
    ):
        if len({str(run.evaluation.settings.get(key)) for run in runs}) > 1:
            said.append(f"The runs were not evaluated on {what}, so differences between them may come from that.")
    if said:
        return said
    for run in runs[1:]:
        own = run.evaluation.measured
        other = [n for n in names if abs(own[n].base - first.measured[n].base) > 0.01 * first.measured[n].base_std]
        if other:
            said.append(
                f"The base of {run.name} scores otherwise than that of {runs[0].name} in {', '.join(other)}: it is another model."
            )
    return said


def differing_settings(runs: Sequence[FinishedRun]) -> dict[str, list[str]]:
    """Every setting in which the runs differ, with each run's value; empty where a run does not have it."""
    keys = dict.fromkeys(key for run in runs for key in run.params if not key.startswith(NOT_WORTH_SAYING))
    values = {key: [run.params.get(key, "") for run in runs] for key in keys}
    return {key: own for key, own in values.items() if len(set(own)) > 1}


def _gains(run: FinishedRun, names: Sequence[str]) -> dict[str, Estimate]:
    """In base stds, by reward; a reward in which the base has no spread is left out."""
    measured = run.evaluation.measured
    found = {n: in_base_stds(measured[n].difference, measured[n]) for n in names}
    return {"Mean gain": run.evaluation.mean_gain} | {n: e for n, e in found.items() if e}


def _results(runs: Sequence[FinishedRun], name: str, axis: Axis) -> list[Result]:
    found = []
    for k, run in enumerate(runs):
        if gain := _gains(run, [name] if name in run.evaluation.measured else []).get(name):
            result = run.evaluation.measured.get(name)
            mean = "" if result is None else number(result.trained, result.digits)
            found.append(Result(k, mean, gain, effect(gain), axis.span(gain)))
    return found


def _images(run: FinishedRun) -> int:
    """Images a step."""
    return int(run.params.get("rollout.prompts", 0)) * int(run.params.get("rollout.images_per_prompt", 0))


def _mark(runs: Sequence[FinishedRun], k: int) -> str:
    """What stands beside a run's point: its name, or its number where names are long, which a legend then explains."""
    return runs[k].name if all(len(run.name) <= SHORT for run in runs) else str(k + 1)


def _points(runs: Sequence[FinishedRun], pair: tuple[str, str]) -> list[Point]:
    own = [(run.evaluation.measured[pair[0]], run.evaluation.measured[pair[1]]) for run in runs]
    base = Point("base", own[0][0].base, own[0][1].base, None, 2, "base", hollow=True)
    return [
        base,
        *(trained_point(run.name, *xy, k, k, _mark(runs, k)) for k, (run, xy) in enumerate(zip(runs, own, strict=True))),
    ]


def _overlay(runs: Sequence[FinishedRun], title: str, metric: str, what: str, zero: bool = False) -> Figure | None:
    histories = {k: run.history.thinned() for k, run in enumerate(runs)}
    lines = [Line(h.steps, values, k, k) for k, h in histories.items() if (values := h.get(metric)) is not None]
    if not lines:
        return None
    drawn = panel(lines, 1, zero=zero, size=WIDE if zero else NARROW)
    said = f"Curves of the {what}, one a run: {', '.join(runs[line.ink or 0].name for line in lines)}."
    return Figure(title, "", to_svg(drawn, metric, said))


def _galleries(runs: Sequence[FinishedRun]) -> dict[str, list[Case]]:
    """By source, the first prompts that every run has images of: the base's, and each run's."""
    shown = [run for run in runs if has_images(run)]
    if len(shown) < 2:
        return {}
    lines = [{line["index"]: line for line in with_images(run.images)} for run in shown]
    common = [index for index in lines[0] if all(index in own for own in lines)]
    chosen = {
        s: [i for i in common if lines[0][i]["source"] == s][:SHOWN] for s in in_order(lines[0][i]["source"] for i in common)
    }
    files = {
        index: [
            shown[0].images / lines[0][index]["pictures"]["base"],
            *(run.images / own[index]["pictures"]["trained"] for run, own in zip(shown, lines, strict=True)),
        ]
        for own in chosen.values()
        for index in own
    }
    uris = encode([file for own in files.values() for file in own])

    def case(index: int) -> Case:
        line, roles = lines[0][index], ["base", *(run.name for run in shown)]
        values = {
            n: (base, *(own[index]["trained"][n] for own in lines))
            for n, base in line["base"].items()
            if all(n in own[index]["trained"] for own in lines)
        }
        scores = tuple(Score(n, v, "same", 2) for n, v in values.items())
        return Case(
            line["prompt"], tuple(Shot(role, uris[file]) for role, file in zip(roles, files[index], strict=True)), scores
        )

    return {source: [case(index) for index in own] for source, own in chosen.items() if own}
