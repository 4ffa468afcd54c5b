"""What a part of a source says of its rows: their ids, why some are refused, and their labels.

The driver puts together what all parts say (`stages.corpus.ingest`), and then knows what becomes of
every row; `stages.corpus.rows` reads the parts again to make the rows that are kept.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import SourceRows, decoded
from stages.corpus.columns import used_columns
from stages.corpus.forms import Form
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
Measures = Callable[[Sequence[str], Sequence[str | None], str], Mapping[str, np.ndarray]]
"""Gives the lengths of some rows in the tokens of models, a line of numbers for each row, by a name
of how the model reads; the arguments are those of `Refusals`."""
BLOCK = 1000
"""Rows that are asked about at a time."""
MEASURED = 20_000
"""Rows of a source that are measured at most, evenly spread over it."""


@dataclass(frozen=True)
class Columns:
    """How the rows of a source are read; the same for all of its parts."""

    source: Source
    """With its columns resolved, as `stages.corpus.columns.with_columns` returns it."""
    role: Role
    empty: SourceRows
    """The columns of the source, without a row; those that it uses not decoded."""
    form: Form = "text"
    """What the columns of the text hold."""
    refusals: Refusals | None = None
    vector_length: int | None = None
    """Length of the vectors, where it is known."""
    measures: Measures | None = None
    """Measures completions; None where no model learns any."""
    n_rows: int = 0
    """Of the source, those that cannot be read included."""

    @property
    def has_text(self) -> bool:
        """Whether rows have a text, or are vectors alone."""
        source = self.source
        return bool(source.text or source.messages or source.prompt or source.chosen)

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
    measured: np.ndarray
    """Numbers in the source of the rows that were measured, ascending."""
    measures: Mapping[str, np.ndarray]
    """What was measured of them, as `Measures` gives it."""


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
    texts = read_texts(source, columns.form, loaded, reasons)
    lengths: Counter[int] = Counter()
    if source.features:
        _, lengths = read_features(source, loaded, reasons, columns.vector_length, part.first)
    refused: dict[int, str] = {}
    if columns.refusals is not None and columns.has_text:
        refused = refusals_of(columns.refusals, texts, np.flatnonzero(reasons == 0))
        mark(reasons, np.isin(np.arange(len(reasons)), list(refused)), REFUSED)
    measured, measures = _measured(columns, part, texts, reasons)
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
        measured,
        measures,
    )


def _measured(
    columns: Columns, part: Part, texts: Texts, reasons: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The rows of a part that are measured, by their numbers in the source, and their measures."""
    if columns.measures is None:
        return np.zeros(0, dtype=np.int64), {}
    numbers = part.first + np.arange(part.n_rows, dtype=np.int64)
    is_chosen = reasons == 0
    if columns.n_rows > MEASURED:
        steps = numbers * MEASURED // columns.n_rows
        is_chosen &= steps < (numbers + 1) * MEASURED // columns.n_rows
    rows = np.flatnonzero(is_chosen)
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(rows), BLOCK):
        block = pa.array(rows[start : start + BLOCK])
        first, second = (column.take(block).to_pylist() for column in texts[:2])
        for name, lengths in columns.measures(first, second, texts.format).items():
            found.setdefault(name, []).append(lengths)
    return numbers[rows], {name: np.concatenate(parts) for name, parts in found.items()}


def refusals_of(refusals: Refusals, texts: Texts, rows: np.ndarray) -> dict[int, str]:
    """Row numbers and reasons of the rows, some of `rows`, that a model refuses."""
    refused: dict[int, str] = {}
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        first, second = (column.take(pa.array(block)).to_pylist() for column in texts[:2])
        found = zip(block.tolist(), refusals(first, second, texts.format), strict=True)
        refused |= {row: reason for row, reason in found if reason is not None}
    return refused
