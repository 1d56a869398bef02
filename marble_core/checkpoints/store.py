"""The checkpoints of one run, on the disk first and then on S3."""

from __future__ import annotations

import fcntl
import logging
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from marble_core.checkpoints.lease import BEAT, PATIENCE, Lease, Taken
from marble_core.checkpoints.manifest import MANIFEST, Broken, is_name, name_of, seal, step_of, verify
from marble_core.checkpoints.retention import superfluous
from marble_core.checkpoints.run_checkpoints import RunCheckpoints
from marble_core.checkpoints.upload import Uploader
from marble_core.config.schema import StorageConfig
from marble_core.runtime.housekeeping import housekeeping
from marble_core.runtime.scratch import scratch_directory
from marble_core.storage.s3 import S3
from marble_core.types import MarbleError

HOLD_UP = 5.0  # seconds that a checkpoint waits for the upload of the one before
_log = logging.getLogger(__name__)


class CheckpointStore:
    """``local/step-000010-3fa9c1d2/`` and the same name below ``s3://BUCKET/runs/RUN_ID/checkpoints/``.

    Within ``owned()`` this process alone writes and uploads them. ``broken`` names, in words, those that ``newest`` skipped.
    """

    def __init__(self, local: Path, s3: S3 | None, run_id: str, config: StorageConfig | None = None) -> None:
        self.local, self.run_id = local, run_id
        self.config = config or StorageConfig()
        self.remote = RunCheckpoints(s3, run_id) if s3 else None
        self.broken: list[str] = []
        self._writer = secrets.token_hex(4)
        self._lease: Lease | None = None
        self._uploader: Uploader | None = None
        self._resumed: str | None = None
        self._held: frozenset[int] = frozenset()
        try:
            local.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MarbleError(
                f"The directory {local} for checkpoints cannot be made: {error.strerror}; name another with storage.local."
            ) from None

    @contextmanager
    def owned(self, beat: float = BEAT, patience: float = PATIENCE) -> Iterator[None]:
        """Raises Taken where another process works on the run; ``beat`` and ``patience`` in seconds, see lease.py."""
        with _locked(self.local, self.run_id) as place:
            for leftover in self.local.glob(".draft-*"):
                shutil.rmtree(leftover)
            if self.remote is None:
                yield
                return
            self._lease = Lease(self.remote.s3, self.remote.latest_key, self.run_id, place, beat, patience)
            self._lease.claim()
            self._uploader = Uploader(self._upload, 60 * self.config.max_unsaved_minutes)
            try:
                yield
            finally:
                self._uploader.stop()
                self._lease.release()
                self._uploader = self._lease = None

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Lets ``write`` fill an empty directory, makes it the local checkpoint of this step, and has it uploaded.

        It waits for the upload of the one before only while that goes on, and never longer than ``HOLD_UP`` seconds.
        """
        name = name_of(step, self._writer)
        if not (self.local / name).exists():  # a process makes the same state of a step again
            with self._draft() as draft:
                write(draft)
                seal(draft, self.run_id, name)
                self._put_in_place(draft, name)
            if self._uploader:
                self._uploader.wait(HOLD_UP, only_if_it_moves=True)
                self._uploader.submit(self.local / name)
        prune = partial(self._prune_local, self.config.keep_last, self.config.keep_every)
        housekeeping(f"removing old checkpoints from {self.local}", prune)
        return self.local / name

    def newest(self) -> str | None:
        """The name of the newest whole checkpoint, which lies in ``local`` then; None if there is none.

        Every hash is verified. What is broken is skipped, and named in the log and in ``broken``.
        """
        here, there = {p.name for p in self.local.iterdir() if is_name(p.name)}, self.complete()[1]
        if self.remote and (latest := self.remote.latest()):
            if latest not in here | there:
                self._skip(f"{self.remote.uri(latest)}: {MANIFEST} is not there")
            # What lies beyond it was finished by a process that had lost the run.
            there = {name for name in there if step_of(name) <= step_of(latest)}
        there -= self._going()
        for name in sorted(here | there, key=lambda name: (step_of(name), name in there, name), reverse=True):
            if (name in here and self._is_whole(name)) or (name in there and self._download(name)):
                self._resumed = name
                if self._uploader and name not in there:  # killed between the disk and S3
                    name = self._resumed = self._under_own_name(name) if name in self._going() else name
                    self._uploader.submit(self.local / name)
                    self._uploader.wait(60.0, only_if_it_moves=True)  # another machine's processes may need it
                return name
        return None

    def complete(self) -> tuple[set[str], set[str]]:
        """The names of those that have a manifest, here and on S3."""
        here = {p.name for p in self.local.iterdir() if is_name(p.name) and (p / MANIFEST).exists()}
        return here, set(self.remote.names()[0]) if self.remote else set()

    def verify_all(self) -> Iterator[tuple[str, str]]:
        """Where each checkpoint lies, and what is wrong with it in words, empty if it is whole. Everything is read."""
        here, there = self.complete()
        for name in sorted(here):
            yield str(self.local / name), _problem(partial(verify, self.local / name, self.run_id, name))
        for name in sorted(there):
            assert self.remote is not None
            with scratch_directory() as copy:
                yield self.remote.uri(name), _problem(partial(self.remote.download, name, copy))

    def fetch(self, name: str) -> Path:
        """The directory of a checkpoint that rank 0 has found, on this machine. Raises MarbleError if it cannot be had whole."""
        if not ((self.local / name / MANIFEST).exists() and self._is_whole(name)) and not (
            self.remote and self._download(name)
        ):
            raise MarbleError(f"The checkpoint {name} of the run {self.run_id} cannot be read here: {'; '.join(self.broken)}.")
        return self.local / name

    def confirm(self) -> None:
        """Raises Taken if another process has taken the run over, MarbleError where S3 cannot say so now; see lease.py."""
        if self._lease:
            self._lease.confirm()

    def check(self) -> None:
        """Raises Taken if another process has taken the run over, and Away if S3 has failed for max_unsaved_minutes."""
        if self._lease and self._lease.lost:
            raise self._lease.lost
        if self._uploader:
            self._uploader.check()

    def flush(self, seconds: float | None = None) -> bool:
        """Waits until the newest checkpoint is on S3, but no longer than this (None: as long as S3 may be away)."""
        if self._uploader is None:
            return True
        while not self._uploader.wait(1.0 if seconds is None else seconds):
            if seconds is not None:
                return False
            self.check()
        return True

    def hold(self, steps: Collection[int]) -> None:
        """From now on retention keeps the checkpoints of these steps too."""
        self._held = frozenset(steps)

    def at(self, step: int) -> str | None:
        """The name of a complete checkpoint of this step, here or on S3; None if there is none."""
        here, there = self.complete()
        return max(
            (name for name in here | (there - self._going()) if step_of(name) == step),
            key=lambda n: (n in here, n),
            default=None,
        )

    def point_to(self, name: str) -> str:
        """Make a checkpoint that is not the last the newest on S3, which whoever begins from the run goes on from. Returns its name."""
        self.fetch(name)
        if self._uploader:
            name = self._under_own_name(name) if name in self._going() else name
            self._uploader.submit(self.local / name)
        return name

    def prune(self, last: int, every: int) -> list[str]:
        """Removes what retention does not keep, here and on S3; returns the names. Needs ``owned()``."""
        gone = self._prune_local(last, every, self.remote.best_step() if self.remote else None)
        return sorted({*gone, *self._prune_remote(last, every)})

    def _upload(self, directory: Path) -> None:
        assert self.remote is not None and self._lease is not None
        self.remote.upload(directory)
        self._lease.point_to(directory.name)
        self._resumed = None
        prune = partial(self._prune_remote, self.config.keep_last, self.config.keep_every)
        housekeeping(f"removing old checkpoints from {self.remote.uri('')}", prune, Taken)

    def _prune_local(self, last: int, every: int, best: int | None = None) -> list[str]:
        """The best is on S3, where later stages look for it; what is being uploaded stays."""
        names = [p.name for p in self.local.iterdir() if is_name(p.name)]
        gone = superfluous(names, last, every, best, self._in_use(names))
        for name in gone:
            (self.local / name / MANIFEST).unlink(missing_ok=True)  # first: from then on it is no checkpoint
            shutil.rmtree(self.local / name)
        return gone

    def _prune_remote(self, last: int, every: int) -> list[str]:
        """Unfinished uploads too: whoever owns the run knows that they are nobody's. Nothing goes that the lease has not named."""
        if self.remote is None or self._lease is None:
            return []
        complete, unfinished = self.remote.names()
        gone = superfluous(complete, last, every, self.remote.best_step(), self._in_use(complete))
        gone += [name for name in unfinished if name not in self._in_use(())]
        gone = self._lease.give_up(gone, {*complete, *unfinished}) if gone else []
        for name in gone:
            self.remote.delete(name)
        return [name for name in gone if name in complete]

    def _going(self) -> frozenset[str]:
        return self._lease.going if self._lease else frozenset()

    def _under_own_name(self, name: str) -> str:
        """A copy of a checkpoint of the disk, for S3, where its name may be deleted by a process that sleeps."""
        own = name_of(step_of(name), self._writer)
        with self._draft() as draft:
            shutil.copytree(self.local / name, draft, dirs_exist_ok=True)
            (draft / MANIFEST).unlink()
            seal(draft, self.run_id, own)
            self._put_in_place(draft, own)
        return own

    def _in_use(self, among: Collection[str]) -> set[str]:
        names = {self._resumed, self._lease.latest if self._lease else None}
        names |= {name for name in among if step_of(name) in self._held}
        return {name for name in names if name} | (self._uploader.holds if self._uploader else set())

    def _is_whole(self, name: str) -> bool:
        try:
            verify(self.local / name, self.run_id, name)
        except Broken as error:
            return self._skip(f"{self.local / name}: {error}")
        return True

    def _download(self, name: str) -> bool:
        assert self.remote is not None
        with self._draft() as draft:
            try:
                self.remote.download(name, draft)
            except Broken as error:
                return self._skip(f"{self.remote.uri(name)}: {error}")
            self._put_in_place(draft, name)
        return True

    def _skip(self, what: str) -> bool:
        self.broken.append(what)
        _log.warning("Skipping a broken checkpoint, %s", what)
        return False

    @contextmanager
    def _draft(self) -> Iterator[Path]:
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=self.local))
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _put_in_place(self, draft: Path, name: str) -> None:
        target = self.local / name
        if target.exists():  # broken
            target.rename(self.local / f".draft-broken-{name}")
            shutil.rmtree(self.local / f".draft-broken-{name}")
        draft.rename(target)


def _problem(check: Callable[[], None]) -> str:
    try:
        check()
    except Broken as error:
        return str(error)
    return ""


@contextmanager
def _locked(local: Path, run_id: str) -> Iterator[str]:
    """Holds the directory's lock, which the system lets go of when this process ends, however it ends. Yields its name.

    Whoever holds it knows that a process which worked in the same directory before is gone. On a file system without locks
    every process has a name of its own, and the lease alone tells.
    """
    with (local / ".lock").open("a+", encoding="utf-8") as file:
        place = secrets.token_hex(8)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Taken(
                f"The run {run_id} is being worked on by another process in {local}: "
                "wait until that has ended, or start one with another run id."
            ) from None
        except OSError as error:
            _log.warning("%s has no locks (%s)", local, error.strerror)
        else:
            file.seek(0)
            place = file.read() or place
            file.truncate(0)
            file.write(place)
            file.flush()
        yield place
