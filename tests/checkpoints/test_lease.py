"""One process at a time writes a run's checkpoints, and one that was overtaken stops."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint_builders import QUICK, content, found, write_run
from marble_core.checkpoints import CheckpointStore, Taken
from marble_core.checkpoints.lease import Lease
from marble_core.checkpoints.manifest import step_of
from marble_core.storage.s3 import S3


def work(local: Path, name: str, environment: dict[str, str], ready: object, go_on: object) -> None:
    os.environ |= environment  # conftest.py has cleared it
    store = CheckpointStore(local, S3(name), "run-1")
    with store.owned(**QUICK):
        store.save(1, content("first"))
        store.flush(10)
        ready.set()  # type: ignore[attr-defined]
        go_on.wait()  # type: ignore[attr-defined]


@pytest.fixture
def other(bucket: S3, tmp_path: Path) -> Iterator[multiprocessing.context.SpawnProcess]:
    """Another process that owns the run, in the directory ``a``."""
    context = multiprocessing.get_context("spawn")
    ready, go_on = context.Event(), context.Event()
    environment = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
    process = context.Process(target=work, args=(tmp_path / "a", bucket.bucket, environment, ready, go_on))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize("where", ["a", "b"], ids=["same directory", "other machine"])
def test_of_two_processes_on_a_run_the_second_stops_with_a_sentence(other, bucket: S3, tmp_path: Path, where: str) -> None:
    said = r"The run run-1 is being worked on by .* wait until that has ended, or start"
    with pytest.raises(Taken, match=said) as error, CheckpointStore(tmp_path / where, bucket, "run-1").owned(**QUICK):
        pass
    assert "\n" not in str(error.value)
    assert other.is_alive()


def test_a_killed_owner_blocks_the_same_machine_not_at_all_and_another_for_its_patience(
    other, bucket: S3, tmp_path: Path
) -> None:
    other.kill()
    other.join()
    began = time.monotonic()
    with CheckpointStore(tmp_path / "a", bucket, "run-1").owned(beat=5.0, patience=60.0):
        assert time.monotonic() - began < 30, "half its patience"
        os.kill(os.getpid(), 0)
    body, etag = bucket.get("runs/run-1/checkpoints/latest") or (b"", "")
    bucket.swap("runs/run-1/checkpoints/latest", body.replace(b'"owner": null', b'"owner": "dead"'), etag)
    began = time.monotonic()
    with CheckpointStore(tmp_path / "b", bucket, "run-1").owned(**QUICK):
        assert time.monotonic() - began >= QUICK["patience"]


def test_an_owner_that_was_taken_for_dead_stops_and_what_it_writes_is_never_the_runs(other, bucket: S3, tmp_path: Path) -> None:
    os.kill(other.pid, signal.SIGSTOP)  # for longer than the patience: a false takeover
    second = CheckpointStore(tmp_path / "b", bucket, "run-1")
    with second.owned(**QUICK):
        second.save(2, content("second"))
        assert second.flush(10)
        os.kill(other.pid, signal.SIGCONT)
        lease = Lease(bucket, "runs/run-1/checkpoints/latest", "run-1", "elsewhere", **QUICK)
        with pytest.raises(Taken):
            lease.claim()
        second.save(3, content("third"))
        assert second.flush(10)
        second.check()
    assert found(tmp_path / "c", bucket) == ("third", [])


def test_an_owner_that_was_overtaken_hears_of_it_and_its_finished_upload_does_not_count(bucket: S3, tmp_path: Path) -> None:
    write_run(tmp_path / "a", bucket, "one")
    slept = CheckpointStore(tmp_path / "a", bucket, "run-1")
    with slept.owned(beat=3600.0):
        body, etag = bucket.get("runs/run-1/checkpoints/latest") or (b"", "")
        bucket.swap("runs/run-1/checkpoints/latest", json.dumps({**json.loads(body), "owner": "another"}).encode(), etag)
        slept.save(2, content("two"))
        assert not slept.flush(5.0)
        with pytest.raises(Taken):
            slept.check()
    complete, _ = slept.remote.names()  # type: ignore[union-attr]
    assert [step_of(n) for n in complete] == [2, 1]
    assert found(tmp_path / "c", bucket) == ("one", [])
