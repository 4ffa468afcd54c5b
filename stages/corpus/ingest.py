"""From a source to rows that every stage can rely on: stable ids, text, labels, shards.

A row that cannot be used is put aside with a reason and never stops the others. An id is a property
of the row alone, an integer from the id column or a hash of any other id, so it survives appended
rows and corrected labels; rows without an id column are known by their row number, which survives
appending only. Shards are cut once: a row stays in the shard it was first put into.

Labels of the corpus pass through three hands in this order: as found, flipped on purpose
(`flip_labels`), corrected by a person (`corrections`).
"""

from collections import Counter
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import Loaded, compact, is_text, typed
from stages.corpus.columns import (
    OWN,
    VECTOR,
    check_columns,
    stored_names,
    used_columns,
    with_columns,
)
from stages.corpus.labels import flip, read_labels
from stages.corpus.load import load
from stages.corpus.reasons import REASONS, mark, mark_repeated
from stages.corpus.review import correct
from stages.corpus.row_ids import read_ids
from stages.corpus.source import LABELLED, Source
from stages.corpus.targets import read_targets
from stages.corpus.texts import Format, read_texts
from stages.corpus.vectors import FEATURES, as_lists, read_features
from stages.stage import ConfigError, CorpusTask, DataError, Role
from storage.schema import TableSpec

__all__ = ["EXTRA", "FEATURES", "LABEL", "REASONS", "REJECTED", "TEXT", "Corpus", "read", "tables"]

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
"""The class of a row, or the number it should get in a regression; other tasks have neither."""
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
    """The usable rows of one source, the unusable ones, and what the labels mean."""

    rows: pa.Table
    """Columns id, role, text, text_b, label, true_label, target, is_dropped, source_id, row_number,
    features_vector where the source has features, then its other columns; in source order."""
    rejected: pa.Table
    """As `REJECTED` declares."""
    classes: tuple[str, ...]
    """Names of the classes by index; empty for a source without labels and for other tasks."""
    label_kind: Literal["int", "str", "classlabel", "float", "none"]
    """What the label column held: of a regression "float", of a task without labels "none"."""
    columns: list[dict[str, str]]
    """The source's columns in order: `name` there, `stored` name in `rows`."""
    has_number_ids: bool
    """Whether the id column held integers, as far as its format can tell."""
    task: CorpusTask
    format: Format
    """What the text columns hold."""
    has_text: bool
    """Whether there is any text; rows may be vectors alone."""

    @property
    def vector_length(self) -> int | None:
        """Length of the vectors in `rows`; None without features."""
        if VECTOR not in self.rows.column_names:
            return None
        return int(self.rows.schema.field(VECTOR).type.list_size)

    @property
    def n_unlabelled(self) -> int:
        """Rows without the label or target that their task has."""
        if self.task not in LABELLED:
            return 0
        return int(self.rows["target" if self.task == "regression" else "label"].null_count)


def read(
    source: Source,
    role: Role,
    classes: tuple[str, ...] | None = None,
    vector_length: int | None = None,
) -> Corpus:
    """The rows of a source, each either usable or rejected with a reason.

    `classes` are the classes to use whatever the labels say: those of the corpus, for queries.
    Otherwise they are `source.classes`, the names of a `ClassLabel`, or the distinct labels.
    `vector_length` is that of the corpus, for queries with features.

    Raises:
        ConfigError: `flip_labels` on queries, or no label column for examples.
        DataError: the source cannot be read, lacks a column, or has no usable row; its labels are
            no classes; its vectors do not fit; a correction fits no row.
    """
    _check_role(source, role)
    loaded = load(source)
    table = loaded.table
    source = with_columns(source, table.column_names)
    check_columns(source, role, table.column_names)

    reasons = np.zeros(table.num_rows, dtype=np.int8)
    for row, (reason, _) in loaded.faults.items():
        reasons[row] = REASONS.index(reason)
    ids, source_ids = read_ids(source, loaded)
    mark(reasons, source_ids.is_null(), "null id")
    texts = read_texts(source, loaded, reasons)
    vectors = read_features(source, loaded, reasons, vector_length) if source.features else None
    _check_usable(source, reasons)
    answers = _read_answers(source, loaded, reasons, classes, role)
    mark_repeated(reasons, ids)

    keep = reasons == 0
    _check_usable(source, reasons)
    columns = stored_names(table.column_names, source)
    chosen = pa.array(keep)
    codes, true_codes = answers.codes[keep], None
    if source.flip_labels:
        true_codes = codes
        codes = flip(codes, ids[keep], len(answers.classes), source.flip_labels)
    targets = answers.targets[keep]
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
    used = used_columns(source)
    for column in columns:
        if column["name"] not in used:
            values = table[column["name"]].filter(chosen)
            cells[column["stored"]] = values if loaded.is_typed else typed(values)
    rows = pa.table(cells)
    rejected = _rejected(source, role, loaded, reasons, source_ids)
    for path in source.corrections:
        rows = correct(rows, rejected, path, source.task, answers.classes)
    has_number_ids = source.id is not None and not is_text(
        (table[source.id] if loaded.is_typed else typed(table[source.id])).type
    )
    return Corpus(
        rows,
        rejected,
        answers.classes,
        answers.kind,
        columns,
        has_number_ids,
        source.task,
        texts.format,
        texts.format != "text" or source.text is not None,
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


class _Answers(NamedTuple):
    """What the rows of a source should be answered with: classes, numbers, or neither."""

    codes: np.ndarray
    """Index of the class, -1 where there is none."""
    targets: np.ndarray
    """NaN where there is none."""
    classes: tuple[str, ...]
    kind: Literal["int", "str", "classlabel", "float", "none"]


def _read_answers(
    source: Source,
    loaded: Loaded,
    reasons: np.ndarray,
    classes: tuple[str, ...] | None,
    role: Role,
) -> _Answers:
    no_code, no_target = np.full(len(reasons), -1), np.full(len(reasons), np.nan)
    if source.task not in LABELLED:
        return _Answers(no_code, no_target, (), "none")
    if source.task == "regression":
        targets = read_targets(source, loaded, reasons, role)
        return _Answers(no_code, targets, (), "float")
    labels = read_labels(source, loaded, reasons == 0, classes, role)
    if role == "example":
        mark(reasons, labels.is_missing, "missing label")
    mark(reasons, (labels.codes < 0) & ~labels.is_missing, "unknown label")
    return _Answers(labels.codes, no_target, labels.classes, labels.kind)


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


def _check_usable(source: Source, reasons: np.ndarray) -> None:
    if not (reasons == 0).any():
        found = Counter(reasons.tolist()).items()
        counts = ", ".join(f"{n} {REASONS[at]}" for at, n in found) or "no rows at all"
        raise DataError(
            f"{source.path}: found no usable row among {len(reasons)} ({counts}), expected at "
            "least one. Check which columns text, label, id and the like name."
        )


def _nullable(codes: np.ndarray) -> pa.Array:
    return pa.array(codes, pa.int64(), mask=codes < 0)


def _rejected(
    source: Source, role: Role, loaded: Loaded, reasons: np.ndarray, source_ids: pa.Array
) -> pa.Table:
    at = np.flatnonzero(reasons != 0)
    found = dict(zip(at.tolist(), loaded.table.take(pa.array(at)).to_pylist(), strict=True))
    raws = [loaded.faults[i][1] if i in loaded.faults else compact(found[i]) for i in found]
    is_known = pa.array([i not in loaded.faults for i in found], pa.bool_())
    known_ids = pc.if_else(is_known, source_ids.take(pa.array(at)), pa.scalar(None, pa.string()))
    return pa.table(
        {
            "role": [role] * len(at),
            "source": [source.path] * len(at),
            "row_number": pa.array(at),
            "source_id": known_ids,
            "reason": [REASONS[reason] for reason in reasons[at].tolist()],
            "raw": raws,
        },
        schema=REJECTED.schema,
    )
