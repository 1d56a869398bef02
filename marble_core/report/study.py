"""The page and the tables of a study: what is done, each arm over its seeds, the arms against the first, curves. Made anew as cells end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from marble_core.evaluation.cell import Cell, as_array
from marble_core.evaluation.over_seeds import MEAN, RESAMPLES, OverSeeds, diversity_change, gains, paired
from marble_core.report.curves import NARROW, WIDE, Line, panel
from marble_core.report.drawing import DASHES, Figure, to_svg
from marble_core.report.rendering import render
from marble_core.report.study_frontier import frontier, roles_of
from marble_core.report.table import Axis, Span
from marble_core.report.words import effect, listed, signed

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class About:
    """A study's name, what its file says, the state of each cell by (arm, seed) in words, and a sentence on the whole."""

    name: str
    file: Mapping[str, Any]
    state: Mapping[tuple[str, int], str]
    where: str

    @property
    def arms(self) -> list[str]:
        return list(self.file["arms"])


@dataclass(frozen=True)
class Result:
    """One line of a table of gains: the arm's place, its gain and that of each seed."""

    arm: int
    gain: OverSeeds
    effect: str
    span: Span

    @property
    def reach(self) -> str:
        """The least and the greatest of the seeds."""
        values = self.gain.seeds.values()
        return f"{signed(min(values))} to {signed(max(values))}" if len(values) > 1 else ""


@dataclass(frozen=True)
class StepTables:
    """What is said of the models after so many steps: each arm over the base, and over the first arm, by reward."""

    step: int
    axis: Axis
    over_base: Mapping[str, list[Result]]
    over_first: Mapping[str, list[Result]]


def render_study(about: About, cells: Sequence[Cell]) -> str:
    """The page, which fetches nothing and runs no script."""
    arms = about.arms
    by_arm = {arm: _of(cells, arm) for arm in arms}
    done = {(cell.arm, cell.seed): cell for cell in cells}
    found = [_tables(arms, cells, step) for step in _steps(cells)]
    rewards = list(dict.fromkeys(name for cell in cells for name in cell.rewards))
    return render(
        "study.html.j2",
        about=about,
        headline=headline(about, cells),
        remarks=remarks(cells),
        styles=[k % len(DASHES) for k in range(len(arms))],
        seeds=list(dict.fromkeys(about.file["seeds"])),
        gain_of={key: signed(cell.evaluations[max(cell.evaluations)].mean_gain.mean) for key, cell in done.items()},
        tables=found,
        frontier=frontier(by_arm, _steps(cells)[-1]) if cells else None,
        alarms=[(k, *_alarms([c for c in cells if c.arm == arm])) for k, arm in enumerate(arms)],
        reward_figures=[f for n in rewards if (f := _overlay(arms, cells, n, f"reward/{n}/mean", f"mean of {n} in training"))],
        balance_figures=[
            f
            for title, metric, what in (
                *((f"Alpha of {n}", f"alpha/{n}", f"share of the update that {n} steers") for n in rewards),
                ("Worst cosine", "cosine/worst", "worst cosine between the direction and a reward's gradient"),
                ("Held-out cosine", "held_out/worst", "the same for gradients of the other half of the prompts"),
            )
            if (f := _overlay(arms, cells, title, metric, what, zero=True))
        ],
        facts=_facts(about, cells),
    )


def headline(about: About, cells: Sequence[Cell]) -> str:
    """What the study has found so far, in one sentence."""
    if not cells:
        return f"The study {about.name} has no finished cell yet."
    step, own = _steps(cells)[-1], _mean_gains(about, cells)
    if not own:
        return f"The study {about.name} has measured no gain yet."
    best = max(own, key=lambda arm: own[arm].estimate.mean)
    e, count = own[best].estimate, len(own[best].seeds)
    seeds = f"{count} seeds" if count > 1 else "one seed"
    return f"After {step} steps {best} gained most over the base, {signed(e.mean)} standard deviations ({signed(e.low)} to {signed(e.high)}, {seeds})."


def mean_gains(about: About, cells: Sequence[Cell]) -> dict[str, float]:
    """Each arm's over the base after the last step, in the base's standard deviations; without arms that have no finished cell."""
    return {arm: gain.estimate.mean for arm, gain in _mean_gains(about, cells).items()}


def _mean_gains(about: About, cells: Sequence[Cell]) -> dict[str, OverSeeds]:
    step = _steps(cells)[-1]
    return {arm: g[MEAN] for arm in about.arms if MEAN in (g := gains(_of(cells, arm), step))}


def remarks(cells: Sequence[Cell]) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    said = []
    for what, values in (
        ("commits", {cell.commit for cell in cells}),
        ("versions", {tuple(sorted(cell.versions.items())) for cell in cells}),
    ):
        if len(values) > 1:
            said.append(
                f"The cells were made by {len(values)} different {what}, so differences between them may come from that."
            )
    if len({tuple(sorted((k, str(v)) for k, v in cell.measuring.items())) for cell in cells}) > 1:
        said.append(
            "The arms were not all evaluated alike (prompts, noise, sampling), so they cannot be held against each other."
        )
    if lonely := [arm for arm in dict.fromkeys(c.arm for c in cells) if len(_of(cells, arm)) == 1]:
        said.append(
            f"Of {listed(lonely)} only one seed is finished: the interval is over prompts and knows nothing of other seeds."
        )
    return said


def summary(about: About, cells: Sequence[Cell]) -> dict[str, Any]:
    """The tables, ready for JSON: by step, arm and reward the mean, its interval and each seed's gain; the same of the further
    roles by arm and role; and by arm and role the relative change of diversity.
    """

    def as_json(found: OverSeeds) -> dict[str, Any]:
        return {**asdict(found.estimate), "seeds": {str(s): v for s, v in found.seeds.items()}}

    def written(own: Mapping[str, OverSeeds]) -> dict[str, Any]:
        return {name: as_json(g) for name, g in own.items()}

    steps: dict[str, Any] = {}
    for step in _steps(cells):
        over_base = {arm: written(gains(_of(cells, arm), step)) for arm in about.arms}
        over_first = {arm: written(_over_first(about.arms, cells, arm, step)) for arm in about.arms[1:]}
        roles, diversity = {}, {}
        for arm in about.arms:
            own = _of(cells, arm)
            roles[arm] = {name: written(found) for name, found in roles_of(own, step).items()}
            changes = {name: diversity_change(own, step, name) for name in ("trained", *roles[arm])}
            diversity[arm] = {name: as_json(change) for name, change in changes.items() if change}
        steps[str(step)] = {"over_base": over_base, "over_first": over_first, "roles": roles, "diversity": diversity}
    return {"study": about.file, "steps": steps}


def tables(cells: Sequence[Cell], arms: Sequence[str]) -> Iterator[Table]:
    """For the terminal, of every step that was evaluated: arms over the base, and over the first arm."""
    from rich.table import Table

    for step in _steps(cells):
        own = _tables(arms, cells, step)
        for title, results in (
            (f"After {step} steps: gain over the base in its standard deviations (95 %)", own.over_base),
            (f"After {step} steps: gain over {arms[0]}, same seeds, prompts and noise (95 %)", own.over_first),
        ):
            shown = sorted({result.arm for lines in results.values() for result in lines})
            table = Table("reward", *(arms[k] for k in shown), title=title)
            for name, lines in results.items():
                by_arm = {result.arm: result.gain.estimate for result in lines}
                said = (f"{e.mean:+.2f} ({e.low:+.2f} to {e.high:+.2f})" if (e := by_arm.get(k)) else "-" for k in shown)
                table.add_row(name, *said)
            if table.row_count:
                yield table


def _of(cells: Sequence[Cell], arm: str) -> list[Cell]:
    return [cell for cell in cells if cell.arm == arm]


def _steps(cells: Sequence[Cell]) -> list[int]:
    return sorted({step for cell in cells for step in cell.evaluations})


def _over_first(arms: Sequence[str], cells: Sequence[Cell], arm: str, step: int) -> dict[str, OverSeeds]:
    """Empty where the two were not measured alike."""
    own, first = _of(cells, arm), _of(cells, arms[0])
    alike = len({str(sorted(cell.measuring.items())) for cell in (*own, *first)}) == 1
    return paired(own, first, step) if alike else {}


def _tables(arms: Sequence[str], cells: Sequence[Cell], step: int) -> StepTables:
    over_base = {k: gains(_of(cells, arm), step) for k, arm in enumerate(arms)}
    over_first = {k: _over_first(arms, cells, arm, step) for k, arm in enumerate(arms) if k}
    axis = Axis.around([g.estimate for own in (*over_base.values(), *over_first.values()) for g in own.values()], 0.0)

    def by_reward(found: Mapping[int, Mapping[str, OverSeeds]]) -> dict[str, list[Result]]:
        names = dict.fromkeys(name for own in found.values() for name in own)
        return {
            name: [
                Result(k, own[name], effect(e := own[name].estimate), axis.span(e)) for k, own in found.items() if name in own
            ]
            for name in names
        }

    return StepTables(step, axis, by_reward(over_base), by_reward(over_first))


def _alarms(cells: Sequence[Cell]) -> tuple[str, str]:
    """Of an arm at its last step: in how many cells something was alarming, and how its diversity changed."""
    last = [cell.evaluations[max(cell.evaluations)] for cell in cells]
    kinds = [alarm.kind for own in last for alarm in own.alarms]
    said = ", ".join(
        f"{kind} in {sum(kind in {a.kind for a in own.alarms} for own in last)} of {len(last)}" for kind in dict.fromkeys(kinds)
    )
    changes = [100 * own.diversity.change.mean for own in last if own.diversity]
    spread = f" ({signed(min(changes), 0)} to {signed(max(changes), 0)})" if len(changes) > 1 else ""
    return said or ("none" if last else ""), f"{signed(fmean(changes), 0)} %{spread}" if changes else ""


def _overlay(
    arms: Sequence[str], cells: Sequence[Cell], title: str, metric: str, what: str, zero: bool = False
) -> Figure | None:
    """One line an arm: the mean over its seeds at each step that all of them have."""
    lines = []
    for k, arm in enumerate(arms):
        own = [dict(zip(c.steps, as_array(c.history[metric]), strict=True)) for c in _of(cells, arm) if metric in c.history]
        steps = sorted(set.intersection(*(set(values) for values in own))) if own else []
        if steps:
            lines.append(Line(np.array(steps), np.array([fmean(v[s] for v in own) for s in steps]), k, k))
    if not lines:
        return None
    drawn = panel(lines, 1, zero=zero, size=WIDE if zero else NARROW)
    said = f"Curves of the {what}, the mean over seeds of each arm: {', '.join(arms[line.ink or 0] for line in lines)}."
    return Figure(title, "", to_svg(drawn, metric, said))


def _facts(about: About, cells: Sequence[Cell]) -> list[tuple[str, str]]:
    facts = [("Preset", about.file["preset"]), ("Set in all arms", ", ".join(about.file["set"]) or "nothing")]
    facts += [(f"Arm {arm}", ", ".join(own) or "nothing else") for arm, own in about.file["arms"].items()]
    if cells:
        first = cells[0]
        m = first.measuring
        counts = {source: first.sources.count(source) for source in dict.fromkeys(first.sources)}
        facts += [
            ("Commit", first.commit or "none: installed, not a checkout"),
            ("Versions", ", ".join(f"{name} {version}" for name, version in first.versions.items())),
            ("Held-out prompts", ", ".join(f"{n} {source}" for source, n in counts.items())),
            ("Evaluated with", f"{m['solver']}, {m['steps']} steps, noise seed {m['noise_seed']}, one image per prompt"),
        ]
    said = f"95 %, bootstrap over seeds and prompts, {RESAMPLES} resamples, expanded for few seeds"
    return [*facts, ("Intervals", said)]
