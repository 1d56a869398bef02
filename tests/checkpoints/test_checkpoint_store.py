"""A checkpoint is there as a whole or not at all, on the disk and on a real S3 server, and one process at a time writes."""

import json
import shutil
import threading
from pathlib import Path

import pytest

from checkpoint_builders import QUICK, content, found, write_run
from marble_core.checkpoints import Away, CheckpointStore
from marble_core.checkpoints.manifest import MANIFEST, Broken, name_of, read_manifest, seal, step_of
from marble_core.checkpoints.retention import superfluous
from marble_core.checkpoints.start_from import downloaded, locate
from marble_core.config.schema import StorageConfig
from marble_core.storage.s3 import S3
from marble_core.types import MarbleError
from waiting import eventually


def test_a_checkpoint_lies_under_its_run_with_a_manifest_of_every_file_and_latest_names_it(bucket: S3, tmp_path: Path) -> None:
    (name,) = write_run(tmp_path / "a", bucket, "one")
    prefix = "runs/run-1/checkpoints"
    files = {f"{prefix}/{name}/{n}" for n in ("state.safetensors", "state.json", MANIFEST)}
    assert set(bucket.keys(prefix)) == {*files, f"{prefix}/latest"}
    body, _ = bucket.get(f"{prefix}/{name}/{MANIFEST}") or (b"", "")
    assert read_manifest(body, "run-1", name)["state.safetensors"]["size"] == 3000
    latest = bucket.get_json(f"{prefix}/latest")
    assert latest["checkpoint"] == name and latest["owner"] is None
    shutil.rmtree(tmp_path / "a")
    assert found(tmp_path / "a", bucket) == ("one", [])


def test_without_s3_the_disk_alone_serves(tmp_path: Path) -> None:
    assert found(tmp_path, None)[0] is None
    CheckpointStore(tmp_path, None, "run-1").save(3, content("three"))
    assert found(tmp_path, None) == ("three", [])


def test_a_write_that_fails_or_is_killed_leaves_nothing_that_counts(bucket: S3, tmp_path: Path) -> None:
    def fails(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise RuntimeError("out of memory")

    store = CheckpointStore(tmp_path, bucket, "run-1")
    (tmp_path / ".draft-killed").mkdir()
    with store.owned(**QUICK):
        with pytest.raises(RuntimeError):
            store.save(1, fails)
        assert store.newest() is None
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    assert list(bucket.keys("runs")) == ["runs/run-1/checkpoints/latest"]


def test_files_without_a_manifest_are_no_checkpoint(bucket: S3, tmp_path: Path) -> None:
    _, second = write_run(tmp_path / "a", bucket, "one", "two")
    bucket.delete(f"runs/run-1/checkpoints/{second}/{MANIFEST}")
    assert found(tmp_path / "b", bucket)[0] == "one"
    (tmp_path / "a" / second / MANIFEST).unlink()
    assert found(tmp_path / "a", bucket)[0] == "one"


def test_a_local_copy_that_is_broken_is_fetched_again(bucket: S3, tmp_path: Path) -> None:
    (name,) = write_run(tmp_path, bucket, "one")
    (tmp_path / name / "state.json").write_text("{}")
    text, broken = found(tmp_path, bucket)
    assert text == "one" and len(broken) == 1
    assert found(tmp_path, bucket) == ("one", [])


@pytest.mark.parametrize("name", ["../../escaped", "/etc/passwd", "deep/er", "..", ".hidden", "nul\0"])
def test_a_manifest_that_names_a_path_is_refused(bucket: S3, tmp_path: Path, name: str) -> None:
    first, second = write_run(tmp_path / "a", bucket, "one", "two")
    key = f"runs/run-1/checkpoints/{second}/{MANIFEST}"
    directory = tmp_path / "forged"
    directory.mkdir()
    (directory / "state").write_text("x")
    seal(directory, "run-1", second)
    files = json.loads((directory / MANIFEST).read_text())
    files["files"] = {name: files["files"]["state"]}
    from marble_core.checkpoints.manifest import _canonical  # as a forger would

    del files["sha256"]
    forged = _canonical(files)
    with pytest.raises(Broken, match="no plain file name"):
        read_manifest(forged, "run-1", second)
    bucket.put(key, forged)
    before = set(tmp_path.rglob("*"))
    assert found(tmp_path / "b", bucket)[0] == "one"
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "b", *(tmp_path / "b").rglob("*")}
    assert first in {p.name for p in (tmp_path / "b").iterdir()}


SHAPES = [b"null", b"[]", b"7", b'"x"', b"{}", b"\xff", b"[" * 100_000, b'{"files": {"state": 1}, "sha256": "x"}', b""]


@pytest.mark.parametrize("text", SHAPES)
def test_what_is_no_manifest_makes_no_checkpoint_and_the_one_before_is_found(bucket: S3, tmp_path: Path, text: bytes) -> None:
    _, second = write_run(tmp_path / "a", bucket, "one", "two")
    bucket.put(f"runs/run-1/checkpoints/{second}/{MANIFEST}", text)
    (tmp_path / "a" / second / MANIFEST).write_bytes(text)
    for place in ("a", "b"):
        newest, broken = found(tmp_path / place, bucket)
        assert newest == "one" and broken and all(MANIFEST in said and "\n" not in said for said in broken)


@pytest.mark.parametrize("text", [*SHAPES, b'{"checkpoint": 7}', b'{"checkpoint": "../x", "going": 3, "owner": {}}'])
def test_what_is_no_latest_names_nothing_and_the_run_goes_on_from_its_newest(bucket: S3, tmp_path: Path, text: bytes) -> None:
    write_run(tmp_path / "a", bucket, "one", "two")
    bucket.put("runs/run-1/checkpoints/latest", text)
    assert found(tmp_path / "b", bucket) == ("two", [])
    store = CheckpointStore(tmp_path / "c", bucket, "run-1")
    with store.owned(beat=0.05, patience=0.2):
        assert store.newest()
        store.save(3, content("three"))
        assert store.flush(60)
    assert found(tmp_path / "d", bucket) == ("three", [])


def test_wherever_an_upload_stops_the_next_process_finds_a_whole_checkpoint_and_completes_it(
    bucket: S3, tmp_path: Path
) -> None:
    for stop in range(4):  # two files, the manifest, latest
        run_id, local = f"run-{stop}", tmp_path / str(stop)
        write_run(local, bucket, "one", run_id=run_id)
        store = CheckpointStore(local, Stopping(bucket.bucket, stop), run_id)
        with store.owned(**QUICK):
            store.save(2, content("two"))
            assert not store.flush(0.5)
        assert found(tmp_path / f"elsewhere-{stop}", bucket, run_id)[0] == "one"
        again = CheckpointStore(local, bucket, run_id)
        with again.owned(**QUICK):
            assert step_of(str(again.newest())) == 2
        assert found(tmp_path / f"later-{stop}", bucket, run_id)[0] == "two"


class Stopping(S3):
    """Lets so many writes of a checkpoint through, and answers no more."""

    def __init__(self, name: str, writes: int) -> None:
        super().__init__(name)
        self.left, self.threads = writes, set[int]()

    def _write(self) -> None:
        self.threads.add(threading.get_ident())
        if self.left == 0:
            raise MarbleError("S3 is away.")
        self.left -= 1

    def upload_file(self, local: Path, key: str) -> str:
        self._write()
        return super().upload_file(local, key)

    def put(self, key: str, body: bytes) -> None:
        self._write()
        super().put(key, body)

    def swap(self, key: str, body: bytes, etag: str | None) -> str | None:
        if b"step-000002" in body:
            self._write()
        return super().swap(key, body, etag)


def test_saving_waits_for_no_server_and_the_newest_is_uploaded_when_it_is_back(bucket: S3, tmp_path: Path) -> None:
    away = Stopping(bucket.bucket, 0)
    store = CheckpointStore(tmp_path / "a", away, "run-1", StorageConfig(max_unsaved_minutes=0.5 / 60))
    with store.owned(**QUICK):
        for step in range(1, 9):
            store.save(step, content(str(step)))
        assert len(list((tmp_path / "a").glob("step-*"))) <= 5, "the disk does not fill up meanwhile"
        with pytest.raises(Away, match=r"S3 has taken no checkpoint for .* minutes \(S3 is away"):
            store.flush()
        assert away.threads and threading.get_ident() not in away.threads
        away.left = -1
        assert store.flush(60)
        store.check()
    assert found(tmp_path / "b", bucket) == ("8", [])


def test_retention_keeps_the_last_each_nth_the_best_and_what_is_in_use(bucket: S3, tmp_path: Path) -> None:
    names = [name_of(step, "0" * 8) for step in range(1, 21)]
    gone = superfluous(names, last=2, every=5, best=7, in_use={names[8]})
    assert [step_of(n) for n in sorted(set(names) - set(gone))] == [5, 7, 9, 10, 15, 19, 20]
    local = tmp_path / "a"
    store = CheckpointStore(local, bucket, "run-1", StorageConfig(keep_last=2))
    with store.owned(**QUICK):
        store.remote.record_gain(2, 0.3)  # type: ignore[union-attr]
        store.remote.record_gain(4, 0.1)  # type: ignore[union-attr]
        for step in range(1, 7):
            store.save(step, content(str(step)))
            assert store.flush(60)
    complete, unfinished = store.remote.names()  # type: ignore[union-attr]
    assert [step_of(n) for n in complete] == [6, 5, 2] and unfinished == []
    assert sorted(step_of(p.name) for p in local.glob("step-*")) == [5, 6]


def test_what_killed_uploads_left_is_cleared_away_by_the_next_owner(bucket: S3, tmp_path: Path) -> None:
    bucket.put("runs/run-1/checkpoints/step-000009-deadbeef/state.json", b"{}")
    write_run(tmp_path, bucket, "one")
    assert not [key for key in bucket.keys("runs/run-1") if "deadbeef" in key]


def test_another_runs_checkpoint_is_found_by_its_address_and_a_wrong_one_is_one_sentence(bucket: S3, tmp_path: Path) -> None:
    first, second = write_run(tmp_path, bucket, "one", "two")
    run = f"s3://{bucket.bucket}/runs/run-1"
    for address, text in ((run, "two"), (f"{run}/checkpoints/{first}", "one"), (f"{run}/checkpoints/{second}/", "two")):
        with downloaded(address) as directory:
            assert json.loads((directory / "state.json").read_text())["text"] == text
    for address, part in (
        (f"s3://{bucket.bucket}/run-1", "names no run"),
        (f"{run}/checkpoints/../x", "names no run"),
        (f"s3://{bucket.bucket}/runs/none", "it has none"),
        (f"{run}/checkpoints/step-000009-00000000", first),
    ):
        with pytest.raises(MarbleError, match=r"train\.start_from") as error:
            locate(address)
        assert part in str(error.value) and "\n" not in str(error.value)


def test_the_uploads_thread_does_not_outlive_its_block(bucket: S3, tmp_path: Path) -> None:
    write_run(tmp_path, bucket, "one")
    assert eventually(lambda: not {"upload", "lease"} & {thread.name for thread in threading.enumerate()})
