"""kill -9 of whatever `marble run` trains with on two processes: nothing is left running, and the command ends with a sentence."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from command_lines import running
from commands import TINY, environment
from waiting import eventually

LONG = [*TINY, "train.processes=2", "train.steps=500", "train.checkpoint_every=400", "rewards=[{name: compressibility}]"]
CELLS = [  # whom, which of them, and what stands in the sentence
    ("command", 0, ""),
    (
        "pipeline",
        0,
        "killed",
    ),  # by the stage, of its processes that end with it, or that the stage itself has ended without a word
    ("stage", 0, "The stage train ended without a word, killed by a signal"),
    ("torchrun", 0, "something killed torchrun, by SIGKILL. See the log,"),
    ("worker", 0, "something killed one of them, by SIGKILL. See the log,"),
    ("worker", 1, "something killed one of them, by SIGKILL. See the log,"),
]


@pytest.mark.deep  # six processes that import torch, for each cell: half a minute. test_launch_kills.py has a daily cell.
@pytest.mark.parametrize("when", ["at loading", "in a step"])
@pytest.mark.parametrize(("whom", "nth", "said"), CELLS)
def test_nothing_of_the_run_is_left_after_15_seconds_and_the_command_says_what_was_killed(
    services: dict[str, str], tmp_path: Path, whom: str, nth: int, said: str, when: str
) -> None:
    root = tmp_path / ".marble" / "runs" / "killed"
    events, mark = root / "progress.jsonl", str(root)
    reached: dict[str, Callable[[], bool]] = {
        "at loading": lambda: len(running(mark)["worker"]) == 2,
        "in a step": lambda: events.exists() and '"stage": "train", "done": 1' in events.read_text(),
    }
    pairs = [word for override in LONG for word in ("--set", override)]
    words = [sys.executable, "-m", "marble_core.cli", "run", "--run-id", "killed", *pairs]
    with (tmp_path / "output").open("wb") as output, (tmp_path / "errors").open("wb") as errors:
        command = subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=output, stderr=errors)
    try:
        assert eventually(reached[when], 400), (tmp_path / "errors").read_text()
        killed = time.monotonic()
        os.kill(command.pid if whom == "command" else running(mark)[whom][nth], signal.SIGKILL)
        gone = eventually(lambda: not any(running(mark).values()), 15)
        print(f"{whom} {nth} {when}: {time.monotonic() - killed:.1f} s")
        assert gone, running(mark)
        code = command.wait(60)
        (line,) = (tmp_path / "errors").read_text().strip().splitlines() or [""]
        assert said in line and (code, bool(line)) == ((-signal.SIGKILL, False) if whom == "command" else (2, True)), line
    finally:
        command.kill()
        for pid in [each for own in running(mark).values() for each in own]:
            os.kill(pid, signal.SIGKILL)
