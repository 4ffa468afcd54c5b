"""Tables and lines for people, printed on stdout."""

import io
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

TEXT_WIDTH = 60
"""Characters of a cell; a longer text is cut."""
SHORT = 24
"""A column of at most this many characters is never narrowed."""
DIGITS = {"value": ".5f", "stderr": ".5f", "p_helpful": ".4f", "score": ".4f", "label_score": ".4f"}

CONTROLS = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "␡", 0x0A: "↵", 0x0D: ""}
CONTROLS |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
CONTROLS |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
"""What stands for characters that would move the cursor, colour the screen, or turn the reading
direction: texts of a corpus are shown, and never obeyed."""
LINES = {code: sign for code, sign in CONTROLS.items() if code != 0x0A}
"""The same for lines that may end."""


def table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table with these columns and rows; a narrow terminal shortens its long columns alone."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    cells = [[cell(name, value) for name, value in zip(names, row, strict=True)] for row in rows]
    for column, name in enumerate(names):
        widest = max([len(name), *(len(row[column]) for row in cells)])
        least = widest if widest <= SHORT else SHORT // 2
        shown.add_column(
            Text(name.translate(CONTROLS)), no_wrap=True, overflow="ellipsis", min_width=least
        )
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
    if len(text) > TEXT_WIDTH:
        return text[: TEXT_WIDTH - 1] + "…"
    return text


def tail(text: str | None) -> str:
    """The end of a prompt in the length of a cell, which tells most of what is asked."""
    words = " ".join((text or "").split())
    return words if len(words) < TEXT_WIDTH else f"…{words[1 - TEXT_WIDTH :]}"


def show(item: Any) -> None:
    """Prints a line or a table; where stdout is no terminal, a table in its full width."""
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
    console.print(Text(item.translate(LINES)) if isinstance(item, str) else item)


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
