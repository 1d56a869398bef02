"""Temporary places that a kill leaves behind go at the next start: each is locked by its process for as long as that lives.

The kernel drops the lock (flock) with the last process that holds it, so neither a process id that was given out again nor a container
with ids of its own misleads.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

YOUNG = 60.0  # seconds: what is so new may be of a process that has not locked it yet
_DIRECTORY, _ROOTS = "marble-scratch-", "marble-roots-"
_OURS = re.compile(rf"{_DIRECTORY}[a-z0-9_]{{8}}|{_ROOTS}[a-z0-9_]{{8}}\.pem")  # as tempfile ends names


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """An empty directory in the place for temporary files (TMPDIR), until the block ends. Takes away those of killed processes."""
    _remove_dead_in(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_DIRECTORY) as path, locked(Path(path)):
        yield Path(path)


def file_of_this_process(text: bytes) -> Path:
    """A file of certificates that this process takes with it when it ends, and keeps where it executes another program in its place.
    Readable to nobody else, lest somebody write another in its place."""
    _remove_dead_in(Path(tempfile.gettempdir()))
    descriptor, name = tempfile.mkstemp(prefix=_ROOTS, suffix=".pem")
    _try_to_lock(descriptor)  # stays open
    os.set_inheritable(descriptor, True)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(text)
    owner, path = os.getpid(), Path(name)
    atexit.register(lambda: path.unlink(missing_ok=True) if os.getpid() == owner else None)
    return path


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Holds the directory for the block; children that get the descriptor hold it too. Where it cannot be locked, nothing is."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _try_to_lock(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def remove_dead(places: Iterable[Path]) -> None:
    """Removes the files and directories that no living process holds. A symbolic link is none, and what cannot be locked stays."""
    for path in places:
        with contextlib.suppress(OSError):  # gone meanwhile, or none of ours
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                _remove(path, descriptor)
            finally:
                os.close(descriptor)


def _remove(path: Path, descriptor: int) -> None:
    found = os.fstat(descriptor)
    if not _try_to_lock(descriptor):
        return
    here = path.lstat()
    if (here.st_dev, here.st_ino) != (found.st_dev, found.st_ino):  # another has removed it, and a third made it anew
        return
    if stat.S_ISDIR(found.st_mode):
        shutil.rmtree(path, ignore_errors=True)
    elif stat.S_ISREG(found.st_mode):
        path.unlink()


def _remove_dead_in(directory: Path) -> None:
    """Of this user alone, for others write there too."""

    def may_go(entry: os.DirEntry[str]) -> bool:
        found = entry.stat(follow_symlinks=False)
        return found.st_uid == os.getuid() and time.time() - found.st_mtime > YOUNG

    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        named = [entry for entry in entries if _OURS.fullmatch(entry.name)]
        remove_dead([Path(entry.path) for entry in named if may_go(entry)])


def _try_to_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
