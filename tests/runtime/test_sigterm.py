"""SIGTERM ends what it is sent to, wherever it arrives."""

import contextlib
import io
import os
import signal
import threading

import pytest

from marble_core.runtime import sigterm
from marble_core.runtime.sigterm import Terminated, sigterm_raises
from waiting import eventually


def tell() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Told(io.RawIOBase):
    """A file in whose finalizer the signal arrives: Python asks whether it is closed, and drops what that raises."""

    armed = True

    @property
    def closed(self) -> bool:
        if self.armed:
            self.armed = False
            tell()
        return super().closed


def test_a_signal_in_a_finalizer_which_drops_exceptions_ends_the_work_all_the_same() -> None:
    went_on = False
    with pytest.raises(Terminated) as ended, sigterm_raises():
        Told()
        went_on = True
        eventually(lambda: False, seconds=20)
    assert went_on, "the first exception was dropped, else this shows nothing"
    assert ended.value.code == 143


def test_a_second_signal_does_not_break_off_the_cleaning_up() -> None:
    cleaned = []
    with pytest.raises(Terminated), sigterm_raises():
        try:
            tell()
        finally:
            tell()
            threading.Event().wait(3 * sigterm.AGAIN)
            cleaned.append(True)
    assert cleaned


def test_code_that_catches_every_exception_does_not_catch_it() -> None:
    with pytest.raises(Terminated), sigterm_raises(), contextlib.suppress(Exception):  # as a user's reward may
        tell()


def test_where_it_may_not_raise_it_does_not_and_the_handlers_from_before_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)]
    asked = []
    with sigterm_raises(lambda: bool(asked.append(True))):
        tell()
    assert asked == [True]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)] == before
