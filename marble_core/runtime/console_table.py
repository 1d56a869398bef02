"""Tables of numbers that keep whole names on a narrow terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_blocks(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print rows of cells; a table that is wider than the console is cut into blocks of columns, each with the first column.

    Args:
        console: Where it is printed, and how wide that is.
        headings: One per column; the first column has the rows' names, and stands left.
        rows: Each as many cells as there are headings.
        title: Above the first block.
    """
    for block in _blocks(console, headings, rows):
        table = _table(console, headings, rows, block)
        table.title = title or None
        table.title_justify = "left"
        console.print(table)
        title = ""


def _blocks(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[list[int]]:
    """The columns beside the first, as many to a block as fit; one that is too wide alone has a block of its own."""
    from rich.measure import Measurement

    block: list[int] = []
    unbounded = console.options.update(max_width=100_000)
    for column in range(1, len(headings)):
        wider = _table(console, headings, rows, [*block, column])
        if block and Measurement.get(console, unbounded, wider).maximum > console.width:
            yield block
            block = []
        block.append(column)
    yield block


def _table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column(headings[0], max_width=console.width * 2 // 3, overflow="fold")  # a path goes on in a second line
    for column in columns:
        table.add_column(headings[column], justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row[0], *(row[column] for column in columns))
    return table
