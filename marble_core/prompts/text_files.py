"""Text of a file, with the file and the line in every error."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from marble_core.prompts.metadata import fail, short, without_stray
from marble_core.types import MarbleError

_NEWLINE = re.compile(r"\r\n|\n|\r")  # not splitlines, which also splits at characters such as U+2028 inside a prompt


def read_text(path: str | Path, name: str) -> str:
    """The text of a UTF-8 file. Raises MarbleError."""
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise MarbleError(f"The file {name} cannot be read: {reason}.") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", errors="replace")
        fail(f"{name}, line {len(_NEWLINE.findall(before)) + 1}", "not valid UTF-8; save the file in that encoding")


def lines(path: str | Path, name: str | None = None) -> Iterator[tuple[str, str]]:
    """(its place, the text) of every line of a UTF-8 file that is not blank. Raises MarbleError."""
    name = name or str(path)
    for number, line in enumerate(_NEWLINE.split(read_text(path, name)), 1):
        if stripped := without_stray(line):
            yield f"{name}, line {number}", stripped


def unique(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of no key twice. Raises MarbleError."""
    row = dict(pairs)
    if len(row) < len(pairs):
        doubled = next(k for k, n in Counter(k for k, _ in pairs).items() if n > 1)
        fail(where, f"the key {short(doubled)} stands there twice; keep one")
    return row
