"""A reward that is served elsewhere: JSON is posted to one address, within a patience. No torch.

What is worth repeating is repeated until the patience ends; then the image has no value. What every image would meet, such as
a refused key, is a MarbleError. Use it in a scorer of your own: see docs/rewards.md, section 9.
"""

from __future__ import annotations

import email.utils
import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlsplit

import urllib3

from marble_core.rewards.background import Call
from marble_core.types import MarbleError, NoValue

Item = TypeVar("Item")
Answer = TypeVar("Answer")
PATIENCE = 300.0
_REPEATED = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529)
_THIS_IMAGE = (400, 413, 414, 415, 422, 431, 451)  # a prompt that is too long, or an image that is refused
_NAMES = {
    425: "Too Early", 520: "Unknown Error", 521: "Web Server Is Down", 522: "Connection Timed Out",
    523: "Origin Is Unreachable", 524: "A Timeout Occurred", 529: "Site Is Overloaded",
}  # fmt: skip
_SERVERS = "AWS|MLFLOW|HF|KF|KUBERNETES|MARBLE"  # whose variables hold keys of S3, MLflow, hub and cluster
_KEY_NAME = re.compile(rf"(?!(?:{_SERVERS})_)[A-Z][A-Z0-9_]*_API_KEY")
_LONGEST_PAUSE = 30.0  # seconds between two tries, where the answer asks for none


class Endpoint:
    """One address that JSON is posted to.

    Args:
        url: That address.
        what: The reward, in sentences: "the reward 'mine'".
        advice: What to do where a request is refused for all.
        key: Gives the key for the header Authorization, asked before each call; empty: none.
        patience: Seconds that one request may take, all tries and waits together. Where nothing at all has been answered for that
            long, the other requests of the same call are given up too.
        request_timeout: Seconds of silence that end one try.
        backoff: Seconds before the second try; each further wait is twice as long.
        workers: Requests at once.

    Raises:
        MarbleError: The url is none of http or https, or holds a name or key.

    Example:
        >>> Endpoint("http://localhost:8000/v1/score", "the reward 'mine'", "check its url").what
        "The endpoint http://localhost:8000/v1/score of the reward 'mine'"
    """

    def __init__(
        self,
        url: str,
        what: str,
        advice: str,
        key: Callable[[], str] = str,
        patience: float = PATIENCE,
        request_timeout: float = 120.0,
        backoff: float = 1.0,
        workers: int = 16,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise MarbleError(f"The url of {what} is of the form http://host:port/v1, without a name or key.")
        self.url, self.advice, self.key = url, advice, key
        self.what = f"The endpoint {url} of {what}"
        self.patience, self.request_timeout, self.backoff, self.workers = patience, request_timeout, backoff, workers
        self._http = urllib3.PoolManager(maxsize=workers, block=True)

    def ask(self, bodies: Sequence[Any]) -> list[bytes | NoValue]:
        """What it answers to each body, or why there is none; ``workers`` are asked at once.

        Raises MarbleError for an answer that every other request would get too.
        """
        key, silence = self.key(), _Silence()
        return at_once(lambda body: self._answer(body, key, silence), bodies, self.workers)

    def _answer(self, body: Any, key: str, silence: _Silence) -> bytes | NoValue:
        began, tries, said = time.monotonic(), 0, f"nothing was answered in {self.patience:g} s, so it was not asked"
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        while (left := self._left(began, silence)) > 0:
            tries += 1
            try:
                status, data, asked_to_wait = self._once(body, headers, left)
            except urllib3.exceptions.HTTPError as error:
                said, asked_to_wait = _reason(error), None
            else:
                said = f"it answers {named(status)}: {short(data.decode(errors='replace'), key)!r}"
                if status in (401, 403):
                    raise MarbleError(f"{self.what} refuses the key ({named(status)}): {self.advice}.")
                if status == 200 or status in _THIS_IMAGE:
                    silence.end()
                    return data if status == 200 else NoValue(said)
                if status not in _REPEATED:
                    raise MarbleError(f"{self.what}: {said}; check its url and what it serves.")
            pause = self._pause(tries, asked_to_wait, left := self._left(began, silence))
            if pause >= left:
                break
            time.sleep(pause)
        return NoValue(f"{said}, {tries} times within its patience of {self.patience:g} s" if tries > 1 else said)

    def _left(self, began: float, silence: _Silence) -> float:
        """Seconds of the patience with this request, or with the endpoint as a whole."""
        now = time.monotonic()
        return min(began, silence.since(now)) + self.patience - now

    def _pause(self, tries: int, asked: float | None, left: float) -> float:
        """What the answer asks for, where the patience allows it; else one that doubles."""
        return asked if asked is not None and asked < left else min(self.backoff * 2 ** (tries - 1), _LONGEST_PAUSE)

    def _once(self, body: Any, headers: Mapping[str, str], left: float) -> tuple[int, bytes, float | None]:
        """Status, body and what the answer says of waiting. Ends when ``left`` seconds are over, however slowly bytes come."""
        end = time.monotonic() + left
        limit = urllib3.Timeout(connect=min(left, self.request_timeout), read=min(left, self.request_timeout))
        response = self._http.request(
            "POST", self.url, json=body, headers=headers, timeout=limit, retries=False, redirect=False, preload_content=False
        )
        try:
            data = b""
            while part := response.read1(2**16):
                data += part
                if time.monotonic() > end:
                    raise urllib3.exceptions.ReadTimeoutError(self._http.connection_from_url(self.url), self.url, "too slow")
        except BaseException:
            response.close()
            raise
        response.release_conn()
        return response.status, data, waiting(response.headers.get("Retry-After"))


class _Silence:
    """Since when all requests of a call have gone unanswered."""

    def __init__(self) -> None:
        self._since: float | None = None

    def since(self, now: float) -> float:
        self._since = now if self._since is None else self._since
        return self._since

    def end(self) -> None:
        self._since = None


def at_once(function: Callable[[Item], Answer], items: Sequence[Item], workers: int) -> list[Answer]:
    """``function`` of each item, in order, by so many threads, which end with the process; an error ends the rest."""
    left, found = deque(enumerate(items)), dict[int, Answer]()

    def work() -> None:
        try:
            while left:
                i, item = left.popleft()
                found[i] = function(item)
        except IndexError:  # another thread took the last
            pass
        except BaseException:
            left.clear()
            raise

    for call in [Call(work) for _ in range(min(workers, len(items)))]:
        call.result()
    return [found[i] for i in range(len(items))]


def waiting(retry_after: str | None) -> float | None:
    """Seconds that a Retry-After asks for, which is a number or a date; None where it says nothing that can be read."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after or "").timestamp() - time.time()
        except ValueError:
            return None
    return max(seconds, 0.0) if seconds < float("inf") else None


def named(status: int) -> str:
    """429 Too Many Requests"""
    known = {code.value: code.phrase for code in HTTPStatus} | _NAMES
    return f"{status} {known[status]}" if status in known else str(status)


def short(text: str, key: str = "") -> str:
    """The beginning, on one line, without the key: some servers repeat it."""
    return " ".join((text.replace(key, "***") if key else text).split())[:160]


def may_be_sent(variable: str) -> str:
    """The name of a variable whose value is a reward's key. Raises MarbleError for any other: who may start a run names the address
    too, and a process has passwords and tokens in its environment that are for nobody else."""
    if not _KEY_NAME.fullmatch(variable):
        raise MarbleError(
            f"key_variable names {variable[:60]!r}, which is not sent: it must end with _API_KEY and be no variable of S3, MLflow, hub "
            "or cluster. Put the reward's key into one such as OPENAI_API_KEY."
        )
    return variable


def api_key(variable: str) -> str:
    """The variable's value; empty where there is none."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):  # the error of a bad header would show it
        raise MarbleError(f"The environment variable {variable} holds no key, but other characters besides.")
    return key


def _reason(error: urllib3.exceptions.HTTPError) -> str:
    if isinstance(error, urllib3.exceptions.MaxRetryError) and isinstance(error.reason, urllib3.exceptions.HTTPError):
        error = error.reason
    slow = isinstance(error, urllib3.exceptions.TimeoutError) and not isinstance(error, urllib3.exceptions.ConnectTimeoutError)
    return f"it {'is too slow' if slow else 'cannot be reached'} ({type(error).__name__})"
