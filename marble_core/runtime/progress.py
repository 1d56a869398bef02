"""What a stage is doing, for whoever watches: JSON lines in the file named by MARBLE_PROGRESS.

A local runner pipes a stage's output, so the stages write events and the parent draws them (docs/architecture.md, section 6). Without
the variable, on a cluster, an event is a line of the stage's log (progress_lines.py), and where Argo asks for it the count goes to
its own file. Keys of an event: time, stage, and of the rest what there is: done, total,
note, metrics, state ("started" or "finished"), error (a sentence for the user) or traceback, result (what the stage found).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from marble_core import __version__
from marble_core.runtime.certificates import trust_private_roots
from marble_core.runtime.environment import PIPELINE_VERSION, PROGRESS
from marble_core.runtime.files import disk_error
from marble_core.runtime.mlflow_server import settle
from marble_core.runtime.noise import quieten
from marble_core.runtime.progress_lines import PAUSE, Lines
from marble_core.types import MarbleError, without_secrets

ARGO = "ARGO_PROGRESS_FILE"
_LINES = Lines(PAUSE)
_PREFIX = ""  # of all events of this process, see ``stage``


class StageFailed(Exception):
    """A stage ended with an error that is not the user's: the end of its traceback, and where the whole log is."""


def emit(
    stage: str,
    done: int | None = None,
    total: int | None = None,
    note: str = "",
    metrics: Mapping[str, float] | None = None,
    **more: Any,
) -> None:
    """Appends one event. Never raises: who watches must not disturb the work."""
    event = {
        "time": round(time.time(), 3),
        "stage": stage if stage.startswith(_PREFIX) else f"{_PREFIX}: {stage}",
        "done": done,
        "total": total,
        "note": note,
        "metrics": metrics,
        **more,
    }
    event = {key: value for key, value in event.items() if value not in (None, "")}
    with contextlib.suppress(OSError):
        _to_argo(event)
        if not (path := os.environ.get(PROGRESS)):
            if text := _LINES.line(event):
                print(without_secrets(text), flush=True)
            return
        line = without_secrets(json.dumps(event, default=str)) + "\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())  # one write, so that lines of two processes do not mix
        finally:
            os.close(descriptor)


def _to_argo(event: Mapping[str, Any]) -> None:
    """Argo shows "12/100" as the node's progress."""
    if (file := os.environ.get(ARGO)) and event.get("total"):
        Path(file).write_text(f"{event.get('done', 0)}/{event['total']}\n", encoding="utf-8")


def _ends_with_its_sentence(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Of a MarbleError the last line of the log is its sentence, and where it was raised is nobody's business. Of a bug there is the
    traceback, without the login of an address that a library's error may quote."""
    said = [str(error), "\n"] if issubclass(kind, MarbleError) else traceback.format_exception(kind, error, trace)
    print(without_secrets("".join(said)), end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def stage(name: str, in_all: bool = False) -> Iterator[dict[str, Any]]:
    """Frames a stage's work with events; what is put into the dictionary becomes the stage's ``result``.

    With ``in_all`` the name stands before each event of the process: of several that do the same at once, who watches sees which.
    """
    global _PREFIX
    _PREFIX = name if in_all else ""
    sys.excepthook = _ends_with_its_sentence
    quieten()
    emit(name, state="started")
    if said := settle():
        emit(name, note=said)
    result: dict[str, Any] = {}
    try:
        if (compiled := os.environ.get(PIPELINE_VERSION, __version__)) != __version__:
            raise MarbleError(
                f"The pipeline file is of MARBLE {compiled} and this image of {__version__}: compile the file anew, or name images of its version."
            )
        trust_private_roots()
        yield result
    except MarbleError as error:
        emit(name, error=str(error))
        raise
    except Exception as error:
        if expected := disk_error(error):
            emit(name, error=str(expected))
            raise expected from error
        emit(name, traceback=traceback.format_exc())
        raise
    emit(name, state="finished", result=result)
