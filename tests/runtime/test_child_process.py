"""A child ends with its parent, in a time that does not add up, and whatever it is doing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from marble_core.runtime.child_process import ChildProcess, keeping_its_id
from waiting import eventually, is_alive

SHELL = "sleep 600 & echo $! $$; wait"  # a child with a child of its own
PARENT = f"""
import os, sys
from pathlib import Path
from marble_core.runtime.child_process import ChildProcess, keeping_its_id
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
    assert eventually(lambda: not any(is_alive(pid) for pid in started), 5)  # a process takes its time to be killed


def test_a_child_that_ends_gives_its_code_and_its_output(tmp_path: Path) -> None:
    child = ChildProcess(["/bin/sh", "-c", "echo said; exit 3"], tmp_path / "log", os.environ, tmp_path)
    assert child.wait() == 3
    assert child.returncode == 3
    assert (tmp_path / "log").read_text() == "said\n"


STUBBORN = """
import os, sys
from pathlib import Path
from marble_core.runtime import child_process
child_process.ORPHANED = float(sys.argv[2])
child = child_process.ChildProcess(["/bin/sh", "-c", "trap '' TERM; sleep 600 & echo $! $$; wait; wait"], Path(sys.argv[1]), os.environ, Path.cwd(), grace=600)
sys.stdin.readline()
child.ask_to_end() if sys.argv[3:] else None
print("said", flush=True)
child.wait()
"""


@pytest.mark.parametrize(("orphaned", "asked"), [("0.3", []), ("600", ["asked"])], ids=["killed", "asked to end and killed"])
def test_what_ignores_sigterm_is_killed_soon_where_its_parent_was_and_sooner_where_it_had_been_asked(
    tmp_path: Path, orphaned: str, asked: list[str]
) -> None:
    log = tmp_path / "log"
    parent = subprocess.Popen(
        [sys.executable, "-c", STUBBORN, str(log), orphaned, *asked], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert eventually(log.exists)
    started = pids(log)
    assert parent.stdin is not None and parent.stdout is not None
    parent.stdin.write(b"go\n")
    parent.stdin.close()
    assert parent.stdout.readline() == b"said\n" and all(is_alive(pid) for pid in started)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: not any(is_alive(pid) for pid in started), 10)


def test_what_a_killed_child_leaves_behind_is_killed_soon_and_not_after_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marble_core.runtime.child_process.ORPHANED", 0.3)
    command = ["/bin/sh", "-c", "trap '' TERM; sleep 600 & echo $! $$; wait; wait"]
    child = ChildProcess(command, tmp_path / "log", os.environ, tmp_path, grace=60)
    left, own = pids(tmp_path / "log")
    os.kill(own, signal.SIGKILL)
    assert eventually(lambda: child.returncode == -9) and is_alive(left)
    child.terminate()
    assert eventually(lambda: not is_alive(left), 10)
    assert child.wait() == -9


WORKER = """
import ctypes, os, sys, time
from marble_core.runtime.child_process import end_with_the_parent
print(os.getpid(), flush=True)
if sys.argv[1] == "late":
    sys.stdin.read()
end_with_the_parent()
print("lives", flush=True)
ctypes.PyDLL(None).sleep(600)  # and keeps the interpreter's lock
"""


@pytest.mark.parametrize("when", ["early", "late"])
def test_a_process_in_a_session_of_its_own_ends_with_its_parent_also_with_the_lock_kept_or_one_gone_before_it_looked(
    tmp_path: Path, when: str
) -> None:
    log = tmp_path / "log"
    shell = 'exec 3<&0; setsid "$0" -c "$1" "$2" <&3 & wait'
    with log.open("wb") as output:
        parent = subprocess.Popen(
            keeping_its_id(["/bin/sh", "-c", shell, sys.executable, WORKER, when]), stdin=subprocess.PIPE, stdout=output
        )
    assert eventually(lambda: len(log.read_text().splitlines()) == (1 if when == "late" else 2))
    worker = int(log.read_text().split()[0])
    try:
        assert is_alive(worker)
        parent.kill()
        parent.wait()
        assert parent.stdin is not None
        parent.stdin.close()
        assert eventually(lambda: not is_alive(worker), 10)
        assert ("lives" in log.read_text()) == (when == "early")
    finally:
        subprocess.run(["kill", "-KILL", str(worker)], stderr=subprocess.DEVNULL, check=False)
