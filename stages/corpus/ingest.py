"""The rows of a source as a corpus that every stage can rely on: stable ids, texts, labels.

A row that cannot be used is rejected with a reason and never stops the others. An id is a property
of the row alone, an integer from the id column or a hash of any other id, so it survives appended
rows and corrected labels; rows without an id column have their row number as id, which survives
appending only. Shards are cut once: a row stays in the shard it was first put into.

Labels of the corpus are taken from the source, then flipped on purpose (`flip_labels`), and then
corrected by a person's review (`corrections`), in this order.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import SourceRows, compact, decoded, row_of
from stages.corpus.columns import (
    JSON,
    OWN,
    VECTOR,
    check_columns,
    stored_columns,
    used_columns,
    with_columns,
)
from stages.corpus.labels import flip, read_labels
from stages.corpus.load import load
from stages.corpus.reasons import REASONS, REFUSED, mark, mark_repeated
from stages.corpus.review import correct, new_labels
from stages.corpus.row_ids import read_ids
from stages.corpus.source import LABELLED, Source
from stages.corpus.targets import read_targets
from stages.corpus.texts import Format, Texts, read_texts
from stages.corpus.vectors import FEATURES, as_lists, read_features
from stages.stage import ConfigError, CorpusTask, DataError, Role
from storage.schema import TableSpec

__all__ = ["EXTRA", "FEATURES", "LABEL", "REASONS", "REJECTED", "TEXT", "Corpus", "read", "tables"]

Refusals = Callable[[Sequence[str], Sequence[str | None], str], Sequence[str | None]]
"""Gives the reason why each of some rows cannot be read by a model, None where it can: of their
columns text and text_b, and the `Format` of these."""
BLOCK = 1000
"""Rows that are asked about at a time."""
_ID_ROLE = [("id", pa.int64()), ("role", pa.string())]
TEXT = TableSpec(
    "text", pa.schema([*_ID_ROLE, ("text", pa.string()), ("text_b", pa.string())]), ("id",)
)
LABEL = TableSpec(
    "label",
    pa.schema(
        [
            *_ID_ROLE,
            ("label", pa.int64()),
            ("true_label", pa.int64()),
            ("target", pa.float64()),
        ]
    ),
    ("id",),
)
"""The class index of a row, or its target number in a regression; null in other tasks."""
EXTRA = TableSpec(
    "extra",
    pa.schema([*_ID_ROLE, ("source_id", pa.string()), ("row_number", pa.int64())]),
    ("id",),
    carries_columns=True,
)
REJECTED = TableSpec(
    "rejected",
    pa.schema(
        [
            ("role", pa.string()),
            ("source", pa.string()),
            ("row_number", pa.int64()),
            ("source_id", pa.string()),
            ("reason", pa.string()),
            ("raw", pa.string()),
        ]
    ),
    ("role", "row_number"),
)


class Corpus(NamedTuple):
    """The usable rows of one source, its rejected rows, and the classes of its labels."""

    rows: pa.Table
    """Columns id, role, text, text_b, label, true_label, target, is_dropped, source_id, row_number,
    features_vector where the source has features, then its other columns; in source order."""
    rejected: pa.Table
    """The rejected rows with their reasons, in the columns of `REJECTED`."""
    classes: tuple[str, ...]
    """Names of the classes by index; empty for a source without labels and for other tasks."""
    label_kind: Literal["int", "str", "classlabel", "float", "none"]
    """Type of the label column: of a regression "float", of a task without labels "none"."""
    columns: list[dict[str, Any]]
    """The source's columns in order: `name` there, `stored` name in `rows`, and the Arrow `type` of
    its cells there, "json" where they are of several. Of the label also `cells`, one per class."""
    task: CorpusTask
    format: Format
    """Content of the columns text and text_b: texts, prompts with completions, or conversations."""
    has_text: bool
    """Whether rows have a text; a source may have vectors alone."""
    notices: tuple[str, ...] = ()
    """What a person should know of how the source was read, and of its labels."""

    @property
    def vector_length(self) -> int | None:
        """Length of the vectors in `rows`; None without features."""
        if VECTOR not in self.rows.column_names:
            return None
        return int(self.rows.schema.field(VECTOR).type.list_size)

    @property
    def n_unlabelled(self) -> int:
        """Number of rows without label or target; 0 in tasks that have neither."""
        if self.task not in LABELLED:
            return 0
        return int(self.rows["target" if self.task == "regression" else "label"].null_count)


def read(
    source: Source,
    role: Role,
    classes: tuple[str, ...] | None = None,
    vector_length: int | None = None,
    refusals: Refusals | None = None,
    keeps_absent: bool = False,
) -> Corpus:
    """All rows of a source, each either usable or rejected with a reason.

    `classes` fixes the classes: for queries they are those of the corpus. Without it they are
    those of `source.classes`, of the names of a `ClassLabel`, or of the distinct labels that rows
    have, or with `keeps_absent` all of them. `vector_length` is that of the corpus, for queries
    with features. `refusals` says which rows no model could read.

    Raises:
        ConfigError: `flip_labels` on queries, or no label column for examples.
        DataError: the source cannot be read, lacks a column, or has no usable row; its labels are
            no classes; its vectors do not fit; a correction fits no row.
    """
    _check_role(source, role)
    loaded = load(source)
    source = with_columns(source, loaded.table.column_names)
    check_columns(source, role, loaded.table.column_names)
    loaded = decoded(loaded, used_columns(source))
    table = loaded.table

    reasons = np.zeros(table.num_rows, dtype=np.int8)
    for row, (reason, _) in loaded.faults.items():
        reasons[row] = REASONS.index(reason)
    ids, source_ids = read_ids(source, loaded)
    mark(reasons, source_ids.is_null(), "null id")
    texts = read_texts(source, loaded, reasons)
    vectors = read_features(source, loaded, reasons, vector_length) if source.features else None
    has_text = texts.format != "text" or source.text is not None
    refused = _refused(texts, reasons, refusals) if refusals is not None and has_text else {}
    mark(reasons, np.isin(np.arange(len(reasons)), list(refused)), REFUSED)
    _check_usable(source, reasons, refused)
    supervision = _read_supervision(source, loaded, reasons, classes, role, keeps_absent)
    mark_repeated(reasons, ids)

    keep = reasons == 0
    _check_usable(source, reasons, refused)
    columns = stored_columns(source, loaded, source_ids)
    for column in columns:
        if column["stored"] == "label":
            column["cells"] = list(supervision.cells)
            # Of rejected rows the labels may be of other types, and those of CSV may be numbers.
            if column["type"] == JSON or not loaded.is_typed:
                kinds = {type(cell) for cell in supervision.cells}
                column["type"] = str(pa.infer_type(supervision.cells)) if len(kinds) == 1 else JSON
    chosen = pa.array(keep)
    codes, true_codes = supervision.codes[keep], None
    if source.flip_labels:
        true_codes = codes
        codes = flip(codes, ids[keep], len(supervision.classes), source.flip_labels)
    targets = supervision.targets[keep]
    cells = {
        "id": pa.array(ids[keep]),
        "role": pa.repeat(pa.scalar(role), int(keep.sum())),
        "text": texts.text.filter(chosen),
        "text_b": texts.text_b.filter(chosen),
        "label": _nullable(codes),
        "true_label": _nullable(np.full(len(codes), -1) if true_codes is None else true_codes),
        "target": pa.array(targets, pa.float64(), mask=np.isnan(targets)),
        "is_dropped": pa.repeat(pa.scalar(False), len(codes)),
        "source_id": source_ids.filter(chosen),
        "row_number": pa.array(np.flatnonzero(keep)),
    }
    if vectors is not None:
        cells[VECTOR] = as_lists(vectors[keep])
    for column in columns:
        if column["stored"] not in (*OWN, VECTOR):
            cells[column["stored"]] = table[column["name"]].filter(chosen)
    rows = pa.table(cells)
    rejected = _rejected(source, role, loaded, reasons, source_ids, refused)
    for path in source.corrections:
        rows = correct(rows, rejected, path, source.task, supervision.classes)
    return Corpus(
        rows,
        rejected,
        supervision.classes,
        supervision.kind,
        columns,
        source.task,
        texts.format,
        has_text,
        (*loaded.notices, *supervision.notices),
    )


def tables(rows: pa.Table) -> dict[str, pa.Table]:
    """Rows of a `Corpus`, or some of them, as the tables `text`, `label`, `extra` and `features`.

    Dropped rows have no label; their text stays, so that features computed from it are reused. Of a
    source without features there is no table of them.
    """
    carried = [name for name in rows.column_names if name not in OWN]
    kept = rows.filter(pc.invert(rows["is_dropped"]))
    cut = {
        TEXT.name: rows.select(TEXT.schema.names),
        LABEL.name: kept.select(LABEL.schema.names),
        EXTRA.name: rows.select([*EXTRA.schema.names, *carried]),
    }
    if VECTOR in rows.column_names:
        vectors = rows.select(["id", "role", VECTOR])
        cut[FEATURES.name] = vectors.rename_columns(FEATURES.schema.names)
    return cut


class _Supervision(NamedTuple):
    """Labels or regression targets of the rows of a source, as arrays."""

    codes: np.ndarray
    """Class index of each row, -1 where it has no label."""
    targets: np.ndarray
    """Target number of each row, NaN where it has none."""
    classes: tuple[str, ...]
    kind: Literal["int", "str", "classlabel", "float", "none"]
    cells: tuple[Any, ...] = ()
    """For each class, the cell that the source has for it."""
    notices: tuple[str, ...] = ()


def _read_supervision(
    source: Source,
    loaded: SourceRows,
    reasons: np.ndarray,
    classes: tuple[str, ...] | None,
    role: Role,
    keeps_absent: bool,
) -> _Supervision:
    no_code, no_target = np.full(len(reasons), -1), np.full(len(reasons), np.nan)
    if source.task not in LABELLED:
        return _Supervision(no_code, no_target, (), "none")
    if source.task == "regression":
        targets = read_targets(source, loaded, reasons, role)
        return _Supervision(no_code, targets, (), "float")
    reviewed = frozenset[str]().union(*map(new_labels, source.corrections))
    labels = read_labels(source, loaded, reasons == 0, classes, role, keeps_absent, reviewed)
    if role == "example":
        mark(reasons, labels.is_missing, "missing label")
    mark(reasons, (labels.codes < 0) & ~labels.is_missing, "unknown label")
    return _Supervision(
        labels.codes, no_target, labels.classes, labels.kind, labels.cells, labels.notices
    )


def _check_role(source: Source, role: Role) -> None:
    if role == "query" and source.flip_labels:
        raise ConfigError(
            "flip_labels: found on queries, expected on the corpus only. Remove it there."
        )
    if role == "example" and source.label is None and source.task in LABELLED:
        raise ConfigError(
            f"{source.path}: found label: null for examples, expected the name of a column. "
            "Set label; only queries may lack one."
        )


def _refused(texts: Texts, reasons: np.ndarray, refusals: Refusals) -> dict[int, str]:
    """Row numbers and reasons of the rows, usable so far, that a model refuses."""
    refused: dict[int, str] = {}
    usable = np.flatnonzero(reasons == 0)
    for start in range(0, len(usable), BLOCK):
        rows = usable[start : start + BLOCK]
        first, second = (column.take(pa.array(rows)).to_pylist() for column in texts[:2])
        found = zip(rows.tolist(), refusals(first, second, texts.format), strict=True)
        refused |= {row: reason for row, reason in found if reason is not None}
    return refused


def _told(row: int, reason: int, refused: Mapping[int, str]) -> str:
    """The reason of a row as a person reads it."""
    return refused[row] if REASONS[reason] == REFUSED else REASONS[reason]


def _check_usable(source: Source, reasons: np.ndarray, refused: Mapping[int, str]) -> None:
    if not (reasons == 0).any():
        told = [_told(row, reason, refused) for row, reason in enumerate(reasons.tolist())]
        counted = Counter(told).most_common(5)
        counts = ", ".join(f"{n} {reason}" for reason, n in counted) or "no rows at all"
        raise DataError(
            f"{source.path}: found no usable row among {len(reasons)} ({counts}), expected at "
            "least one. Check which columns text, label, id and the like name, and the reasons."
        )


def _nullable(codes: np.ndarray) -> pa.Array:
    return pa.array(codes, pa.int64(), mask=codes < 0)


def _rejected(
    source: Source,
    role: Role,
    loaded: SourceRows,
    reasons: np.ndarray,
    source_ids: pa.Array,
    refused: Mapping[int, str],
) -> pa.Table:
    """The rejected rows as the table `rejected`; an unreadable row has no source id."""
    numbers = np.flatnonzero(reasons != 0)
    cells = loaded.table.take(pa.array(numbers))
    raws = [
        loaded.faults[row][1] if row in loaded.faults else compact(row_of(cells, at))
        for at, row in enumerate(numbers.tolist())
    ]
    is_known = pa.array([row not in loaded.faults for row in numbers.tolist()], pa.bool_())
    known_ids = pc.if_else(
        is_known, source_ids.take(pa.array(numbers)), pa.scalar(None, pa.string())
    )
    return pa.table(
        {
            "role": [role] * len(numbers),
            "source": [source.path] * len(numbers),
            "row_number": pa.array(numbers),
            "source_id": known_ids,
            "reason": [_told(row, int(reasons[row]), refused) for row in numbers.tolist()],
            "raw": raws,
        },
        schema=REJECTED.schema,
    )
