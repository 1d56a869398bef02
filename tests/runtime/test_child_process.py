"""A child ends with its parent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from marble_core.runtime.child_process import ChildProcess
from waiting import eventually, is_alive

SHELL = "sleep 600 & echo $! $$; wait"  # a child with a child of its own
PARENT = f"""
import os, sys
from pathlib import Path
from marble_core.runtime.child_process import ChildProcess
child = ChildProcess(["/bin/sh", "-c", {SHELL!r}], Path(sys.argv[1]), os.environ, Path.cwd())
print("started", flush=True)
child.wait()
"""


def pids(log: Path) -> list[int]:
    assert eventually(lambda: len(log.read_text().split()) == 2)
    return [int(pid) for pid in log.read_text().split()]


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_killed_parent_leaves_no_child_and_no_grandchild(tmp_path: Path, signal_name: str) -> None:
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(log)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None and parent.stdout.readline() == b"started\n"
    started = pids(log)
    assert all(is_alive(pid) for pid in started)
    subprocess.run(["kill", f"-{signal_name}", str(parent.pid)], check=True)
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: not any(is_alive(pid) for pid in started))


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    command = ["/bin/sh", "-c", "trap '' TERM; sleep 600 & echo $! $$; wait"]
    child = ChildProcess(command, tmp_path / "log", os.environ, tmp_path, grace=0.2)
    started = pids(tmp_path / "log")
    child.terminate()
    assert child.wait() == -9
    assert not any(is_alive(pid) for pid in started)


def test_a_child_that_ends_gives_its_code_and_its_output(tmp_path: Path) -> None:
    child = ChildProcess(["/bin/sh", "-c", "echo said; exit 3"], tmp_path / "log", os.environ, tmp_path)
    assert child.wait() == 3
    assert child.returncode == 3
    assert (tmp_path / "log").read_text() == "said\n"
