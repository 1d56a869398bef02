"""A study that is killed and started again leaves the files of one that was not, to the bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from study_builders import TINY, a_checkout, git

pytestmark = pytest.mark.faults

KILLS, PATIENCE = 3, 1500.0
FILE = {"set": TINY, "seeds": [0, 1], "evaluate_at": [1, 2], "arms": {"marble": [], "equal": ["balance.method=equal"]}}


class Attempt:
    """``marble study``, with its cells' processes in groups of their own."""

    def __init__(self, code: Path, file: Path, out: Path) -> None:
        self.out = out
        command = [sys.executable, "-P", "-m", "marble_core.cli", "study", str(file), "--out", str(out), "--jobs", "2"]
        environment = {**os.environ, "PYTHONPATH": str(code)}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.begun = self.told()

    def told(self) -> int:
        """How many events the cells have written, over all attempts."""
        return sum(len(path.read_text().splitlines()) for path in self.out.glob("runs/*/*/progress.jsonl"))

    def kill_after(self, events: int) -> None:
        """kill -9 of everything at once, when its cells have told so much; what watches them goes too."""
        deadline = time.monotonic() + PATIENCE
        while self.told() < self.begun + events and self.process.poll() is None and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        assert self.process.poll() is None, self.process.communicate()[0]
        processes = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in processes:
            process.kill()
        assert self.process.wait() == -9

    def end(self) -> str:
        said, _ = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, said
        return said


def left(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in [*out.glob("cells/*/*"), out / "study.json"]}


def test_a_study_that_is_killed_three_times_leaves_the_files_of_one_that_was_not(tmp_path: Path) -> None:
    code = a_checkout(tmp_path / "code", whole=True)
    (tmp_path / "s.yaml").write_text(json.dumps(FILE))
    whole = Attempt(code, tmp_path / "s.yaml", tmp_path / "whole")
    said = whole.end()
    assert said.count("is done after") == 4 and "4 of 4 done" in said
    events, moments = whole.told(), random.Random(5)
    begun = git(code, "rev-parse", "HEAD")

    for kill in range(KILLS):
        Attempt(code, tmp_path / "s.yaml", tmp_path / "killed").kill_after(moments.randrange(1, events // (KILLS + 1)))
        if kill == 0:  # the checkout goes on, and the study does not
            (code / "marble_core" / "training" / "study_cell.py").write_text("raise RuntimeError\n")
            git(code, "commit", "--all", "--quiet", "--message", "go on")
    said = Attempt(code, tmp_path / "s.yaml", tmp_path / "killed").end()
    assert len(left(tmp_path / "whole")) == 5 and left(tmp_path / "killed") == left(tmp_path / "whole")
    assert json.loads((tmp_path / "killed" / "cells" / "equal" / "seed-1.json").read_text())["commit"] == begun
    assert "4 of 4 done" in said and "Page:" in said
    again = Attempt(code, tmp_path / "s.yaml", tmp_path / "killed").end()
    assert "4 of 4 cells are done" in again and "is done after" not in again
    assert max(len(data) for data in left(tmp_path / "killed").values()) < 300_000
