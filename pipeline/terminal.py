"""Tables and lines for people, printed on stdout."""

import io
import math
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pipeline import short_ids

TEXT_WIDTH = 60
"""Width of a cell, in which a wide letter counts twice; a longer text is cut."""
LEAST = 8
"""Characters of a column, if it has as many, however narrow the terminal."""
READABLE, LEGIBLE = 12, 24
"""Characters of a column, and of one of texts, below which what is not needed goes first."""
TEXTS = ("text", "text_b", "prompt", "answer", "chosen", "rejected")
"""Columns whose cells may begin alike."""
PROMPT = "prompt"
"""The column whose texts are cut where they begin."""
ALIKE = 10
"""Characters that are left of what two answers to one prompt begin with alike."""
SOURCE, OWN = "source_id", "example_id"
"""The id that a row has in its source, and the number that it has here."""
GAP = 2
"""Spaces between two columns."""
DIGITS = {"value": ".5f", "stderr": ".5f", "p_helpful": ".4f", "score": ".4f", "label_score": ".4f"}

NUMBERS = re.compile(r"([-+±\d.,eE%/()\s]|\bto\b|\bof\b|\binf\b|\bnan\b)*")
"""A number, an interval or a share."""

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
    if {"chosen", "rejected"} <= set(names):
        one, other = (names.index(name) for name in ("chosen", "rejected"))
        copies = [list(row) for row in rows]
        for row in copies:
            row[one], row[other] = _apart(row[one], row[other])
        rows = copies
    cells = [[cell(name, value) for name, value in zip(names, row, strict=True)] for row in rows]
    for column, name in enumerate(names):
        widest = max(cell_len(text) for text in [name, *(row[column] for row in cells)])
        heading = Text(name.translate(CONTROLS))
        shown.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=max(1, widest))
    for row in cells:
        shown.add_row(*map(Text, row))
    return shown


def cell(name: str, value: Any) -> str:
    """The text that a column of this name shows for a value: numbers rounded, long texts cut.

    Of a prompt the end is shown, which tells most of what is asked.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        rounded = f"{value:{DIGITS.get(name, '.4g')}}"
        return f"{value:.1e}" if value and not float(rounded) else rounded
    if name == PROMPT:
        return from_end(" ".join(str(value).split()).translate(CONTROLS), TEXT_WIDTH)
    text = str(value).translate(CONTROLS)
    if cell_len(text) > TEXT_WIDTH and not short_ids.is_id(name):
        return set_cell_size(text, TEXT_WIDTH - 1).rstrip() + "…"
    return text


def from_end(text: str, width: int) -> str:
    """The end of a text in a width, behind a sign where more stands before it."""
    if cell_len(text) <= width:
        return text
    start = len(text)
    while cell_len(text[start - 1 :]) < width:
        start -= 1
    return f"…{text[start:].lstrip()}"


def _apart(one: Any, other: Any) -> tuple[Any, Any]:
    """Two texts from where they part, with the words before it; whole where they begin unlike."""
    if not isinstance(one, str) or not isinstance(other, str):
        return one, other
    unlike = (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    shared = next(unlike, min(len(one), len(other)))
    start = one.rfind(" ", 0, max(0, shared - ALIKE))
    return (f"…{one[start + 1 :]}", f"…{other[start + 1 :]}") if start > ALIKE else (one, other)


def narrow(item: Table, width: int) -> list[str]:
    """Makes a table of `table` fit into a width; the names of the columns that it cannot have.

    Long ids are shown as `short_ids` says; these and numbers are never cut. Headings are shortened
    first, then the widest cells, all to one width. Where that would be less than `READABLE`, or
    than `LEGIBLE` of texts, columns go, which rich would let go without a word: empty ones, the
    number of a row that has an id in its source or of a class that has a name, those that say the
    same of all rows; and where it would be less than `LEAST` the last that are neither ids nor
    texts. So do columns behind names that could not be told apart.
    """
    names = [str(column.header) for column in item.columns]
    for longest in (short_ids.LONG, short_ids.SHORT):
        if longest == short_ids.LONG or _widths(item.columns, width, READABLE) is None:
            for column in filter(_is_of_ids, item.columns):
                _shorten(column, longest)
    for is_needless in (
        _is_empty,
        lambda c: str(c.header) == OWN and SOURCE in names,
        lambda c: f"{c.header}_name" in names,
        _is_of_one,
    ):
        if _is_crowded(item.columns, width):
            item.columns[:] = [c for c in item.columns if not is_needless(c)] or item.columns[:1]
    while (widths := _widths(item.columns, width, LEAST)) is None and len(item.columns) > 1:
        _drop(item.columns)
    while widths is not None and len(widths) > 2 and _looks_alike(item.columns[0], widths[0]):
        _drop(item.columns)
        widths = _widths(item.columns, width, LEAST)
    for place, (column, fitting) in enumerate(zip(item.columns, widths or [width], strict=True)):
        column.min_width = column.width = fitting
        if str(column.header) == PROMPT:
            shown: list[Any] = list(column.cells)
            for text in shown:
                text.plain = from_end(text.plain, fitting)
        column._index = place  # by which rich knows the first, which has no gap before it
    left = {str(column.header) for column in item.columns}
    return [name for name in names if name not in left]


def _widths(columns: Sequence[Column], width: int, least: int) -> list[int] | None:
    """The width of each column, so that all fit; None where one would have less than `least`."""
    room = width - GAP * (len(columns) - 1)
    natural = [column.max_width or 1 for column in columns]
    # With a heading that is cut.
    close = [max(_cells(c), min(n, LEAST)) for c, n in zip(columns, natural, strict=True)]
    caps = range(max(*natural, least), least - 1, -1)
    sizes = (
        *([max(c, min(n, cap)) for c, n in zip(close, natural, strict=True)] for cap in caps),
        *(
            [w if _is_whole(c) else min(w, cap) for c, w in zip(columns, close, strict=True)]
            for cap in caps
        ),
    )
    return next((widths for widths in sizes if sum(widths) <= room), None)


def _is_crowded(columns: Sequence[Column], width: int) -> bool:
    """Whether columns would be hard to read in a width."""
    widths = _widths(columns, width, READABLE)
    return widths is None or any(
        fitting < min(LEGIBLE, column.max_width or 1)
        for column, fitting in zip(columns, widths, strict=True)
        if str(column.header) in TEXTS
    )


def _drop(columns: list[Column]) -> None:
    """Takes out the last column, but never the first; ids and texts where no others are left."""
    others = [n for n, column in enumerate(columns) if n and not _is_of_ids(column)]
    names = [str(column.header) for column in columns]
    places = [n for n in others if names[n] not in TEXTS] or others
    del columns[places[-1] if places else -1]


def _looks_alike(column: Column, width: int) -> bool:
    """Whether names in a column are the same when they are cut to a width; texts may be."""
    cells = {str(text) for text in column.cells}
    cut = {text if cell_len(text) <= width else text[: width - 1] for text in cells}
    return str(column.header) not in TEXTS and len(cut) < len(cells)


def _cells(column: Column) -> int:
    """The width of a column's widest cell."""
    return max((cell_len(str(text)) for text in column.cells), default=0)


def _is_empty(column: Column) -> bool:
    """Whether no row of a table has anything in a column; of a table without rows it is not."""
    return any(True for _ in column.cells) and not _cells(column)


def _is_of_one(column: Column) -> bool:
    """Whether a column says of several rows alike by which run or method they are, or a flag."""
    cells, name = list(map(str, column.cells)), str(column.header)
    is_told = name in ("run_id", "method") or name.startswith("is_")
    return is_told and len(cells) > 1 and len(set(cells)) == 1


def _shorten(column: Column, longest: int) -> None:
    """Shows the ids of a column in as few characters as tell them apart."""
    cells: list[Any] = list(column.cells)
    short = short_ids.shortened([str(text) for text in cells], longest)
    for text, plain in zip(cells, short, strict=True):
        text.plain = plain
    column.max_width = max(cell_len(str(column.header)), _cells(column))


def _is_of_ids(column: Column) -> bool:
    return short_ids.is_id(str(column.header))


def _is_whole(column: Column) -> bool:
    """Whether no cell of a column may be cut: without its end a number is another one."""
    are_numbers = all(NUMBERS.fullmatch(str(text)) for text in column.cells)
    return _is_of_ids(column) or (are_numbers and str(column.header) not in TEXTS)


def show(item: Any) -> None:
    """Prints a line or a table; where stdout is no terminal, both in their full width.

    On a terminal lines break between words, but those that begin with two spaces, which are copied.
    """
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
    if isinstance(item, str):
        item = Text(item.translate(LINES))
    is_prose = isinstance(item, Text) and _is_prose(item.plain, console.width)
    console.print(item, soft_wrap=False if is_prose and console.is_terminal else None)
    if left_out:
        console.print(
            Text(f"Left out for the width: {', '.join(left_out)}. A wider terminal shows them."),
            style="dim",
        )


def _is_prose(text: str, width: int) -> bool:
    """Whether lines may break between words: not before a path that is longer than a line."""
    return not text.startswith("  ") and all(cell_len(word) <= width for word in text.split())


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


def finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have: NaN and the infinite ones."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    return value
