"""Shingles: the runs of five characters that a text is made of, as hashes in flat arrays.

A text is taken without case and signs: its letters, marks and digits in lower case and compatible
form (NFKC), a single space for whatever else stands between them. A shingle begins at each of its
characters; those of the last four hold the end of the text. Characters and not words, as scripts
without spaces have no words that a program knows, and a misspelt word is still much the same.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64, UInt64

from stages.reading.drawn import STEP, mixed

LENGTH = 5
"""Characters of a shingle."""
END = "\0" * (LENGTH - 1)
"""Ends a text: no shingle reaches from one to the next."""
PIECE = 2**20
"""Most characters whose shingles are made at a time."""
ALONE = re.compile("[0-9A-Za-z\u0430-\u044f\u3041-\u3096\u4e00-\u9fff\uac00-\ud7a3]")
"""Letters and digits that no compatible form joins to what stands before them: before one of them
a text can be cut."""


class Shingles(NamedTuple):
    """The shingles of several texts, one text after the other; a text may have one repeatedly."""

    first: int
    """The number of the first of these texts."""
    hashes: UInt64[np.ndarray, " shingles"]
    counts: Int64[np.ndarray, " texts"]
    """Shingles of each text."""

    @property
    def starts(self) -> Int64[np.ndarray, " texts"]:
        """Where the shingles of each text begin."""
        starts: np.ndarray = np.cumsum(self.counts) - self.counts
        return starts


def letters_of(texts: Sequence[str]) -> pa.Array:
    """Texts without case and signs; empty where there is no letter, mark or digit.

    Memory: of short texts four times them, of a long one twice.
    """
    if max(map(len, texts), default=0) <= PIECE:
        return pc.utf8_trim(_bare(texts), characters=" ")
    bare = ["".join(bare_part for (bare_part,) in map(_bare_list, _parts(text))) for text in texts]
    return pa.array([text.strip(" ") for text in bare], pa.large_string())


def _parts(text: str) -> Iterator[list[str]]:
    """A text in parts of about `PIECE` characters that can be looked at alone."""
    start = 0
    while start < len(text):
        found = ALONE.search(text, start + PIECE)
        stop = found.start() if found else len(text)
        yield [text[start:stop]]
        start = stop


def _bare_list(texts: Sequence[str]) -> list[str]:
    bare: list[str] = _bare(texts).to_pylist()
    return bare


def _bare(texts: Sequence[str]) -> pa.Array:
    """Texts as `letters_of` has them, but for a space before and after them."""
    lower = pc.utf8_lower(pc.utf8_normalize(pa.array(texts, pa.large_string()), form="NFKC"))
    return pc.replace_substring_regex(lower, pattern=r"[^\pL\pM\pN]+", replacement=" ")


def shingles_of(letters: pa.Array) -> Iterator[Shingles]:
    """The shingles of texts that `letters_of` gave, as many as each has characters.

    At a time those of texts that follow each other, or of a part of a long one. Memory: 40 bytes
    for each of `PIECE` characters, and a long text twice.
    """
    lengths = pc.utf8_length(letters).to_numpy(zero_copy_only=False).astype(np.int64)
    total, start = np.cumsum(lengths), 0
    while start < len(lengths):
        done = total[start] - lengths[start]
        stop = max(start + 1, int(np.searchsorted(total, done + PIECE, side="right")))
        texts = letters.slice(start, stop - start).to_pylist()
        # No text holds a NUL: the four after each text end it, and no shingle begins with one.
        joined = END.join([*texts, ""])
        if len(joined) <= PIECE + len(texts) * len(END):
            yield Shingles(start, _hashes(joined), lengths[start:stop])
        else:
            for at in range(0, int(lengths[start]), PIECE):
                hashes = _hashes(joined[at : at + PIECE + len(END)])[:PIECE]
                yield Shingles(start, hashes, np.array([len(hashes)]))
        start = stop


def _hashes(joined: str) -> UInt64[np.ndarray, " shingles"]:
    """A hash for each shingle, in the order in which they begin."""
    codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32).astype(np.uint64)
    hashes = np.zeros(max(0, len(codes) - LENGTH + 1), np.uint64)
    for place in range(LENGTH):
        hashes *= STEP
        hashes += codes[place : place + len(hashes)]
    return mixed(hashes[codes[: len(hashes)] != 0])
