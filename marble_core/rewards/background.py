"""Calls in threads that end with the process. No torch.

A scorer may hang, in C code too. The threads of concurrent.futures would then keep the process from ending, for it waits for
them at its exit; these it does not wait for.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Call(Generic[T]):
    """``function(*arguments)``, begun at once, on the caller's GPU."""

    def __init__(self, function: Callable[..., T], *arguments: Any) -> None:
        self._began = time.monotonic()
        self._gpu = _current_gpu()
        self._returned: list[T] = []
        self._raised: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function, arguments), daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> None:
        """Until it has ended, however."""
        self._thread.join()

    def result(self, seconds: float | None = None) -> T:
        """What it returned, or raised. Raises TimeoutError where it has not ended that many seconds after its beginning."""
        self._thread.join(None if seconds is None else max(0.0, self._began + seconds - time.monotonic()))
        if self._raised is not None:
            raise self._raised
        if not self._returned:
            raise TimeoutError
        return self._returned[0]

    def _run(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> None:
        try:
            if self._gpu is not None:
                sys.modules["torch"].cuda.set_device(self._gpu)  # a new thread's is the first
            self._returned.append(function(*arguments))
        except BaseException as error:  # noqa: BLE001 - the caller is the one to raise it
            self._raised = error


def _current_gpu() -> int | None:
    torch = sys.modules.get("torch")
    return torch.cuda.current_device() if torch is not None and torch.cuda.is_initialized() else None
