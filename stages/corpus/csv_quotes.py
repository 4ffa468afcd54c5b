"""Where rows of a CSV begin: line ends that no quoted field holds.

A quote opens a field where it is the field's first byte, and nowhere else; inside, two quotes stand
for one. So reads pyarrow, whose parser does not tell where in the file it is.
"""

import codecs
import io
import re

import numpy as np

_QUOTE, _ENDS = ord('"'), (ord("\n"), ord("\r"))
_BEYOND = 1 << 16
"""Bytes looked at beyond the size of a piece, for the next row to begin."""


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
    stream: io.BufferedReader, separator: str, piece_bytes: int, n_above: int
) -> tuple[list[int], int]:
    """Places in a file where rows begin, about `piece_bytes` apart, and the size of the file.

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
        inside = np.searchsorted(quotes(data, separator), lines) % 2
        outside = lines[inside == 0][0 if starts[1:] else n_above :]
        outside = outside[outside >= piece_bytes]
        if len(outside):
            starts.append(starts[-1] + int(outside[0]) + 1)
            beyond = _BEYOND
        else:
            beyond *= 2
    return starts, size
