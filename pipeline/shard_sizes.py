"""How many rows a shard has where `shard_size` is `auto`: chosen once, by the rows of the corpus.

A shard is a task, a file of every table and an entry of every plan: many small ones cost the driver
time, few large ones cost a kill more and leave workers without work.

    up to 2 million rows       1,000 rows
    up to 10 million           a 2,000th of the rows
    beyond                     a 2,000th, in files of 16 to 128 MB

A row takes the bytes of its text and of a vector of 256 numbers, which stages will write for it.
"""

import math
from typing import Any, Literal

from storage.manifest import Manifest

AUTO = "auto"
SMALL_ROWS, SMALL_SIZE = 2_000_000, 1000
MEDIUM_ROWS = 10_000_000
MOST_SHARDS = 2000
STEP = 500
"""Sizes are multiples of it."""
FILE_BYTES = (16_000_000, 128_000_000)
VECTOR_BYTES = 4 * 256


def chosen_size(n_rows: int, text_bytes: int) -> int:
    """Rows per shard of a corpus of `n_rows` rows, whose texts have `text_bytes` together."""
    if n_rows <= SMALL_ROWS:
        return SMALL_SIZE
    size = _up(-(-n_rows // MOST_SHARDS))
    if n_rows <= MEDIUM_ROWS:
        return size
    row_bytes = text_bytes / n_rows + VECTOR_BYTES
    least, most = (_up(n_bytes / row_bytes) for n_bytes in FILE_BYTES)
    return min(max(size, least), most)


class ShardSize:
    """How many rows a shard has: as it is set, or chosen, or chosen by an earlier reading."""

    def __init__(self, wanted: int | Literal["auto"], n_rows: int, text_bytes: int):
        """Chooses it where it is not set, by the corpus's examples and the bytes of their texts."""
        self._n_rows, self._best = n_rows, chosen_size(n_rows, text_bytes)
        self._is_auto, self._is_kept = not isinstance(wanted, int), False
        self.rows = wanted if isinstance(wanted, int) else self._best

    def fits(self, manifest: Manifest) -> bool:
        """Whether the cut of an earlier reading may be kept."""
        if self._is_auto and not self._is_kept:
            return was_chosen(manifest)
        return bool(manifest.fields.get("shard_size") == self.rows)

    def keep(self, manifest: Manifest) -> None:
        """Keeps the size of an earlier reading, also for the sources that follow."""
        self.rows = int(manifest.fields.get("shard_size", self.rows))
        self._is_kept = True

    @property
    def fields(self) -> dict[str, Any]:
        """What manifests say of it."""
        return {"shard_size": self.rows} | ({"is_auto": True} if self._is_auto else {})

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of it."""
        return size_notes(self.rows, self._best, self._n_rows) if self._is_auto else ()


def was_chosen(manifest: Manifest) -> bool:
    """Whether the size of a reading's shards was chosen here, as its only size once was."""
    fields = manifest.fields
    return bool(fields.get("is_auto", fields.get("shard_size") == SMALL_SIZE))


def size_notes(size: int, best: int, n_rows: int) -> tuple[str, ...]:
    """What a person should know of the size of shards, where it is not the usual one.

    `best` is what would be chosen for the `n_rows` examples now.
    """
    if size == best:
        if size == SMALL_SIZE:
            return ()
        return (f"shards of {size:,} rows, for {n_rows:,} examples; shard_size sets another",)
    return (
        f"shards of {size:,} rows, as chosen when the corpus had another size; for {n_rows:,} "
        f"examples {best:,} would be better now: shard_size: {best} cuts them anew, and all is "
        "computed again",
    )


def _up(rows: float) -> int:
    return max(1, math.ceil(rows / STEP)) * STEP
