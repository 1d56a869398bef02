"""Looks at the registry's alias every so often, in a thread, and goes on after whatever it answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

from marble_core.serving.served import Served
from marble_core.types import MarbleError


class Follower:
    """A context manager: while it is open, ``served`` follows the alias. ``trouble`` is the last look's failure, empty after a good one."""

    def __init__(self, served: Served, every: float, say: Callable[[str], None]) -> None:
        self.served, self.every, self.say, self.trouble = served, every, say, ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def look(self) -> None:
        """Once. What goes wrong is said once, not at each look, and never ends the serving."""
        try:
            changed = self.served.follow()
        except MarbleError as error:
            if str(error) != self.trouble:
                self.say(str(error))
            self.trouble = str(error)
            return
        self.trouble = ""
        if changed:
            version = self.served.version
            self.say(
                f"Version {version} is served as the champion." if version else "There is no champion: the base is served."
            )

    def _run(self) -> None:
        while not self._end.wait(self.every):
            self.look()

    def __enter__(self) -> Self:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
