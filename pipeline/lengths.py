"""The lengths of completions of one role, and what a `max_length` leaves of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

SHARE = 0.99
"""Of the rows, that should be whole."""


class Left(NamedTuple):
    """How many measured rows are whole, or have an answer that is cut or lost wholly."""

    n_whole: int
    n_cut: int
    n_lost: int


@dataclass(frozen=True)
class Lengths:
    """Lengths of rows in the tokens of a model."""

    n_rows: int
    """Rows of the role; of more than `stages.corpus.scan.MEASURED` some are measured."""
    counts: tuple[tuple[int, ...], ...]
    """The numbers of `stages.model.lengths.row_lengths`, and how many rows have them."""

    @classmethod
    def of(cls, found: np.ndarray, n_rows: int) -> "Lengths":
        """The lengths of `n_rows` rows, of which `found` holds those that were measured."""
        rows, counts = np.unique(found, axis=0, return_counts=True)
        return cls(n_rows, tuple(map(tuple, np.column_stack([rows, counts]).tolist())))

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> "Lengths":
        """The lengths that `written` gave."""
        return cls(int(written["n_rows"]), tuple(map(tuple, written["counts"])))

    def written(self) -> dict[str, Any]:
        """The lengths as JSON."""
        return {"n_rows": self.n_rows, "counts": self.counts}

    @property
    def n_measured(self) -> int:
        """Number of rows that were measured."""
        return sum(row[-1] for row in self.counts)

    def n_without(self, what: int) -> int:
        """Rows of which the chat template leaves out `what`, as in `stages.model.chats`."""
        return sum(row[-1] for row in self.counts if row[3] & what)

    def left(self, max_length: int, keeps_end: bool) -> Left:
        """What is left of the measured rows by a `max_length` that keeps their start or end."""
        n_whole = n_cut = n_lost = 0
        for n_tokens, first, last, _, count in self.counts:
            if n_tokens <= max_length:
                n_whole += count
            elif first >= 0:
                # The first token of what is kept is predicted from nothing, hence not learned.
                lowest = n_tokens - max_length + 1 if keeps_end else 1
                highest = n_tokens - 1 if keeps_end else max_length - 1
                if last < lowest or first > highest:
                    n_lost += count
                elif first < lowest or last > highest:
                    n_cut += count
        return Left(n_whole, n_cut, n_lost)

    def long_enough(self) -> int:
        """The smallest `max_length` that keeps `SHARE` of the measured rows whole."""
        wanted, n_whole = SHARE * self.n_measured, 0
        for n_tokens, *_, count in sorted(self.counts):
            n_whole += count
            if n_whole >= wanted:
                return n_tokens
        return 0
