"""A train stage on several nodes, before a stub of Kubernetes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from marble_core.storage.s3 import S3
from stub_kube import StubKube
from train_pod import Stage, stage_pod


@pytest.fixture
def kube(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StubKube]:
    with stage_pod(monkeypatch, tmp_path) as stub:
        yield stub


@pytest.fixture
def stage(bucket: S3, tmp_path: Path) -> Stage:
    return Stage(bucket, tmp_path)
