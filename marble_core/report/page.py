"""The report of one run: answers in words, four large pairs, the table, the gate, images, trade-offs, curves, the cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marble_core.config.durations import duration
from marble_core.config.redaction import json_without_secrets
from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import WATCH
from marble_core.evaluation.gate import Decision
from marble_core.evaluation.results import Evaluation
from marble_core.evaluation.variants import recommended
from marble_core.evaluation.watch import Look, Record, scaled
from marble_core.report.answers import advice, answers
from marble_core.report.curves import balance_figures, reward_figures
from marble_core.report.drawing import colour
from marble_core.report.frontier import gain_against_diversity
from marble_core.report.images import galleries, large_pairs, scored
from marble_core.report.rendering import render
from marble_core.report.scatter import Point, furthest_apart, scatter, trained_point
from marble_core.report.table import axis_of, conditions, rows
from marble_core.report.words import signed
from marble_core.tracking.past_runs import PastRun
from marble_core.tracking.provenance import code_tags
from marble_core.tracking.step_history import History


@dataclass(frozen=True)
class Phase:
    """A part of a training's time."""

    name: str
    time: str
    percent: float


@dataclass(frozen=True)
class Cost:
    """What a training took: its whole time, by phase, and what came of it."""

    total: str
    phases: tuple[Phase, ...]
    steps: int
    images: int
    images_per_second: float


def write_report(
    path: Path,
    evaluation: Evaluation,
    decision: Decision,
    history_path: Path | None,
    images_dir: Path,
    config: RunConfig,
    past: Sequence[PastRun] = (),
    run: str = "",
    links: Mapping[str, str] | None = None,
) -> None:
    """Write the page, at most 3 MB whatever the images' size and the number of steps.

    ``history_path`` is train's history.jsonl; where it is missing or has gaps the page says so. ``images_dir`` has the images and
    scores.jsonl that run_evaluation wrote. ``past`` are runs before the run ``run``; ``links`` are other pages' addresses by name.
    """
    history, champion = History.load(history_path), evaluation.champion
    looks = Record.load(history_path.parent / WATCH).looks if history_path else []
    axis, names = axis_of(evaluation, config.registry.margin), config.reward_names
    over, by_source = (champion.rewards, champion.by_source) if champion else ({}, {})
    trained, held_out = (rows(own, over, config, axis, judged=True) for own in (evaluation.rewards, evaluation.held_out))
    pair = history.most_opposed([n for n in names if n in evaluation.rewards]) or furthest_apart(evaluation.rewards)
    page = render(
        "report.html.j2",
        answers=answers(evaluation, decision, scored(images_dir), config.registry),
        pairs=large_pairs(images_dir, evaluation),
        advice=advice,
        decision=decision,
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        links=links or {},
        places=places_of(links or {}),
        conditions=conditions(evaluation, [*trained, *held_out], config.registry),
        evaluation=evaluation,
        rows=trained,
        held_out=held_out,
        by_source={s: rows(r, by_source.get(s, {}), config, axis, judged=False) for s, r in evaluation.by_source.items()},
        side=rows(evaluation.side, over, config, axis, judged=False),
        axis=axis,
        margin_end=axis.position(-config.registry.margin),
        galleries=galleries(images_dir, evaluation),
        pair=pair,
        best=recommended(evaluation),
        frontier=gain_against_diversity(evaluation),
        scatter=scatter(_points(evaluation, pair, past), *pair, "tradeoff") if pair else "",
        cosines=cosine_table(history, names),
        reward_figures=reward_figures(history, names, config.train.steps),
        balance_figures=balance_figures(history, names, config.train.steps),
        legend=[(n, colour(k)) for k, n in enumerate(names)],
        remarks=[*remarks(evaluation, history, config), *watch_remarks(evaluation, history, looks, config)],
        looks=looks,
        scaled=scaled,
        gain=axis.span(evaluation.mean_gain),
        cost=cost_of(history, config.rollout.prompts * config.rollout.images_per_prompt),
        past=past,
        run=run,
        facts=_facts(evaluation, config),
        config=config,
        config_text=json_without_secrets(config.to_json()),
    )
    Path(path).write_text(page, encoding="utf-8")


def places_of(links: Mapping[str, str]) -> dict[str, str]:
    """Where a page lies that the report links to by its file's name, for a frame in which no link opens; empty for other links."""
    run = links.get("Run in MLflow", "")
    beside = {name: file for name, file in links.items() if "/" not in file}
    return dict.fromkeys(links, "") | {
        name: f"{run}/artifacts/{file}" if run else f"{file} in the artifact evaluation of the step evaluate"
        for name, file in beside.items()
    }


def remarks(evaluation: Evaluation, history: History, config: RunConfig) -> list[str]:
    """What a reader must know to read the page rightly."""
    said = [*evaluation.notes, *([evaluation.no_champion] if evaluation.no_champion else [])]
    if not len(history.steps):
        said.append("Training left no history, so there are no curves.")
    elif (last := int(history.steps[-1])) < config.train.steps:
        said.append(f"Training ended after step {last} of {config.train.steps}.")
    if history.skipped:
        steps = ", ".join(map(str, history.skipped[:10])) + (" ..." if len(history.skipped) > 10 else "")
        said.append(f"{len(history.skipped)} of {len(history.steps)} steps were skipped (×): {steps}.")
    said += [f"Step {step}: {note}{'' if note.endswith('.') else '.'}" for step, note in history.notes[:5]]
    if len(history.notes) > 5:
        said.append(f"{len(history.notes) - 5} more notes are in the training history.")
    return said


def watch_remarks(evaluation: Evaluation, history: History, looks: Sequence[Look], config: RunConfig) -> list[str]:
    """How the watch chose the step that was evaluated, and what its choice was worth on prompts that it had not seen."""
    last = int(history.steps[-1]) if len(history.steps) else 0
    chosen = next((look for look in looks if look.step == last), None)
    first = next((look for look in looks if look.hacked), None)
    said = []
    if first and config.watch.on_alarm == "stop":
        said.append(f"An alarm after step {first.step} ended the training, and this is the checkpoint before it.")
    if config.train.keep_best and chosen:
        seen, unseen = signed(chosen.mean_gain.mean), signed(evaluation.mean_gain.mean)
        said.append(
            f"This is the best of {len(looks)} looks, after step {last}. Its mean gain on the prompts that it was chosen by is {seen}, "
            f"and on the evaluation's, which the choice has not seen, {unseen}."
        )
    return said


def cosine_table(history: History, names: Sequence[str]) -> list[tuple[str, list[float | None]]]:
    """The mean cosine of each reward's gradient with each other's, and in a last line with the update; empty where none is known."""
    lines = [(a, [None if a == b else history.cosine(a, b) for b in names]) for a in names]
    lines.append(("update", [history.cosine("update", b) for b in names]))
    return lines if any(c is not None for _, own in lines[:-1] for c in own) else []


def cost_of(history: History, images_a_step: int) -> Cost | None:
    """Where the time of training went; of a step that was skipped nothing is known, and nothing is counted."""
    times = {n.removeprefix("time/"): float(np.nansum(v)) for n, v in history.metrics.items() if n.startswith("time/")}
    total = sum(times.values())
    if not total:
        return None
    steps = len(history.steps) - len(history.skipped)
    images = steps * images_a_step
    phases = tuple(Phase(name, duration(seconds), 100 * seconds / total) for name, seconds in times.items())
    return Cost(duration(total), phases, steps, images, images / total)


def _points(evaluation: Evaluation, pair: tuple[str, str], past: Sequence[PastRun]) -> list[Point]:
    a, b = pair
    x, y = evaluation.rewards[a], evaluation.rewards[b]
    earlier = [p for p in past if p.is_comparable(evaluation) and {a, b} <= set(p.trained)]
    points = [Point(f"run {p.name}", p.trained[a], p.trained[b], 6, 0, small=True) for p in earlier]
    points.append(Point("base", x.base, y.base, None, 2, "base", hollow=True))
    if c := evaluation.champion:
        points.append(Point("champion", c.rewards[a].mean, c.rewards[b].mean, 1, 1, "champion"))
    return [*points, trained_point("trained", x, y, 0, 0, "trained")]


def _facts(evaluation: Evaluation, config: RunConfig) -> list[tuple[str, str]]:
    s, r = evaluation.settings, config.rollout
    prompts = ", ".join(f"{n} {source}" for source, n in s.get("prompts", {}).items())
    evaluated = (
        f"{s.get('solver')}, {s.get('steps')} steps, no guidance, one image per prompt, noise seed {s.get('noise_seed')}"
    )
    return [
        ("Base model", f"{config.model.path}{f' at {revision}' if (revision := s.get('revision')) else ''}"),
        ("Code", " ".join(f"{name.rpartition('.')[2]} {value}" for name, value in _code().items())),
        ("Method", f"{config.balance.method}, LoRA rank {config.lora.rank}, learning rate {config.optimizer.lr:g}"),
        ("A training step", f"{r.prompts} prompts × {r.images_per_prompt} images, {r.solver}, {r.steps} steps"),
        ("Held-out prompts", prompts),
        ("Evaluated with", evaluated),
        ("Intervals", f"95 %, paired bootstrap over prompts, {s.get('resamples')} resamples"),
        ("Configuration", config.digest),
    ]


def _code() -> dict[str, str]:
    return {name: value for name, value in code_tags().items() if name in ("marble.version", "mlflow.source.git.commit")}
