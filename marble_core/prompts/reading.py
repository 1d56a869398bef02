"""Prompt files, read and written: JSON lines, plain text with a prompt a line, CSV, TSV, parquet.

GenEval's and flow_grpo's published files are readable as they are, for whoever reads a file for one source may leave
``source`` out of it. So are PartiPrompts and DrawBench.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from marble_core.prompts.metadata import fail
from marble_core.prompts.rows import RESERVED, prompt_of
from marble_core.prompts.tables import csv_rows, parquet_rows, tsv_rows
from marble_core.prompts.text_files import lines, unique
from marble_core.types import SOURCES, MarbleError, Placed, Prompt

_TABLES = {".csv": csv_rows, ".tsv": tsv_rows, ".parquet": parquet_rows}


def read_prompts(path: str | Path, source: str | None = None) -> list[Prompt]:
    """The prompts of a file, as ``read`` gives them, without their places."""
    return [placed.prompt for placed in read(path, source)]


def read(path: str | Path, source: str | None = None, name: str | None = None) -> list[Placed]:
    """Read a prompt file whole: ``.txt`` as a prompt a line, ``.csv``, ``.tsv`` and ``.parquet`` as tables, anything else as JSON
    lines.

    ``source`` is the source of every prompt that does not name its own. ``name`` stands for the path in messages. Blank lines
    are skipped. Keys and columns other than the prompt and its source become its metadata (rows.py, tables.py).

    Raises MarbleError with file, line, field and what to do, for the first line that is not a valid prompt, and for a file
    that holds none, is not UTF-8, cannot be read, or is plain text and read for no source.
    """
    name, suffix = name or str(path), Path(path).suffix.lower()
    if suffix == ".txt" and source is None:
        raise MarbleError(f"{name} is plain text, so its source must be named, such as {', '.join(SOURCES)}.")
    rows: Iterator[tuple[dict[str, Any], str]]
    if suffix in _TABLES:
        rows = _TABLES[suffix](path, name)
    else:
        as_row = _plain if suffix == ".txt" else _object
        rows = ((as_row(line, where), where) for where, line in lines(path, name))
    placed = [Placed(prompt_of(row, source, where), where) for row, where in rows]
    if not placed:
        raise MarbleError(f"{name} holds no prompt; write one on each line.")
    return placed


def write_jsonl(path: str | Path, prompts: Iterable[Prompt]) -> None:
    """Write the prompts so that read_prompts gives them back equal."""
    rows = (json.dumps(_row(prompt), ensure_ascii=False, default=dict) for prompt in prompts)
    Path(path).write_text("\n".join(rows) + "\n", encoding="utf-8", newline="\n")


def _row(prompt: Prompt) -> dict[str, Any]:
    hidden = {key: value for key, value in prompt.metadata.items() if key in RESERVED}
    beside = {key: value for key, value in prompt.metadata.items() if key not in RESERVED}
    return {"prompt": prompt.text, "source": prompt.source} | beside | ({"metadata": hidden} if hidden else {})


def _plain(line: str, where: str) -> dict[str, Any]:
    return {"prompt": line}


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=partial(unique, where))
    except json.JSONDecodeError as error:
        fail(where, f"not valid JSON ({error.msg}, column {error.colno}); write one JSON object on each line")
    except (ValueError, RecursionError):
        fail(where, "a number with thousands of digits or a nesting thousands deep; write one prompt on each line")
    if not isinstance(row, dict):
        fail(where, 'not a JSON object; write for example {"prompt": "a red circle", "source": "general"}')
    return row
