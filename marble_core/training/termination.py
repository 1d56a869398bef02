"""A clean end on SIGTERM: never in the middle of an update of the weights, nor of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from marble_core.algorithm.learner import Learner
from marble_core.runtime.sigterm import Terminated, sigterm_raises


class Termination:
    """SIGTERM drops the unfinished step at once, but never in the middle of an update of the weights, nor of a checkpoint."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.asked, self.waits = learner, False, False

    def may(self) -> bool:
        """Called when the signal has come: whether the step may end here."""
        self.asked = True
        return not (self.learner.updating or self.waits)

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
    with sigterm_raises(termination.may):
        yield termination
