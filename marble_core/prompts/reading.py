"""Prompt files, read and written: JSON lines, plain text with a prompt a line, parquet.

GenEval's and flow_grpo's published files are readable as they are, for whoever reads a file for one source may leave
``source`` out of it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from marble_core.prompts.rows import KEYS, fail, prompt_of, short, without_stray
from marble_core.types import SOURCES, MarbleError, Prompt

_NEWLINE = re.compile(r"\r\n|\n|\r")  # not splitlines, which also splits at characters such as U+2028 inside a prompt
_BATCH = 4096  # rows of a parquet file in memory as objects


@dataclass(frozen=True)
class Placed:
    """A prompt and its place, for messages: "p.jsonl, line 3"."""

    prompt: Prompt
    where: str


def read_prompts(path: str | Path, source: str | None = None) -> list[Prompt]:
    """The prompts of a file, as ``read`` gives them, without their places."""
    return [placed.prompt for placed in read(path, source)]


def read(path: str | Path, source: str | None = None, name: str | None = None) -> list[Placed]:
    """Read a prompt file whole: ``.txt`` as a prompt a line, ``.parquet`` as a table, anything else as JSON lines.

    ``source`` is the source of every prompt that does not name its own. ``name`` stands for the path in messages. Blank lines
    are skipped; of a table the columns of rows.KEYS are read (``caption`` where there is no ``prompt``), the others are not.

    Raises MarbleError with file, line, field and what to do, for the first line that is not a valid prompt, and for a file
    that holds none, is not UTF-8, cannot be read, or is plain text and read for no source.
    """
    name = name or str(path)
    match Path(path).suffix.lower():
        case ".txt" if source is None:
            raise MarbleError(f"{name} is plain text, so its source must be named; choose one of {', '.join(SOURCES)}.")
        case ".txt":
            rows: Iterator[tuple[dict[str, Any], str]] = (({"prompt": line}, where) for where, line in lines(path, name))
        case ".parquet":
            rows = _table(path, name)
        case _:
            rows = ((_object(line, where), where) for where, line in lines(path, name))
    placed = [Placed(prompt_of(row, source, where), where) for row, where in rows]
    if not placed:
        raise MarbleError(f"{name} holds no prompt; write one on each line.")
    return placed


def write_jsonl(path: str | Path, prompts: Iterable[Prompt]) -> None:
    """Write the prompts so that read_prompts gives them back equal."""
    rows = []
    for p in prompts:
        row: dict[str, Any] = {"prompt": p.text, "source": p.source, "text": p.target, "tag": p.tag}
        row |= {"include": list(p.include), "exclude": list(p.exclude)}
        rows.append(json.dumps({k: v for k, v in row.items() if v not in (None, [])}, ensure_ascii=False, default=dict))
    Path(path).write_text("\n".join(rows) + "\n", encoding="utf-8", newline="\n")


def lines(path: str | Path, name: str | None = None) -> Iterator[tuple[str, str]]:
    """(its place, the text) of every line of a UTF-8 file that is not blank. Raises MarbleError."""
    name = name or str(path)
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise MarbleError(f"The file {name} cannot be read: {reason}.") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", errors="replace")
        fail(f"{name}, line {len(_NEWLINE.findall(before)) + 1}", "not valid UTF-8; save the file in that encoding")
    for number, line in enumerate(_NEWLINE.split(text), 1):
        if stripped := without_stray(line):
            yield f"{name}, line {number}", stripped


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=partial(_unique, where))
    except json.JSONDecodeError as error:
        fail(where, f"not valid JSON ({error.msg}, column {error.colno}); write one JSON object on each line")
    except (ValueError, RecursionError):
        fail(where, "a number with thousands of digits or a nesting thousands deep; write one prompt on each line")
    if not isinstance(row, dict):
        fail(where, 'not a JSON object; write for example {"prompt": "a red circle", "source": "general"}')
    return row


def _unique(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        doubled = next(k for k, n in Counter(k for k, _ in pairs).items() if n > 1)
        fail(where, f"the key {short(doubled)} stands there twice; keep one")
    return row


def _table(path: str | Path, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise MarbleError(f"Reading {name} needs pyarrow: pip install 'marble-core[parquet]'.") from None
    number = 0
    try:
        with pq.ParquetFile(path) as table:
            columns = table.schema_arrow.names
            prompt = next((c for c in ("prompt", "caption") if c in columns), None)
            if prompt is None:
                names = ", ".join(map(short, columns[:8]))
                raise MarbleError(f"{name} has no column 'prompt' or 'caption'; its columns are {names}.")
            wanted = [prompt, *(k for k in KEYS[1:] if k in columns)]
            for batch in table.iter_batches(_BATCH, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    where = f"{name}, row {number}"
                    row |= {key: _from_json(row[key], where) for key in ("include", "exclude") if key in row}
                    yield _without_nulls({"prompt": row.pop(prompt), **row}), where
    except UnicodeDecodeError:
        fail(f"{name}, after row {number}", "not valid UTF-8; save its texts in that encoding")
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split()).rstrip(".")[:160]
        fail(f"{name}, after row {number}", f"the file cannot be read as parquet ({reason}); check that it is whole")


def _from_json(value: Any, where: str) -> Any:
    """Many tables hold GenEval's lists as JSON text."""
    try:
        return json.loads(value, object_pairs_hook=partial(_unique, where)) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value  # prompt_of says what is wrong with it


def _without_nulls(value: Any) -> Any:
    """A table has every key in every row, with null where JSON would leave it out."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value
