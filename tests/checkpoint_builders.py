"""Checkpoints of a few kB, written and found."""

import json
from collections.abc import Callable
from pathlib import Path

from marble_core.checkpoints import CheckpointStore
from marble_core.config.schema import StorageConfig
from marble_core.storage.s3 import S3

QUICK = {"beat": 0.1, "patience": 0.6}


def content(text: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / "state.safetensors").write_bytes(text.encode() * 1000)
        (directory / "state.json").write_text(json.dumps({"text": text}))

    return write


def found(local: Path, s3: S3 | None, run_id: str = "run-1") -> tuple[str | None, list[str]]:
    """What a process that only reads takes for the newest, and what it skipped."""
    store = CheckpointStore(local, s3, run_id)
    name = store.newest()
    return (json.loads((store.fetch(name) / "state.json").read_text())["text"] if name else None), store.broken


def write_run(local: Path, s3: S3, *texts: str, run_id: str = "run-1", **settings: object) -> list[str]:
    """Checkpoints 1, 2, ... of a run, on the disk and on S3; returns their names."""
    store = CheckpointStore(local, s3, run_id, StorageConfig(**settings))
    with store.owned(**QUICK):
        names = []
        for step, text in enumerate(texts, 1):
            names.append(store.save(step, content(text)).name)
            assert store.flush(60)
    return names
