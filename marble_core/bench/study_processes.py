"""A study's cells in processes of their own: several at a time, each goes on where it was stopped, and who watches is told."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from marble_core.bench.study import cell_path, run_directory
from marble_core.config.durations import duration
from marble_core.evaluation.cell import Cell
from marble_core.report import study as page
from marble_core.runtime.child_process import ChildProcess
from marble_core.runtime.environment import PROGRESS
from marble_core.runtime.progress import StageFailed
from marble_core.types import MarbleError

if TYPE_CHECKING:
    from rich.console import Console

    from marble_core.bench.study import Study

Key = tuple[str, int]  # arm, seed
GRACE = 10.0  # seconds for the state after the last finished step, when the study is stopped
PATIENCE = 3 * GRACE  # for the processes of a study that was killed to end
EVERY = 60.0  # seconds between two lines while nothing else is to be said
DURATIONS = "durations.json"


@contextmanager
def owned(out: Path) -> Iterator[int]:
    """Until the end of the block no other process works on the study. Yields the descriptor that cells inherit.

    A lock belongs to all processes that hold its file: that of a study which was killed goes when its last cell has ended.
    Raises MarbleError where it does not go.
    """
    with (out / ".lock").open("a", encoding="utf-8") as file:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise MarbleError(
                        f"The study in {out} is being worked on by another process: wait until that has ended, or give another --out."
                    ) from None
                time.sleep(0.2)
        yield file.fileno()


class CellFailed(Exception):
    """A cell's process did not end well: a sentence, and whether it is one for the user."""

    def __init__(self, said: str, mendable: bool) -> None:
        super().__init__(said)
        self.mendable = mendable


@dataclass
class Runner:
    """``done`` holds what was there before; ``lock`` is ``owned``'s descriptor, ``environment`` that of the cells' processes."""

    study: Study
    out: Path
    jobs: int
    console: Console
    lock: int
    environment: Mapping[str, str]
    done: dict[Key, Cell]
    failed: dict[Key, CellFailed] = field(default_factory=dict)
    children: dict[Key, ChildProcess] = field(default_factory=dict)
    stopping: bool = False

    def run(self) -> None:
        """All cells that are missing. Raises MarbleError or StageFailed for the first that failed, when all others are done."""
        left = [key for key in self.study.cells if key not in self.done]
        self._say(f"{len(self.done)} of {len(self.study.cells)} cells are done; {self.jobs} at a time.")
        self._write()
        with ThreadPoolExecutor(max(1, self.jobs)) as pool:
            try:
                pending: dict[Future[None], Key] = {pool.submit(self._work, key): key for key in left}
                while pending:
                    ended, _ = wait(pending, timeout=EVERY, return_when=FIRST_COMPLETED)
                    for future in ended:
                        self._ended(pending.pop(future), future)
                    self._say(self._where())
                    self._write()
            except BaseException:
                self.stopping = True
                for child in list(self.children.values()):
                    child.terminate()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        for line in page.tables(self._cells(), list(self.study.arms)):
            self.console.print(line)
        self._say(f"Page: {self.out / 'study.html'}")
        for key, error in self.failed.items():
            rest = f" ({len(self.failed)} cells failed)" if len(self.failed) > 1 else ""
            raise (MarbleError if error.mendable else StageFailed)(f"{name(key)}: {error}{rest}")

    def _work(self, key: Key) -> None:
        """One cell, from the start of its process to its end. Raises CellFailed."""
        if self.stopping:
            return
        place = run_directory(self.out, *key)
        place.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-P", "-m", "marble_core.bench.study", str(self.out), key[0], str(key[1])]
        environment = {**self.environment, PROGRESS: str((place / "progress.jsonl").resolve())}
        child = ChildProcess(command, place / "log.txt", environment, Path.cwd(), (self.lock,), GRACE)
        self.children[key] = child
        code = child.wait()
        del self.children[key]
        if code and not self.stopping:
            said = events(place)[-1].get("error") if code == 2 and events(place) else None
            raise CellFailed(said or f"its process ended with exit code {code}; its log is {place / 'log.txt'}.", bool(said))

    def _ended(self, key: Key, future: Future[None]) -> None:
        try:
            future.result()
        except CellFailed as error:
            self.failed[key] = error
            self._say(f"{name(key)} failed: {error}")
        else:
            self.done[key] = Cell.load(cell_path(self.out, *key))
            self._say(f"{name(key)} is done after {duration(self._seconds(key))}")

    def _where(self) -> str:
        """What is done, what runs, how long the rest will take."""
        running = [f"{name(key)} {self._progress(key)}" for key in list(self.children)]
        rest = self._remaining()
        parts = [f"{len(self.done)} of {len(self.study.cells)} done", *([f"running: {', '.join(running)}"] if running else [])]
        return "; ".join([*parts, *([f"about {duration(rest)} left"] if rest else [])])

    def _progress(self, key: Key) -> str:
        last = (events(run_directory(self.out, *key)) or [{}])[-1]
        if "total" in last:
            return f"{'evaluates' if last['stage'] == 'evaluate' else 'step'} {last.get('done', 0)}/{last['total']}"
        return "ends" if last.get("state") == "finished" else "begins"

    def _remaining(self) -> float | None:
        """Seconds, from finished cells: those of the same arm where there are some. None before the first is finished."""
        took = {key: self._seconds(key) for key in self.done}
        if not took:
            return None
        left = 0.0
        for key in self.study.cells:
            if key not in self.done and key not in self.failed:
                like = [seconds for other, seconds in took.items() if other[0] == key[0]] or list(took.values())
                left += max(0.0, fmean(like) - self._seconds(key))
        return left / min(self.jobs, max(1, len(self.study.cells) - len(self.done)))

    def _seconds(self, key: Key) -> float:
        return worked(events(run_directory(self.out, *key)))

    def _cells(self) -> list[Cell]:
        return [self.done[key] for key in self.study.cells if key in self.done]

    def _write(self) -> None:
        """The page, the table as JSON and the durations, each whole or not at all."""
        state = {key: "done" if key in self.done else "failed" if key in self.failed else "waits" for key in self.study.cells}
        state |= {key: f"runs, {self._progress(key)}" for key in list(self.children)}
        durations = {name(key): round(self._seconds(key), 1) for key in self.done}
        about = page.About(self.out.resolve().name, self.study.model_dump(mode="json"), state, self._where())
        _replace(self.out / "study.html", page.render_study(about, self._cells()))
        _replace(self.out / "study.json", json.dumps(page.summary(about, self._cells()), indent=2))
        _replace(self.out / DURATIONS, json.dumps({"seconds": durations}, indent=2))

    def _say(self, line: str) -> None:
        self.console.print(f"{time.strftime('%H:%M:%S')}  {line}", soft_wrap=True)


def name(key: Key) -> str:
    return f"{key[0]}, seed {key[1]}"


def events(place: Path) -> list[dict[str, Any]]:
    """What the cell's process has told of itself, over all attempts; a last line that a kill has cut is left out."""
    found = []
    with suppress(OSError):
        for line in (place / "progress.jsonl").read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):
                found.append(json.loads(line))
    return found


def worked(told: list[dict[str, Any]]) -> float:
    """Seconds of work: from the start of each attempt to the last that was heard of it."""
    total, before = 0.0, 0.0
    for event in told:
        if event.get("state") != "started":
            total += event["time"] - before
        before = event["time"]
    return total


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
