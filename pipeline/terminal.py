"""Tables and lines for people, printed on stdout."""

import io
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pipeline import short_ids

TEXT_WIDTH = 60
"""Characters of a cell; a longer text is cut."""
LEAST = 8
"""Characters of a column, if it has as many, however narrow the terminal."""
GAP = 2
"""Spaces between two columns."""
DIGITS = {"value": ".5f", "stderr": ".5f", "p_helpful": ".4f", "score": ".4f", "label_score": ".4f"}

CONTROLS = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "␡", 0x0A: "↵", 0x0D: ""}
CONTROLS |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
CONTROLS |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
"""What stands for characters that would move the cursor, colour the screen, or turn the reading
direction: texts of a corpus are shown, and never obeyed."""
LINES = {code: sign for code, sign in CONTROLS.items() if code != 0x0A}
"""The same for lines that may end."""


def table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table with these columns and rows; `narrow` fits it into a terminal."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    cells = [[cell(name, value) for name, value in zip(names, row, strict=True)] for row in rows]
    for column, name in enumerate(names):
        widest = max(cell_len(text) for text in [name, *(row[column] for row in cells)])
        heading = Text(name.translate(CONTROLS))
        shown.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=max(1, widest))
    for row in cells:
        shown.add_row(*map(Text, row))
    return shown


def cell(name: str, value: Any) -> str:
    """The text that a column of this name shows for a value: numbers rounded, long texts cut."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:{DIGITS.get(name, '.4g')}}"
    text = str(value).translate(CONTROLS)
    if len(text) > TEXT_WIDTH and name not in short_ids.NAMES:
        return text[: TEXT_WIDTH - 1] + "…"
    return text


def tail(text: str | None) -> str:
    """The end of a prompt in the length of a cell, which tells most of what is asked."""
    words = " ".join((text or "").split())
    return words if len(words) < TEXT_WIDTH else f"…{words[1 - TEXT_WIDTH :]}"


def narrow(item: Table, width: int) -> list[str]:
    """Makes a table of `table` fit into a width; the names of the columns that it cannot have.

    Long ids are shown as `short_ids` says, and never cut. Of the others the widest columns are
    shortened first, all to one width. Where that would be less than `LEAST`, the last columns go,
    which rich would let go without a word.
    """
    names = []
    for column in filter(_is_of_ids, item.columns):
        cells: list[Any] = list(column.cells)
        short = short_ids.shortened([str(text) for text in cells])
        for text, plain in zip(cells, short, strict=True):
            text.plain = plain
        column.max_width = max(map(cell_len, [str(column.header), *short]))
    while (cap := _cap(item, width)) < LEAST and len(item.columns) > 1:
        names.append(str(item.columns.pop().header))
    for column in item.columns:
        most = width if _is_of_ids(column) else max(1, cap)
        column.min_width = column.width = min(column.max_width or LEAST, most)
    return names[::-1]


def _cap(item: Table, width: int) -> int:
    """The width that no column but those of ids may exceed, if all are to fit with their gaps."""
    of_ids = sum(c.max_width or 0 for c in item.columns if _is_of_ids(c))
    left = width - GAP * (len(item.columns) - 1) - of_ids
    widths = [c.max_width or 0 for c in item.columns if not _is_of_ids(c)]
    if not widths:
        return left if left < LEAST else width
    cap = 0
    for at, widest in enumerate(sorted(widths)):
        n = len(widths) - at
        if widest * n >= left:
            return max(cap, left // n)
        cap, left = widest, left - widest
    return max(cap, LEAST)


def _is_of_ids(column: Column) -> bool:
    return str(column.header) in short_ids.NAMES


def show(item: Any) -> None:
    """Prints a line or a table; where stdout is no terminal, a table in its full width."""
    left_out: list[str] = []
    # In a notebook rich would send HTML to the page, past stdout.
    console = Console(
        file=sys.stdout,
        soft_wrap=not isinstance(item, Table),
        highlight=False,
        force_jupyter=False,
    )
    if not console.is_terminal and isinstance(item, Table):
        unlimited = console.options.update(max_width=10_000)
        console.width = console.measure(item, options=unlimited).maximum
    if isinstance(item, Table) and console.is_terminal:
        for name in narrow(item, console.width):
            left_out.append(name)
    console.print(Text(item.translate(LINES)) if isinstance(item, str) else item)
    if left_out:
        console.print(
            Text(f"Left out for the width: {', '.join(left_out)}. A wider terminal shows them."),
            style="dim",
            soft_wrap=True,
        )


def shown(print_it: Callable[[], None]) -> str:
    """The text that `print_it` prints on stdout."""
    with redirect_stdout(io.StringIO()) as buffer:
        print_it()
    return buffer.getvalue().strip("\n")


def bytes_text(count: float) -> str:
    """A number of bytes in a unit for people; nothing for 0."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if count else ""
        count /= 1000
    return ""
