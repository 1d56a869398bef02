"""marble checkpoints list, verify and prune, on a real S3 server of the environment's and on the embedded one."""

import json
import shutil
import uuid
from pathlib import Path

from checkpoint_builders import QUICK, content
from commands import assert_one_sentence, marble_process
from marble_core.checkpoints import CheckpointStore
from marble_core.config.schema import StorageConfig
from marble_core.storage.s3 import S3


def test_list_verify_and_prune_say_what_there_is_and_remove_no_more_than_they_should(services, tmp_path: Path) -> None:
    run_id, s3 = f"run-{uuid.uuid4().hex[:8]}", S3("marble")
    store = CheckpointStore(tmp_path / ".marble/runs" / run_id / "checkpoints", s3, run_id, StorageConfig(keep_last=9))
    with store.owned(**QUICK):
        names = [store.save(step, content(str(step))).name for step in (1, 2, 3) if store.flush(10)]
        assert store.flush(10)
        refused = marble_process(tmp_path, "checkpoints", "prune", run_id)
    assert_one_sentence(refused, "is being worked on by another process")
    store.remote.record_gain(1, 0.5)  # type: ignore[union-attr]
    shutil.rmtree(store.local / names[1])
    listed = marble_process(tmp_path, "checkpoints", "list", run_id).stdout
    rows = {name: line for name in names for line in listed.splitlines() if name in line}
    assert "best" in rows[names[0]] and "latest" in rows[names[2]]
    assert rows[names[1]].count("yes") == 1 and rows[names[2]].count("yes") == 2

    assert marble_process(tmp_path, "checkpoints", "verify", run_id).returncode == 0
    s3.put(f"runs/{run_id}/checkpoints/{names[1]}/state.json", b"{}")
    verified = marble_process(tmp_path, "checkpoints", "verify", run_id)
    assert_one_sentence(verified, f"1 checkpoint of the run {run_id} cannot be used")
    (line,) = [line for line in verified.stdout.splitlines() if "whole" not in line]
    assert names[1] in line and "state.json was changed" in line

    dry = marble_process(tmp_path, "checkpoints", "prune", run_id, "--keep-last", "1", "--dry-run").stdout
    assert dry == f"Would remove {names[1]}\n1 checkpoint would be removed; nothing was.\n"
    assert set(store.remote.names()[0]) == set(names)  # type: ignore[union-attr]
    rows = json.loads(marble_process(tmp_path, "checkpoints", "list", run_id, "--json").stdout)
    assert [(row["checkpoint"], row["here"], row["s3"], row["marks"]) for row in rows] == [
        (names[2], True, True, ["latest"]),
        (names[1], False, True, []),
        (names[0], True, True, ["best"]),
    ]
    assert "1 checkpoint removed" in marble_process(tmp_path, "checkpoints", "prune", run_id, "--keep-last", "1").stdout
    complete, unfinished = store.remote.names()  # type: ignore[union-attr]
    assert (complete, unfinished) == ([names[2], names[0]], []) and store.newest() == names[2]


def test_a_run_without_checkpoints_is_one_sentence_on_the_embedded_server_too(tmp_path: Path) -> None:
    assert_one_sentence(marble_process(tmp_path, "checkpoints", "list", "nobody"), "no checkpoint of the run 'nobody'")
    assert_one_sentence(marble_process(tmp_path, "checkpoints", "list", "../x"), "run id '../x'")
