"""Whether the rows of a review are those that a person read: ids of a source may have moved.

Without an id column rows go by number, and a row that is put in or taken out moves all behind it.
Spreadsheets change white space and signs and cut long cells, so that words are compared, and a cell
need only be a part of its row.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

SHOWN = ("text", "text_b", "answer", "chosen", "rejected")
"""Columns of a review that show a part of a row as it is; a prompt may be put together of several
turns."""
LEAST = 8
"""Letters of a row from which its cells are compared: a spreadsheet makes dates and numbers of
shorter ones."""
SHARED = 0.8
"""Part of a cell's words that the row has, whose messages a review may show in another form."""
_TAGS = re.compile("</?think>")
"""What views put around reasoning, which no row need have."""
_WORDS = re.compile(r"[^\W_]+")
_OF_ASCII = re.compile(r"[a-z0-9]+")


def first_other(
    rows: pa.Table, places: np.ndarray, decided: np.ndarray, shown: Mapping[str, Sequence[Any]]
) -> tuple[int, str, str] | None:
    """The first decision that was made about another text than its row has; None where all fit.

    Args:
        rows: Rows with `text` and `text_b`.
        places: Of the rows that the review names.
        decided: Of each of these, the place in the review.
        shown: Cells of the review, by column of `SHOWN`.

    Returns:
        The place in the review, the text there, and that of the row.
    """
    if not shown:
        return None
    for place, at in zip(places.tolist(), decided.tolist(), strict=True):
        texts = [text for name in ("text", "text_b") if (text := rows[name][place].as_py())]
        within = [string for text in texts for string in _strings(text)]
        # Of a text that is JSON a review may show the whole, keys and all.
        row = " ".join([*within, *texts])
        if sum(map(str.isalpha, row)) < LEAST:
            continue
        for of in shown.values():
            cell = of[at]
            if cell is not None and not _is_of(str(cell), row, is_json=within != texts):
                return at, str(cell), row
    return None


def _is_of(cell: str, row: str, is_json: bool) -> bool:
    """Whether a cell shows a part of a row; of one in JSON, in another order.

    One without a letter or digit, such as an empty answer `...`, is compared as it is.
    """
    cell, row = (_TAGS.sub("", text) for text in (cell, row))
    if not _WORDS.search(cell):
        return cell.strip() in row
    # An encoding may have lost letters beyond ASCII.
    for letters in (_WORDS, _OF_ASCII):
        words, said = letters.findall(cell.casefold()), letters.findall(row.casefold())
        if not words:
            continue
        if "".join(words) in "".join(said):
            return True
        if is_json and len(set(words) & set(said)) >= SHARED * len(set(words)):
            return True
    return False


def _strings(text: str) -> list[str]:
    """The text, or the strings in it where it is JSON, as conversations are kept."""
    try:
        return list(_within(json.loads(text))) if text[:1] in "[{" else [text]
    except (ValueError, RecursionError):
        return [text]


def _within(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _within(inner)
    elif value is not None:
        yield str(value)
