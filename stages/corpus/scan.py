"""What a part of a source says of its rows: their ids, why some are refused, and their labels.

The driver puts together what all parts say (`stages.corpus.ingest`), and then knows what becomes of
every row; `stages.corpus.rows` reads the parts again to make the rows that are kept.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import SourceRows, decoded
from stages.corpus.columns import used_columns
from stages.corpus.labels import distinct_cells
from stages.corpus.pieces import Part, read_part
from stages.corpus.reasons import REASONS, REFUSED, mark
from stages.corpus.row_ids import are_numbers, read_ids
from stages.corpus.source import Source
from stages.corpus.targets import read_targets
from stages.corpus.texts import Texts, read_texts
from stages.corpus.vectors import read_features
from stages.stage import Role

Refusals = Callable[[Sequence[str], Sequence[str | None], str], Sequence[str | None]]
"""Gives the reason why each of some rows cannot be read by a model, None where it can: of their
columns text and text_b, and the `Format` of these."""
BLOCK = 1000
"""Rows that are asked about at a time."""


@dataclass(frozen=True)
class Columns:
    """How the rows of a source are read; the same for all of its parts."""

    source: Source
    """With its columns resolved, as `stages.corpus.columns.with_columns` returns it."""
    role: Role
    empty: SourceRows
    """The columns of the source, without a row; those that it uses not decoded."""
    refusals: Refusals | None = None
    vector_length: int | None = None
    """Length of the vectors, where it is known."""

    @property
    def has_text(self) -> bool:
        """Whether rows have a text, or are vectors alone."""
        source = self.source
        return bool(source.text or source.messages or source.prompt)

    def read(self, part: Part) -> SourceRows:
        """The rows of a part, with the columns that the source uses as text."""
        rows = read_part((self.source.path, self.empty), part)
        return decoded(rows, used_columns(self.source))


class Scanned(NamedTuple):
    """What a part says of its rows, in their order."""

    ids: np.ndarray
    reasons: np.ndarray
    """Of each row an index into `REASONS`, by all but its label and other rows of its id."""
    distinct: pa.Array | None
    """The different cells of the label column; None without one."""
    entries: np.ndarray | None
    """Of each row the place of its label in `distinct`; -1 of null."""
    lengths: Counter[int]
    """How many vectors are of which length."""
    refused: Counter[str]
    """How many rows are refused by a model for which reason."""
    ids_are_numbers: bool
    text_bytes: int
    """Of the texts of rows that are usable."""


def scan(columns: Columns, part: Part) -> Scanned:
    """What a part says of its rows.

    Raises:
        DataError: the part cannot be read, or a column is of a type that cannot be used.
    """
    source = columns.source
    loaded = columns.read(part)
    reasons = np.zeros(part.n_rows, dtype=np.int8)
    for row, (reason, _) in loaded.faults.items():
        reasons[row] = REASONS.index(reason)
    ids, source_ids = read_ids(source, loaded, part.first)
    mark(reasons, source_ids.is_null(), "null id")
    texts = read_texts(source, loaded, reasons)
    lengths: Counter[int] = Counter()
    if source.features:
        _, lengths = read_features(source, loaded, reasons, columns.vector_length, part.first)
    refused: dict[int, str] = {}
    if columns.refusals is not None and columns.has_text:
        refused = refusals_of(columns.refusals, texts, np.flatnonzero(reasons == 0))
        mark(reasons, np.isin(np.arange(len(reasons)), list(refused)), REFUSED)
    distinct = entries = None
    if source.task == "regression":
        read_targets(source, loaded, reasons, columns.role)
    elif source.label is not None:
        distinct, entries = distinct_cells(source, loaded, reasons == 0)
        entries = entries.astype(np.min_scalar_type(-max(len(distinct), 1)))
    usable = pa.array(reasons == 0)
    text_bytes = sum(
        pc.sum(pc.binary_length(column.filter(usable))).as_py() or 0 for column in texts[:2]
    )
    return Scanned(
        ids,
        reasons,
        distinct,
        entries,
        lengths,
        Counter(refused.values()),
        loaded.is_typed or are_numbers(source_ids),
        text_bytes,
    )


def refusals_of(refusals: Refusals, texts: Texts, rows: np.ndarray) -> dict[int, str]:
    """Row numbers and reasons of the rows, some of `rows`, that a model refuses."""
    refused: dict[int, str] = {}
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        first, second = (column.take(pa.array(block)).to_pylist() for column in texts[:2])
        found = zip(block.tolist(), refusals(first, second, texts.format), strict=True)
        refused |= {row: reason for row, reason in found if reason is not None}
    return refused
