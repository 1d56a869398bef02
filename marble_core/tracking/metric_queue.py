"""Batches of metrics on their way to MLflow: kept in order, sent by one thread, none lost and none twice."""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from marble_core.runtime.housekeeping import reason_of

LONGEST_PAUSE = 10.0  # seconds between attempts
MOST = 1000  # metrics in a request, MLflow's limit
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """What belongs to one step; ``time_ms`` since the epoch. Its first metric stands for all of it."""

    metrics: Mapping[str, float]
    step: int
    time_ms: int

    @property
    def mark(self) -> tuple[str, int, float]:
        name, value = next(iter(self.metrics.items()))
        return name, self.step, value


class MetricQueue:
    """``put`` never waits. ``send`` posts batches in one request; ``known`` says which (step, value) of a metric MLflow has.

    What MLflow has already is not sent: a step that is made again after a kill has the same metrics but for its times, and
    MLflow would keep both.
    """

    def __init__(self, send: Callable[[list[Batch]], None], known: Callable[[str], set[tuple[int, float]]]) -> None:
        self._send, self._ask = send, known
        self.fence: Callable[[], None] = lambda: None  # asked before each request; what it raises keeps the batches waiting
        self._known: dict[str, set[tuple[int, float]]] = {}
        self._waiting: deque[Batch] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.failures = 0
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def put(self, batch: Batch) -> None:
        with self._changed:
            self._waiting.append(batch)
            self._changed.notify_all()

    def flush(self, seconds: float) -> int:
        """Waits until all is sent, but no longer than this. Returns how many batches are left."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, seconds)
            return len(self._waiting)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        pause = 0.5
        while batches := self._next():
            try:
                if new := [batch for batch in batches if not self._is_known(batch)]:
                    self.fence()
                    self._send(new)
            except Exception as error:  # noqa: BLE001 - whatever a server that is away makes of it must not end a training
                self.failures += 1
                self._known.clear()  # it may have arrived all the same
                _log.warning("MLflow did not take the metrics: %s", reason_of(error))
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = 0.5
            with self._changed:
                for _ in batches:
                    self._waiting.popleft()
                self._changed.notify_all()

    def _next(self) -> list[Batch]:
        """As many of the oldest as one request takes; waits for the first. Empty when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batches: list[Batch] = []
            for batch in self._waiting if not self._closed else ():
                if batches and sum(len(b.metrics) for b in batches) + len(batch.metrics) > MOST:
                    break
                batches.append(batch)
            return batches

    def _is_known(self, batch: Batch) -> bool:
        name, step, value = batch.mark
        if name not in self._known:
            self._known[name] = self._ask(name)
        return (step, value) in self._known[name]
