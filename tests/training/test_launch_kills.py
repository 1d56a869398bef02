"""kill -9 of whatever trains on several processes: nothing is left running, and the stage ends with a sentence."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from builders import prepared_run
from command_lines import running
from waiting import eventually

pytestmark = pytest.mark.slow
STAGE = """
import sys, pathlib
from marble_core import stages
from marble_core.types import MarbleError
try:
    stages.train(*map(pathlib.Path, sys.argv[1:]))
except MarbleError as error:
    print(error)
    sys.exit(2)
"""


TORCHRUN, WORKER = (
    "something killed torchrun, by SIGKILL. See the log,",
    "something killed one of them, by SIGKILL. See the log,",
)
CELLS = [
    pytest.param(whom, nth, when, said, marks=[] if (whom, nth, when) == ("worker", 0, "at loading") else pytest.mark.deep)
    for whom, nth, said in (("torchrun", 0, TORCHRUN), ("worker", 0, WORKER), ("worker", 1, WORKER), ("another", 0, ""))
    for when in ("at loading", "in a step")
]


@pytest.mark.parametrize(("whom", "nth", "when", "said"), CELLS)
def test_nothing_is_left_running_and_a_sentence_says_what_was_killed(
    services: dict[str, str], tmp_path: Path, whom: str, nth: int, when: str, said: str
) -> None:
    where, _ = prepared_run(tmp_path, "train.processes=2", "train.steps=500", "train.checkpoint_every=400")
    events = tmp_path / "progress.jsonl"
    reached: dict[str, Callable[[], bool]] = {
        "at loading": lambda: len(running(str(where))["worker"]) == 2,
        "in a step": lambda: events.exists() and '"done": 1' in events.read_text(),
    }
    stage = subprocess.Popen(
        [sys.executable, "-c", STAGE, str(where), str(tmp_path / "adapter")],
        env={**os.environ, "MARBLE_PROGRESS": str(events)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert eventually(reached[when], 300)
        os.kill(sorted(running(str(where))[whom])[nth], signal.SIGKILL)
        out, _ = stage.communicate(timeout=60)
        assert eventually(lambda: not any(running(str(where)).values()), 15), running(str(where))
        assert said in out and stage.returncode == (2 if said else -signal.SIGKILL)
    finally:
        for pid in [each for own in running(str(where)).values() for each in own]:
            os.kill(pid, signal.SIGKILL)
        stage.wait()
