"""Where rows of a CSV begin: line ends that no quoted field holds.

A quote opens a field where it is the field's first byte, and nowhere else; inside, two quotes stand
for one. So reads pyarrow, whose parser does not tell where in the file it is.

Files of tabs are often written without any quoting: a quote is part of the text, also where it is a
field's first byte. Read as if it opened the field, it would take rows into a cell.
"""

import codecs
import io
import itertools
import re
from typing import NamedTuple

import numpy as np

_QUOTE, _ENDS = ord('"'), (ord("\n"), ord("\r"))
_BEYOND = 1 << 16
"""Bytes looked at beyond the size of a piece, for the next row to begin."""
_BLOCK = 1 << 23
"""Bytes searched at once."""
_CLOSED = re.compile(b'"[^"]+"(?!")')
"""How a field begins whose quote is closed."""
_WHOLE = re.compile(rb'"([^"]|"")*"\s*')


class Quoting(NamedTuple):
    """What quotes are in a file."""

    is_used: bool
    """Whether they open and close fields, and are not part of the text."""
    n_odd: int
    """Lines with text behind a closing quote, which no writer of CSV leaves there."""


def quoting_of(stream: io.BufferedReader, separator: str, n_fields: int, n_above: int) -> Quoting:
    """What quotes are in a file with `n_fields` columns.

    They are part of the text where it goes on behind a closing quote to an end without one, in more
    lines than there are with another number of fields. Cost: all bytes are read, and once more line
    by line where a text goes on so.
    """
    between = separator.encode()
    begun = stream.tell()
    going_on = re.compile(rb'"[^"\n%b]+"[^"\r\n%b]' % (between, between))
    blocks = iter(lambda: stream.readlines(_BLOCK), [])
    if not any(going_on.search(b"".join(lines)) for lines in blocks):
        return Quoting(is_used=True, n_odd=0)
    stream.seek(begun)
    opening = between + b'"'
    n_odd = n_going_on = n_uneven = 0
    for line in itertools.islice(stream, n_above + 1, None):
        row = line.rstrip(b"\r\n")
        n_uneven += bool(row) and row.count(between) != n_fields - 1
        if row.startswith(b'"') or opening in row:
            odd = [field for field in row.split(between) if _is_odd(field)]
            n_odd += bool(odd)
            n_going_on += any(not field.rstrip().endswith(b'"') for field in odd)
    return Quoting(n_fields < 2 or n_going_on <= n_uneven, n_odd)


def _is_odd(field: bytes) -> bool:
    return _CLOSED.match(field) is not None and _WHOLE.fullmatch(field) is None


def quotes(data: bytes, separator: str) -> np.ndarray:
    """Places of the quotes that open and close fields, in turns, in `data`, where a row begins.

    An odd number of them before a place means that a quoted field holds it. A pair that stands for
    one quote may be among them, which closes and opens again.
    """
    codes = np.frombuffer(data, dtype=np.uint8)
    places = np.flatnonzero(codes == _QUOTE)
    opening = places[::2]
    before = codes[np.maximum(opening - 1, 0)]
    is_first = (opening == _begin(data)) | np.isin(before, (*_ENDS, ord(separator)))
    is_pair = np.zeros(len(opening), dtype=bool)
    is_pair[1:] = opening[1:] == places[1::2][: len(opening) - 1] + 1
    if (is_first | is_pair).all():
        return places
    return _one_by_one(data, separator)


def _one_by_one(data: bytes, separator: str) -> np.ndarray:
    """What `quotes` gives, where fields have quotes that open nothing."""
    first = re.compile(b'[\r\n%b]"' % re.escape(separator.encode()))
    places: list[int] = []
    opening = _begin(data) if data[_begin(data) :].startswith(b'"') else -1
    at = 0
    while True:
        if opening < 0:
            found = first.search(data, at)
            if found is None:
                return np.array(places, dtype=np.int64)
            opening = found.end() - 1
        places.append(opening)
        closing = data.find(b'"', opening + 1)
        while closing >= 0 and data[closing + 1 : closing + 2] == b'"':
            closing = data.find(b'"', closing + 2)
        if closing < 0:
            return np.array(places, dtype=np.int64)
        places.append(closing)
        at, opening = closing + 1, -1


def _begin(data: bytes) -> int:
    """Where the first field begins."""
    return len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0


def row_starts(
    stream: io.BufferedReader, separator: str | None, piece_bytes: int, n_above: int
) -> tuple[list[int], int]:
    """Places in a file where rows begin, about `piece_bytes` apart, and the size of the file.

    Of a file without quoted fields there is no `separator`: a row is a line.
    The first is 0, the others are below the header, which has `n_above` lines above it. Cost: all
    bytes of a file that is longer than a piece are read.
    """
    size = stream.seek(0, 2)
    starts = [0]
    beyond = _BEYOND
    while size - starts[-1] > piece_bytes + beyond:
        stream.seek(starts[-1])
        data = stream.read(piece_bytes + beyond)
        lines = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == _ENDS[0])
        inside = np.searchsorted(quotes(data, separator), lines) % 2 if separator else 0 * lines
        outside = lines[inside == 0][0 if starts[1:] else n_above :]
        outside = outside[outside >= piece_bytes]
        if len(outside):
            starts.append(starts[-1] + int(outside[0]) + 1)
            beyond = _BEYOND
        else:
            beyond *= 2
    return starts, size
