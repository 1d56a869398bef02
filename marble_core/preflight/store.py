"""What train, evaluate and register do with S3, done once below the run's own prefix: a file in parts, then a small object."""

from __future__ import annotations

import os
import secrets
import time

from marble_core.checkpoints.run_checkpoints import RunCheckpoints
from marble_core.preflight.answers import Answer, ask
from marble_core.runtime.scratch import scratch_directory
from marble_core.storage.s3 import S3
from marble_core.storage.s3_errors import Refused
from marble_core.types import MarbleError

LATE = 2.0  # seconds that a list may be late
IN_PARTS = (8 << 20) + 1  # bytes: one more than boto3 sends in one request, as it does of every real checkpoint
_OWNERS = "by which one process at a time owns a run; use another S3 server or a newer version, see docs/storage.md"


class _Scratch:
    """One key per run, written anew by each preflight; where nothing may be deleted it stays."""

    def __init__(self, s3: S3, run_id: str) -> None:
        self.s3, self.directory = s3, f"runs/{run_id}"
        self.key, self.body = f"{self.directory}/preflight", f"preflight {secrets.token_hex(8)}".encode()

    def upload(self) -> None:
        """As train does with a checkpoint. The small object takes its place, so that no 8 MB stay where nothing may be deleted."""
        with scratch_directory() as scratch:
            sent, back = scratch / "sent", scratch / "back"
            sent.write_bytes(os.urandom(IN_PARTS))
            self.s3.upload_file(sent, self.key)
            self.s3.download_file(self.key, back)
            if back.read_bytes() != sent.read_bytes():
                raise MarbleError(f"{self.s3.endpoint} gives back another file than was uploaded as {self.s3.uri(self.key)}.")

    def put(self) -> str | None:
        version = self.s3.put(self.key, self.body)
        if version and version != "null":
            return (
                f"yes; {self.s3.uri()} keeps versions: the run's object `latest` is written every 5 s, so let a lifecycle rule "
                "expire noncurrent versions"
            )
        return None

    def get(self) -> None:
        found = self.s3.get(self.key)
        if found is None or found[0] != self.body:
            raise MarbleError(f"{self.s3.endpoint} gives back another content of {self.s3.uri(self.key)} than was written.")
        self.etag = found[1]

    def swap(self) -> None:
        """What is there must not be written as new, a version that is gone must not be replaced, and the present one can be."""
        if self.s3.swap(self.key, self.body, None) is not None:
            raise Refused(f"{self.s3.endpoint} ignores If-None-Match on writes, {_OWNERS}.")
        if self.s3.swap(self.key, self.body, f'"{secrets.token_hex(16)}"') is not None:
            raise Refused(f"{self.s3.endpoint} ignores If-Match on writes, {_OWNERS}.")
        if self.s3.swap(self.key, self.body + b".", self.etag) is None:
            raise Refused(f"{self.s3.endpoint} refuses a write whose If-Match names the present version, {_OWNERS}.")

    def list(self) -> None:
        deadline = time.monotonic() + LATE
        while self.key not in set(self.s3.keys(self.directory)):
            if time.monotonic() > deadline:
                raise MarbleError(
                    f"{self.s3.endpoint} does not list {self.s3.uri(self.key)} {LATE:.0f} s after it was written. Checkpoints would "
                    "be overlooked: use a server whose lists are up to date, see docs/storage.md."
                )
            time.sleep(0.2)

    def delete(self) -> str | None:
        try:
            self.s3.delete(self.key)
        except Refused:
            return f"no: all checkpoints of a run stay, whatever storage.keep_last says, and so does {self.s3.uri(self.key)}"
        return None


def checkpoints(s3: S3, run_id: str) -> str | None:
    """There never was one, or the run goes on from its newest, or that was and is gone, which is said."""
    run = RunCheckpoints(s3, run_id)
    latest, (whole, _) = run.latest(), run.names()
    if latest in whole:
        return f"it goes on from {latest}"
    if latest is None and not whole:
        return None
    lost = f"{run.uri(latest)} was the newest and is gone" if latest else f"{s3.uri(run.latest_key)} is gone"
    return f"{lost}: the run {f'goes on from {whole[0]}' if whole else 'begins again from its first step'}"


def ask_s3(s3: S3, run_id: str) -> list[Answer]:
    """One line per question; after the first no, no more is asked."""
    scratch = _Scratch(s3, run_id)
    answers: list[Answer] = []
    for what, question in (
        ("list what is there", s3.require_bucket),
        (f"upload {IN_PARTS / 1e6:.1f} MB in parts, and get them back", scratch.upload),
        ("put an object", scratch.put),
        ("get it back", scratch.get),
        ("replace it on a condition", scratch.swap),
        ("find it in a list", scratch.list),
        ("delete it", scratch.delete),
    ):
        answers.append(ask(f"S3: {what}", question))
        if answers[-1].state == "no":
            break
    return answers
