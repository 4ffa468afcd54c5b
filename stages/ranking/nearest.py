"""Nearest neighbours: distances of all examples to queries, in tiles, and the examples' order.

Distances are rounded to float32, and examples at one distance stand in the order of their ids.

A whole order is one sort of plain integers, a distance in the upper half of each and the place of
an example in the lower: numpy does that in less than half the time of an argsort, and ties are in
order by themselves.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int32, Int64

from stages.stage import DataError

QUERIES, EXAMPLES = 128, 1024
"""Rows of a tile of products. Every tile has this shape, padded where rows are wanting: in another
shape a product may be added up in another order, and then equal vectors would not tie."""
NUMBERS = 2**28
"""Most distances that are held at a time: beyond 2^21 examples a tile has fewer queries."""
LONGEST, SHORTEST = 1e18, 1e-35
"""The longest vectors that can be multiplied in float32, and the shortest that do not count as 0.
"""


class Points(NamedTuple):
    """Examples as points, whose vectors x stay in a memory map.

    For a query the number offset - scale (query - origin)'x grows with the distance: it is half the
    square of it, or minus the cosine, up to what is the same for all examples.
    """

    matrix: Float[np.ndarray, "rows dim"]
    rows: Int64[np.ndarray, " examples"]
    """The row of `matrix` that each example is."""
    normalize: bool
    """Whether nearest is the largest cosine, and not the least Euclidean distance."""
    origin: Float32[np.ndarray, " dim"]
    """0 for cosines; otherwise the first example, lest far from 0 distances be lost in rounding."""
    scale: Float32[np.ndarray, " examples"]
    offset: Float32[np.ndarray, " examples"]


def place_points(
    matrix: Float[np.ndarray, "rows dim"], rows: Int64[np.ndarray, " examples"], normalize: bool
) -> Points:
    """The examples in the given `rows` of `matrix`, at least one, as points.

    `normalize` makes nearest the largest cosine; a zero vector has cosine 0 with all. Otherwise
    nearest is the least Euclidean distance. Cost: a pass over the vectors, tile by tile.

    Raises:
        DataError: a vector is too long to be multiplied in float32.
    """
    origin = matrix[rows[0]] * np.float32(not normalize)
    lengths = np.empty(len(rows))
    for start in range(0, len(rows), EXAMPLES):
        tile = slice(start, start + EXAMPLES)
        lengths[tile] = lengths_of(matrix[rows[tile]] - origin)
    lengths_of(origin[None])
    if normalize:
        scale, offset = 1 / np.where(lengths > SHORTEST, lengths, np.inf), np.zeros(len(rows))
    else:
        scale, offset = np.ones(len(rows)), lengths**2 / 2
    return Points(
        matrix, rows, normalize, origin, scale.astype(np.float32), offset.astype(np.float32)
    )


def lengths_of(vectors: Float[np.ndarray, "rows dim"]) -> Float64[np.ndarray, " rows"]:
    """The length of each vector.

    Raises:
        DataError: a vector is too long to be multiplied in float32.
    """
    exact = vectors.astype(np.float64)
    lengths: np.ndarray = np.sqrt(np.einsum("ij,ij->i", exact, exact))
    if lengths.max(initial=0) > LONGEST:
        raise DataError(
            f"features: found a vector of length {lengths.max():.3g}, expected at most {LONGEST:g}."
            " Scale the features down."
        )
    return lengths


def queries_at_once(n_examples: int) -> int:
    """Queries of a tile: `QUERIES`, or the power of two below whose distances can be held."""
    return min(QUERIES, 1 << max(0, (NUMBERS // max(1, n_examples)).bit_length() - 1))


def blocks_of_distances(
    points: Points, queries: Float[np.ndarray, "queries dim"]
) -> Iterator[Float32[np.ndarray, "_ examples"]]:
    """For some queries at a time, numbers that grow with the distance of each example.

    A row per query. A pair's number depends on the pair alone and not on its place in a block.
    Memory: 512 bytes per example, at most 1 GB, used again for the next block, and a tile of
    vectors. Cost 2 queries examples dim.

    Raises:
        DataError: a vector is too long to be multiplied in float32.
    """
    n, dim = len(points.rows), points.matrix.shape[1]
    directions = queries - points.origin
    lengths = lengths_of(directions)
    if points.normalize:
        directions /= np.where(lengths > SHORTEST, lengths, 1).astype(np.float32)[:, None]
    at_once = queries_at_once(n)
    room, products = torch.empty(at_once, n), torch.empty(at_once, EXAMPLES)
    query_tile, tile = torch.zeros(at_once, dim), torch.zeros(EXAMPLES, dim)
    scale, offset = torch.from_numpy(points.scale), torch.from_numpy(points.offset)
    for first in range(0, len(queries), at_once):
        count = min(at_once, len(queries) - first)
        query_tile.numpy()[:count] = directions[first : first + count]
        for start in range(0, n, EXAMPLES):
            own = slice(start, min(start + EXAMPLES, n))
            width = own.stop - start
            tile.numpy()[:width] = points.matrix[points.rows[own]]
            torch.mm(query_tile, tile.T, out=products)
            used = products[:, :width]
            torch.addcmul(offset[own], used, scale[own], value=-1, out=room[:, own])
        yield room[:count].numpy()


def orders(
    block: Float32[np.ndarray, "queries examples"],
) -> Iterator[Int64[np.ndarray, " examples"]]:
    """For each query the positions of the examples, nearest first; at equal distances ascending.

    The array is overwritten for the next query. Cost n log n for n < 2^32 examples.
    """
    places = np.arange(block.shape[1])
    keys, bits = np.empty(len(places), np.int64), np.empty(len(places), np.int32)
    for distances in block.view(np.int32):
        _write_keys(distances, places, bits, keys)
        keys.sort()
        keys &= 0xFFFFFFFF
        yield keys


def nearest(distances: Float32[np.ndarray, " examples"], count: int) -> Int64[np.ndarray, " count"]:
    """Positions of the `count` nearest of more examples, in the order of `orders`. Cost n."""
    places = np.arange(len(distances))
    keys, bits = np.empty(len(places), np.int64), np.empty(len(places), np.int32)
    _write_keys(distances.view(np.int32), places, bits, keys)
    keys.partition(count - 1)
    found: np.ndarray = np.sort(keys[:count]) & 0xFFFFFFFF
    return found


def _write_keys(
    distances: Int32[np.ndarray, " examples"],
    places: Int64[np.ndarray, " examples"],
    bits: Int32[np.ndarray, " examples"],
    keys: Int64[np.ndarray, " examples"],
) -> None:
    """Integers in the order of distances, given by their bits, then of places, into `keys`."""
    # Read as integers, negative floats stand the wrong way round.
    np.right_shift(distances, 31, out=bits)
    bits &= 0x7FFFFFFF
    bits ^= distances
    keys[:] = bits
    keys <<= 32
    keys |= places
