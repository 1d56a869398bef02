"""The one-page report: what changed, the gate's decision, the table, pictures before and after, the curves of training.

One HTML file that fetches nothing and runs no script, so that it opens from a disk, in the KFP page and in MLflow alike.
How it looks is in report.html.j2; the curves are drawn in figures.py.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from marble_core.config import RunConfig
from marble_core.figures import History, balance_figures, colour, reward_figures
from marble_core.registry import Decision
from marble_core.results import SCORES_FILE, Estimate, Evaluation, RewardResult
from marble_core.types import SOURCES

PICTURE_BYTES = 1_900_000  # of encoded pictures; of the page's 3 MB the rest is for curves and text
SHOWN = 6  # first pictures of a source; as many again that changed most
SIZES = (256, 192, 128, 96, 64)  # pixels a side, the first that fits
NOTEWORTHY = 0.25  # base stds by which a picture's reward must change for an arrow


@dataclass(frozen=True)
class Span:
    """An interval on the table's common axis of base standard deviations, in percent of the axis' width."""

    left: float
    width: float
    point: float


@dataclass(frozen=True)
class Row:
    """One line of the table: a reward's result, its effect ("better", "worse", "same"), and its place on the axis."""

    name: str
    result: RewardResult
    effect: str
    span: Span | None
    colour: str


@dataclass(frozen=True)
class Score:
    name: str
    base: float
    trained: float
    effect: str
    digits: int


@dataclass(frozen=True)
class Pair:
    """Base and trained picture of one prompt as data URIs, and the rewards that apply to it."""

    prompt: str
    base: str
    trained: str
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Gallery:
    """A source's pictures: its first prompts, which nobody chose, and those whose rewards rose and fell most."""

    source: str
    first: tuple[Pair, ...]
    rose: tuple[Pair, ...]
    fell: tuple[Pair, ...]


def write_report(
    path: Path,
    evaluation: Evaluation,
    decision: Decision,
    history_path: Path | None,
    images_dir: Path,
    config: RunConfig,
) -> None:
    """Write the page, at most 3 MB whatever the pictures' size and the number of steps.

    ``history_path`` is train's history.jsonl; it may be missing, stop early or have gaps, and the page then says so.
    ``images_dir`` is the directory of pictures and scores.jsonl that run_evaluation wrote.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    history = History.load(history_path)
    names = [n for n in config.reward_names if n in evaluation.rewards]
    limit = _axis_limit(evaluation, config.registry.margin)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"signed": signed, "number": number, "typeset": typeset, "svg": Markup}
    template = environment.from_string(files("marble_core").joinpath("report.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        headline=headline(evaluation, history),
        decision=decision,
        evaluation=evaluation,
        rows=[_row(n, evaluation.rewards[n], config, limit) for n in names],
        gain=_span(evaluation.mean_gain, 1.0, limit),
        by_source={s: [_row(n, r, config, limit) for n, r in evaluation.by_source[s].items()] for s in evaluation.by_source},
        side=[_row(n, r, config, limit) for n, r in evaluation.side.items()],
        ticks=_ticks(limit),
        margin=config.registry.margin,
        margin_end=_position(-config.registry.margin, limit),
        galleries=_galleries(Path(images_dir), evaluation),
        reward_figures=reward_figures(history, config.reward_names, config.train.steps),
        balance_figures=balance_figures(history, config.reward_names, config.train.steps),
        legend=[(n, colour(k)) for k, n in enumerate(config.reward_names)],
        colour=colour,
        remarks=_remarks(evaluation, history, config),
        cost=_cost(history),
        facts=_facts(evaluation, config),
        settings=evaluation.settings,
        config=config,
    )
    Path(path).write_text(page, encoding="utf-8")


def headline(evaluation: Evaluation, history: History) -> str:
    """What changed, in one sentence."""
    r = evaluation.rewards
    groups = {effect: [n for n in r if _effect(r[n].difference) == effect] for effect in ("better", "worse", "same")}
    after = f"{len(history.steps)} steps of training" if len(history.steps) else "Training"
    said = [
        f"{verb} {_listed([f'{n} ({signed(r[n].difference.mean, r[n].digits)})' for n in groups[effect]])}"
        for verb, effect in (("raised", "better"), ("lowered", "worse"))
        if groups[effect]
    ]
    if not said:
        return f"{after} changed no reward measurably."
    rest = f"; {_listed(groups['same'])} did not change measurably" if groups["same"] else ""
    return f"{after} {', and '.join(said)}{rest}."


def number(value: float, digits: int = 3) -> str:
    return typeset(f"{value:.{digits}f}")


def signed(value: float, digits: int = 3) -> str:
    return typeset(f"{value:+.{digits}f}")


def typeset(text: str) -> str:
    """The text with a typographic minus before each negative number."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\N{MINUS SIGN}", text)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _effect(d: Estimate) -> str:
    return "better" if d.low > 0 else "worse" if d.high < 0 else "same"


def _axis_limit(evaluation: Evaluation, margin: float) -> float:
    """The half width of the table's axis, in base stds: all overall intervals and the margin fit."""
    ends = [evaluation.mean_gain.low, evaluation.mean_gain.high, 1.5 * margin, 0.2]
    ends += [
        e / r.base_std for r in evaluation.rewards.values() if r.base_std > 0 for e in (r.difference.low, r.difference.high)
    ]
    return 1.08 * max(abs(e) for e in ends)


def _position(value: float, limit: float) -> float:
    return float(np.clip(50 + 50 * value / limit, 0, 100))


def _span(d: Estimate, unit: float, limit: float) -> Span:
    left, right, point = (_position(v / unit, limit) for v in (d.low, d.high, d.mean))
    return Span(left, right - left, point)


def _ticks(limit: float) -> list[tuple[float, str]]:
    step = next(s for s in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 1e9) if limit / s < 3.5)
    values = [i * step for i in range(-3, 4) if abs(i * step) < limit]
    return [(_position(v, limit), "0" if v == 0 else signed(v, 2 if step < 0.1 else 1)) for v in values]


def _row(name: str, result: RewardResult, config: RunConfig, limit: float) -> Row:
    span = _span(result.difference, result.base_std, limit) if result.base_std > 0 else None
    reward = name.partition("/")[0]  # a side value has its reward's colour
    index = [r.name for r in config.measured].index(reward)
    return Row(name, result, _effect(result.difference), span, colour(index))


def _remarks(evaluation: Evaluation, history: History, config: RunConfig) -> list[str]:
    """What a reader must know to read the page rightly."""
    remarks = list(evaluation.notes)
    if not len(history.steps):
        remarks.append("Training left no history, so there are no curves.")
    elif (last := int(history.steps[-1])) < config.train.steps:
        remarks.append(f"Training ended after step {last} of {config.train.steps}.")
    if history.skipped:
        steps = ", ".join(map(str, history.skipped[:10])) + (" ..." if len(history.skipped) > 10 else "")
        remarks.append(f"{len(history.skipped)} of {len(history.steps)} steps were skipped (×): {steps}.")
    remarks += [f"Step {step}: {note}{'' if note.endswith('.') else '.'}" for step, note in history.notes[:5]]
    if len(history.notes) > 5:
        remarks.append(f"{len(history.notes) - 5} more notes are in the training history.")
    return remarks


def _cost(history: History) -> str | None:
    """Where the time of training went."""
    parts = {n.removeprefix("time/"): float(np.nansum(v)) for n, v in history.metrics.items() if n.startswith("time/")}
    total = sum(parts.values())
    if not total:
        return None
    shares = ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in parts.items())
    time = f"{total / 3600:.1f} h" if total >= 5400 else f"{total / 60:.1f} min"
    return f"{time} for {len(history.steps)} steps ({shares})"


def _facts(evaluation: Evaluation, config: RunConfig) -> list[tuple[str, str]]:
    s, r = evaluation.settings, config.rollout
    prompts = ", ".join(f"{n} {source}" for source, n in s.get("prompts", {}).items())
    evaluated = (
        f"{s.get('solver')}, {s.get('steps')} steps, no guidance, one picture a prompt, noise seed {s.get('noise_seed')}"
    )
    return [
        ("Base model", f"{config.model.path}{f' at {config.model.revision}' if config.model.revision else ''}"),
        ("Method", f"{config.balance.method}, LoRA rank {config.lora.rank}, learning rate {config.optimizer.lr:g}"),
        ("A training step", f"{r.prompts} prompts × {r.images_per_prompt} pictures, {r.solver}, {r.steps} steps"),
        ("Held-out prompts", prompts),
        ("Evaluated with", evaluated),
        ("Intervals", f"95 %, paired bootstrap over prompts, {s.get('resamples')} resamples"),
        ("Configuration", config.digest),
    ]


def _galleries(directory: Path, evaluation: Evaluation) -> list[Gallery]:
    scores = directory / SCORES_FILE
    lines = scores.read_text(encoding="utf-8").split("\n") if scores.is_file() else []
    rows = [row for line in lines if line.strip() and "pictures" in (row := json.loads(line))]
    chosen = {s: own for s in SOURCES if (own := _choose([row for row in rows if row["source"] == s], evaluation))}
    wanted = [
        row["pictures"][role] for kinds in chosen.values() for own in kinds for row in own for role in ("base", "trained")
    ]
    uris = _encode(directory, wanted)

    def pairs(own: Sequence[Mapping[str, Any]]) -> tuple[Pair, ...]:
        return tuple(
            Pair(
                row["prompt"], uris[row["pictures"]["base"]], uris[row["pictures"]["trained"]], tuple(_scores(row, evaluation))
            )
            for row in own
        )

    return [Gallery(source, *(pairs(own) for own in kinds)) for source, kinds in chosen.items()]


def _choose(rows: Sequence[Mapping[str, Any]], evaluation: Evaluation) -> tuple[list[Mapping[str, Any]], ...]:
    """(the first rows; of the others, those that rose most; those that fell most), by mean change in base stds."""
    if not rows:
        return ()
    first, rest = list(rows[:SHOWN]), sorted(rows[SHOWN:], key=lambda row: _change(row, evaluation))
    half = min(SHOWN // 2, len(rest) // 2)
    fell = [row for row in rest[:half] if _change(row, evaluation) < 0]
    rose = [row for row in rest[::-1][:half] if _change(row, evaluation) > 0]
    return first, rose, fell


def _change(row: Mapping[str, Any], evaluation: Evaluation) -> float:
    units = {n: r.base_std for n, r in evaluation.measured.items() if r.base_std > 0}
    changes = [(row["trained"][n] - b) / units[n] for n, b in row["base"].items() if n in units]
    return float(np.mean(changes)) if changes else 0.0


def _scores(row: Mapping[str, Any], evaluation: Evaluation) -> Iterator[Score]:
    for name, base in row["base"].items():
        trained, result = row["trained"][name], evaluation.measured[name]
        moved = abs(trained - base) > NOTEWORTHY * result.base_std
        effect = "same" if not moved else "better" if trained > base else "worse"
        yield Score(name, base, trained, effect, max(2, result.digits - 1))


def _encode(directory: Path, names: Sequence[str]) -> dict[str, str]:
    """Data URIs by file name, of the largest of SIZES at which all of them fit into the page; small ones stay PNG as they are."""
    from PIL import Image

    uris: dict[str, str] = {}
    for size in SIZES:
        uris = {}
        for name in dict.fromkeys(names):
            with Image.open(directory / name) as image:
                if max(image.size) <= min(size, 128):
                    kind, data = "png", (directory / name).read_bytes()
                else:
                    image.thumbnail((size, size), Image.Resampling.LANCZOS)
                    buffer = io.BytesIO()
                    image.convert("RGB").save(buffer, "WEBP", quality=85)
                    kind, data = "webp", buffer.getvalue()
            uris[name] = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        if sum(len(uris[name]) for name in names) <= PICTURE_BYTES:
            break
    return uris
