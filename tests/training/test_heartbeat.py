"""A process of a TrainJob ends by itself once the stage's pod is gone, and not before."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from marble_core.storage.s3 import S3
from marble_core.training import heartbeat
from marble_core.training.process_errors import first_error, forget_errors
from peculiar_s3 import no_delete, peculiar
from waiting import eventually

LISTENS = """
import signal, sys
from marble_core.storage.s3 import S3
from marble_core.training import heartbeat
heartbeat.PATIENCE, heartbeat.LOOK = 1.5, 0.1

def ends(*_):
    print("saved", listener.silent.is_set(), flush=True)
    sys.exit(7)

signal.signal(signal.SIGTERM, ends)
listener = heartbeat.Listener(S3(sys.argv[1]), "place")
listener.listen(first=True)
print("listens", flush=True)
while True:
    signal.pause()
"""


@contextmanager
def listening(bucket: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", LISTENS, bucket], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stdout.readline() == "listens\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_process_goes_on_while_its_watcher_lives_and_saves_and_ends_once_it_is_gone(
    bucket: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.3)
    with heartbeat.beating(bucket, "place"), listening(bucket.bucket) as process:
        begun = time.monotonic()
        assert eventually(lambda: time.monotonic() - begun > 5) and process.poll() is None, "three times its patience"
        assert not heartbeat.Listener(bucket, "place").ended_before()
        # What a pod that is killed does: nothing more.
        monkeypatch.setattr(S3, "put_json", lambda *_: None)
        said, _ = process.communicate(timeout=20)
    assert process.returncode == 7 and said.splitlines()[-1] == "saved True"
    assert "Nobody watches this training any more" in said
    assert heartbeat.Listener(bucket, "place").ended_before(), "a container that is started again in place ends at once"
    heartbeat.forget_silence(bucket, "place")
    assert not heartbeat.Listener(bucket, "place").ended_before()


def test_keys_that_may_not_delete_clear_the_mark_of_silence_and_the_errors_of_the_job_before(
    bucket: S3, services: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with peculiar(services, no_delete) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        ours = S3(bucket.bucket)
        for key in ("place/unwatched.json", "place/errors/0.json"):
            ours.put_json(key, {"time": 1.0, "error": "of before"})
        assert heartbeat.Listener(ours, "place").ended_before() and first_error(ours, "place") is not None
        heartbeat.forget_silence(ours, "place")
        forget_errors(ours, "place")
        assert not heartbeat.Listener(ours, "place").ended_before() and first_error(ours, "place") is None
