"""Which process of a training stopped first, and with which sentence: left where the train stage finds it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marble_core.storage.s3 import S3


ERRORS = "train_errors.jsonl"  # beside OUT: the sentence of each process that stopped, the first one's first


def record_error(error: str, out: str) -> None:
    """Where the stage finds it: beside ``out``. Without words where it was a bug, whose traceback is in the log."""
    said = {"time": time.time(), "rank": os.environ.get("RANK"), "error": error}
    if out.startswith("s3://"):
        s3, prefix = in_s3(out)
        s3.put_json(f"{prefix.rpartition('/')[0]}/errors/{said['rank']}.json", said)
        return
    with (Path(out).parent / ERRORS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(said) + "\n")


def first_error(s3: S3, place: str) -> str:
    """The sentence of the process that stopped first, of those whose ``out`` is below this prefix; empty where there is none."""
    said = [each for key in s3.keys(f"{place}/errors") if (each := s3.get_json(key))["error"]]
    return str(min(said, key=lambda each: each["time"])["error"]) if said else ""


def in_s3(uri: str) -> tuple[S3, str]:
    from marble_core.storage.s3 import S3

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return S3(bucket), prefix.rstrip("/")
