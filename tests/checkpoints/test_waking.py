"""An owner that was stopped anywhere and wakes after another has taken the run over: nothing is lost, nothing is written twice."""

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from checkpoint_builders import content, found, write_run
from marble_core.checkpoints import CheckpointStore, Taken
from marble_core.config.schema import StorageConfig
from marble_core.runtime.housekeeping import failures, housekeeping
from marble_core.storage.s3 import S3
from marble_core.tracking.metric_queue import Batch, MetricQueue
from peculiar_s3 import no_list_of_evaluations, peculiar
from waiting import eventually

CALLS = 14  # to S3 of the upload of a checkpoint and of the pruning after it; the last case finds that there are no more


class Stopping:
    """boto3's client, which stops before its n-th call until it is told to go on, as SIGSTOP does at the worst of moments."""

    def __init__(self, client: Any, at: int) -> None:
        self._inner, self._left, self.stopped, self.go_on = client, at, threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._inner, name)
        if not callable(inner) or name in ("exceptions", "get_paginator"):
            self._count(name == "get_paginator")
            return inner

        def call(*args: Any, **kwargs: Any) -> Any:
            self._count(True)
            return inner(*args, **kwargs)

        return call

    def _count(self, is_a_call: bool) -> None:
        self._left -= is_a_call
        if is_a_call and self._left == -1:
            self.stopped.set()
            self.go_on.wait(60)


@pytest.mark.parametrize("at", range(CALLS + 1))
def test_a_stopped_owner_that_wakes_takes_nothing_from_the_new_one(bucket: S3, tmp_path: Path, at: int) -> None:
    write_run(tmp_path / "a", bucket, "one")
    bucket.put("runs/run-1/checkpoints/step-000001-00000000/state.json", b"unfinished")  # nobody's
    sleeper = S3(bucket.bucket)
    old = CheckpointStore(tmp_path / "a", sleeper, "run-1", StorageConfig(keep_last=1))
    new = CheckpointStore(tmp_path / "b", bucket, "run-1", StorageConfig(keep_last=2))
    with old.owned(beat=3600.0):
        sleeper._client = client = Stopping(sleeper._client, at)
        old.save(2, content("old two"))
        reached = eventually(lambda: client.stopped.is_set() or old._uploader._waiting is None, 30)  # type: ignore[union-attr]
        assert reached and client.stopped.is_set() == (at < CALLS), f"{client._left} calls were not made"
        with new.owned(beat=0.05, patience=0.3):
            begun = new.newest()
            assert begun
            new.save(4, content("new four"))
            assert new.flush(30)
            half = f"runs/run-1/checkpoints/step-000005-{new._writer}/state.json"
            bucket.put(half, b"being uploaded")
            client.go_on.set()
            assert eventually(lambda: old._uploader._waiting is None or not old._uploader._thread.is_alive(), 30)  # type: ignore[union-attr]
            assert bucket.exists(half), "the upload that goes on"
            assert new.fetch(begun)
            new.save(5, content("new five"))
            assert new.flush(30)
            new.check()
            kept = set(new.remote.names()[0]) - new._going()  # type: ignore[union-attr]
            problems = [(place, said) for place, said in new.verify_all() if said and place.split("/")[-1] in kept]
            assert problems == []
            assert old._lease
            old._lease._written = 0.0  # it has slept
            with pytest.raises(Taken):
                old.confirm()
    assert found(tmp_path / "c", bucket) == ("new five", [])


def test_a_checkpoint_of_the_disk_whose_name_is_being_deleted_goes_up_under_another(bucket: S3, tmp_path: Path) -> None:
    write_run(tmp_path / "a", bucket, "one", "two", keep_last=5)
    (two,) = [p.name for p in (tmp_path / "a").glob("step-000002-*")]
    body, etag = bucket.get("runs/run-1/checkpoints/latest") or (b"", "")
    state = json.loads(body) | {"going": [two], "checkpoint": None}
    bucket.swap("runs/run-1/checkpoints/latest", json.dumps(state).encode(), etag)
    for key in list(bucket.keys(f"runs/run-1/checkpoints/{two}")):
        bucket.delete(key)
    store = CheckpointStore(tmp_path / "a", bucket, "run-1")
    with store.owned(beat=0.1, patience=0.3):
        name = store.newest()
        assert name and name != two and store.flush(30)
    assert found(tmp_path / "c", bucket) == ("two", [])


def test_metrics_wait_while_the_lease_cannot_be_confirmed_and_are_dropped_where_it_is_lost() -> None:
    sent: list[int] = []
    asked: list[str] = []
    queue = MetricQueue(lambda batches: sent.extend(b.step for b in batches), lambda _: set())

    def fence() -> None:
        asked.append("")
        if len(asked) < 3:
            raise Taken("Another process works on the run.")

    queue.fence = fence
    queue.put(Batch({"skipped": 0.0}, 1, 0))
    assert queue.flush(0.1) == 1 and sent == []
    assert queue.flush(30) == 0 and sent == [1]
    queue.close()


def test_a_lease_that_was_not_written_for_two_beats_is_written_before_it_is_trusted(bucket: S3, tmp_path: Path) -> None:
    write_run(tmp_path / "a", bucket, "one")
    slept = CheckpointStore(tmp_path / "a", bucket, "run-1")
    with slept.owned(beat=3600.0):
        slept.confirm()
        with CheckpointStore(tmp_path / "b", bucket, "run-1").owned(beat=0.05, patience=0.2):
            slept.confirm()  # within its beats nobody else can have it by right
            assert slept._lease
            slept._lease._written -= 3 * 3600.0  # it was asleep
            with pytest.raises(Taken):
                slept.confirm()


def test_keys_that_may_not_delete_leave_the_checkpoints_and_one_line(
    bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from marble_core.types import MarbleError

    def refused(_: object, key: str) -> None:
        raise MarbleError("The server refuses to delete (AccessDenied).")

    monkeypatch.setattr(S3, "delete", refused)
    before = sum(failures.values())
    with caplog.at_level(logging.WARNING):
        names = write_run(tmp_path / "a", bucket, *"abcdef", keep_last=1)
    assert len(names) == 6 and found(tmp_path / "c", bucket) == ("f", [])
    assert sum(failures.values()) - before == 5
    assert len([r for r in caplog.records if "removing old checkpoints" in r.getMessage()]) == 1


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{}", b'{"step": "x", "mean_gain": []}', b"\xff", b'["a"]'])
def test_what_is_no_evaluation_ends_no_upload(bucket: S3, tmp_path: Path, text: bytes) -> None:
    bucket.put("runs/run-1/evaluations/step-000001.json", text)
    write_run(tmp_path / "a", bucket, "one", "two", "three", keep_last=1)
    assert found(tmp_path / "c", bucket) == ("three", [])


def test_a_list_of_evaluations_that_is_refused_ends_no_upload_and_is_counted(
    bucket: S3, services: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sum(failures.values())
    with peculiar(services, no_list_of_evaluations) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        names = write_run(tmp_path / "a", S3(bucket.bucket), "one", "two", "three", keep_last=1)
    assert len(names) == 3 and found(tmp_path / "c", bucket) == ("three", []) and sum(failures.values()) > before


def test_housekeeping_counts_and_lets_through_what_it_is_told_to() -> None:
    def fail() -> None:
        raise Taken("taken")

    assert housekeeping("a test", lambda: None) and not housekeeping("a test", fail) and failures["a test"] == 1
    with pytest.raises(Taken):
        housekeeping("a test", fail, Taken)
