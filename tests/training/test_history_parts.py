"""The history in a checkpoint: what a checkpoint adds does not grow with the run, and nothing of the history is ever lost."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from checkpoint_builders import QUICK
from marble_core.checkpoints import CheckpointStore
from marble_core.checkpoints.manifest import verify
from marble_core.config.schema import StorageConfig
from marble_core.storage.s3 import S3
from marble_core.training.history_parts import STEPS, HistoryParts
from marble_core.types import MarbleError


def history(steps: int) -> list[dict]:
    """Of many rewards: a line has about 20 kB."""
    return [
        {"step": n, "metrics": {f"cosine/{a}:{a + 1}": n + a / 7 for a in range(700)}, "notes": []} for n in range(1, steps + 1)
    ]


def new_bytes(checkpoint: Path) -> int:
    """Of files that no other checkpoint has."""
    return sum(path.stat().st_size for path in checkpoint.iterdir() if path.stat().st_nlink == 1)


@contextmanager
def run(local: Path, s3: S3 | None = None, run_id: str = "run", keep: int = 2) -> Iterator[CheckpointStore]:
    store = CheckpointStore(local, s3, run_id, StorageConfig(keep_last=keep))
    with store.owned(**QUICK):
        yield store


def saved(store: CheckpointStore, parts: HistoryParts, lines: list[dict]) -> Path:
    parts.place = store.save(len(lines), lambda directory: parts.write(lines, directory))
    return parts.place


def test_a_checkpoint_writes_what_came_since_the_one_before_however_long_the_run_is(tmp_path: Path) -> None:
    lines, parts = history(12 * STEPS), HistoryParts()
    written = []
    with run(tmp_path) as store:
        for step in range(STEPS // 2, len(lines) + 1, STEPS // 2):
            place = saved(store, parts, lines[:step])
            written.append(new_bytes(place))
            verify(place, "run", place.name)
    assert max(written[-2:]) < 1.1 * max(written[:2]), "the 24th as the first ones"
    assert HistoryParts().read(place) == lines
    assert len(list(tmp_path.glob("step-*"))) == 2, "retention took the others, and their parts stayed"


def test_going_on_links_the_parts_and_a_shorter_history_has_those_that_it_covers(tmp_path: Path) -> None:
    lines, parts = history(3 * STEPS + 5), HistoryParts()
    with run(tmp_path, keep=9) as store:
        saved(store, parts, lines[:-5])
        resumed = HistoryParts()
        assert resumed.read(store.fetch(store.newest())) == lines[:-5] and resumed.names == parts.names
        place = saved(store, resumed, lines)
        assert sorted(p.stat().st_nlink for p in place.glob("history-*")) == [2, 2, 2]
        shorter = saved(store, resumed, lines[: 2 * STEPS + 1])  # without steps that had a fault at the end
        assert HistoryParts().read(shorter) == lines[: 2 * STEPS + 1]
        assert HistoryParts().read(saved(store, resumed, history(3 * STEPS + 6))) == history(3 * STEPS + 6)
        for path in tmp_path.glob("step-*/history-*"):
            path.unlink()
        assert HistoryParts().read(saved(store, resumed, history(3 * STEPS + 7))) == history(3 * STEPS + 7), "written anew"


def test_a_process_that_ends_while_it_writes_leaves_the_checkpoint_before_and_its_history(tmp_path: Path) -> None:
    lines, parts = history(2 * STEPS + 3), HistoryParts()

    def killed(directory: Path) -> None:
        parts.write(lines, directory)
        raise KeyboardInterrupt

    with run(tmp_path) as store, pytest.raises(KeyboardInterrupt):
        saved(store, parts, lines[:-4])
        store.save(len(lines), killed)
    with run(tmp_path) as store:
        going_on = HistoryParts()
        assert going_on.read(store.fetch(store.newest())) == lines[:-4]
        assert HistoryParts().read(saved(store, going_on, lines)) == lines


def test_on_s3_a_part_is_one_object_that_outlives_the_checkpoint_that_brought_it(
    services: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3, sent, run_id = S3("marble"), [], f"parts-{uuid.uuid4().hex[:8]}"
    upload = S3.upload_file
    monkeypatch.setattr(S3, "upload_file", lambda self, file, key: (sent.append(file.stat().st_size), upload(self, file, key)))
    lines, parts, added = history(6 * STEPS), HistoryParts(), []
    with run(tmp_path / "one", s3, run_id) as store:
        for step in range(STEPS, len(lines) + 1, STEPS):
            del sent[:]
            saved(store, parts, lines[:step])
            assert store.flush(60)
            added.append(sum(sent))
    assert added[-1] < 1.1 * added[0] and len(list(s3.keys(f"runs/{run_id}/checkpoints/shared"))) == 6
    with run(tmp_path / "two", s3, run_id) as store:
        assert len(store.complete()[1]) == 2
        elsewhere = HistoryParts()
        assert elsewhere.read(store.fetch(store.newest())) == lines
    assert store.broken == []


def test_a_part_that_the_disk_has_changed_never_reaches_s3_under_its_name(services: dict[str, str], tmp_path: Path) -> None:
    s3, run_id = S3("marble"), f"parts-{uuid.uuid4().hex[:8]}"
    store = CheckpointStore(tmp_path, s3, run_id)
    place = store.save(STEPS, lambda directory: HistoryParts().write(history(STEPS), directory))
    (part,) = place.glob("history-*")
    part.write_text(json.dumps({"step": 1}))
    with pytest.raises(MarbleError, match="was changed on the disk"):
        store.remote.upload(place)
    assert list(s3.keys(f"runs/{run_id}/checkpoints/shared")) == []
