"""Draws a stage's progress events: bars with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from marble_core.runtime.environment import PROGRESS
from marble_core.runtime.progress_lines import PAUSE, Lines, counted, spoken
from marble_core.runtime.scratch import scratch_directory

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


class Display:
    """Draws the events of a progress file: bars with the time left on a terminal, plain lines elsewhere.

    ``poll`` is called again and again, reads what is new and draws it. ``results`` (by stage), ``error`` and ``traceback``
    keep what was said, ``unfinished`` the stage that has begun and not ended.
    """

    def __init__(self, path: Path, console: Console, pause: float = 0.0) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.results: dict[str, dict[str, Any]] = {}
        self.error: str | None = None
        self.traceback: str | None = None
        self.unfinished = ""
        self._path, self._console, self._offset = path, console, 0
        self._lines = Lines(pause)  # seconds between two plain lines of a stage
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
            self.unfinished = name
        elif event.get("state") == "finished":
            self.unfinished = ""
        if "result" in event:
            self.results[name] = event["result"]
        self.error = event.get("error", self.error)
        self.traceback = event.get("traceback", self.traceback)
        if self._console.is_terminal:
            self._draw(name, event)
        self._print(event)

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

    def _print(self, event: dict[str, Any]) -> None:
        if self._console.is_terminal:
            if said := spoken(event):
                self._console.print(f"{counted(event)}  {said}", markup=False, highlight=False)
        elif line := self._lines.line(event):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def displayed(console: Console) -> Iterator[None]:
    """Draws the events that this process emits in the block; none where another process draws them already."""
    if os.environ.get(PROGRESS):
        yield
        return
    with scratch_directory() as place, Display(place / "events", console, PAUSE) as display:
        os.environ[PROGRESS] = str(place / "events")
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.2):
                display.poll()

        thread = threading.Thread(target=watch, name="display", daemon=True)
        thread.start()
        try:
            yield
        finally:
            del os.environ[PROGRESS]
            ended.set()
            thread.join()
            display.poll()
