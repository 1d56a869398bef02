"""A training whose run another process took over meanwhile: no step of it is reported, no metric sent, and no status set."""

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest

from killable_training import status_of
from marble_core.checkpoints import CheckpointStore, Taken
from marble_core.config.loading import load_config
from marble_core.prompts.dataset import prepare_data
from marble_core.storage.s3 import S3
from marble_core.training import loop
from peculiar_s3 import Answer, Request, before
from waiting import eventually

TINY = [
    "rollout.prompts=3", "rollout.images_per_prompt=2", "rollout.steps=2", "loss.timesteps=1", "data.train_size=30", "lora.rank=4",
    "rewards=[{name: compressibility}]", "train.steps=3", "train.checkpoint_every=3", "train.samples_every=0", "train.processes=1",
]  # fmt: skip


@contextmanager
def mlflow_that_takes_no_metrics(url: str, until: threading.Event) -> Iterator[tuple[str, list[bytes]]]:
    """Its address, and the batches of a step's metrics that came ``until`` it takes them, and later."""
    came: list[bytes] = []

    def refuses(request: Request) -> Request | Answer:
        if "log-batch" not in request.path or b'"skipped"' not in request.body:
            return request
        if until.is_set():
            came.append(request.body)
            return request
        return Answer(503, {"content-type": "text/plain"}, b"busy")

    with before(url, refuses) as own:
        yield own, came


def test_a_step_after_the_takeover_is_not_reported_waiting_metrics_are_not_sent_and_the_run_is_not_called_failed(
    services: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("demo", overrides=[*TINY, f"storage.local={tmp_path / 'a'}"])
    run_id, step, taken_over = f"taken-{uuid.uuid4().hex[:6]}", loop.optimizer_step, threading.Event()
    own: list[CheckpointStore] = []
    events = tmp_path / "progress.jsonl"
    monkeypatch.setenv("MARBLE_PROGRESS", str(events))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def remembered(*arguments: Any) -> CheckpointStore:
        own.append(CheckpointStore(*arguments))
        return own[-1]

    def sleeps_in_the_second(*arguments: Any) -> Any:
        if arguments[0].step == 1:
            heir = CheckpointStore(tmp_path / "b", S3("marble"), run_id)
            stack.enter_context(heir.owned(beat=0.05, patience=0.3))
            assert own[0]._lease
            own[0]._lease._written -= 3600.0  # it has slept
            taken_over.set()
            assert not eventually(lambda: bool(came), 3), "its metrics of step 1 were sent by then"
        return step(*arguments)

    monkeypatch.setattr(loop, "CheckpointStore", remembered)
    monkeypatch.setattr(loop, "optimizer_step", sleeps_in_the_second)
    with ExitStack() as stack:
        url, came = stack.enter_context(mlflow_that_takes_no_metrics(services["MLFLOW_TRACKING_URI"], taken_over))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        mlflow.set_tracking_uri(url)
        with pytest.raises(Taken):
            loop.run_training(config, run_id, prepare_data(config).train, tmp_path / "adapter")
        assert status_of(run_id) == "RUNNING"
    steps = [event["done"] for line in events.read_text().splitlines() if "done" in (event := json.loads(line))]
    assert steps == [1] and came == []
