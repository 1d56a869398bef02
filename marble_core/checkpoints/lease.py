"""Who works on a run, and which of its checkpoints is the newest: the object ``latest``, moved by one process at a time.

Each write says which version of the object it replaces (If-Match), so the one who was overtaken is refused and stops; it
may have uploaded files, but under names of its own, and ``latest`` never names them. The owner renews the object every
``BEAT`` seconds; another process takes it over only when it has watched it stand still for ``PATIENCE`` seconds by its own
clock, or holds the lock of the very directory that the owner worked in, and so knows it dead.

A paused owner may wake at any time, and S3 knows no delete that depends on another object. So what is to be deleted is first
named in the object, under ``going``, by such a write: who takes the run over reads there what may vanish under its hands, and
neither goes on from it nor writes it again. What no conditional write can fence, MLflow's metrics, asks ``confirm`` before.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Collection
from typing import Any

from marble_core.checkpoints.manifest import is_name
from marble_core.storage.s3 import S3
from marble_core.types import MarbleError

BEAT, PATIENCE = 5.0, 20.0


class Taken(MarbleError):
    """Another process works on the run."""


class Lease:
    """``place`` names the directory that this process holds the lock of. ``latest`` is the newest complete checkpoint."""

    def __init__(self, s3: S3, key: str, run_id: str, place: str, beat: float = BEAT, patience: float = PATIENCE) -> None:
        self._s3, self._key, self._run_id = s3, key, run_id
        self._beat, self._patience = beat, patience
        self._me = {"owner": secrets.token_hex(8), "place": place, "who": f"process {os.getpid()} on {socket.gethostname()}"}
        self._state: dict[str, Any] = {}
        self._etag: str | None = None
        self._one_at_a_time = threading.Lock()
        self._released = threading.Event()
        self._written = 0.0  # by the monotonic clock, which goes on while a process is stopped
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self.lost: Taken | None = None

    @property
    def latest(self) -> str | None:
        return self._state.get("checkpoint")

    @property
    def going(self) -> frozenset[str]:
        """Checkpoints that this owner, or one before it, has begun to delete."""
        named = self._state.get("going")
        return frozenset(name for name in named if isinstance(name, str)) if isinstance(named, list) else frozenset()

    def claim(self) -> None:
        """Makes this process the owner. Raises Taken where another one is alive."""
        self._look()
        if self._state.get("owner") and self._state.get("place") != self._me["place"]:
            self._watch()
        self._state |= {**self._me, "beat": 0}
        self._etag = self._s3.swap(self._key, _dump(self._state), self._etag)
        if self._etag is None:
            self._look()
            if self._state.get("owner") != self._me["owner"]:  # else an answer was lost, and boto3 has asked twice
                raise self._taken()
        self._written = time.monotonic()
        self._thread.start()

    def point_to(self, name: str) -> None:
        """``name``, whose manifest is up, is the newest checkpoint from now on. Raises Taken where this is not the owner."""
        self._write(checkpoint=name)

    def give_up(self, names: Collection[str], there: Collection[str]) -> list[str]:
        """Names those that may be deleted from now on, and returns them; of earlier ones those that are still ``there`` stay
        named. Never the newest. Raises Taken where this is not the owner."""
        mine = sorted(set(names) - {self.latest})
        self._write(going=sorted({*mine, *(self.going & set(there))}))
        return mine

    def confirm(self) -> None:
        """Returns where this is the owner by a write of the last beats, made now if need be. Raises Taken where it is not,
        MarbleError where S3 cannot be asked."""
        if self.lost:
            raise self.lost
        if time.monotonic() - self._written > 2 * self._beat:
            self._write(confirmed=secrets.token_hex(4))

    def release(self, seconds: float = 3.0) -> None:
        """Lets the next process begin at once. Waits no longer than this for S3."""
        self._released.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _renew(self) -> None:
        beats = itertools.count(1)  # each write makes another object, so that it has another ETag
        while not self._released.wait(self._beat):
            with contextlib.suppress(MarbleError):  # S3 is away; or Taken, which ``lost`` keeps
                self._write(beat=next(beats))
        with contextlib.suppress(MarbleError):
            self._write(owner=None)

    def _write(self, **changes: Any) -> None:
        with self._one_at_a_time:
            if self.lost:
                raise self.lost
            asked = time.monotonic()
            wanted = self._state | changes
            etag = self._s3.swap(self._key, _dump(wanted), self._etag)
            if etag is None:
                self._look()
                if self._state and self._state.get("owner") != self._me["owner"]:
                    self.lost = self._taken()
                    raise self.lost
                # Our own write, whose answer was lost; or somebody removed the object.
                etag = self._s3.swap(self._key, _dump(wanted), self._etag)
                if etag is None:
                    raise MarbleError(f"The object {self._s3.uri(self._key)} changes under our hands.")
            self._state, self._etag, self._written = wanted, etag, asked

    def _look(self) -> None:
        found = self._s3.get(self._key)
        self._state, self._etag = ({}, None) if found is None else (_parse(found[0]), found[1])

    def _watch(self) -> None:
        """Returns when the owner has released the run or has not moved for ``patience`` seconds; raises Taken when it moves."""
        seen, deadline = self._etag, time.monotonic() + self._patience
        while time.monotonic() < deadline:
            time.sleep(self._beat / 5)
            self._look()
            if self._state.get("owner") is None:
                return
            if self._etag != seen:
                raise self._taken()

    def _taken(self) -> Taken:
        return Taken(
            f"The run {self._run_id} is being worked on by {self._state.get('who', 'another process')}: "
            "wait until that has ended, or start one with another run id."
        )


def latest_of(s3: S3, key: str) -> str | None:
    """What the object names now, for those who only read."""
    found = s3.get(key)
    name = _parse(found[0]).get("checkpoint") if found else None
    return name if isinstance(name, str) and is_name(name) else None


def _dump(state: dict[str, Any]) -> bytes:
    return json.dumps(state, indent=2, sort_keys=True).encode()


def _parse(body: bytes) -> dict[str, Any]:
    """An object that somebody broke owns nothing and names nothing."""
    try:
        state = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}
