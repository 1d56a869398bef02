"""Tables of prompts: CSV, TSV and parquet, as public prompt sets are published. Every other column is metadata.

The column of the prompts is ``prompt``, ``prompts`` or ``caption``, whatever its case, or ``text`` where there is none of these.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from marble_core.prompts.metadata import fail, short
from marble_core.prompts.text_files import read_text, unique
from marble_core.types import MarbleError

Row = tuple[dict[str, Any], str]  # and its place
_PROMPTS = ("prompt", "prompts", "caption", "text")
_BATCH = 4096  # rows of a parquet file in memory as objects


def csv_rows(path: str | Path, name: str) -> Iterator[Row]:
    """Cells in quotes may hold commas, doubled quotes and line breaks. An empty cell is none. Raises MarbleError with the line."""
    read = csv.reader(io.StringIO(read_text(path, name).lstrip("\ufeff"), newline=""), strict=True)
    try:
        yield from _rows(((cells, f"{name}, line {read.line_num}") for cells in read), name)
    except csv.Error as error:
        fail(f"{name}, line {read.line_num}", f"not valid CSV ({error}); quote a cell that holds commas or line breaks")


def tsv_rows(path: str | Path, name: str) -> Iterator[Row]:
    """A line a row. Quotes belong to the text, as PartiPrompts has them, unless the whole cell is in them and those inside are
    doubled, as programs write it. Raises MarbleError with the line."""
    lines = read_text(path, name).lstrip("\ufeff").replace("\r\n", "\n").split("\n")
    yield from _rows((([_cell(c) for c in line.split("\t")], f"{name}, line {i}") for i, line in enumerate(lines, 1)), name)


def parquet_rows(path: str | Path, name: str) -> Iterator[Row]:
    """Columns that hold something other than texts, numbers, truth values, and lists and structs of these are not read."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise MarbleError(f"Reading {name} needs pyarrow: pip install 'marble-core[parquet]'.") from None
    number = 0
    try:
        with pq.ParquetFile(path) as table:
            prompt = _prompt_column(table.schema_arrow.names, name)
            wanted = [field.name for field in table.schema_arrow if field.name == prompt or _is_json(field.type)]
            for batch in table.iter_batches(_BATCH, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    where = f"{name}, row {number}"
                    yield _with_lists(_without_nulls({"prompt": row.pop(prompt), **row}), where), where
    except UnicodeDecodeError:
        fail(f"{name}, after row {number}", "not valid UTF-8; save its texts in that encoding")
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split()).rstrip(".")[:160]
        fail(f"{name}, after row {number}", f"the file cannot be read as parquet ({reason}); check that it is whole")


def _rows(lines: Iterator[tuple[list[str], str]], name: str) -> Iterator[Row]:
    """Of cells; the first line names the columns."""
    header, _ = next(lines, ([], ""))
    names = [column.strip() for column in header]
    if not any(names):
        return
    if doubled := [column for column, n in Counter(names).items() if n > 1]:
        fail(f"{name}, line 1", f"two columns are named {short(doubled[0])}; rename one")
    prompt = _prompt_column(names, name)
    for cells, where in lines:
        if any(cell.strip() for cell in cells):
            if len(cells) != len(names):
                fail(where, f"{len(cells)} cells, but the first line names {len(names)} columns")
            row = {key: cell for key, cell in zip(names, cells, strict=True) if key and cell.strip()}
            yield _with_lists({"prompt": row.pop(prompt, None), **row}, where), where


def _prompt_column(columns: Sequence[str], name: str) -> str:
    for wanted in _PROMPTS:
        if found := [column for column in columns if column.casefold() == wanted]:
            return found[0]
    names = ", ".join(map(short, columns[:8]))
    raise MarbleError(f"{name} has no column 'prompt' or 'caption'; its columns are {names}.")


def _cell(text: str) -> str:
    inside = text[1:-1]
    if len(text) > 1 and text[0] == text[-1] == '"' and '"' in inside and '"' not in inside.replace('""', ""):
        return inside.replace('""', '"')
    return text


def _with_lists(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Many tables hold GenEval's lists as JSON text."""
    return row | {key: _from_json(row[key], where) for key in ("include", "exclude", "metadata") if key in row}


def _from_json(value: Any, where: str) -> Any:
    try:
        return json.loads(value, object_pairs_hook=lambda pairs: unique(where, pairs)) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value  # prompt_of says what is wrong with it


def _is_json(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_json(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_json(kind.value_type)
    if types.is_struct(kind):
        return all(_is_json(kind.field(i).type) for i in range(kind.num_fields))
    plain = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    return any(is_of(kind) for is_of in plain)


def _without_nulls(value: Any) -> Any:
    """A table has every key in every row, with null or NaN where JSON would leave it out."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if not (v is None or (isinstance(v, float) and isnan(v)))}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value
