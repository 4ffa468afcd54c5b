"""Passages that many texts share, such as the instruction of a task, and texts without them.

Rows of one task are alike by their instruction alone, so that their texts would be near duplicates
of each other, whatever they are about. A window of 24 characters that stands in a hundredth of the
texts, and in ten at least, belongs to a passage that many share; few windows of free text do.
"""

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, UInt32, UInt64

from stages.reading.drawn import STEP, mixed

LENGTH = 24
"""Characters of a window."""
SHARE, LEAST = 0.01, 10
"""Share of the different texts, and the least number of them, that a shared window stands in."""
LEFT = 16
"""A text of which less would be left stays whole."""
PIECE = 2**20
"""Characters that are looked at at a time."""
BETWEEN = "\0" * (LENGTH - 1)
"""Ends a text: no window reaches from one to the next. `letters_of` leaves no NUL in a text."""


def shared_windows(letters: pa.Array) -> UInt64[np.ndarray, " windows"]:
    """Hashes, ascending, of the windows that many of these texts share, a sample of a corpus.

    Repeated texts count once.
    """
    different = sorted(set(letters.to_pylist()))
    found = []
    for text in different:
        codes = _codes(text)
        found.append(np.unique(_windows(codes)[_begins(codes)]))
    hashes, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *found]), return_counts=True)
    shared: np.ndarray = hashes[counts >= max(LEAST, SHARE * len(different))]
    return shared


def without_shared(letters: pa.Array, shared: UInt64[np.ndarray, " windows"]) -> pa.Array:
    """The texts without the characters that shared windows cover.

    Memory: the texts three times, and 30 bytes for each of `PIECE` characters.
    """
    if not len(shared) or not len(letters):
        return letters
    texts = letters.to_pylist()
    joined, left = BETWEEN.join([*texts, ""]), ""
    for at in range(0, len(joined), PIECE):
        left += _left(joined, at, at + PIECE, shared)
    stripped = [
        part.strip() if len(part.strip()) >= min(LEFT, len(text)) else text
        for part, text in zip(left.split(BETWEEN), texts, strict=False)
    ]
    return pa.array(stripped, letters.type)


def _left(joined: str, start: int, stop: int, shared: UInt64[np.ndarray, " windows"]) -> str:
    """The characters from `start` to `stop` without those that shared windows cover."""
    before = min(start, LENGTH - 1)
    codes = _codes(joined[start - before : stop + LENGTH - 1])
    windows = _windows(codes)
    at = np.searchsorted(shared, windows).clip(max=len(shared) - 1)
    begins = np.flatnonzero((shared[at] == windows) & _begins(codes))
    # Each shared window covers LENGTH characters from where it begins.
    edges = np.zeros(len(codes) + 1, np.int64)
    np.add.at(edges, begins, 1)
    np.add.at(edges, begins + LENGTH, -1)
    is_left = np.cumsum(edges[:-1]) == 0
    own = slice(before, before + stop - start)
    return str(codes[own][is_left[own]].tobytes(), "utf-32-le")


def _codes(text: str) -> UInt32[np.ndarray, " characters"]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _windows(codes: UInt32[np.ndarray, " characters"]) -> UInt64[np.ndarray, " windows"]:
    """A hash for each window, by where it begins."""
    hashes = np.zeros(max(0, len(codes) - LENGTH + 1), np.uint64)
    for place in range(LENGTH):
        hashes *= STEP
        hashes += codes[place : place + len(hashes)]
    return mixed(hashes)


def _begins(codes: UInt32[np.ndarray, " characters"]) -> Bool[np.ndarray, " windows"]:
    """Whether a window begins in a text and ends there."""
    ends = np.cumsum(codes == 0)
    n = max(0, len(codes) - LENGTH + 1)
    is_whole: np.ndarray = (ends[LENGTH - 1 :] == ends[:n]) & (codes[:n] != 0)
    return is_whole
