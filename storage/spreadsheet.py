"""CSV files that people open in a spreadsheet, where a cell that begins with `=` is a formula.

A text that a spreadsheet would compute gets an apostrophe in front: one that begins with `=`, `+`,
`-`, `@`, a tab or the end of a line, also with the wide signs of East Asian scripts, unless it is a
plain number such as `-1.5`. So that nothing is lost, a text that begins with apostrophes and such a
sign gets one more; `unescaped` takes one away from exactly those. A file that is not ASCII begins
with a byte order mark, without which Excel takes UTF-8 for the letters of another encoding.
"""

import codecs
import re
import shutil
from pathlib import Path

from storage.sql import named

WIDE = "".join(map(chr, (0xFF1D, 0xFF0B, 0xFF0D, 0xFF20)))
FORMULA = rf"^'*[=+\-@\t\r\n{WIDE}]"
NUMBER = r"'*-?[0-9]+(\.[0-9]+)?"


def is_computed(text: str) -> bool:
    """Whether a spreadsheet may compute a cell, or would without its apostrophes."""
    return re.match(FORMULA, text) is not None and re.fullmatch(NUMBER, text) is None


def escaped(text: str) -> str:
    """The text as a cell that no spreadsheet computes."""
    return f"'{text}" if is_computed(text) else text


def unescaped(text: str) -> str:
    """The text that a cell was made of."""
    return text[1:] if text.startswith("'") and is_computed(text) else text


def escaped_column(name: str, kind: str) -> str:
    """The column of a SELECT that gives `escaped` of a column of this type of DuckDB."""
    header = named(escaped(name))
    if not kind.startswith(("VARCHAR", "ENUM", "CHAR")) or kind.endswith("]"):
        return f"{named(name)} AS {header}"
    text = f"{named(name)}::VARCHAR"
    formula, number = FORMULA.replace("'", "''"), NUMBER.replace("'", "''")
    is_formula = f"regexp_matches({text}, '{formula}')"
    is_number = f"regexp_full_match({text}, '{number}')"
    shown = f"CASE WHEN {is_formula} AND NOT {is_number} THEN '''' || {text} ELSE {text} END"
    return f"{shown} AS {header}"


def mark(path: Path) -> None:
    """Puts a byte order mark before a file that is not ASCII."""
    with path.open("rb") as file:
        if all(block.isascii() for block in iter(lambda: file.read(1 << 20), b"")):
            return
        file.seek(0)
        marked = path.with_name(f"{path.name}.marked")
        with marked.open("wb") as out:
            out.write(codecs.BOM_UTF8)
            shutil.copyfileobj(file, out)
    marked.replace(path)
