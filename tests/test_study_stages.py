"""The stages of a study as a pipeline, on a real S3 server: what is there is not made again, and the page is on all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from marble_core import study_stages
from marble_core.bench.study import Study
from marble_core.bench.study_store import StudyStore
from marble_core.evaluation.shared_roles import Sampled, SharedRoles
from marble_core.storage.s3 import S3
from marble_core.types import MarbleError, RewardTable
from study_builders import a_cell

ARMS = {"marble": [], "equal": ["balance.method=equal"]}
GAINS = {"marble": 0.4, "equal": -0.2}


def text(bucket: S3, **more: object) -> str:
    return json.dumps({"set": ["train.steps=4", f"storage.bucket={bucket.bucket}"], "seeds": [0, 1], "evaluate_at": [2, 4], "arms": ARMS, **more})  # fmt: skip


def finished_cell(bucket: S3, scratch: Path, arm: str, seed: int) -> bytes:
    """One on S3, as a pod has left it."""
    study = Study.of(json.loads(text(bucket)), "s")
    a_cell(arm, seed, GAINS[arm], config=study.config(arm, seed).digest).save(scratch / "cell.json")
    data = (scratch / "cell.json").read_bytes()
    bucket.put(f"studies/s/cells/{arm}/seed-{seed}.json", data)
    return data


def test_a_cell_that_is_finished_on_s3_is_fetched_and_not_made_again(bucket: S3, tmp_path: Path) -> None:
    data = finished_cell(bucket, tmp_path, "equal", 1)
    said = study_stages.study_cell(text(bucket), "s", "equal", 1, str(tmp_path / "work"), tmp_path / "out" / "cell")
    assert said == "equal, seed 1 was finished before, and is not made again."
    assert (tmp_path / "out" / "cell").read_bytes() == data and not (tmp_path / "work").exists()


def test_a_finished_cell_of_other_settings_is_refused(bucket: S3, tmp_path: Path) -> None:
    finished_cell(bucket, tmp_path, "equal", 1)
    for other in ({"evaluate_at": [4]}, {"arms": {**ARMS, "equal": ["balance.method=equal", "optimizer.lr=0.5"]}}):
        with pytest.raises(
            MarbleError, match=r"seed-1.json was made with other settings .*\. Put them back, give the study another"
        ):
            study_stages.study_cell(text(bucket, **other), "s", "equal", 1, "", tmp_path / "cell")


def test_a_cells_work_is_a_child_that_is_started_again(bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As train's is: the stage's parent hands all arguments on, and says a refusal of the child's as its own."""
    data = finished_cell(bucket, tmp_path, "marble", 0)
    monkeypatch.setenv("MARBLE_AGAIN", json.dumps({"retries": 2, "seconds": 0}))
    study_stages.study_cell(text(bucket), "s", "marble", 0, "", tmp_path / "cell")
    assert (tmp_path / "cell").read_bytes() == data
    with pytest.raises(MarbleError, match="made with other settings"):
        study_stages.study_cell(text(bucket, evaluate_at=[4]), "s", "marble", 0, "", tmp_path / "cell")


def test_the_report_needs_no_torch_and_leaves_page_and_tables_here_and_on_s3(bucket: S3, tmp_path: Path) -> None:
    for arm in ARMS:
        for seed in (0, 1):
            finished_cell(bucket, tmp_path, arm, seed)
    code = (
        "import sys, json; sys.modules['torch'] = None\n"
        "from pathlib import Path\nfrom marble_core.study_stages import study_report\n"
        "print(json.dumps(study_report(sys.argv[1], 's', Path('page.html'), Path('tables.json'))))"
    )
    command = [sys.executable, "-c", code, text(bucket)]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    gains = json.loads(done.stdout.splitlines()[-1])
    assert gains == {arm: pytest.approx(gain, abs=0.1) for arm, gain in GAINS.items()}
    page, tables = (tmp_path / "page.html").read_bytes(), json.loads((tmp_path / "tables.json").read_bytes())
    assert b"4 of 4 done" in page and b"marble gained most" in page
    assert set(tables["steps"]["4"]["over_base"]) == set(ARMS)
    assert bucket.get("studies/s/study.html")[0] == page and bucket.get_json("studies/s/study.json") == tables  # type: ignore[index]


def test_a_report_says_which_cells_are_missing_and_refuses_a_study_without_one(bucket: S3, tmp_path: Path) -> None:
    with pytest.raises(MarbleError, match=r"The study s has no finished cell in s3://.*/studies/s: run it again."):
        study_stages.study_report(text(bucket), "s", tmp_path / "page", tmp_path / "tables")
    finished_cell(bucket, tmp_path, "marble", 0)
    study_stages.study_report(text(bucket), "s", tmp_path / "page", tmp_path / "tables")
    said = (tmp_path / "page").read_text()
    assert "1 of 4 done" in said and said.count("not made") == 3


def test_what_no_arm_changes_is_sampled_by_one_pod_and_read_by_the_next(bucket: S3, tmp_path: Path) -> None:
    store = StudyStore(Study.of(json.loads(text(bucket)), "s"), "s")
    table = RewardTable(("ocr",), np.array([[0.1], [1 / 3]]), {})

    def sampled() -> Sampled:
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / "base-0.png").write_bytes(b"an image")
        return Sampled(table, np.array([0.25]))

    SharedRoles(tmp_path / "first").get("base", {"steps": 2}, tmp_path / "images", sampled)
    store.keep_roles(tmp_path / "first")
    store.fetch_roles(tmp_path / "second")
    store.fetch_roles(tmp_path / "second")  # what is here is not fetched again
    (tmp_path / "shown").mkdir()
    found = SharedRoles(tmp_path / "second").get("base", {"steps": 2}, tmp_path / "shown", lambda: pytest.fail("sampled again"))
    assert found.table.R_NK.tolist() == table.R_NK.tolist() and (tmp_path / "shown" / "base-0.png").read_bytes() == b"an image"
