"""Rows that are drawn by a hash of their ids: the same ones for any number of workers and shards.

Source: the generator SplitMix64, Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195.
"""

import numpy as np
from jaxtyping import Bool, Int64, UInt64

STEP = np.uint64(0x9E3779B97F4A7C15)
"""SplitMix64's step from one number of a stream to the next."""


def mixed(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """SplitMix64's hash of 64-bit integers, each to another one."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: np.ndarray = x ^ (x >> np.uint64(31))
    return hashed


def is_drawn(ids: Int64[np.ndarray, " rows"], n: int) -> Bool[np.ndarray, " rows"]:
    """Which of these different ids are the `n` of the smallest hashes, a random sample.

    Whatever the order of the ids; where more come to them, the sample changes by these alone.
    """
    if n >= len(ids):
        return np.ones(len(ids), dtype=bool)
    hashes = mixed(ids.astype(np.uint64) + STEP)
    drawn: np.ndarray = hashes <= np.partition(hashes, n - 1)[n - 1]
    return drawn
