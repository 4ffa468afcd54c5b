"""From a source to rows that every stage can rely on: stable ids, text, labels, shards.

A row that cannot be used is put aside with a reason and never stops the others. An id is a property
of the row alone, an integer from the id column or a hash of any other id, so it survives appended
rows and corrected labels; rows without an id column are known by their row number, which survives
appending only. Shards are cut once: a row stays in the shard it was first put into.

Labels of the corpus pass through three hands in this order: as found, flipped on purpose
(`flip_labels`), corrected by a person (`corrections`).
"""

from collections import Counter
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.identity import read_ids
from stages.label import flip, read_labels
from stages.loaded import Loaded, compact, is_text, typed
from stages.loading import load
from stages.review import correct
from stages.source import Source
from stages.stage import ConfigError, DataError, Role
from storage.schema import TableSpec

_ID_ROLE = [("id", pa.int64()), ("role", pa.string())]
TEXT = TableSpec(
    "text", pa.schema([*_ID_ROLE, ("text", pa.string()), ("text_b", pa.string())]), ("id",)
)
LABEL = TableSpec(
    "label", pa.schema([*_ID_ROLE, ("label", pa.int64()), ("true_label", pa.int64())]), ("id",)
)
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

_OWN = (
    *("id", "role", "text", "text_b", "label", "true_label", "is_dropped"),
    *("source_id", "row_number"),
)
_RESERVED = {*_OWN, "example_id", "query_id", "label_name", "split", "shard", "run_id", "method"}
REASONS = (
    "",
    "not UTF-8",
    "not valid JSON",
    "null id",
    "null text",
    "text is not a string",
    "empty text",
    "null second text",
    "empty second text",
    "missing label",
    "unknown label",
    "duplicate id",
)
"""Why a row is rejected, the first that holds; the empty one is for usable rows."""


class Corpus(NamedTuple):
    """The usable rows of one source, the unusable ones, and what the labels mean."""

    rows: pa.Table
    """Columns id, role, text, text_b, label, true_label, is_dropped, source_id, row_number, then
    the source's other columns; in source order."""
    rejected: pa.Table
    """As `REJECTED` declares."""
    classes: tuple[str, ...]
    """Names of the classes by index; empty for a source without labels."""
    label_kind: Literal["int", "str", "classlabel"]
    """What the label column held."""
    columns: list[dict[str, str]]
    """The source's columns in order: `name` there, `stored` name in `rows`."""
    has_number_ids: bool
    """Whether the id column held integers, as far as its format can tell."""


def read(source: Source, role: Role, classes: tuple[str, ...] | None = None) -> Corpus:
    """The rows of a source, each either usable or rejected with a reason.

    `classes` are the classes to use whatever the labels say: those of the corpus, for queries.
    Otherwise they are `source.classes`, the names of a `ClassLabel`, or the distinct labels.

    Raises:
        ConfigError: `flip_labels` on queries, or no label column for examples.
        DataError: the source cannot be read, lacks a column, or has no usable row; its labels are
            no classes; a correction fits no row.
    """
    _check_role(source, role)
    loaded = load(source)
    table = loaded.table
    used = [name for name in (source.text, source.text_b, source.label, source.id) if name]
    _check_columns(source, role, table.column_names)

    reasons = np.zeros(table.num_rows, dtype=np.int8)
    for row, (reason, _) in loaded.faults.items():
        reasons[row] = REASONS.index(reason)
    ids, source_ids = read_ids(source, loaded)
    _mark(reasons, source_ids.is_null(), "null id")
    text = _texts(loaded, source.text, reasons, "")
    text_b = pa.nulls(table.num_rows, pa.string())
    if source.text_b:
        text_b = _texts(loaded, source.text_b, reasons, "second ")
    _check_usable(source, reasons)
    labels = read_labels(source, loaded, reasons == 0, classes, role)
    if role == "example":
        _mark(reasons, labels.is_missing, "missing label")
    _mark(reasons, (labels.codes < 0) & ~labels.is_missing, "unknown label")
    _mark_repeated(reasons, ids)

    keep = reasons == 0
    _check_usable(source, reasons)
    columns = _stored_names(table.column_names, source)
    chosen = pa.array(keep)
    codes, true_codes = labels.codes[keep], None
    if source.flip_labels:
        true_codes = codes
        codes = flip(codes, ids[keep], len(labels.classes), source.flip_labels)
    cells = {
        "id": pa.array(ids[keep]),
        "role": pa.repeat(pa.scalar(role), int(keep.sum())),
        "text": text.filter(chosen),
        "text_b": text_b.filter(chosen),
        "label": _nullable(codes),
        "true_label": _nullable(np.full(len(codes), -1) if true_codes is None else true_codes),
        "is_dropped": pa.repeat(pa.scalar(False), len(codes)),
        "source_id": source_ids.filter(chosen),
        "row_number": pa.array(np.flatnonzero(keep)),
    }
    for column in columns:
        if column["name"] not in used:
            values = table[column["name"]].filter(chosen)
            cells[column["stored"]] = values if loaded.is_typed else typed(values)
    rows = pa.table(cells)
    rejected = _rejected(source, role, loaded, reasons, source_ids)
    for path in source.corrections:
        rows = correct(rows, rejected, path, labels.classes)
    has_number_ids = source.id is not None and not is_text(
        (table[source.id] if loaded.is_typed else typed(table[source.id])).type
    )
    return Corpus(rows, rejected, labels.classes, labels.kind, columns, has_number_ids)


def tables(rows: pa.Table) -> dict[str, pa.Table]:
    """Rows of a `Corpus`, or some of them, as the tables `text`, `label` and `extra`.

    Dropped rows have no label; their text stays, so that features computed from it are reused.
    """
    carried = [name for name in rows.column_names if name not in _OWN]
    kept = rows.filter(pc.invert(rows["is_dropped"]))
    return {
        TEXT.name: rows.select(TEXT.schema.names),
        LABEL.name: kept.select(LABEL.schema.names),
        EXTRA.name: rows.select([*EXTRA.schema.names, *carried]),
    }


def _check_role(source: Source, role: Role) -> None:
    if role == "query" and source.flip_labels:
        raise ConfigError(
            "flip_labels: found on queries, expected on the corpus only. Remove it there."
        )
    if role == "example" and source.label is None:
        raise ConfigError(
            f"{source.path}: found label: null for examples, expected the name of a column. "
            "Set label; only queries may lack one."
        )


def _check_columns(source: Source, role: Role, found: list[str]) -> None:
    for key in ("text", "text_b", "label", "id"):
        name = getattr(source, key)
        if name is None or name in found:
            continue
        close = get_close_matches(name, found, n=1, cutoff=0.5)
        advice = f"Did you mean {key}: {close[0]}?" if close else f"Set {key} to one of them."
        if key == "label" and role == "query":
            advice += " For queries without labels, set label: null."
        raise DataError(
            f"{source.path}: found the columns {', '.join(found)}, expected {name!r} among them "
            f"for {key}. {advice}"
        )


def _check_usable(source: Source, reasons: np.ndarray) -> None:
    if not (reasons == 0).any():
        found = Counter(reasons.tolist()).items()
        counts = ", ".join(f"{n} {REASONS[at]}" for at, n in found) or "no rows at all"
        raise DataError(
            f"{source.path}: found no usable row among {len(reasons)} ({counts}), expected at "
            "least one. Check which columns text, text_b, label and id name."
        )


def _mark(reasons: np.ndarray, mask: Any, reason: str) -> None:
    """Gives `reason` to the rows of `mask` that have none yet."""
    mask = mask if isinstance(mask, np.ndarray) else np.asarray(mask)
    reasons[mask & (reasons == 0)] = REASONS.index(reason)


def _mark_repeated(reasons: np.ndarray, ids: np.ndarray) -> None:
    usable = np.flatnonzero(reasons == 0)
    _, first = np.unique(ids[usable], return_index=True)
    reasons[np.delete(usable, first)] = REASONS.index("duplicate id")


def _texts(loaded: Loaded, name: str, reasons: np.ndarray, which: str) -> Any:
    column = loaded.table[name]
    _mark(reasons, column.is_null(), f"null {which}text")
    if name in loaded.mixed:
        values = loaded.values(name)
        _mark(reasons, np.array([v is None for v in values], dtype=bool), f"null {which}text")
        texts = [v if isinstance(v, str) else None for v in values]
        column = pa.chunked_array([pa.array(texts, pa.string())])
    elif not is_text(column.type):
        column = pa.chunked_array([pa.nulls(len(column), pa.string())])
    column = pc.cast(column, pa.string())
    _mark(reasons, column.is_null(), "text is not a string")
    is_empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)
    _mark(reasons, pc.fill_null(is_empty, False), f"empty {which}text")
    return column


def _stored_names(found: list[str], source: Source) -> list[dict[str, str]]:
    """Where each column of the source lies in `Corpus.rows`.

    Names are compared without case: SQL does not tell Text from text.
    """
    own = {source.id: "source_id", source.label: "label"}
    own |= {source.text_b: "text_b", source.text: "text"}
    taken = {*_RESERVED, *(n.lower() for n in found if n.lower() not in _RESERVED)}
    seen: set[str] = set()
    columns = []
    for name in found:
        stored = own.get(name, name)
        if name not in own and (name.lower() in _RESERVED or name.lower() in seen):
            stored = f"source_{name}"
            while stored.lower() in taken:
                stored = f"source_{stored}"
        taken.add(stored.lower())
        seen.add(stored.lower())
        columns.append({"name": name, "stored": stored})
    return columns


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
