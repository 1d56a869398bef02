"""100 checkpoints with one flipped byte, a truncated, a missing or a swapped file: each is found out, the one before is taken."""

import json
import random
import shutil
from pathlib import Path

import pytest

from marble_core.checkpoints import CheckpointStore
from marble_core.checkpoints.manifest import MANIFEST
from marble_core.config.schema import StorageConfig
from marble_core.storage.s3 import S3

pytestmark = pytest.mark.faults

FILES = ("state.safetensors", "state.json", "config.json", "history.jsonl", MANIFEST)
HARMS = ("flipped byte", "truncated", "missing", "swapped with the one before", "swapped with each other")


def write(seed: int):
    def fill(directory: Path) -> None:
        chance = random.Random(seed)
        for file in FILES[:-1]:
            (directory / file).write_bytes(json.dumps({"of": seed}).encode() + chance.randbytes(chance.randint(50, 5000)))

    return fill


def harm(kind: str, newest: Path, before: Path, chance: random.Random) -> str:
    """Returns the file that is not as it was."""
    file = chance.choice(FILES)
    content = (newest / file).read_bytes()
    if kind == "flipped byte":
        at = chance.randrange(len(content))
        changed = content[:at] + bytes([content[at] ^ chance.randint(1, 255)]) + content[at + 1 :]
        (newest / file).write_bytes(changed)
    elif kind == "truncated":
        (newest / file).write_bytes(content[: chance.randrange(len(content))])
    elif kind == "missing":
        (newest / file).unlink()
    elif kind == "swapped with the one before":
        shutil.copyfile(before / file, newest / file)
    else:
        other = chance.choice([f for f in FILES if f != file])
        (newest / file).write_bytes((newest / other).read_bytes())
        (newest / other).write_bytes(content)
    return file


@pytest.mark.parametrize("where", ["disk", "S3"])
def test_of_100_broken_checkpoints_none_is_taken_and_each_is_named(bucket: S3, tmp_path: Path, where: str) -> None:
    store = CheckpointStore(tmp_path / "whole", bucket, "run", StorageConfig(keep_last=3))
    with store.owned():
        before, newest = (store.save(step, write(step)) for step in (1, 2))
        assert store.flush(20)
    assert store.newest() == newest.name
    for attempt in range(50):
        chance = random.Random(f"{where} {attempt}")
        local = tmp_path / str(attempt)
        shutil.copytree(tmp_path / "whole", local)
        file = harm(HARMS[attempt % len(HARMS)], local / newest.name, local / before.name, chance)
        if where == "disk":
            reader = CheckpointStore(local, None, "run")
        else:
            upload(bucket, local / newest.name)
            reader = CheckpointStore(tmp_path / f"reader-{attempt}", bucket, "run")
        assert reader.newest() == before.name, (attempt, file)
        assert any(newest.name in words for words in reader.broken), (attempt, file)
        shutil.rmtree(local)


def upload(bucket: S3, directory: Path) -> None:
    """The checkpoint on S3 becomes exactly this."""
    for file in FILES:
        key = f"runs/run/checkpoints/{directory.name}/{file}"
        if (directory / file).exists():
            bucket.put(key, (directory / file).read_bytes())
        else:
            bucket.delete(key)
