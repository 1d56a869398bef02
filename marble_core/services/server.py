"""A server in a process of its own: started, waited for, ended with its parent."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from marble_core.runtime.child_process import ChildProcess
from marble_core.runtime.files import full_disk
from marble_core.types import MarbleError

READY_WITHIN = 300.0
STARTS = 3  # a port that was free a moment ago may have been taken by another process
_TAKEN = re.compile(rb"address already in use|is not available on", re.IGNORECASE)


class Service(ABC):
    """A server as a context manager. ``start`` does not block, so that several can come up together."""

    name: str

    def __init__(self, root: Path, lock: int | None = None) -> None:
        self.root = root.resolve()
        self.root.mkdir(parents=True, exist_ok=True)
        self.log = self.root / "server.log"
        self._lock = lock  # the server holds it too, so that its data is not opened twice while it is still ending
        self._process: ChildProcess | None = None

    @abstractmethod
    def command(self) -> tuple[list[str], dict[str, str]]:
        """The command and its environment."""

    @abstractmethod
    def probe(self) -> None:
        """Does what a client would; raises as long as the server is not ready."""

    @property
    @abstractmethod
    def environment(self) -> dict[str, str]:
        """What a client needs to know, under the standard names."""

    def start(self) -> None:
        command, env = self.command()
        locks = () if self._lock is None else (self._lock,)
        self._process = ChildProcess(command, self.log, env, self.root, locks, umask=0o077)  # its files are this user's alone

    def wait_ready(self, seconds: float = READY_WITHIN) -> None:
        deadline = time.monotonic() + seconds
        starts = 1
        while True:
            assert self._process is not None
            if (code := self._process.returncode) is not None:
                if starts < STARTS and _TAKEN.search(self.log.read_bytes()):
                    starts += 1
                    self.wait()
                    self.start()
                    continue
                raise full_disk(self.root) or MarbleError(
                    f"The embedded {self.name} server ended with code {code} as it started; see {self.log}."
                )
            try:
                return self.probe()
            except Exception as error:  # noqa: BLE001 - whatever a server that is coming up answers
                if time.monotonic() > deadline:
                    raise full_disk(self.root) or MarbleError(
                        f"The embedded {self.name} server did not answer within {seconds:.0f} s ({error}); see {self.log}."
                    ) from None
            time.sleep(0.05)

    def terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait()

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()
        self.wait()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def past_proxies() -> dict[str, str]:
    """Keeps loopback out of a configured proxy."""
    if not any(os.environ.get(name) for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")):
        return {}
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    value = ",".join(filter(None, [listed, "127.0.0.1"]))
    return {"no_proxy": value, "NO_PROXY": value}
