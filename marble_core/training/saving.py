"""What a training saves, when it looks, and as which of its checkpoints it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from marble_core.algorithm.learner import Learner
from marble_core.runtime import distributed
from marble_core.training.history_parts import HistoryParts
from marble_core.training.state import load_state, save_state
from marble_core.training.watching import Watch
from marble_core.types import MarbleError


class Checkpoints(Protocol):
    def save(self, step: int, write: Callable[[Path], None]) -> Path: ...

    def newest(self) -> str | None: ...

    def fetch(self, name: str) -> Path: ...

    def check(self) -> None: ...

    def flush(self, seconds: float | None = None) -> bool: ...

    def hold(self, steps: Collection[int]) -> None: ...

    def at(self, step: int) -> str | None: ...

    def point_to(self, name: str) -> str: ...


@dataclass
class Saving:
    """A training's checkpoints, which rank 0 alone writes. ``bad`` counts the steps with a fault at its end."""

    learner: Learner
    checkpoints: Checkpoints
    watch: Watch
    parts: HistoryParts
    bad: int = 0
    saved: float = field(default_factory=lambda: time.monotonic())

    def save(self) -> Path | None:
        """The state before the bad steps at its end, which changed nothing: they are tried again when the run goes on."""
        if distributed.rank() > 0:
            return None
        learner, bad = self.learner, self.bad
        state = replace(learner, step=learner.step - bad, history=learner.history[: len(learner.history) - bad])

        def write(directory: Path) -> None:
            save_state(state, directory, self.parts)
            self.watch.save(directory)

        self.saved = time.monotonic()
        self.parts.place = self.checkpoints.save(state.step, write)
        return self.parts.place

    def due(self) -> bool:
        """Whether a checkpoint is: by steps, at the end, and by time, since a pod that is cancelled has none to save."""
        limits, step = self.learner.config.train, self.learner.step
        late = time.monotonic() - self.saved > 60 * limits.checkpoint_minutes
        return late or step % limits.checkpoint_every == 0 or step == limits.steps

    def look(self) -> bool:
        """A look, where one is due. Whether the checkpoint of this step is one that the end may need, and is not there."""
        step = self.learner.step
        if self.bad:
            return False
        if self.watch.due(step):
            self.watch.look(self.learner)
            self.checkpoints.hold(self.watch.needed)
        return step in self.watch.needed and self.checkpoints.at(step) is None

    def end(self) -> None:
        """Make the learner the checkpoint that is the result, and that the newest of the run, where it is not the last."""
        result = self.watch.end(self.learner.step - self.bad)
        if result == self.learner.step - self.bad:
            return

        def found() -> str:
            if (name := self.checkpoints.at(result)) is None:
                raise MarbleError(
                    f"The checkpoint after step {result}, the result of this run by its watch, is gone: start it anew."
                )
            name = self.checkpoints.point_to(name)
            self.checkpoints.flush()
            return name

        name = distributed.on_main(found)
        self.learner.optimizer.state.clear()
        with distributed.local_main_first():
            load_state(self.learner, self.checkpoints.fetch(name), self.parts)
