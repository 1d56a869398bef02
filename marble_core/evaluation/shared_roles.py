"""Roles that no training changes, such as the base: sampled and scored once, and read again by each evaluation that would do the same.

A role lies in a directory that is named by the digest of all that it depends on: ``scores.json``, and its images beside it. It
appears whole or not at all, and of two processes that want it at once the second waits for the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marble_core.types import RewardTable

_SCORES = "scores.json"


@dataclass(frozen=True)
class Sampled:
    """What one role was found to be: its rewards by prompt, and the mean pairwise distances (M,) that diversity rests on."""

    table: RewardTable
    distances_M: np.ndarray


class SharedRoles:
    """The roles that lie below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def get(self, role: str, depends_on: Mapping[str, Any], images: Path, sample: Callable[[], Sampled]) -> Sampled:
        """The role as it was sampled before with equal ``depends_on``, to the bit, with its images linked into ``images``.

        Where it was not, ``sample`` finds it and writes images as ``images/ROLE-*.png``; what lacks values is not kept. ``depends_on``
        must be ready for JSON.
        """
        stated = json.dumps(depends_on, sort_keys=True)
        place = self.directory / f"{role}-{hashlib.sha256(stated.encode()).hexdigest()[:16]}"
        self.directory.mkdir(parents=True, exist_ok=True)
        with _locked(place.with_suffix(".lock")):
            if (place / _SCORES).is_file():
                _link(place, images, role)
                return _read(place / _SCORES)
            found = sample()
            if found.table.missing:  # the next evaluation may have them
                return found
            draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=self.directory))
            _link(images, draft, role)
            (draft / "depends_on.json").write_text(json.dumps(depends_on, indent=1, sort_keys=True), encoding="utf-8")
            _write(found, draft / _SCORES)
            if place.exists():  # on a file system without locks another process was faster
                shutil.rmtree(draft)
            else:
                draft.rename(place)
        return found


def _link(here: Path, there: Path, role: str) -> None:
    """The role's images in a second place: the same files where the disk can have that, copies where it cannot."""
    for image in sorted(here.glob(f"{role}-*.png")):
        (there / image.name).unlink(missing_ok=True)
        try:
            os.link(image, there / image.name)
        except OSError:
            shutil.copyfile(image, there / image.name)


def _write(found: Sampled, path: Path) -> None:
    """Every float as its shortest decimal, which reads back as the same bits."""
    side = {name: column.tolist() for name, column in found.table.side.items()}
    table = {"names": found.table.names, "R_NK": found.table.R_NK.tolist(), "side": side}
    path.write_text(json.dumps({**table, "distances_M": found.distances_M.tolist()}), encoding="utf-8")


def _read(path: Path) -> Sampled:
    found = json.loads(path.read_text(encoding="utf-8"))
    side = {name: np.array(column) for name, column in found["side"].items()}
    return Sampled(RewardTable(tuple(found["names"]), np.array(found["R_NK"]), side), np.array(found["distances_M"]))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Until the end of the block; the system lets go of it when the process ends, however it ends."""
    with path.open("a", encoding="utf-8") as file:
        with suppress(OSError):  # a file system without locks: at worst two processes do the same
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
