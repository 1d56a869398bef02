"""explorer.html: every prompt with its images and scores, in one file that fetches nothing.

The script is built from explorer/ by ``make explorer``. The page holds a thumbnail of each prompt's image of at most three roles,
and the large image of those that won and lost most; it says what was left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import IMAGES
from marble_core.evaluation.gate import Decision
from marble_core.evaluation.results import ROLES, Evaluation
from marble_core.report.answers import answers
from marble_core.report.changes import change, changes
from marble_core.report.film import Film
from marble_core.report.frontier import curves
from marble_core.report.images import NOTEWORTHY, Line, scored
from marble_core.report.rendering import render
from marble_core.report.thumbnails import Thumbnails
from marble_core.tracking.step_history import History

MAX_ROLES = 3
LARGE = 12  # of the largest wins, and as many of the largest losses
THUMB_BYTES, LARGE_BYTES, FILM_BYTES = 2_900_000, 1_500_000, 600_000  # of encoded images; the script has 0.4 MB of the page's 6
_PANELS = (  # (title, what it says, the metrics' prefix, stacked); without a title each metric has a panel of its own
    ("Alpha", "each reward's share of the update", "alpha/", True),
    ("", "mean over a step's images, which move with its prompts", "reward/", False),
    ("Honest cosine", "of the update with each reward's gradient, on prompts that it was not made from", "held_out/", False),
    ("Cosine", "of the update with each reward's gradient, on its own batch", "cosine/update:", False),
    ("Self-consistency", "signal near 1, noise near 0", "consistency/", False),
    ("Watched", "on prompts that nothing trains on, in base standard deviations", "watch/", False),
)


@dataclass(frozen=True)
class Sizes:
    """What of an evaluation came into the page: roles, prompts with images, all prompts, and the pixels of small and large images."""

    roles: Sequence[str]
    imaged: int
    prompts: int
    thumb: int
    large: int


def write_explorer(
    path: Path,
    evaluation: Evaluation,
    decision: Decision,
    history_path: Path | None,
    images_dir: Path,
    config: RunConfig,
    run: str = "",
    beside: str = IMAGES,
) -> None:
    """Write the page, at most 6 MB, however many prompts there are and however large their images.

    ``history_path`` is train's history.jsonl, beside which its ``samples/`` may lie. ``images_dir`` is what run_evaluation wrote,
    and ``beside`` its address relative to the page, where the images lie as they were made.
    """
    lines, history = scored(images_dir), History.load(history_path)
    cases, sizes = cases_of(lines, images_dir, evaluation, roles_of(lines))
    film = Film.load(history_path.parent if history_path else None, FILM_BYTES)
    data = {
        "roles": sizes.roles,
        "shown": ["base", "trained"],
        "rewards": units(evaluation),
        "cases": cases,
        "remarks": left_out(sizes, lines),
        "beside": beside,
        "film": film.as_data(),
        "steps": [int(step) for step in history.thinned().steps],
        "training": _panels(history.thinned()),
        "models": _models(evaluation),
    }
    write_data(path, data, answers(evaluation, decision, lines, config.registry).headline, f"run {run}" if run else "")


def units(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The rewards, with what one standard deviation of the base is in them."""
    return [{"name": n, "std": r.base_std, "digits": r.digits} for n, r in evaluation.measured.items()]


def write_data(path: Path, data: dict[str, Any], headline: str, of: str) -> None:
    """The page of these data; ``of`` is the run or the runs."""
    data["marks"] = sorted({mark for case in data["cases"] for mark in case["marks"]})
    source = files("marble_core.report")
    page = render(
        "explorer.html.j2",
        headline=headline,
        of=of,
        film=bool(data["film"]["frames"]),
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        style=source.joinpath("explorer.css").read_text(encoding="utf-8"),
        script=source.joinpath("explorer.js").read_text(encoding="utf-8").replace("</script", "<\\/script"),
        data=json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
    )
    Path(path).write_text(page, encoding="utf-8")


def roles_of(lines: Sequence[Line]) -> tuple[str, ...]:
    """At most three roles of which all images were kept: base, champion and trained first."""
    imaged = [line["pictures"] for line in lines if "pictures" in line]
    common = [role for role in (imaged[0] if imaged else ()) if all(role in own for own in imaged)]
    return tuple(sorted(common, key=lambda role: (role not in ROLES, ROLES.index(role) if role in ROLES else 0))[:MAX_ROLES])


def cases_of(
    lines: Sequence[Line],
    directory: Path,
    evaluation: Evaluation,
    roles: Sequence[str],
    pair: tuple[str, str] = ("base", "trained"),
) -> tuple[list[dict[str, Any]], Sizes]:
    """The prompts with scores and images of ``roles``, and what came in. Wins and losses are from the first of ``pair`` to the second."""
    imaged = [line for line in lines if "pictures" in line]
    ranked = sorted(imaged, key=lambda line: change(line, evaluation, *pair))
    large = {line["index"]: line for line in (*ranked[:LARGE], *ranked[-LARGE:])}
    thumbs = Thumbnails(
        [directory / line["pictures"][role] for line in imaged for role in roles], (128, 112, 96, 80, 64), THUMB_BYTES
    )
    full = Thumbnails(
        [directory / line["pictures"][role] for line in large.values() for role in roles], (512, 384, 256, 192), LARGE_BYTES
    )
    shown = roles or tuple(role for role in ROLES if lines and role in lines[0])
    cases = []
    for line in lines:
        case = {
            "index": line["index"],
            "prompt": line["prompt"],
            "source": line["source"],
            "marks": _marks(line, evaluation, *pair),
        }
        case["scores"] = {role: {n: round(v, 6) for n, v in line[role].items()} for role in shown if role in line}
        if own := line.get("pictures"):
            case["files"] = {role: own[role] for role in roles}
            enlarged = full.larger_than(thumbs) and line["index"] in large
            case["full" if enlarged else "thumb"] = {
                role: (full if enlarged else thumbs).uris[directory / own[role]] for role in roles
            }
        cases.append(case)
    return cases, Sizes(shown, len(imaged), len(lines), thumbs.side, full.side)


def _marks(line: Line, evaluation: Evaluation, before: str, after: str) -> list[str]:
    """What makes a prompt worth a look: a reward fell, was lost, or fell unseen while what is trained on rose."""
    own, found = changes(line, evaluation, before, after), []
    if any(value < -NOTEWORTHY for value in own.values()):
        found.append("a reward fell")
    trained = [value for name, value in own.items() if name in evaluation.rewards]
    if any(own[n] < -NOTEWORTHY for n in evaluation.held_out if n in own) and trained and np.mean(trained) > 0:
        found.append("suspicion of reward hacking")
    if line.get("missing"):
        found.append("a value is missing")
    return found


def left_out(sizes: Sizes, lines: Sequence[Line]) -> list[str]:
    """What the page does not show, a sentence each."""
    said = []
    if sizes.imaged < sizes.prompts:
        said.append(
            f"Images of {sizes.imaged} of the {sizes.prompts} prompts were kept. The others have scores alone: choose any prompt under Mark."
        )
    every = {role for line in lines for role in line.get("pictures", ())}
    if left := sorted(every - set(sizes.roles)):
        said.append(f"Left out: the images of {', '.join(left)}.")
    if sizes.large > sizes.thumb and sizes.imaged > 2 * LARGE:
        said.append(
            f"The {LARGE} largest wins and losses have images of {sizes.large} px, the others of {sizes.thumb} px. "
            f"The images as they were made lie beside this page."
        )
    return said


def _panels(history: History) -> list[dict[str, Any]]:
    found = []
    for title, said, prefix, stacked in _PANELS:
        series = {
            name.removeprefix(prefix).removesuffix("/mean"): [None if np.isnan(v) else round(float(v), 5) for v in values]
            for name, values in history.metrics.items()
            if name.startswith(prefix) and (prefix != "reward/" or name.endswith("/mean")) and not np.isnan(values).all()
        }
        kinds = {title: series} if title else {name: {name: values} for name, values in series.items()}
        about = {"said": said, "stacked": stacked, "zero": bool(title)}
        found += [about | {"title": kind, "series": own} for kind, own in kinds.items() if own]
    return found


def _models(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Each model's mean gain and change of diversity in percent; ``line`` is what they are joined by."""
    if lines := curves(evaluation):
        own = [(curve.name, spot.label, spot.change.mean, spot.gain.mean) for curve in lines for spot in curve.spots]
    elif d := evaluation.diversity:
        own = [("", "base", 0.0, 0.0), ("", "trained", d.change.mean, evaluation.mean_gain.mean)]
        if d.champion is not None and evaluation.champion and d.base:
            own.append(
                (" ", "champion", d.champion / d.base - 1, evaluation.mean_gain.mean - evaluation.champion.mean_gain.mean)
            )
    else:
        own = []
    return [{"line": line, "name": name, "change": 100 * change_, "gain": gain} for line, name, change_, gain in own]
