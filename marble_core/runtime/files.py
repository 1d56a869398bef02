"""What a machine refuses: a full disk, a read-only directory, a name that is taken. The user can mend it, so it is a sentence."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marble_core.types import MarbleError

_REMEDIES = {
    errno.ENOSPC: "free some space, or work in another place",
    errno.EDQUOT: "free some space, or work in another place",
    errno.EROFS: "work in a place that can be written",
    errno.EACCES: "work in a place that can be written",
    errno.EPERM: "work in a place that can be written",
    errno.ENOTDIR: "a file is in the way, so move it",
    errno.EEXIST: "a file is in the way, so move it",
    errno.EISDIR: "a directory is in the way, so move it",
    errno.ENAMETOOLONG: "use a shorter name",
}

SMALLEST = 16_000_000  # bytes: two parts of an upload to S3


def disk_error(error: Exception) -> MarbleError | None:
    """The MarbleError that this error amounts to, with the file where it names one; None where it is no refusal of the machine.

    safetensors hides the system's error in the text of its own.
    """
    if isinstance(error, OSError):
        number, where, said = error.errno, error.filename, error.strerror
    elif type(error).__name__ == "SafetensorError" and (found := re.search(r"(?P<said>[\w ]+) \(os error (\d+)\)", str(error))):
        number, where, said = int(found[2]), None, found["said"].strip()
    else:
        return None
    remedy = _REMEDIES.get(number or 0)
    return MarbleError(f"{where or 'A file'} cannot be written: {said}; {remedy}.") if remedy else None


def full_disk(directory: str | Path | None) -> MarbleError | None:
    """One sentence where the disk of the directory is so full that no server writes there; None where there is room, or nothing there.

    SeaweedFS writes nothing where less than 1 % of the disk is free, counting what is reserved for root.
    """
    try:
        disk = os.statvfs(directory or "")
    except OSError:
        return None
    free = disk.f_bavail * disk.f_frsize
    if disk.f_bfree >= disk.f_blocks // 100 and free >= SMALLEST:
        return None
    return MarbleError(
        f"The disk of {directory} is full: {free / 1e6:.0f} MB of {disk.f_blocks * disk.f_frsize / 1e9:.1f} GB are free, and a "
        "server needs 1 %. Free some space, or work in another directory."
    )


def require_free(directory: Path, needed: int) -> None:
    """Raises MarbleError where less than ``needed`` bytes are free on the disk of the directory."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise MarbleError(
            f"The disk of {directory.resolve()} has {free / 1e6:.0f} MB free, and {needed / 1e6:.0f} MB are needed: free some space, "
            "or work in another directory."
        )


def replace_text(path: Path, text: str) -> None:
    """Write the file so that whoever reads it, even after a kill, finds either what it held before or all of ``text``."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


@contextmanager
def atomic_directory(directory: Path) -> Iterator[None]:
    """Nothing half written stays: an error in the block takes with it what the block has put there.

    A full disk's error, which says no file, gets the directory's name.
    """
    before = set(directory.iterdir()) if directory.is_dir() else None
    try:
        yield
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(directory)
        if before is None:
            shutil.rmtree(directory, ignore_errors=True)
        elif directory.is_dir():
            for path in set(directory.iterdir()) - before:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        raise
