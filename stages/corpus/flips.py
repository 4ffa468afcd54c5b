"""Labels that are flipped on purpose, so that finding them again can be measured."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from stages.corpus.source import FlipLabels


class Flips(NamedTuple):
    """Which labels are flipped: those of the rows whose hash is at most `largest`."""

    seed: int
    largest: bytes
    """SHA-256; empty where none is flipped."""

    def of(self, codes: np.ndarray, ids: np.ndarray, n_classes: int) -> np.ndarray:
        """The class indices, with those of chosen rows changed to another class.

        The first half of each hash orders the rows, the other picks one of the other classes.
        """
        flipped = codes.copy()
        if self.largest:
            for row, row_id in enumerate(ids.tolist()):
                if (hashed := _hash(self.seed, row_id)) <= self.largest:
                    step = 1 + int.from_bytes(hashed[16:], "big") % (n_classes - 1)
                    flipped[row] = (codes[row] + step) % n_classes
        return flipped


def flips(ids: np.ndarray, flip: FlipLabels) -> Flips:
    """The choice of the fraction `flip.fraction` of the rows, by the seed and their ids alone."""
    n_chosen = round(flip.fraction * len(ids))
    if not n_chosen:
        return Flips(flip.seed, b"")
    begins = np.fromiter(
        (int.from_bytes(_hash(flip.seed, i)[:8], "big") for i in _each(ids)), np.uint64, len(ids)
    )
    bound = np.partition(begins, n_chosen - 1)[n_chosen - 1]
    n_below = int((begins < bound).sum())
    equal = sorted(_hash(flip.seed, i) for i in ids[begins == bound].tolist())
    return Flips(flip.seed, equal[n_chosen - n_below - 1])


def _each(ids: np.ndarray) -> Iterator[int]:
    """The ids as Python's integers, some at a time."""
    for start in range(0, len(ids), 1 << 16):
        yield from ids[start : start + (1 << 16)].tolist()


def _hash(seed: int, row_id: int) -> bytes:
    return hashlib.sha256(f"{seed}:{row_id}".encode()).digest()
