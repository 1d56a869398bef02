"""The heartbeat of the train stage's pod, which the nodes of its TrainJob listen to: an object in S3.

A pod that Kubernetes kills has no time to delete its TrainJob. So the stage writes the object anew every ``BEAT`` seconds, and each
process of the job ends by itself once it has seen it stand still for ``PATIENCE`` seconds by its own clock: after a checkpoint, and
with exit code 0, so that the job is complete and its GPUs are free. It leaves a mark, by which a container that is started again in
place ends at once. The next attempt of the stage takes the mark away and makes the job anew.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from marble_core.storage.s3 import S3
from marble_core.types import MarbleError

BEAT, PATIENCE = 10.0, 60.0
LOOK = 5.0  # seconds between two looks at the object
LAST_SECONDS = 30.0  # for a process that waits for one which has ended; the first, which saves, has four times as long


@contextmanager
def beating(s3: S3, place: str) -> Iterator[None]:
    """Beats within the block, for the processes whose files lie below ``place``."""
    over = threading.Event()

    def beat() -> None:
        s3.put_json(_key(place), {"time": time.time(), "beat": secrets.token_hex(4)})  # never the same twice

    def beats() -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(MarbleError):  # S3 is away: the processes see nothing then, and wait
                beat()

    beat()

    thread = threading.Thread(target=beats, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def forget_silence(s3: S3, place: str) -> None:
    """Before a job is made anew: its processes are to train."""
    s3.clear(_mark(place))


class Listener:
    """``silent`` is set once nobody watches any more."""

    def __init__(self, s3: S3, place: str) -> None:
        self._s3, self._place, self.silent = s3, place, threading.Event()

    def ended_before(self) -> bool:
        """Whether another process has ended already because nobody watches."""
        return bool(self._s3.get_json(_mark(self._place)))

    def listen(self, first: bool) -> None:
        """From now on SIGTERM comes to this process when nobody watches, and its end if it does not heed that. ``first`` saves."""
        threading.Thread(target=self._listen, args=(first,), name="listener", daemon=True).start()

    def _listen(self, first: bool) -> None:
        seen, since = self._look(), time.monotonic()
        while time.monotonic() - since < PATIENCE:
            time.sleep(LOOK)
            try:
                now = self._look()
            except MarbleError:  # S3 is away, for the watcher too: what it could not write is no silence
                since = time.monotonic()
                continue
            if now != seen:
                seen, since = now, time.monotonic()
        self.silent.set()
        with contextlib.suppress(MarbleError):
            self._s3.put_json(_mark(self._place), {"time": time.time()})
        print("Nobody watches this training any more: it saves a checkpoint and ends.", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(4 * LAST_SECONDS if first else LAST_SECONDS)
        os._exit(0)  # it waits for a process that has ended

    def _look(self) -> str:
        found = self._s3.get(_key(self._place))
        return found[1] if found else ""


def _key(place: str) -> str:
    return f"{place}/heartbeat.json"


def _mark(place: str) -> str:
    return f"{place}/unwatched.json"
