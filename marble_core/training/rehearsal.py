"""A rehearsal: every stage of a run at two steps and a few prompts, and from what they took how long the whole run will take. No torch.

prepare does all of its work and then writes the shortened configuration; each stage leaves what it took (timing.json) beside what it
made. What is repeated is scaled by how often the whole run does it, everything else counts once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marble_core.config.durations import duration
from marble_core.config.loading import read_config
from marble_core.config.rehearsal import PROMPTS
from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import CONFIG, FULL, TIMING
from marble_core.estimate.memory import processes_of
from marble_core.estimate.work import images_of_look, looks_of
from marble_core.tracking.past_runs import REHEARSAL_TAG
from marble_core.tracking.step_history import read_history
from marble_core.types import Placed, in_order

if TYPE_CHECKING:
    from marble_core.prompts.dataset import Data

PHASES = ("time/sample", "time/score", "time/train")  # of a step, in its metrics


def begin(prepared: Path, full: RunConfig, config: RunConfig, data: Data) -> Data:
    """Write down what is rehearsed, and return the data with a few of the prompts that are not trained on."""
    (prepared / FULL).write_text(full.to_json(), encoding="utf-8")
    texts = {(prompt.source, prompt.text) for prompt in data.evaluation}
    _note(prepared, {"held_out": len(data.evaluation), "varied": min(full.evaluation.diversity_prompts, len(texts))})
    each = -(-PROMPTS // len(in_order(p.source for p in data.evaluation)))
    return replace(
        data,
        placed_evaluation=_first(data.placed_evaluation, each),
        placed_watched=_first(data.placed_watched, config.watch.prompts),
    )


def _first(placed: Sequence[Placed], each: int) -> list[Placed]:
    """The first prompts of each source."""
    of_source = {s: [p for p in placed if p.prompt.source == s] for s in in_order(p.prompt.source for p in placed)}
    return [p for own in of_source.values() for p in own[:each]]


def rehearses(prepared: Path) -> RunConfig | None:
    """The configuration of the whole run; None where the run itself is meant."""
    return read_config(prepared / FULL) if (prepared / FULL).is_file() else None


def tags_of(prepared: Path) -> dict[str, str]:
    """Of its MLflow run."""
    return {REHEARSAL_TAG: "true"} if (prepared / FULL).is_file() else {}


@contextmanager
def timed(prepared: Path, out: Path) -> Iterator[None]:
    """In a rehearsal ``out`` gets what the stage within took, in seconds."""
    began = time.monotonic()
    yield
    if (prepared / FULL).is_file():
        _note(out, {"stage": time.monotonic() - began})


def _note(directory: Path, more: Mapping[str, float]) -> None:
    (directory / TIMING).write_text(json.dumps({**_noted(directory), **more}), encoding="utf-8")


def _noted(directory: Path) -> dict[str, Any]:
    file = directory / TIMING
    return json.loads(file.read_bytes()) if file.is_file() else {}


@dataclass(frozen=True)
class StageTime:
    """Seconds that a stage took and that it will take in the whole run, and how the one became the other. None: not known."""

    stage: str
    measured: float
    whole: float | None
    how: str

    def __str__(self) -> str:
        whole = "not known" if self.whole is None else duration(self.whole)
        return f"{self.stage}: {whole}. Measured {duration(self.measured)}; {self.how}."


def whole_run(prepared: Path, adapter: Path, evaluation: Path, register_seconds: float) -> list[StageTime]:
    """What each stage of the rehearsed run will take, from what the rehearsal took."""
    full, short = read_config(prepared / FULL), read_config(prepared / CONFIG)
    before, trained, judged = (_noted(directory) for directory in (prepared, adapter, evaluation))
    per_image = judged["seconds"] / judged["images"]
    return [
        StageTime("prepare", before["stage"], before["stage"], "it did all of its work"),
        _training(full, short, trained["stage"], read_history(adapter), per_image),
        _evaluation(full, judged, before, per_image),
        StageTime("register", register_seconds, register_seconds, "it does the same"),
    ]


def _training(
    full: RunConfig, short: RunConfig, measured: float, history: Sequence[Mapping[str, Any]], per_image: float
) -> StageTime:
    step = step_seconds(history, full.balance.every if full.balance.weighs_gradients else 1)
    if step is None:
        why = "; ".join(history[-1].get("notes", ())) if history else "none was made"
        return StageTime("train", measured, None, f"no step was whole ({why})")
    images, own = (c.rollout.prompts * c.rollout.images_per_prompt for c in (full, short))
    steps, looks, looked = full.train.steps, looks_of(full), images_of_look(full)
    once = max(0.0, measured - step * short.train.steps)
    whole = once + steps * step * images / own + looks * looked * per_image / processes_of(full)
    watching = f" and {looks} looks of {looked} images at what an image takes evaluate" if looks else ""
    how = (
        f"a step of {own} images took {duration(step)}, and the whole run has {steps} of {images}{watching}. The other {duration(once)} "
        "(loading, the first step's warming up, saving) count once"
    )
    return StageTime("train", measured, whole, how)


def step_seconds(history: Sequence[Mapping[str, Any]], every: int) -> float | None:
    """Of a mean step: the last one's, for the first warms up; where only every n-th solves a QP, as the first does, their mean.

    None where no step came to its end.
    """
    took = [sum(line["metrics"][p] for p in PHASES) for line in history if all(p in line["metrics"] for p in PHASES)]
    if not took:
        return None
    return (took[0] + (every - 1) * took[-1]) / every if every > 1 else took[-1]


def _evaluation(full: RunConfig, judged: Mapping[str, float], before: Mapping[str, float], per_image: float) -> StageTime:
    each = full.evaluation.diversity_images
    images = int(judged["roles"] * (before["held_out"] + (before["varied"] * each if judged["varied"] else 0)))
    once = max(0.0, judged["stage"] - judged["seconds"])
    how = (
        f"{judged['images']} images took {duration(judged['seconds'])}, and the whole run has {images}; the other {duration(once)} "
        "(loading, the pages) count once"
    )
    return StageTime("evaluate", judged["stage"], once + images * per_image, how)


def foretold(prepared: Path, adapter: Path, evaluation: Path, register_seconds: float) -> list[str]:
    """At the end of a rehearsal: the whole run in one sentence, and one for each stage. Nothing where a run itself was meant."""
    if (full := rehearses(prepared)) is None:
        return []
    times = whole_run(prepared, adapter, evaluation, register_seconds)
    known = [each.whole for each in times if each.whole is not None]
    total = f"about {duration(sum(known))}" if len(known) == len(times) else f"more than {duration(sum(known))}"
    gpus = f" on {full.hardware.gpus} GPU{'s' if full.hardware.gpus > 1 else ''}" if full.hardware.gpus else ""
    return [
        f"The whole run will take {total}{gpus}, by this rehearsal, without waiting for pods and GPUs.",
        *(str(each) for each in times),
    ]
