"""Tables and lines on the terminal, all of them on stdout."""

import io
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

TEXT_WIDTH = 60
SHORT = 24
DIGITS = {"value": ".5f", "stderr": ".5f", "p_helpful": ".4f", "score": ".4f", "label_score": ".4f"}


def table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table whose long columns give way where the terminal is narrow, and no other."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    cells = [[cell(name, value) for name, value in zip(names, row, strict=True)] for row in rows]
    for at, name in enumerate(names):
        widest = max([len(name), *(len(row[at]) for row in cells)])
        least = widest if widest <= SHORT else SHORT // 2
        made.add_column(name, no_wrap=True, overflow="ellipsis", min_width=least)
    for row in cells:
        made.add_row(*map(Text, row))
    return made


def cell(name: str, value: Any) -> str:
    """A value as a column of that name shows it: numbers rounded, long texts cut."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:{DIGITS.get(name, '.4g')}}"
    text = str(value)
    if len(text) > TEXT_WIDTH:
        return text[: TEXT_WIDTH - 1] + "…"
    return text


def show(item: Any) -> None:
    """Prints a line or a table, whole where there is no terminal to be too narrow."""
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
    console.print(Text(item) if isinstance(item, str) else item)


def shown(print_it: Callable[[], None]) -> str:
    """What `print_it` prints, as text."""
    with redirect_stdout(io.StringIO()) as told:
        print_it()
    return told.getvalue().strip("\n")
