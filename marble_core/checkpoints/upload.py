"""One thread that brings checkpoints to S3, the newest first: what was overtaken while S3 was slow or away is left out."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from marble_core.checkpoints.lease import Taken
from marble_core.storage.s3_errors import Refused
from marble_core.types import MarbleError, Outage

LONGEST_PAUSE = 15.0  # seconds between attempts, each of which has boto3's own retries within it
_log = logging.getLogger(__name__)


class Away(Outage):
    """S3 has taken nothing for longer than the configured limit."""


class Uploader:
    """``send`` uploads one directory. It is a daemon: a server that has gone silent does not keep this process alive."""

    def __init__(self, send: Callable[[Path], None], limit_s: float) -> None:
        self._send, self._limit_s = send, limit_s
        self._changed = threading.Condition()
        self._waiting: Path | None = None
        self._sending: Path | None = None
        self._failing_since: float | None = None
        self._stopped = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._thread.start()

    def submit(self, directory: Path) -> None:
        with self._changed:
            self._waiting = directory
            self._changed.notify_all()

    def wait(self, seconds: float, *, only_if_it_moves: bool = False) -> bool:
        """Whether all is up, after at most this long; ``only_if_it_moves`` does not wait for an S3 that is failing."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle() or (only_if_it_moves and self._failing_since is not None), seconds)
            return self._waiting is None

    @property
    def holds(self) -> set[str]:
        """The names of the directories that are still needed."""
        return {directory.name for directory in (self._waiting, self._sending) if directory}

    def check(self) -> None:
        """Raises what ended the thread (Taken, or what S3 refuses for good), or Away."""
        if self._error and not isinstance(self._error, MarbleError):
            raise self._error
        if isinstance(self._error, Taken | Refused):
            raise self._error
        since = self._failing_since
        if since is not None and time.monotonic() - since > self._limit_s:
            raise Away(f"S3 has taken no checkpoint for {(time.monotonic() - since) / 60:.1f} minutes ({self._error})")

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _idle(self) -> bool:
        return self._waiting is None or self._stopped or not self._thread.is_alive()

    def _run(self) -> None:
        pause = 0.5
        while (directory := self._next()) is not None:
            try:
                self._send(directory)
            except MarbleError as error:
                self._failed(error)
                if isinstance(error, Taken | Refused):
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE)
            except Exception as error:  # noqa: BLE001 - a bug: check() raises it where the training sees it
                self._failed(error)
                return
            else:
                pause = 0.5
                self._succeeded(directory)

    def _next(self) -> Path | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._stopped)
            self._sending = None if self._stopped else self._waiting
            return self._sending

    def _failed(self, error: Exception) -> None:
        _log.warning("The checkpoint was not uploaded: %s", error)
        with self._changed:
            self._error = error
            self._failing_since = self._failing_since or time.monotonic()
            self._changed.notify_all()

    def _succeeded(self, directory: Path) -> None:
        with self._changed:
            self._error = self._failing_since = None
            if self._waiting == directory:  # else a newer one has come meanwhile
                self._waiting = None
            self._changed.notify_all()
