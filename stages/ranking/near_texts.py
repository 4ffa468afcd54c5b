"""Texts that are nearly the same: MinHash finds candidates, the sets of shingles decide.

The likeness of two texts is the Jaccard similarity J of their sets of shingles, those in both by
those in either. A random order of all shingles has the same first one in both sets with probability
J; four of such orders are a band, and two texts are a candidate when one of 24 bands is the same:
with probability 1 - (1 - J^4)^24, which is 0.96 for J = 0.6, 0.999 for 0.7 and 0.0002 for 0.05.
For each candidate J is counted. It is exact but for shingles of one pair with the same 44 bits of
hash: one pair in 10^9, for texts of 100 characters. Of two texts that have more than 2^20 shingles
together those count whose hash is in the lower half of all, or in the lower half of these, and so
on, until there are no more than 2^20: a sample of shingles, with a standard error below 0.001.

Source: Broder 1997, doi:10.1109/SEQUEN.1997.666900 (shingles, MinHash); Indyk and Motwani 1998,
doi:10.1145/276698.276876 (bands). The roads not taken, as measured in
`scripts/benchmarks/duplicates.md`: datasketch and rensa take shingles as Python objects and hold
their tables of buckets in memory, and neither counts J.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64, Int64, UInt64

from stages.reading.drawn import STEP, mixed
from stages.reading.shingles import shingles_of

BANDS, ROWS = 24, 4
"""Bands, and orders of shingles in each."""
WINDOW = 16
"""Texts of a bucket that each is compared with; of larger buckets those with the most like bands.
"""
BITS = 44
"""Bits of a shingle's hash that are compared within a pair."""
SHINGLES = 2**20
"""Most shingles of the pairs that are compared at a time: of longer texts a sample."""


class Pairs(NamedTuple):
    """Pairs of different texts, the first with the smaller number."""

    first: Int64[np.ndarray, " pairs"]
    second: Int64[np.ndarray, " pairs"]


def sketches_of(
    letters: pa.Array,
) -> tuple[UInt64[np.ndarray, " texts"], UInt64[np.ndarray, "texts bands"]]:
    """Of texts with a letter each, a hash of all shingles, and the bands.

    The hash is of the shingles with how often each is there; bands are equal for equal sets. Cost
    96 a shingle. Memory: as `shingles_of`, and 500 bytes a text.
    """
    drawn = mixed(np.arange(1, 2 * BANDS * ROWS + 1, dtype=np.uint64) * STEP)
    factors, shifts = (drawn >> np.uint64(32)).astype(np.uint32).reshape(2, BANDS, ROWS)
    contents = np.zeros(len(letters), np.uint64)
    lowest = np.full((BANDS, ROWS, len(letters)), np.uint32(2**32 - 1))
    for piece in shingles_of(letters):
        texts, starts = slice(piece.first, piece.first + len(piece.counts)), piece.starts
        contents[texts] += np.add.reduceat(mixed(piece.hashes + STEP), starts)
        hashes = (piece.hashes >> np.uint64(32)).astype(np.uint32)
        moved = np.empty_like(hashes)
        for order in np.ndindex(BANDS, ROWS):
            # An odd factor: the products are a permutation of the 32-bit integers.
            np.multiply(hashes, factors[order] | np.uint32(1), out=moved)
            moved += shifts[order]
            found = lowest[order][texts]
            np.minimum(found, np.minimum.reduceat(moved, starts), out=found)
    bands = np.zeros((len(letters), BANDS), np.uint64)
    for band, row in np.ndindex(BANDS, ROWS):
        bands[:, band] = mixed(bands[:, band] + lowest[band, row].astype(np.uint64) + STEP)
    return contents, bands


def candidates(
    bands: UInt64[np.ndarray, "texts bands"], is_query: Bool[np.ndarray, " texts"]
) -> tuple[Pairs, int]:
    """Pairs with a band in common, each once, none of two queries; and texts of larger buckets.

    A text meets at most `WINDOW` others of a bucket before it and after it, in the order of the
    next band: those that share two bands stand side by side. Cost 24 sorts. Memory: 16 bytes a
    pair, at most 24 * 16 pairs a text and a few where no large bucket is.
    """
    n = len(bands)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    is_crowded = np.zeros(n, dtype=bool)
    for band in range(BANDS):
        order = np.lexsort((bands[:, (band + 1) % BANDS], bands[:, band]))
        key = bands[order, band]
        for step in range(1, WINDOW + 2):
            same = np.flatnonzero(key[step:] == key[:-step])
            if not len(same):
                break
            one, other = order[same], order[same + step]
            if step > WINDOW:
                is_crowded[one] = is_crowded[other] = True
                break
            is_new = ~(is_query[one] & is_query[other])
            for earlier in range(band):
                is_new &= bands[one, earlier] != bands[other, earlier]
            one, other = one[is_new], other[is_new]
            found.append((np.minimum(one, other), np.maximum(one, other)))
    first, second = (
        np.concatenate([pair[side] for pair in found] or [np.zeros(0, np.int64)]) for side in (0, 1)
    )
    return Pairs(first, second), int(is_crowded.sum())


def similarities(letters: pa.Array, pairs: Pairs) -> Float64[np.ndarray, " pairs"]:
    """The Jaccard similarity of the texts of each pair, numbers in `letters`, by counting.

    Cost: the shingles of both texts of a pair, sorted. Memory: 100 bytes for each of `SHINGLES`,
    and both texts.
    """
    lengths = pc.utf8_length(letters).to_numpy(zero_copy_only=False).astype(np.int64)
    found = [np.zeros(0), *(_compared(letters, part) for part in _blocks(lengths, pairs))]
    return np.concatenate(found)


def _blocks(lengths: Int64[np.ndarray, " texts"], pairs: Pairs) -> Iterator[Pairs]:
    """The pairs in turn: one, and more as long as their texts have `SHINGLES` shingles at most."""
    total = np.cumsum(lengths[pairs.first] + lengths[pairs.second])
    start = 0
    while start < len(total):
        done = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, done + SHINGLES, side="right")))
        yield Pairs(pairs.first[start:stop], pairs.second[start:stop])
        start = stop


def _compared(letters: pa.Array, pairs: Pairs) -> Float64[np.ndarray, " pairs"]:
    """The similarities of fewer than 2^20 pairs."""
    texts, place = np.unique(np.concatenate(pairs), return_inverse=True)
    # Each set, ascending: the number of the text in the upper bits, a shingle in the lower ones.
    low = np.uint64(2**BITS - 1)
    shingles = np.zeros(0, np.uint64)
    most = low
    for piece in shingles_of(letters.take(pa.array(texts))):
        numbers = np.arange(piece.first, piece.first + len(piece.counts), dtype=np.uint64)
        owners = np.repeat(numbers, piece.counts) << np.uint64(BITS)
        shingles = _different(shingles, owners | (piece.hashes >> np.uint64(64 - BITS)))
        while True:
            shingles = shingles[(shingles & low) <= most]
            if len(shingles) <= SHINGLES:
                break
            most >>= np.uint64(1)
    sizes = np.bincount((shingles >> np.uint64(BITS)).astype(np.int64), minlength=len(texts))
    starts = np.cumsum(sizes) - sizes
    of_pair = []
    for side in place.reshape(2, -1):
        own = sizes[side]
        numbers = np.repeat(np.arange(len(side), dtype=np.uint64), own)
        offsets = np.repeat(starts[side] - (np.cumsum(own) - own), own)
        members = shingles[offsets + np.arange(len(numbers))] & low
        of_pair.append((numbers << np.uint64(BITS)) | members)
    both = np.sort(np.concatenate(of_pair))
    shared = (both[1:][both[1:] == both[:-1]] >> np.uint64(BITS)).astype(np.int64)
    n_shared = np.bincount(shared, minlength=len(pairs.first))
    in_either = sizes[place].reshape(2, -1).sum(0) - n_shared
    found: np.ndarray = n_shared / in_either
    return found


def _different(
    known: UInt64[np.ndarray, " known"], more: UInt64[np.ndarray, " more"]
) -> UInt64[np.ndarray, " different"]:
    """The different numbers of two arrays, ascending."""
    # numpy's own `unique` hashes integers, which takes ten times as long for these.
    both = np.sort(np.concatenate([known, more]))
    different: np.ndarray = both[np.diff(both, prepend=~both[:1]) != 0]
    return different


def components(n: int, pairs: Pairs) -> Int64[np.ndarray, " texts"]:
    """For each of `n` texts the smallest number among those that pairs connect it with."""
    root = np.arange(n)
    while True:
        one, other = root[pairs.first], root[pairs.second]
        if (one == other).all():
            return root
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        while (root != root[root]).any():
            root = root[root]
