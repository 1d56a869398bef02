"""A stage's own parent: the work is a child process, and is started again when something ended it that may pass.

Kubeflow tries nothing again that ends with an error (docs/cluster.md), so the stage looks after itself within its pod: a crash, a
signal, a lost connection. Not after a refusal, which nothing but the user can mend, and not where attempt after attempt gets no
further. The work itself must go on from what it has saved.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from marble_core.runtime.child_process import signal_name
from marble_core.runtime.environment import AGAIN, ATTEMPT, FAILURE, GPUS_SINCE
from marble_core.runtime.housekeeping import reason_of
from marble_core.runtime.out_of_memory import kills, said
from marble_core.runtime.scratch import scratch_directory
from marble_core.types import MarbleError, Outage

FRUITLESS = 3  # attempts in a row that end for the same reason and get no further


@dataclass(frozen=True)
class Again:
    """How often a stage's work is started again, and after which wait: ``seconds``, times ``factor`` each time, at most ``longest``."""

    retries: int
    seconds: float = 30.0
    factor: float = 2.0
    longest: float = 600.0

    @classmethod
    def wanted(cls) -> Again | None:
        """What the pipeline file says; None where it says nothing, and inside of the work itself."""
        said = os.environ.get(AGAIN)
        wanted = cls(**json.loads(said)) if said else None
        return wanted if wanted and wanted.retries else None

    def pause(self, attempt: int) -> float:
        return min(self.seconds * self.factor ** (attempt - 1), self.longest)


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended, and whether another may end otherwise."""

    reason: str
    again: bool


def keep_at_it(stage: str, arguments: Sequence[str], wanted: Again, reached: Callable[[], str]) -> None:
    """Run ``python -m marble_core.stage_process STAGE ARGUMENTS`` until it succeeds. ``reached`` names how far the work has got.

    SIGTERM goes to the work, which saves, and ends this process. Raises MarbleError with the sentence of a refusal, or where
    the attempts are spent.
    """
    running = _Running()
    before = signal.signal(signal.SIGTERM, running.end)
    try:
        seen: list[tuple[Failure, str]] = []
        since = time.time()
        while (failure := _attempt(stage, arguments, seen, running, since)) is not None:
            since = time.time()  # the pod holds its GPUs in the pause too
            if running.told_to_end.is_set():
                sys.exit(128 + signal.SIGTERM)
            seen.append((failure, reached()))
            _give_up(stage, wanted, seen)
            pause = wanted.pause(len(seen))
            print(f"{stage}: {failure.reason} Attempt {len(seen) + 1} of {wanted.retries + 1} in {pause:.0f} s.", flush=True)
            if running.told_to_end.wait(pause):
                sys.exit(128 + signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


class _Running:
    """The work's process, and whether SIGTERM has come."""

    def __init__(self) -> None:
        self.told_to_end = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def end(self, *_: object) -> None:
        self.told_to_end.set()
        if self._process:
            self._process.terminate()

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        self._process = subprocess.Popen(command, env=environment)
        if self.told_to_end.is_set():  # while it was being started
            self._process.terminate()
        return self._process.wait()


def _attempt(
    stage: str, arguments: Sequence[str], seen: list[tuple[Failure, str]], running: _Running, since: float
) -> Failure | None:
    """None where it succeeded."""
    with scratch_directory() as scratch:
        file = scratch / "failure.json"
        environment = {**os.environ, AGAIN: "", FAILURE: str(file), GPUS_SINCE: str(since)}
        if seen:
            environment[ATTEMPT] = f"{len(seen) + 1}: {seen[-1][0].reason}"
        command = [sys.executable, "-m", "marble_core.stage_process", stage, *arguments]
        killed, code = kills(), running.run(command, environment)
        if code == 0:
            return None
        if code < 0:
            return Failure(" ".join(filter(None, [f"The work was ended by {signal_name(code)}.", said(killed)])), again=True)
        if file.exists():
            return Failure(**json.loads(file.read_bytes()))
        return Failure(f"The work ended with exit code {code}.", again=True)


def _give_up(stage: str, wanted: Again, seen: list[tuple[Failure, str]]) -> None:
    """Raises where another attempt is not worth it."""
    failure, _ = seen[-1]
    if not failure.again:
        raise MarbleError(failure.reason)
    last = seen[-FRUITLESS:]
    if len(last) == FRUITLESS and len(set(last)) == 1:
        raise MarbleError(f"{failure.reason} It did so {FRUITLESS} times and got no further: the log above says where.")
    if len(seen) > wanted.retries:
        raise MarbleError(f"{failure.reason} {stage} was tried {len(seen)} times: the log above says why; --run-id goes on.")


def record_failure(error: Exception) -> None:
    """In the work, for the parent: an exception that ends it."""
    if file := os.environ.get(FAILURE):
        refused = isinstance(error, MarbleError) and not isinstance(error, Outage)
        said = str(error) if isinstance(error, MarbleError) else f"{type(error).__name__}: {reason_of(error)}"
        Path(file).write_text(json.dumps({"reason": said, "again": not refused}), encoding="utf-8")
