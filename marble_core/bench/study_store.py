"""A study on S3, where each of its cells is a pod of its own: below ``s3://BUCKET/studies/NAME/`` lie the same files as on a disk.

What is there is not made again: the finished cells, and the roles that no arm changes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from marble_core.bench.study import Study, cell_path
from marble_core.config.stage_files import check_run_id
from marble_core.evaluation.cell import Cell
from marble_core.storage.s3 import S3
from marble_core.types import MarbleError

ROLE = "scores.json"  # of a role's files the last one in a list, and so in an upload


class StudyStore:
    """The study ``name`` in the bucket of its first arm's configuration. Every method raises MarbleError where S3 does not answer."""

    def __init__(self, study: Study, name: str) -> None:
        self.study = study
        self.prefix = Path("studies") / check_run_id(name)
        self.s3 = S3(study.config(*study.cells[0]).storage.bucket)

    def fetch(self, arm: str, seed: int, into: Path) -> Cell | None:
        """A finished cell, as the file ``into``; None where it is not made yet. Raises MarbleError where it is one of other settings."""
        key = self._key(cell_path(self.prefix, arm, seed))
        if (found := self.s3.get(key)) is None:
            return None
        into.parent.mkdir(parents=True, exist_ok=True)
        into.write_bytes(found[0])
        cell = Cell.load(into)
        if not self.study.made(cell):
            raise MarbleError(
                f"The cell {self.s3.uri(key)} was made with other settings than the study has now. Put them back, give the study "
                "another name, or remove that object to have it made again."
            )
        return cell

    def keep(self, cell: Cell, file: Path) -> None:
        """One object, and so whole or not there."""
        self.s3.upload_file(file, self._key(cell_path(self.prefix, cell.arm, cell.seed)))

    def fetch_roles(self, into: Path) -> None:
        """The roles that other cells have sampled, each whole or not at all."""
        for role in self.s3.prefixes(self._key(self.prefix / "roles")):
            if (into / role).exists() or not self.s3.exists(self._key(self.prefix / "roles" / role / ROLE)):
                continue
            into.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=into))
            self.s3.download_dir(self._key(self.prefix / "roles" / role), draft)
            with suppress(OSError):  # another process of this directory was faster
                draft.rename(into / role)

    def keep_roles(self, directory: Path) -> None:
        for scores in sorted(directory.glob(f"[!.]*/{ROLE}")):
            there = self._key(self.prefix / "roles" / scores.parent.name)
            if not self.s3.exists(f"{there}/{ROLE}"):
                self.s3.upload_dir(scores.parent, there)

    def keep_page(self, html: str, tables: Mapping[str, Any]) -> str:
        """``study.html`` and ``study.json``; returns the page's address."""
        self.s3.put(self._key(self.prefix / "study.json"), json.dumps(tables, indent=2).encode())
        key = self._key(self.prefix / "study.html")
        self.s3.put(key, html.encode())
        return self.s3.uri(key)

    @staticmethod
    def _key(path: Path) -> str:
        return path.as_posix()
