"""SIGTERM as an exception that arrives.

Python drops what a signal handler raises where the handler runs inside a finalizer, such as that of a closed connection, and the
work would go on as if nobody had asked it to end. So the exception is raised again until it is on its way out.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

AGAIN = 0.5  # seconds


class Terminated(SystemExit):
    """SIGTERM arrived. No ``except Exception``, of a library or a user's reward, takes it for a failure."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def sigterm_raises(may: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """SIGTERM raises Terminated in the block, whose thread is the main one; a second signal does not break off its cleaning up.

    Args:
        may: Called in the signal handler. Where it says no, whoever gave it asks again and raises Terminated itself.
    """

    def end(*_: object) -> None:
        if isinstance(sys.exc_info()[1], SystemExit):
            return  # it is on its way out, and this is a ``finally``
        if may():
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
            raise Terminated

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
