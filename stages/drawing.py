"""Random numbers that depend on a name alone: no order of layers, no device changes them."""

import hashlib

import torch
from jaxtyping import Float
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
