"""Random numbers that depend on a name, or a seed and a round, not on order or device."""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor


def generator_of(name: str) -> torch.Generator:
    """A generator on the CPU whose numbers depend on the name alone."""
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def gaussian(
    seed: int, name: str, n_rows: int, n_columns: int
) -> Float[Tensor, "n_rows n_columns"]:
    """Independent N(0, 1 / n_columns) entries that depend on the arguments alone."""
    entries: Tensor = torch.randn(n_rows, n_columns, generator=generator_of(f"{seed}/{name}"))
    return entries.div_(n_columns**0.5)


def permutations(n: int, count: int, seed: int, index: int) -> Iterator[Int64[Tensor, " n"]]:
    """The `count` permutations of 0 to n - 1 of round `index`, from seed and index alone."""
    generator = np.random.default_rng([seed, index])
    for _ in range(count):
        yield torch.from_numpy(generator.permutation(n).astype(np.int64))
