"""The command line, in a process of its own or in the test's, and what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from marble_core.cli import main
from marble_core.types import MarbleError
from paths import TESTS


def environment(stand_in: str = "") -> dict[str, str]:
    """With a stand-in for the stages that need a model, by tests/stand_ins."""
    path = os.pathsep.join([str(TESTS / "stand_ins"), os.environ["PYTHONPATH"]])
    return {**os.environ, "STAND_IN": stand_in, "PYTHONPATH": path, "COLUMNS": "160"}


def marble_process(cwd: Path, *arguments: str, stand_in: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "marble_core.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment(stand_in), capture_output=True, text=True, timeout=600, check=False)


def assert_one_sentence(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The process ended with exit code 2 and one line that holds all ``parts``."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert all(part in line for part in parts), line


def run_marble(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["marble", *arguments])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    return int(end.value.code or 0)


def one_sentence(said: str, *parts: str) -> None:
    assert "Traceback" not in said
    (line,) = said.strip().splitlines()
    assert len(line) < 700 and line.endswith((".", "?")), line
    assert all(part in line for part in parts), line


# A run of the demo that takes about a minute.
TINY = [
    "train.steps=2", "train.checkpoint_every=1", "balance.observe=1", "rollout.prompts=3", "rollout.images_per_prompt=4", "rollout.steps=3",
    "loss.timesteps=2", "data.train_size=30", "data.evaluation_size=4", "evaluation.steps=3", "evaluation.resamples=200",
]  # fmt: skip


def sentence_of(caught: pytest.ExceptionInfo[MarbleError]) -> str:
    """What a MarbleError says, in one sentence; some end with the name of a setting."""
    text = str(caught.value)
    assert "\n" not in text and text.endswith((".", "checkpoint")), text
    return text
