"""One checkpoint as a directory: its name, its manifest, and whether it is whole. Knows nothing of S3, nor of what it holds.

A checkpoint exists when its manifest exists: written last, with the size and SHA-256 of every file and its own. The name
carries who wrote it, so that two processes never write to the same place. A file that is named by the hash of its content may be
shared: several checkpoints have it, on one disk as links, on S3 as one object beside them.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from marble_core.config.formats import CHECKPOINT

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{6,})-[0-9a-f]{8}")  # the step, and the process that wrote it
_FILE = re.compile(r"\w[\w.-]*")
_SHARED = re.compile(r"[a-z]+-\d{6,}-([0-9a-f]{64})\.\w+")  # a number that orders, and the SHA-256 of the content


class Broken(Exception):
    """What is wrong with a checkpoint, in words that follow its address."""


def name_of(step: int, writer: str) -> str:
    """``step-000010-3fa9c1d2``, where ``writer`` is eight hex digits."""
    return f"step-{step:06d}-{writer}"


def is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def step_of(name: str) -> int:
    match = _NAME.fullmatch(name)
    assert match is not None
    return int(match[1])


def is_shared(file: str) -> bool:
    return _SHARED.fullmatch(file) is not None


def is_its_name(path: Path) -> bool:
    """Whether a shared file holds what its name says."""
    return _stated(path) == _describe(path)


def seal(directory: Path, run_id: str, name: str) -> None:
    """Makes the directory a checkpoint.

    Nothing is forced onto the disk, which would hold training up by the disk's speed: what a power cut takes from a file, the
    manifest tells, and the one before or S3 has it. A shared file is not read: its name is its hash, which ``verify`` holds it against.
    """
    files = {path.name: _stated(path) or _describe(path) for path in sorted(directory.iterdir())}
    (directory / MANIFEST).write_bytes(_canonical(CHECKPOINT.stamp({"name": name, "run_id": run_id, "files": files})))


def read_manifest(text: bytes, run_id: str, name: str) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file. Raises Broken unless it is, byte for byte, a manifest that ``seal`` wrote for this name, and
    MarbleError where it is whole but of a version that cannot be read: such a checkpoint is not to be passed over.

    A file's name is a plain one, so that nothing can be read or written outside of the checkpoint.
    """
    try:
        manifest = json.loads(text)
        whole = bool(manifest.pop("sha256")) and _canonical(manifest) == text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise Broken(f"{MANIFEST} was changed since it was written")
    manifest = CHECKPOINT.upgrade(manifest, f"The checkpoint {name} of the run {run_id}")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise Broken(f"{MANIFEST} names no files")
    if bad := sorted(file for file in files if not _FILE.fullmatch(file)):
        raise Broken(f"{MANIFEST} names {bad[0]!r}, which is no plain file name")
    if (manifest.get("name"), manifest.get("run_id")) != (name, run_id):
        raise Broken(f"it is {manifest.get('name')} of the run {manifest.get('run_id')}, in another's place")
    return dict(files)


def verify(directory: Path, run_id: str, name: str) -> None:
    """Raises Broken unless every file is there as it was written."""
    try:
        files = read_manifest((directory / MANIFEST).read_bytes(), run_id, name)
    except OSError as error:
        raise Broken(f"{MANIFEST} cannot be read: {error.strerror}") from None
    for file, wanted in files.items():
        try:
            found = _describe(directory / file)
        except OSError as error:
            raise Broken(f"{file} cannot be read: {error.strerror}") from None
        if found != wanted:
            raise Broken(f"{file} was changed since it was written")


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _stated(path: Path) -> dict[str, Any] | None:
    """Of a shared file, by its name; else None."""
    found = _SHARED.fullmatch(path.name)
    return {"size": path.stat().st_size, "sha256": found[1]} if found else None


def _canonical(manifest: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps(manifest | {"sha256": digest}, indent=2, sort_keys=True).encode()
