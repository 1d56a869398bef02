"""Draws a stage's progress events: bars with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


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
        if event.get("state") == "started":  # another attempt: what ended the one before is no end of the run
            self.error = self.traceback = None
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
