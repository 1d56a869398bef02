"""A checkpoint is there as a whole or not at all, on the disk and on a real S3 server."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from marble_core.checkpoint import MANIFEST, CheckpointStore
from marble_core.storage import S3
from marble_core.types import MarbleError


def content(text: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / "state.safetensors").write_bytes(text.encode() * 1000)
        (directory / "state.json").write_text(json.dumps({"text": text}))

    return write


def text_of(checkpoint: Path | None) -> str:
    assert checkpoint is not None
    return str(json.loads((checkpoint / "state.json").read_text())["text"])


def test_a_checkpoint_lies_under_its_run_with_a_manifest_of_every_file(bucket: S3, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, bucket, "run-1")
    assert store.latest() is None
    assert store.save(10, content("ten")) == f"s3://{bucket.bucket}/runs/run-1/checkpoints/step-000010"
    prefix = "runs/run-1/checkpoints/step-000010"
    assert set(bucket.keys(prefix)) == {f"{prefix}/{n}" for n in ("state.safetensors", "state.json", MANIFEST)}
    manifest = bucket.get_json(f"{prefix}/{MANIFEST}")
    assert set(manifest["files"]) == {"state.safetensors", "state.json"}
    assert manifest["files"]["state.safetensors"]["size"] == 3000
    assert text_of(store.latest()) == "ten"


def test_the_newest_checkpoint_of_this_run_is_found_after_the_disk_is_lost(bucket: S3, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "a", bucket, "run-1")
    for step, text in ((2, "two"), (10, "ten"), (9, "nine")):
        store.save(step, content(text))
    CheckpointStore(tmp_path / "b", bucket, "run-2").save(99, content("another run"))
    shutil.rmtree(tmp_path / "a")
    again = CheckpointStore(tmp_path / "a", bucket, "run-1")
    assert text_of(again.latest()) == "ten"
    assert again.broken == []


def test_without_s3_the_disk_alone_serves(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, None, "run-1")
    assert store.save(3, content("three")).startswith("file://")
    assert text_of(CheckpointStore(tmp_path, None, "run-1").latest()) == "three"


def test_a_write_that_fails_leaves_nothing(bucket: S3, tmp_path: Path) -> None:
    def fails(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise RuntimeError("out of memory")

    store = CheckpointStore(tmp_path, bucket, "run-1")
    with pytest.raises(RuntimeError):
        store.save(1, fails)
    assert list(tmp_path.iterdir()) == [] and list(bucket.keys("runs")) == []
    (tmp_path / ".draft-killed").mkdir()
    assert CheckpointStore(tmp_path, bucket, "run-1").latest() is None
    assert list(tmp_path.iterdir()) == []


def test_files_without_a_manifest_are_no_checkpoint(bucket: S3, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "a", bucket, "run-1")
    store.save(1, content("one"))
    store.save(2, content("two"))
    bucket.delete(f"runs/run-1/checkpoints/step-000002/{MANIFEST}")
    other = CheckpointStore(tmp_path / "b", bucket, "run-1")
    assert text_of(other.latest()) == "one"
    (tmp_path / "a" / "step-000002" / MANIFEST).unlink()
    assert text_of(store.latest()) == "one"


@pytest.mark.parametrize("harm", ["changed", "cut", "missing", "no json"])
def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(bucket: S3, tmp_path: Path, harm: str) -> None:
    prefix = "runs/run-1/checkpoints/step-000002"
    writer = CheckpointStore(tmp_path / "a", bucket, "run-1")
    writer.save(1, content("one"))
    writer.save(2, content("two"))
    if harm == "missing":
        bucket.delete(f"{prefix}/state.safetensors")
    else:
        bad = {"changed": b"owt" * 1000, "cut": b"two" * 999, "no json": b"{"}[harm]
        (tmp_path / "bad").write_bytes(bad)
        bucket.upload_file(tmp_path / "bad", f"{prefix}/{MANIFEST if harm == 'no json' else 'state.safetensors'}")
    reader = CheckpointStore(tmp_path / "b", bucket, "run-1")
    assert text_of(reader.latest()) == "one"
    (named,) = reader.broken
    assert prefix in named and ("manifest.json" if harm == "no json" else "state.safetensors") in named
    reader.save(2, content("two again"))  # the run comes to this step once more
    assert text_of(CheckpointStore(tmp_path / "c", bucket, "run-1").latest()) == "two again"


def test_a_local_copy_that_is_broken_is_fetched_again(bucket: S3, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, bucket, "run-1")
    store.save(1, content("one"))
    (tmp_path / "step-000001" / "state.json").write_text("{}")
    assert text_of(store.latest()) == "one"
    assert len(store.broken) == 1


def test_wherever_an_upload_stops_the_next_process_finds_a_whole_checkpoint_and_completes_it(
    bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stop in range(3):
        run_id, local = f"run-{stop}", tmp_path / str(stop)
        store = CheckpointStore(local, bucket, run_id)
        store.save(1, content("one"))
        left = [stop]

        def put(what: Callable[..., object], left: list[int] = left) -> Callable[..., object]:
            def attempt(*args: object, **options: object) -> object:
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
                return what(*args, **options)

            return attempt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(bucket, "upload_file", put(bucket.upload_file))
            patch.setattr(bucket, "put_json", put(bucket.put_json))
            store.save(2, content("two"))
        assert text_of(CheckpointStore(tmp_path / f"elsewhere-{stop}", bucket, run_id).latest()) == "one"
        assert text_of(CheckpointStore(local, bucket, run_id).latest()) == "two"
        assert text_of(CheckpointStore(tmp_path / f"later-{stop}", bucket, run_id).latest()) == "two"


def test_a_second_process_on_the_same_run_is_told_and_spoils_nothing(bucket: S3, tmp_path: Path) -> None:
    first = CheckpointStore(tmp_path / "a", bucket, "run-1")
    second = CheckpointStore(tmp_path / "b", bucket, "run-1")
    first.save(1, content("first"))
    first.save(1, content("first"))  # the same once more is no conflict
    with pytest.raises(MarbleError, match=r"Another process has written s3://.*step-000001"):
        second.save(1, content("second"))
    assert text_of(CheckpointStore(tmp_path / "c", bucket, "run-1").latest()) == "first"
