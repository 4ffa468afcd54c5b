"""Shingles: the runs of five characters that a text is made of, as hashes in flat arrays.

A text is taken without case and signs: its letters, marks and digits in lower case and compatible
form (NFKC), a single space for whatever else stands between them. A shingle begins at each of its
characters; those of the last four hold the end of the text. Characters and not words, as scripts
without spaces have no words that a program knows, and a misspelt word is still much the same.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64, UInt64

from stages.reading.drawn import STEP, mixed

LENGTH = 5
"""Characters of a shingle."""


class Shingles(NamedTuple):
    """The shingles of several texts, one text after the other; a text may have one repeatedly."""

    hashes: UInt64[np.ndarray, " shingles"]
    counts: Int64[np.ndarray, " texts"]
    """Shingles of each text."""

    @property
    def starts(self) -> Int64[np.ndarray, " texts"]:
        """Where the shingles of each text begin."""
        starts: np.ndarray = np.cumsum(self.counts) - self.counts
        return starts


def letters_of(texts: pa.Array) -> pa.Array:
    """Texts without case and signs; empty where there is no letter, mark or digit."""
    lower = pc.utf8_lower(pc.utf8_normalize(texts, form="NFKC"))
    spaced = pc.replace_substring_regex(lower, pattern=r"[^\pL\pM\pN]+", replacement=" ")
    return pc.utf8_trim(spaced, characters=" ")


def shingles_of(letters: pa.Array) -> Shingles:
    """The shingles of texts that `letters_of` gave, as many as each has characters.

    Memory: 40 bytes a character.
    """
    # No text holds a NUL: the four after each text end it, and no shingle begins with one.
    end = "\0" * (LENGTH - 1)
    joined = end.join([*letters.to_pylist(), ""])
    codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32).astype(np.uint64)
    hashes = np.zeros(max(0, len(codes) - LENGTH + 1), np.uint64)
    for place in range(LENGTH):
        hashes *= STEP
        hashes += codes[place : place + len(hashes)]
    counts = pc.utf8_length(letters).to_numpy(zero_copy_only=False).astype(np.int64)
    return Shingles(mixed(hashes[codes[: len(hashes)] != 0]), counts)
