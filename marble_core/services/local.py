"""Embedded services of a laptop run: S3 (SeaweedFS) and MLflow, real ones, on loopback, with their data under one directory.

    with embedded(Path(".marble")) as environment:
        os.environ.update(environment)

starts only what AWS_ENDPOINT_URL and MLFLOW_TRACKING_URI do not already provide, and ends it again, also when this
process is killed. The data stays: a second run goes on with the same buckets, runs and models.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from marble_core.runtime.child_process import GRACE
from marble_core.runtime.files import full_disk, require_free
from marble_core.services.mlflow_server import LOOPBACK, MLflow
from marble_core.services.seaweedfs import SeaweedFS
from marble_core.services.server import Service, past_proxies
from marble_core.types import MarbleError


@contextlib.contextmanager
def embedded(
    root: Path, bucket: str | None = None, room: int = 0, listen: tuple[str, int] = (LOOPBACK, 0)
) -> Iterator[dict[str, str]]:
    """Starts what the environment does not provide, and yields the variables to set; empty if it provides both.

    On an S3 server that it starts it also makes ``bucket``; the bucket of a server of the user's own is the user's to make.
    MLflow listens at the host and port of ``listen``. Raises MarbleError where another process uses ``root``, its disk is full or has less than ``room`` bytes free, or a server does
    not start.
    """
    has_s3 = bool(os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3"))
    has_mlflow = bool(os.environ.get("MLFLOW_TRACKING_URI"))
    if has_s3 and has_mlflow:
        yield {}
        return
    with _locked(root) as lock:
        if full := full_disk(root.resolve()):
            raise full
        require_free(root, room)
        services: list[Service] = []
        try:
            if not has_s3:
                services.append(SeaweedFS(root / "s3", lock))
                services[0].start()
            if not has_mlflow:
                services.append(MLflow(root / "mlflow", services[0].environment if services else None, lock, listen))
                services[-1].start()
            for service in services:
                service.wait_ready()
                if isinstance(service, SeaweedFS) and bucket:
                    service.make_bucket(bucket)
            environment = {k: v for service in services for k, v in service.environment.items()}
            _write_addresses(root, environment)
            yield {**environment, **past_proxies()}
        finally:
            (root / "addresses.json").unlink(missing_ok=True)
            for service in services:
                service.terminate()
            for service in services:
                service.wait()


@contextlib.contextmanager
def reachable_s3(root: Path, bucket: str) -> Iterator[dict[str, str]]:
    """The variables of an S3 server to set: none where the environment names one, else those of the server that another
    process runs on ``root`` now, else of one that is started for the block."""
    if os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3"):
        yield {}
    elif "AWS_ENDPOINT_URL" in (running := addresses(root)):
        yield running
    else:
        with _locked(root) as lock, SeaweedFS(root / "s3", lock) as server:
            server.make_bucket(bucket)
            yield {**server.environment, **past_proxies()}


def addresses(root: Path) -> dict[str, str]:
    """The variables of the servers that another process runs on ``root`` now, AWS_ENDPOINT_URL and MLFLOW_TRACKING_URI with
    what each asks for; empty if there are none."""
    try:
        with _locked(root, patience=0.0):
            return {}
    except MarbleError:
        path = root / "addresses.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if url := found.get("AWS_ENDPOINT_URL"):
        found |= SeaweedFS(root / "s3").environment_at(url)
    if url := found.get("MLFLOW_TRACKING_URI"):
        found |= MLflow(root / "mlflow").environment_at(url)
    return {**found, **past_proxies()} if found else {}


def _write_addresses(root: Path, environment: Mapping[str, str]) -> None:
    public = {k: v for k, v in environment.items() if k in ("AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI")}
    (root / "addresses.json").write_text(json.dumps(public), encoding="utf-8")


@contextlib.contextmanager
def _locked(root: Path, patience: float = 2 * GRACE) -> Iterator[int]:
    """One owner at a time. Servers of a killed owner hold the lock until they have ended, hence the patience (seconds)."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o700)  # also one that something else has made before
        (root / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as error:
        raise full_disk(root.resolve()) or MarbleError(
            f"The directory {root} cannot be made or written: {error.strerror}; work in another directory."
        ) from None
    deadline = time.monotonic() + patience
    with (root / "lock").open("w", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise MarbleError(
                        f"Another marble command uses {root}: wait until it has ended, or work in another directory."
                    ) from None
                time.sleep(0.05)
        yield file.fileno()
