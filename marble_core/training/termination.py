"""A clean end on SIGTERM: never in the middle of an update of the weights, nor of a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from marble_core.algorithm.learner import Learner


class Terminated(Exception):
    """SIGTERM arrived: the unfinished step is dropped and the state after the last finished one is saved."""


class Termination:
    """SIGTERM drops the unfinished step at once, but never in the middle of an update of the weights, nor of a checkpoint."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.asked, self.waits = learner, False, False

    def __call__(self, signum: int, frame: object) -> None:
        again, self.asked = self.asked, True
        if not (self.learner.updating or self.waits or again):  # a second signal must not break off the saving
            raise Terminated

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Until the end of the block, where the step is complete and being reported and saved."""
        self.waits = True
        yield
        self.waits = False
        self.check()

    def check(self) -> None:
        if self.asked:
            raise Terminated


@contextmanager
def terminable(learner: Learner) -> Iterator[Termination]:
    termination = Termination(learner)
    before = signal.signal(signal.SIGTERM, termination)
    try:
        yield termination
    finally:
        signal.signal(signal.SIGTERM, before)
