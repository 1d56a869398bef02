"""S3 killed in the middle of an upload, and MLflow beside it, both away for a minute: training goes on, and nothing is missing."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import mlflow
import pytest

from killable_training import PATIENCE, Left, Training
from marble_core.services.mlflow_server import MLflow
from marble_core.services.seaweedfs import SeaweedFS
from marble_core.services.server import Service
from marble_core.storage.s3 import S3

pytestmark = pytest.mark.faults

AWAY = float(os.environ.get("OUTAGE_SECONDS", "60"))
PACE = 1.0  # seconds a step takes at least


class S3AtOnePort(SeaweedFS):
    """It comes back where its clients know it."""

    port = 0

    def command(self) -> tuple[list[str], dict[str, str]]:
        words, environment = super().command()
        self.port = self.port or int(self._url.rpartition(":")[2])
        self._url = f"http://127.0.0.1:{self.port}"
        return [f"-s3.port={self.port}" if word.startswith("-s3.port=") else word for word in words], environment


class MLflowAtOnePort(MLflow):
    def command(self) -> tuple[list[str], dict[str, str]]:
        words, environment = super().command()
        self._port = int(words[words.index("--port") + 1])
        return words, environment


def kill(service: Service) -> None:
    assert service._process is not None
    os.killpg(service._process._process.pid, signal.SIGKILL)
    service.wait()


def come_back(service: Service) -> None:
    service.start()
    service.wait_ready()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Service, Service]]:
    """Servers of this test's own, in its environment."""
    with ExitStack() as stack:
        both = S3AtOnePort(tmp_path / "s3"), MLflowAtOnePort(tmp_path / "mlflow")
        for service in both:
            stack.enter_context(service)
            for name, value in service.environment.items():
                monkeypatch.setenv(name, value)
        mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
        S3("marble").require_bucket(create=True)
        yield both


def test_with_s3_and_mlflow_away_training_goes_on_and_all_is_there_in_the_end_once(own, tmp_path: Path) -> None:
    s3, tracking = own
    steps = int(AWAY / PACE) + 8
    training = Training("outage", tmp_path / "run", f"train.steps={steps}", pace=PACE, outage=True)
    assert training.uploading.wait(PATIENCE), training.said  # one file of a checkpoint is up, the next is not
    kill(s3)
    kill(tracking)
    training.cut_off.set()
    before = newest(tmp_path / "run")
    threading.Event().wait(AWAY)
    during = newest(tmp_path / "run") - before
    come_back(s3)
    come_back(tracking)
    assert training.end() == [0], training.said
    assert during >= 0.5 * AWAY / PACE / 2, f"{during} steps in {AWAY:g} s without servers"
    left = Left.of("outage")
    assert [line["step"] for line in left.history] == list(range(1, steps + 1))
    for name in ("skipped", "reward/clipscore/mean", "reward/geneval/mean"):
        assert [step for step, _ in left.metrics[name]] == list(range(1, steps + 1)), name
    for line in left.history:
        assert all(
            left.metrics[name][line["step"] - 1][1] == repr(value) for name, value in line["metrics"].items() if "mean" in name
        )


def newest(directory: Path) -> int:
    """The step of the newest local checkpoint."""
    return max(int(p.name.split("-")[1]) for p in (directory / "outage" / "checkpoints").glob("step-*"))


def test_s3_away_for_longer_than_the_limit_stops_the_run_with_its_state_on_the_disk(own, tmp_path: Path) -> None:
    s3, _ = own
    run = ("limit", tmp_path / "run", "train.steps=40", "storage.max_unsaved_minutes=0.05")
    training = Training(*run, pace=0.3, outage=True)
    assert training.uploading.wait(PATIENCE), training.said
    kill(s3)
    training.cut_off.set()
    assert training.end() == [2]
    said = training.said
    assert "S3 has taken no checkpoint for" in said and "\n" not in said
    saved = Path(said.rpartition(" saved as ")[2].removesuffix("."))
    assert (saved / "manifest.json").exists() and saved.is_relative_to(tmp_path / "run")
    come_back(s3)
    again = Training("limit", tmp_path / "run", f"train.steps={int(saved.name.split('-')[1]) + 1}")
    assert again.end() == [0], again.said
    assert [line["step"] for line in Left.of("limit").history] == list(range(1, int(saved.name.split("-")[1]) + 2))
