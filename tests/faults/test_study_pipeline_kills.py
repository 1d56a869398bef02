"""A study as a pipeline that is killed and started again: finished cells stay as they are, and all end as those of a study that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from browser import chromium
from marble_core.storage.s3 import S3
from study_builders import TINY, a_checkout

pytestmark = [pytest.mark.faults, pytest.mark.deep]  # it trains eight tiny models, three minutes on two free cores

PATIENCE = 1500.0
CELLS = "studies/tiny/cells"


def started(code: Path, here: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "marble_core.cli", "study", "tiny.yaml", *options]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    return subprocess.Popen(command, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said


def killed_when_one_is_finished(process: subprocess.Popen[str], bucket: S3) -> None:
    """kill -9 of everything at once, when the first cell is on S3 and others are not."""
    deadline = time.monotonic() + PATIENCE
    while not list(bucket.keys(CELLS)) and process.poll() is None and time.monotonic() < deadline:
        threading.Event().wait(0.1)
    assert process.poll() is None, process.communicate()[0]
    for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        one.kill()
    assert process.wait() == -9


def test_a_study_as_a_pipeline_that_is_killed_goes_on_and_makes_no_finished_cell_again(tmp_path: Path, bucket: S3) -> None:
    code = a_checkout(tmp_path / "code", whole=True)
    arms = {"marble": [], "equal": ["balance.method=equal"]}
    file = {"set": [*TINY, f"storage.bucket={bucket.bucket}"], "seeds": [0, 1], "arms": arms}
    (tmp_path / "tiny.yaml").write_text(json.dumps(file))
    killed_when_one_is_finished(started(code, tmp_path, "--pipeline"), bucket)
    first = {key: bucket.get(key) for key in bucket.keys(CELLS)}
    times = modified(bucket)
    assert 1 <= len(first) < 4

    said = ended(started(code, tmp_path, "--pipeline"))
    cells = {key: bucket.get(key) for key in bucket.keys(CELLS)}
    assert len(cells) == 4 and {key: modified(bucket)[key] for key in first} == times
    assert said.count("was finished before, and is not made again") == len(first) and said.count("is done.") == 4 - len(first)

    ended(started(code, tmp_path, "--out", str(tmp_path / "whole")))  # the same study, by processes, never stopped
    for key, found in cells.items():
        assert found and found[0] == (tmp_path / "whole" / key.removeprefix("studies/tiny/")).read_bytes(), key
    page = tmp_path / ".marble" / "studies" / "tiny" / "study.html"
    assert bucket.get("studies/tiny/study.html")[0] == page.read_bytes()  # type: ignore[index]
    (report,) = page.parent.glob("pipeline/artifacts/*/study-report/page")
    assert report.read_bytes() == page.read_bytes(), "it is the last stage's artifact"
    with chromium(tmp_path / "browser") as tab:
        tab.open(page.as_uri())
        shown = tab.evaluate("document.body.innerText")
        assert "4 of 4 done" in shown and "gained most over the base" in shown and not tab.errors
        assert tab.evaluate("document.querySelectorAll('svg').length") >= 6


def modified(bucket: S3) -> dict[str, object]:
    """When each cell was written, as the server says."""
    listed = bucket._client.list_objects_v2(Bucket=bucket.bucket, Prefix=CELLS)
    return {item["Key"]: item["LastModified"] for item in listed["Contents"]}
