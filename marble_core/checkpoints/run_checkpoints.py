"""A run's checkpoints on S3: s3://BUCKET/runs/RUN_ID/checkpoints/NAME/. Files first, the manifest last.

Files that checkpoints share lie in checkpoints/shared/, whose names are their content. They stay as long as the run does.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from marble_core.checkpoints.lease import latest_of
from marble_core.checkpoints.manifest import MANIFEST, Broken, is_its_name, is_name, is_shared, read_manifest, step_of, verify
from marble_core.storage.s3 import S3
from marble_core.types import Outage


class RunCheckpoints:
    """All methods raise MarbleError where S3 does not answer."""

    def __init__(self, s3: S3, run_id: str) -> None:
        self.s3, self.run_id = s3, run_id
        self.prefix = f"runs/{run_id}/checkpoints"
        self.latest_key = f"{self.prefix}/latest"
        self._shared: set[str] | None = None  # keys that this process knows to be there

    def uri(self, name: str) -> str:
        return self.s3.uri(f"{self.prefix}/{name}")

    def latest(self) -> str | None:
        return latest_of(self.s3, self.latest_key)

    def names(self) -> tuple[list[str], list[str]]:
        """The checkpoints that have a manifest, newest first, and what lies there without one: unfinished uploads."""
        found: dict[str, bool] = {}
        for key in self.s3.keys(self.prefix):
            name, _, file = key.removeprefix(f"{self.prefix}/").partition("/")
            if is_name(name):
                found[name] = found.get(name, False) or file == MANIFEST
        ordered = sorted(found, key=lambda name: (step_of(name), name), reverse=True)
        return [n for n in ordered if found[n]], [n for n in ordered if not found[n]]

    def upload(self, directory: Path) -> None:
        """The directory's name is the checkpoint's. Again is harmless: only the process that wrote a checkpoint has its name."""
        text = (directory / MANIFEST).read_bytes()
        for file in read_manifest(text, self.run_id, directory.name):
            if is_shared(file):
                self._share(directory / file)
            else:
                self.s3.upload_file(directory / file, self._key(directory.name, file))
        self.s3.put(f"{self.prefix}/{directory.name}/{MANIFEST}", text)

    def download(self, name: str, into: Path) -> None:
        """Fills the directory. Raises Broken unless every file is as it was written."""
        found = self.s3.get(f"{self.prefix}/{name}/{MANIFEST}")
        if found is None:
            raise Broken(f"{MANIFEST} is not there")
        files = read_manifest(found[0], self.run_id, name)
        stored = set(self.s3.keys(f"{self.prefix}/{name}"))
        if any(is_shared(file) for file in files):
            stored |= set(self.s3.keys(f"{self.prefix}/shared"))
        for file in files:
            if (key := self._key(name, file)) not in stored:
                raise Broken(f"{file} is not there")
            self.s3.download_file(key, into / file)
        (into / MANIFEST).write_bytes(found[0])
        verify(into, self.run_id, name)

    def _key(self, name: str, file: str) -> str:
        return f"{self.prefix}/{'shared' if is_shared(file) else name}/{file}"

    def _share(self, path: Path) -> None:
        """Once, and only as its name says: else it would stand in the way of every later checkpoint."""
        if self._shared is None:
            self._shared = set(self.s3.keys(f"{self.prefix}/shared"))
        if (key := self._key("", path.name)) not in self._shared:
            if not is_its_name(path):
                raise Outage(f"{path} was changed on the disk since it was written.")
            self.s3.upload_file(path, key)
            self._shared.add(key)

    def delete(self, name: str) -> None:
        """The manifest first: from then on it is no checkpoint, wherever this stops."""
        self.s3.delete(f"{self.prefix}/{name}/{MANIFEST}")
        for key in list(self.s3.keys(f"{self.prefix}/{name}")):
            self.s3.delete(key)

    def record_gain(self, step: int, gain: float) -> None:
        """What an evaluation after this many steps found: retention keeps the best."""
        self.s3.put_json(f"runs/{self.run_id}/evaluations/step-{step:06d}.json", {"step": step, "mean_gain": gain})

    def best_step(self) -> int | None:
        """The step whose evaluation had the largest mean gain; None before any evaluation. What is no evaluation says nothing."""
        gains: dict[int, float] = {}
        for key in self.s3.keys(f"runs/{self.run_id}/evaluations"):
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                one = json.loads((self.s3.get(key) or (b"",))[0])
                gains[int(one["step"])] = float(one["mean_gain"])
        return max(gains, key=gains.__getitem__, default=None)
