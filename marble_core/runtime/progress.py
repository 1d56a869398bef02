"""What a stage is doing, for whoever watches: JSON lines in the file named by MARBLE_PROGRESS.

A local runner pipes a stage's output, so the stages write events and the parent draws them (design.md section 4). Without
the variable, on a cluster, nothing is written. Keys of an event: time, stage, and of the rest what there is: done, total,
note, metrics, state ("started" or "finished"), error (a sentence for the user) or traceback, result (what the stage found).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from marble_core import __version__
from marble_core.runtime.files import disk_error
from marble_core.types import MarbleError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

VARIABLE = "MARBLE_PROGRESS"
PIPELINE = "MARBLE_PIPELINE_VERSION"  # what the pipeline file was compiled with


class StageFailed(Exception):
    """A stage ended with an error that is not the user's: the end of its traceback, and where the whole log is."""


def emit(
    stage: str,
    done: int | None = None,
    total: int | None = None,
    note: str = "",
    metrics: Mapping[str, float] | None = None,
    **more: Any,
) -> None:
    """Appends one event. Never raises: who watches must not disturb the work."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    event = {
        "time": round(time.time(), 3),
        "stage": stage,
        "done": done,
        "total": total,
        "note": note,
        "metrics": metrics,
        **more,
    }
    line = json.dumps({k: v for k, v in event.items() if v not in (None, "")}, default=str) + "\n"
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())  # one write, so that lines of two processes do not mix
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def stage(name: str) -> Iterator[dict[str, Any]]:
    """Frames a stage's work with events; what is put into the dictionary becomes the stage's ``result``."""
    emit(name, state="started")
    result: dict[str, Any] = {}
    try:
        if (compiled := os.environ.get(PIPELINE, __version__)) != __version__:
            raise MarbleError(
                f"The pipeline file is of MARBLE {compiled} and this image of {__version__}: compile the file anew, or name images of its version."
            )
        yield result
    except MarbleError as error:
        emit(name, error=str(error))
        raise
    except Exception as error:
        if expected := disk_error(error):
            emit(name, error=str(expected))
            raise expected from error
        emit(name, traceback=traceback.format_exc())
        raise
    emit(name, state="finished", result=result)


def describe_step(metrics: Mapping[str, float]) -> str:
    """Reward means with their alpha, and the worst cosine, on one line: "ocr 0.61 (.20)  ...  worst cosine +0.03 (held out -0.01)".

    The cosine is that of the update with the reward's gradient that it helps least; held out, that of a direction found on
    one half of the prompts with gradients of the other half, which is what says something of the next batch.
    """
    parts = []
    for key, value in metrics.items():
        kind, _, rest = key.partition("/")
        name, _, what = rest.rpartition("/")
        if kind == "reward" and what == "mean":
            alpha = metrics.get(f"alpha/{name}")
            parts.append(f"{name} {value:.3g}" + ("" if alpha is None else f" ({alpha:.2f})"))
    if "cosine/worst" in metrics:
        held_out = metrics.get("held_out/worst")
        parts.append(
            f"worst cosine {metrics['cosine/worst']:+.3f}" + ("" if held_out is None else f" (held out {held_out:+.3f})")
        )
    return "  ".join(parts)


class Display:
    """Draws the events of a progress file: bars with the time left on a terminal, plain lines elsewhere.

    ``poll`` is called again and again, reads what is new and draws it. ``results`` (by stage), ``error`` and ``traceback``
    keep what was said.
    """

    def __init__(self, path: Path, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.results: dict[str, dict[str, Any]] = {}
        self.error: str | None = None
        self.traceback: str | None = None
        self._path, self._console, self._offset = path, console, 0
        self._first: dict[str, tuple[float, int]] = {}  # of each stage: when its first count came, and the count
        self._tasks: dict[str, TaskID] = {}
        columns = (TextColumn("{task.description:9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        # Steps take seconds to minutes: a short window would hold too few of them for an estimate.
        self._bars = Progress(*columns, TimeRemainingColumn(), console=console, speed_estimate_period=1800)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def poll(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                self._offset += len(line)
                self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        name = event["stage"]
        if "result" in event:
            self.results[name] = event["result"]
        self.error = event.get("error", self.error)
        self.traceback = event.get("traceback", self.traceback)
        if self._console.is_terminal:
            self._draw(name, event)
        self._print(name, event)

    def _draw(self, name: str, event: dict[str, Any]) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=None)
        task = self._tasks[name]
        if "done" in event:
            self._bars.update(task, completed=event["done"], total=event.get("total"))
        if event.get("state") == "finished":
            total = self._bars.tasks[task].total or 1
            self._bars.update(task, completed=total, total=total)
            self._bars.stop_task(task)

    def _print(self, name: str, event: dict[str, Any]) -> None:
        said = "  ".join(filter(None, [describe_step(event.get("metrics", {})), event.get("note", "")]))
        count = f" {event['done']}/{event.get('total', '?')}" if "done" in event else ""
        if self._console.is_terminal:
            if said:
                self._console.print(f"{name}{count}  {said}", markup=False, highlight=False)
        elif "done" in event or "state" in event or said:
            words = filter(None, [event.get("state", ""), said, self._left(name, event)])
            self._console.print(f"{name}{count}  {'  '.join(words)}", markup=False, highlight=False, soft_wrap=True)

    def _left(self, name: str, event: dict[str, Any]) -> str:
        """The time left, from the pace since the stage's first count."""
        if "done" not in event or "total" not in event:
            return ""
        began, at = self._first.setdefault(name, (event["time"], event["done"]))
        if event["done"] <= at:
            return ""
        seconds = (event["time"] - began) / (event["done"] - at) * (event["total"] - event["done"])
        return f"[{seconds / 60:.0f} min left]" if seconds >= 90 else f"[{seconds:.0f} s left]"
