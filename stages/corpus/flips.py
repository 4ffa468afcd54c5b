"""Labels that are flipped on purpose, so that finding them again can be measured."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from stages.corpus.source import FlipLabels

_BLOCK_ROWS = 1 << 16


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


def flips(ids: np.ndarray, is_usable: np.ndarray, flip: FlipLabels) -> Flips:
    """The choice of the fraction `flip.fraction` of usable rows, by the seed and their ids alone.

    Memory: 8 bytes a row, for the first numbers of their hashes.
    """
    n_usable = int(np.count_nonzero(is_usable))
    n_chosen = round(flip.fraction * n_usable)
    if not n_chosen:
        return Flips(flip.seed, b"")
    begins = np.fromiter(
        (
            int.from_bytes(_hash(flip.seed, row_id)[:8], "big")
            for block in _blocks(ids, is_usable)
            for row_id in block.tolist()
        ),
        np.uint64,
        n_usable,
    )
    bound, n_below = _smallest(begins, n_chosen)
    at, equal = 0, []
    for block in _blocks(ids, is_usable):
        of_block = begins[at : at + len(block)] == bound
        equal += [_hash(flip.seed, row_id) for row_id in block[of_block].tolist()]
        at += len(block)
    return Flips(flip.seed, sorted(equal)[n_chosen - n_below - 1])


def _smallest(numbers: np.ndarray, n: int) -> tuple[np.uint64, int]:
    """The n-th smallest of the numbers, and how many are less; sorts a 65,536th part of them."""
    n_of = np.zeros(1 << 16, dtype=np.int64)
    for block in _rows(numbers):
        n_of += np.bincount((block >> np.uint64(48)).astype(np.int64), minlength=len(n_of))
    first = int(np.searchsorted(np.cumsum(n_of), n))
    n_before = int(n_of[:first].sum())
    near = np.sort(
        np.concatenate([block[block >> np.uint64(48) == first] for block in _rows(numbers)])
    )
    bound = near[n - n_before - 1]
    return bound, n_before + int(np.searchsorted(near, bound))


def _rows(numbers: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(numbers), _BLOCK_ROWS):
        yield numbers[start : start + _BLOCK_ROWS]


def _blocks(ids: np.ndarray, is_usable: np.ndarray) -> Iterator[np.ndarray]:
    """The ids of usable rows, some at a time."""
    for block, usable in zip(_rows(ids), _rows(is_usable), strict=True):
        yield block[usable]


def _hash(seed: int, row_id: int) -> bytes:
    return hashlib.sha256(f"{seed}:{row_id}".encode()).digest()
