"""Child processes that end with their parent, whatever ends it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from marble_core.runtime.environment import PARENT

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
GRACE = 3.0  # seconds between SIGTERM and SIGKILL; SeaweedFS loses nothing that it acknowledged

ORPHANED = 8.0  # seconds, at most, where the parent was killed

# Reads until its standard input closes, then ends the group $1, by SIGKILL after a grace in seconds: $2 where the parent said "end",
# $3 where it is gone and has said nothing, and one more where it had said "asked": the group has had its time then.
_WATCHDOG = """
limit=$3
while read said; do
  case $said in
    asked) limit=1 ;;
    end) limit=$2; break ;;
  esac
done
kill -s TERM -- "-$1"
sleep "$limit" & timer=$!
while kill -s 0 $timer; do
  kill -s 0 -- "-$1" || { kill $timer; exit; }
  sleep 0.1
done
kill -s KILL -- "-$1"
"""


def signal_name(code: int) -> str:
    """SIGKILL, of the exit code -9."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


class ChildProcess:
    """A process in a group of its own which ends with us, whatever ends us (kill -9 too), its own children included.

    A watchdog reads from a pipe whose other end only this process holds. ``grace`` is the time in seconds between SIGTERM
    and SIGKILL, at most ``ORPHANED`` where this process was killed: a child's own children, which it asks to end, get one second
    more and not the same again. Both outputs go to the file ``log``, which is begun anew; without it they are this process's. The locks
    of ``pass_fds`` are held until the last of the group has ended.
    ``umask`` is that of the process; -1 is this one's.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path | None,
        env: Mapping[str, str],
        cwd: Path,
        pass_fds: Sequence[int] = (),
        grace: float = GRACE,
        umask: int = -1,
    ) -> None:
        with log.open("wb") if log else contextlib.nullcontext() as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(env), cwd=cwd,
                start_new_session=True, pass_fds=tuple(pass_fds), umask=umask,
            )  # fmt: skip
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(self._process.pid), str(grace), str(min(grace, ORPHANED))],
            bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            pass_fds=tuple(pass_fds),
        )  # fmt: skip

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def ask_to_end(self) -> None:
        """SIGTERM to the process alone, which takes the time that it needs."""
        if self._process.poll() is None:
            self._tell_watchdog(b"asked\n")
            self._process.terminate()

    def terminate(self) -> None:
        """Asks the group to end, and lets the watchdog kill what has not ended after the grace. Does not wait.

        Where the child has ended by itself, what is left of its group has lost its parent, as above.
        """
        if self._process.poll() is None:
            self._tell_watchdog(b"end\n")
        if self._watchdog.stdin:
            self._watchdog.stdin.close()

    def _tell_watchdog(self, word: bytes) -> None:
        if self._watchdog.stdin and not self._watchdog.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._watchdog.stdin.write(word)

    def wait(self) -> int:
        """Waits for the end of the process, then of its group."""
        code = self._process.wait()
        self.terminate()
        self._watchdog.wait()
        return code


def keeping_its_id(command: Sequence[str]) -> list[str]:
    """The command, whose own processes can tell by ``end_with_the_parent`` whether it is gone before they could ask who it is."""
    return ["/bin/sh", "-c", f'export {PARENT}=$$; exec "$@"', "sh", *command]


def end_with_the_parent() -> None:
    """From now on this process ends when the one that started it is gone, whatever it is doing; at once where that is gone already.

    For those whose parent puts them into sessions of their own, where no signal to a group reaches them (torchrun's workers).
    Linux kills it; elsewhere a thread looks twice a second, which code that keeps the interpreter's lock holds up.
    """
    parent = int(os.environ.get(PARENT, os.getppid()))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if os.getppid() != parent:
        os._exit(1)
    if sys.platform != "linux":
        threading.Thread(target=watch, name="parent", daemon=True).start()
