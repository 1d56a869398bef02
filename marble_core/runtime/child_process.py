"""Child processes that end with their parent, whatever ends it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

GRACE = 3.0  # seconds between SIGTERM and SIGKILL; SeaweedFS loses nothing that it acknowledged

# Waits until its standard input closes, which is when the parent closes the pipe or is gone, then ends the group $1.
# $2 is the grace in tenths of a second.
_WATCHDOG = """
read _
kill -s TERM -- "-$1"
i=0
while [ $i -lt $2 ] && kill -s 0 -- "-$1"; do sleep 0.1; i=$((i+1)); done
kill -s KILL -- "-$1"
"""


class ChildProcess:
    """A process in a group of its own which ends with us, whatever ends us (kill -9 too), its own children included.

    A watchdog reads from a pipe whose other end only this process holds. ``grace`` is the time in seconds between SIGTERM
    and SIGKILL. Both outputs go to the file ``log``, which is begun anew; without it they are this process's.
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
            ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(self._process.pid), str(int(grace * 10))],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def ask_to_end(self) -> None:
        """SIGTERM to the process alone, which takes the time that it needs."""
        if self._process.poll() is None:
            self._process.terminate()

    def terminate(self) -> None:
        """Asks the group to end, and lets the watchdog kill what has not ended after the grace. Does not wait."""
        if self._watchdog.stdin:
            self._watchdog.stdin.close()

    def wait(self) -> int:
        """Waits for the end of the process, then of its group."""
        code = self._process.wait()
        self.terminate()
        self._watchdog.wait()
        return code


def end_with_the_parent() -> None:
    """From now on this process ends when the one that started it is gone, within a second, whatever it is doing.

    For those whose parent puts them into sessions of their own, where no signal to a group reaches them (torchrun's workers).
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
