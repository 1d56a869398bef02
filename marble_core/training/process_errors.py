"""Which process of a training stopped first, and with which sentence: left where the train stage finds it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marble_core.types import MarbleError, Outage

if TYPE_CHECKING:
    from marble_core.storage.s3 import S3


ERRORS = "train_errors.jsonl"  # beside OUT: the sentence of each process that stopped, the first one's first


def record_error(error: MarbleError | None, out: str) -> None:
    """Where the stage finds it: beside ``out``. None where it was a bug, whose traceback is in the log."""
    said = {
        "time": time.time(),
        "rank": os.environ.get("RANK"),
        "error": str(error or ""),
        "passes": isinstance(error, Outage),
    }
    if out.startswith("s3://"):
        s3, prefix = in_s3(out)
        s3.put_json(f"{prefix.rpartition('/')[0]}/errors/{said['rank']}.json", said)
        return
    with (Path(out).parent / ERRORS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(said) + "\n")


@contextmanager
def recorded(out: str) -> Iterator[None]:
    """What stops this process is left for the stage. A MarbleError ends it with its sentence and exit code 2."""
    try:
        yield
    except MarbleError as error:
        record_error(error, out)
        print(error, file=sys.stderr)
        sys.exit(2)
    except Exception:
        record_error(None, out)  # so that the stage knows: it was a bug, and no kill
        raise


def first_error(s3: S3, place: str) -> MarbleError | None:
    """Of the process that stopped first, of those whose ``out`` is below this prefix."""
    return _first([s3.get_json(key) for key in s3.keys(f"{place}/errors")])


def forget_errors(s3: S3, place: str) -> None:
    """Before a job is made anew."""
    for key in s3.keys(f"{place}/errors"):
        s3.clear(key)


def first_error_here(out: Path) -> MarbleError | None:
    """The same of processes of this machine."""
    file = out.parent / ERRORS
    return _first([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]) if file.exists() else None


def _first(said: list[Any]) -> MarbleError | None:
    """A refusal, where there is one: that a process stopped for another's sake is no news."""
    said = [each for each in said if each.get("error")]
    refusals = [each for each in said if not each.get("passes")]
    if not said:
        return None
    error = min(refusals or said, key=lambda each: each["time"])["error"]
    return MarbleError(error) if refusals else Outage(error)


def in_s3(uri: str) -> tuple[S3, str]:
    from marble_core.storage.s3 import S3

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return S3(bucket), prefix.rstrip("/")
