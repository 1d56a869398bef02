"""A run's state <-> a directory <-> S3, atomically. Knows nothing of what the files hold; imports no torch.

A checkpoint exists when its manifest exists: name, size and SHA-256 of every file, written last, on the disk by a rename
and on S3 by a conditional put. Anything without one is the trace of a process that was killed, and is not looked at.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from marble_core.storage import S3
from marble_core.types import MarbleError

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{6,})")
_log = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one run: ``local/step-000010/`` and ``s3://BUCKET/runs/RUN_ID/checkpoints/step-000010/``.

    For one process at a time (rank 0). ``broken`` names, in words, the checkpoints that ``latest`` had to skip.
    """

    def __init__(self, local: Path, s3: S3 | None, run_id: str) -> None:
        self.local = local
        self.s3 = s3
        self.prefix = f"runs/{run_id}/checkpoints"
        self.broken: list[str] = []
        self._spoiled: set[str] = set()  # names on S3 that may be written over
        local.mkdir(parents=True, exist_ok=True)
        for leftover in local.glob(".draft-*"):
            shutil.rmtree(leftover)

    def save(self, step: int, write: Callable[[Path], None]) -> str:
        """Lets ``write`` fill an empty directory, and makes it the checkpoint of this step. Returns its uri.

        Saving the same content again changes nothing. Raises MarbleError if S3 holds other content for this step, that
        is, if another process writes the same run; the local checkpoint is then complete all the same.
        """
        name = f"step-{step:06d}"
        with self._draft() as draft:
            write(draft)
            manifest = {"step": step, "files": _describe(draft)}
            _write_durably(draft / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True))
            self._put_in_place(draft, name)
        return self._upload(name, manifest)

    def latest(self) -> Path | None:
        """The directory of the newest complete checkpoint, local or on S3 (then downloaded first); None if there is none.

        Every hash is verified. What is broken is skipped, named in the log and in ``broken``.
        """
        remote = set(self.s3.prefixes(self.prefix)) if self.s3 else set()
        here = {path.name for path in self.local.iterdir()}
        for name in sorted((n for n in remote | here if _NAME.fullmatch(n)), key=_step, reverse=True):
            if name in here and self._is_whole(self.local / name, str(self.local / name)):
                if self.s3 and not self._is_stored(name):  # killed between the rename and the end of the upload
                    self._upload(name, json.loads((self.local / name / MANIFEST).read_text()))
                return self.local / name
            if name in remote and self._is_stored(name) and self._download(name):
                return self.local / name
        return None

    @contextlib.contextmanager
    def _draft(self) -> Iterator[Path]:
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=self.local))
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _put_in_place(self, draft: Path, name: str) -> None:
        target = self.local / name
        if target.exists():  # an older attempt at this step
            target.rename(self.local / f".draft-old-{name}")
            shutil.rmtree(self.local / f".draft-old-{name}")
        draft.rename(target)

    def _is_stored(self, name: str) -> bool:
        assert self.s3 is not None
        return self.s3.exists(f"{self.prefix}/{name}/{MANIFEST}")

    def _is_whole(self, directory: Path, where: str) -> bool:
        """Whether every file of the manifest is there as it was written; notes what is wrong, unless it was never finished."""
        if not (directory / MANIFEST).exists():
            return False
        try:
            wanted = json.loads((directory / MANIFEST).read_text())["files"]
            found = _describe(directory)
            wrong = sorted(n for n, description in wanted.items() if found.get(n) != description)
        except (ValueError, KeyError, TypeError, AttributeError):
            wrong = [MANIFEST]
        if wrong:
            self.broken.append(f"{where}: {', '.join(wrong)} missing or changed since it was written")
            _log.warning("Skipping the broken checkpoint %s", self.broken[-1])
        return not wrong

    def _download(self, name: str) -> bool:
        assert self.s3 is not None
        prefix = f"{self.prefix}/{name}"
        with self._draft() as draft:
            self.s3.download_dir(prefix, draft)
            if not self._is_whole(draft, self.s3.uri(prefix)):
                self._spoiled.add(name)
                return False
            self._put_in_place(draft, name)
        return True

    def _upload(self, name: str, manifest: dict[str, Any]) -> str:
        directory = self.local / name
        if self.s3 is None:
            return directory.resolve().as_uri()
        prefix = f"{self.prefix}/{name}"
        key = f"{prefix}/{MANIFEST}"
        if name in self._spoiled:
            self.s3.delete(key)  # what is there does not count any more from here on
            self._spoiled.discard(name)
        stored = self.s3.get_json(key)
        if stored is None:
            for file in manifest["files"]:
                self.s3.upload_file(directory / file, f"{prefix}/{file}")
            if self.s3.put_json(key, manifest, once=True):
                return self.s3.uri(prefix)
            stored = self.s3.get_json(key)
        if stored != manifest:
            raise MarbleError(
                f"Another process has written {self.s3.uri(prefix)}: let only one work on a run, or start one with a new run id."
            )
        return self.s3.uri(prefix)


def _step(name: str) -> int:
    match = _NAME.fullmatch(name)
    assert match is not None
    return int(match[1])


def _describe(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below a directory, the manifest aside."""
    description = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        name = path.relative_to(directory).as_posix()
        if name != MANIFEST:
            with path.open("rb") as file:
                description[name] = {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    return description


def _write_durably(path: Path, text: str) -> None:
    """The manifest must not survive a power cut that its files do not."""
    for other in path.parent.rglob("*"):
        if other.is_file():
            with other.open("rb") as file:
                os.fsync(file.fileno())
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
