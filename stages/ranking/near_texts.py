"""Texts that are nearly the same: MinHash finds candidates, the sets of shingles decide.

The likeness of two texts is the Jaccard similarity J of their sets of shingles, those in both by
those in either. A random order of all shingles has the same first one in both sets with probability
J; four of such orders are a band, and two texts meet when one of 24 bands is the same: with
probability 1 - (1 - J^4)^24, which is 0.96 for J = 0.6, 0.999 for 0.7 and 0.0002 for 0.05. Long
texts have that much in common by chance, so that each of a million meets hundreds. Where more than
17 meet by one band, two bands must be the same: 0.988 for J = 0.7, 0.9987 for 0.75, and one chance
meeting in 10^8. Of each order eight bits of the first shingle are kept, and texts that meet are a
candidate where as many of the 96 are the same as J = the threshold has, less four standard errors.
For each candidate J is counted. It is exact but for shingles of one pair with the same 44 bits of
hash: one pair in 10^9, for texts of 100 characters. Of two texts that have more than 2^20 shingles
together those count whose hash is in the lower half of all, or in the lower half of these, and so
on, until there are no more than 2^20: a sample of shingles, with a standard error below 0.001.

Source: Broder 1997, doi:10.1109/SEQUEN.1997.666900 (shingles, MinHash); Indyk and Motwani 1998,
doi:10.1145/276698.276876 (bands); Li and Koenig 2010, doi:10.1145/1772690.1772759 (eight bits
instead of a hash). The roads not taken, as measured in
`scripts/benchmarks/duplicates.md`: datasketch and rensa take shingles as Python objects and hold
their tables of buckets in memory, and neither counts J.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64, Int64, Integer, UInt8, UInt64

from stages.reading.drawn import STEP, mixed
from stages.reading.shingles import shingles_of

BANDS, ROWS = 24, 4
"""Bands, and orders of shingles in each."""
WINDOW = 16
"""Others of a bucket that a text is compared with, before it and after it. In a larger bucket the
texts that have another band in common meet alone."""
KEPT = 64
"""Candidates of a text."""
MARKS = 2**17
"""Pairs whose marks are compared at a time."""
BITS = 44
"""Bits of a shingle's hash that are compared within a pair."""
SHINGLES = 2**20
"""Most shingles of the pairs that are compared at a time: of longer texts a sample."""


class Pairs(NamedTuple):
    """Pairs of different texts, the first with the smaller number."""

    first: Int64[np.ndarray, " pairs"]
    second: Int64[np.ndarray, " pairs"]


class Sketches(NamedTuple):
    """What is kept of each text: equal sets of shingles have equal bands and marks."""

    contents: UInt64[np.ndarray, " texts"]
    """A hash of all shingles, with how often each is there."""
    bands: UInt64[np.ndarray, "texts bands"]
    marks: UInt8[np.ndarray, "texts orders"]
    """Eight bits of the first shingle in each order."""


def sketches_of(letters: pa.Array) -> Sketches:
    """The sketches of texts with a letter each.

    Cost 96 a shingle. Memory: as `shingles_of`, and 600 bytes a text.
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
    marks = np.ascontiguousarray(lowest.reshape(BANDS * ROWS, -1).T.astype(np.uint8))
    return Sketches(contents, bands, marks)


def candidates(
    bands: UInt64[np.ndarray, "texts bands"],
    marks: UInt8[np.ndarray, "texts orders"],
    is_query: Bool[np.ndarray, " texts"],
    similarity: float,
) -> tuple[Pairs, int]:
    """Pairs that may reach a similarity, each once, none of two queries.

    Also how many texts have two bands in common with more than `WINDOW` others, and meet those
    alone that stand beside them in the order of the next band; or are a candidate with more than
    `KEPT` others, of which those count that have the most marks in common with either. Cost 24
    sorts, 12 more of the texts in large buckets for each, and 96 for two texts that meet. Memory:
    50 bytes a candidate, and 300 for each of `MARKS`.
    """
    found = _Candidates(marks, is_query, similarity)
    is_crowded = np.zeros(len(bands), dtype=bool)
    for band in range(BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        is_large = _is_large(bands[order, band])
        small, large = order[~is_large], order[is_large]
        found.meet(small, bands[small, band])
        for step in range(1, BANDS // 2 + 1) if len(large) else ():
            second, third = ((band + more) % BANDS for more in (step, step + 1))
            both = mixed(bands[large, band] + mixed(bands[large, second] + STEP))
            order = np.lexsort((bands[large, third], both))
            is_crowded[large[order[_is_large(both[order])]]] = True
            found.meet(large[order], both[order])
    pairs = found.pairs()
    return pairs, int((is_crowded | found.has_more).sum())


def _is_large(keys: UInt64[np.ndarray, " texts"]) -> Bool[np.ndarray, " texts"]:
    """Which of the keys, of which equal ones stand together, more than `WINDOW` others equal."""
    ends = np.flatnonzero(np.append(keys[1:] != keys[:-1], len(keys) > 0)) + 1
    sizes = np.diff(ends, prepend=0)
    return np.repeat(sizes > WINDOW + 1, sizes)


class _Candidates:
    """Pairs that have met and whose marks are enough alike; of each text the `KEPT` most alike."""

    def __init__(
        self,
        marks: UInt8[np.ndarray, "texts orders"],
        is_query: Bool[np.ndarray, " texts"],
        similarity: float,
    ) -> None:
        self._marks, self._is_query = marks, is_query
        expected = marks.shape[1] * similarity
        self._least = expected - 4 * (expected * (1 - similarity)) ** 0.5
        # A pair is one number, and how many of its marks are alike; new ones may be there twice.
        self._known, self._alike = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._new: list[tuple[np.ndarray, np.ndarray]] = []
        self.has_more = np.zeros(len(marks), dtype=bool)
        """Texts of which some pairs were left out."""

    def meet(self, texts: Int64[np.ndarray, " texts"], keys: UInt64[np.ndarray, " texts"]) -> None:
        """Compares texts with one key, which stand together, at most `WINDOW` places apart."""
        for step in range(1, WINDOW + 1):
            same = np.flatnonzero(keys[step:] == keys[:-step])
            if not len(same):
                return
            for start in range(0, len(same), MARKS):
                at = same[start : start + MARKS]
                self._compare(texts[at], texts[at + step])

    def pairs(self) -> Pairs:
        """Each pair once, in order."""
        self._merge()
        return self._sides()

    def _sides(self) -> Pairs:
        return Pairs(*np.divmod(self._known, max(1, len(self._marks))))

    def _compare(
        self, one: Int64[np.ndarray, " pairs"], other: Int64[np.ndarray, " pairs"]
    ) -> None:
        is_open = ~(self._is_query[one] & self._is_query[other])
        one, other = one[is_open], other[is_open]
        alike = (self._marks[one] == self._marks[other]).sum(1)
        one, other = one[alike >= self._least], other[alike >= self._least]
        pair = np.minimum(one, other) * len(self._marks) + np.maximum(one, other)
        self._new.append((pair, alike[alike >= self._least]))
        if sum(len(pair) for pair, _ in self._new) > max(MARKS, len(self._known)):
            self._merge()

    def _merge(self) -> None:
        both = zip((self._known, self._alike), *self._new, strict=True)
        known, alike = (np.concatenate(of) for of in both)
        order = np.argsort(known, kind="stable")
        order = order[np.diff(known[order], prepend=-1) != 0]
        self._known, self._alike, self._new = known[order], alike[order], []
        n, sides = len(self._marks), np.concatenate(self._sides())
        counts = np.bincount(sides, minlength=n)
        if not len(sides) or counts.max() <= KEPT:
            return
        order = np.lexsort((np.tile(-self._alike, 2), sides))
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        is_kept = rank.reshape(2, -1).min(0) < KEPT
        self.has_more |= counts > KEPT
        self._known, self._alike = self._known[is_kept], self._alike[is_kept]


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
        own = owners | (piece.hashes >> np.uint64(64 - BITS))
        shingles = _different(np.concatenate([shingles, own]))
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


def _different(numbers: Integer[np.ndarray, " numbers"]) -> Integer[np.ndarray, " different"]:
    """The different ones of some numbers, ascending."""
    # numpy's own `unique` hashes integers, which takes ten times as long for these.
    numbers = np.sort(numbers)
    different: np.ndarray = numbers[np.diff(numbers, prepend=~numbers[:1]) != 0]
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
