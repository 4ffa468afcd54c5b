"""From a source to rows that every stage can rely on: stable ids, text, labels, shards.

A row that cannot be used is put aside with a reason and never stops the others. An id is a property
of the row alone, an integer from the id column or a hash of any other id, so it survives appended
rows and corrected labels; rows without an id column are known by their row number, which survives
appending only. Shards are cut once: a row stays in the shard it was first put into.

Labels of the corpus pass through three hands in this order: as found, flipped on purpose
(`flip_labels`), corrected by a person (`corrections`).
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.source import FlipLabels, Loaded, Source, compact, fingerprint, load, load_file, typed
from stages.stage import ConfigError, DataError, Role
from storage.schema import TableSpec

__all__ = ["FlipLabels", "Source", "content_hash", "cut", "fingerprint", "read", "tables"]

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
_MAX_CLASSES = 1000
_DECIMAL = re.compile("0|[1-9][0-9]{0,18}")


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


class _Labels(NamedTuple):
    codes: np.ndarray
    """Index of the class; -1 where there is none."""
    is_missing: np.ndarray
    classes: tuple[str, ...]
    kind: Literal["int", "str", "classlabel"]


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
    ids, source_ids = _ids(source, loaded)
    _mark(reasons, source_ids.is_null(), "null id")
    text = _texts(loaded, source.text, reasons, "")
    text_b = pa.nulls(table.num_rows, pa.string())
    if source.text_b:
        text_b = _texts(loaded, source.text_b, reasons, "second ")
    _check_usable(source, reasons)
    labels = _labels(source, loaded, reasons == 0, classes, role)
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
        codes = _flip(codes, ids[keep], len(labels.classes), source.flip_labels)
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
        rows = _correct(rows, rejected, path, labels.classes)
    return Corpus(rows, rejected, labels.classes, labels.kind, columns)


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


def cut(ids: np.ndarray, previous: Sequence[np.ndarray], shard_size: int) -> list[np.ndarray]:
    """Positions in `ids` of the rows of every shard, each in ascending order.

    `previous` holds the ids of each earlier shard. What is left of those comes first, in their
    order and whatever their size; new ids follow in shards of `shard_size`, the last one shorter.
    Cost O((ids + previous) log previous).

    Raises:
        ConfigError: `shard_size` is not positive.
    """
    if shard_size < 1:
        raise ConfigError(
            f"shard_size: found {shard_size}, expected at least 1. Leave it out for the default."
        )
    shard_of = np.full(len(ids), -1, dtype=np.int64)
    if sum(len(shard) for shard in previous):
        known = np.concatenate(list(previous))
        shards = np.repeat(np.arange(len(previous)), [len(shard) for shard in previous])
        order = np.argsort(known, kind="stable")
        known, shards = known[order], shards[order]
        # Looking ids up in ascending order reads memory in order: ten times as fast at 10^7 rows.
        ascending = np.argsort(ids)
        wanted = ids[ascending]
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        shard_of[ascending] = np.where(known[at] == wanted, shards[at], -1)
    order = np.argsort(shard_of, kind="stable")
    bounds = np.searchsorted(shard_of[order], np.arange(len(previous) + 1))
    kept = np.split(order, bounds)
    fresh = kept[0]
    starts = range(0, len(fresh), shard_size)
    return [part for part in kept[1:] if len(part)] + [fresh[i : i + shard_size] for i in starts]


def content_hash(rows: pa.Table) -> str:
    """16 hex digits that depend on the columns' names and order and the cells' values alone.

    How the table is chunked, sliced or padded and which fields may be null make no difference.
    About 3 microseconds a row of short text.
    """
    digest = hashlib.sha256(repr((rows.column_names, rows.num_rows)).encode())
    block = 65536
    for column in rows.columns:
        for start in range(0, len(column), block):
            digest.update(repr(column.slice(start, block).to_pylist()).encode())
    return digest.hexdigest()[:16]


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


def _values(loaded: Loaded, name: str) -> list[Any]:
    """Cells of a column as Python values, also where they are of several types."""
    cells: list[Any] = loaded.table[name].to_pylist()
    if name in loaded.mixed:
        return [None if cell is None else json.loads(cell) for cell in cells]
    return cells


def _ids(source: Source, loaded: Loaded) -> tuple[np.ndarray, pa.Array]:
    """Example ids, and the user's own ids as text (null where there is none)."""
    n_rows = loaded.table.num_rows
    if source.id is None:
        numbers = np.arange(n_rows, dtype=np.int64)
        return numbers, pc.cast(pa.array(numbers), pa.string())
    kind = loaded.table[source.id].type
    values = _values(loaded, source.id)
    if pa.types.is_floating(kind):
        values = [int(v) if v is not None and v.is_integer() else v for v in values]
    strange = next((v for v in values if not isinstance(v, int | str | None)), None)
    if strange is not None or pa.types.is_boolean(kind):
        raise DataError(
            f"{source.path}: found {strange if strange is not None else 'true or false'!r} in the "
            f"id column {source.id} ({kind}), expected integers or strings. Name another column, "
            "or set id: null to go by row number."
        )
    ids = np.fromiter((_id(v, loaded.is_typed) for v in values), dtype=np.int64, count=n_rows)
    return ids, pa.array([None if v is None else str(v) for v in values], pa.string())


def _id(value: int | str | None, is_typed: bool) -> int:
    """The integer itself if it is one that fits, else 63 bits of the value's SHA-256."""
    if value is None:
        return 0
    is_number = isinstance(value, int) or (not is_typed and _DECIMAL.fullmatch(value))
    if is_number and 0 <= int(value) < 2**63:
        return int(value)
    return int.from_bytes(hashlib.sha256(str(value).encode()).digest()[:8], "big") & (2**63 - 1)


def _texts(loaded: Loaded, name: str, reasons: np.ndarray, which: str) -> Any:
    column = loaded.table[name]
    _mark(reasons, column.is_null(), f"null {which}text")
    if name in loaded.mixed:
        values = _values(loaded, name)
        _mark(reasons, np.array([v is None for v in values], dtype=bool), f"null {which}text")
        texts = [v if isinstance(v, str) else None for v in values]
        column = pa.chunked_array([pa.array(texts, pa.string())])
    elif not _is_text(column.type):
        column = pa.chunked_array([pa.nulls(len(column), pa.string())])
    column = pc.cast(column, pa.string())
    _mark(reasons, column.is_null(), "text is not a string")
    is_empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)
    _mark(reasons, pc.fill_null(is_empty, False), f"empty {which}text")
    return column


def _is_text(kind: pa.DataType) -> bool:
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(check(kind) for check in checks)


def _labels(
    source: Source,
    loaded: Loaded,
    usable: np.ndarray,
    given: tuple[str, ...] | None,
    role: Role,
) -> _Labels:
    """Class indices of all rows; classes are inferred from the usable ones alone."""
    n_rows, final = len(usable), given or source.classes
    if source.label is None:
        none = np.full(n_rows, -1)
        return _Labels(none, np.ones(n_rows, dtype=bool), final or (), "str")
    column = loaded.table[source.label].combine_chunks()
    if source.label in loaded.mixed:
        cells = [None if v is None else str(v) for v in _values(loaded, source.label)]
        column = pa.array(cells, pa.string())
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    if not _is_text(column.type) and not any(check(column.type) for check in plain):
        raise DataError(
            f"{source.path}: found {column.type} in the label column {source.label}, expected "
            "whole numbers or strings. Give every row one class, or name another column."
        )
    column = pc.if_else(pa.array(usable), column, pa.scalar(None, column.type))
    if not loaded.is_typed:
        numbers = typed(column)
        column = column if pa.types.is_boolean(numbers.type) else numbers
    encoded = pc.dictionary_encode(column)
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    values = [_label(source, v) for v in encoded.dictionary.to_pylist()]
    if loaded.class_names is not None:
        values = [None if v == -1 else v for v in values]
    kind = _label_kind(loaded, values)
    names = [_class_name(v, source, loaded.class_names, given) for v in values]
    if final is None:
        final = loaded.class_names or _infer_classes(source, values)
        if role == "example" and len({v for v in values if v is not None}) < 2:
            final = final if loaded.class_names else final[:1]
    if role == "example" and len(final) < 2:
        raise DataError(
            f"{source.path}: found {len(final)} class ({', '.join(final) or 'no label at all'}) in "
            f"column {source.label}, expected at least two. Name another label column, or list "
            "all classes under classes."
        )
    index = {name: at for at, name in enumerate(final)}
    # One more entry than values: null has index -1 and finds it at the end.
    code_of = np.array([index.get(n, -1) if n is not None else -1 for n in names] + [-1])
    missing_of = np.array([v is None for v in values] + [True])
    at = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    return _Labels(code_of[at], missing_of[at], final, kind)


def _label(source: Source, value: Any) -> int | str | None:
    """One label as found: a whole number, a string, or None where there is none."""
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise DataError(
        f"{source.path}: found the label {value!r} in column {source.label}, expected whole "
        "numbers or strings. Targets of a regression are not supported: name a column of classes."
    )


def _label_kind(loaded: Loaded, values: list[Any]) -> Literal["int", "str", "classlabel"]:
    if loaded.class_names is not None:
        return "classlabel"
    return "int" if any(isinstance(v, int) for v in values) else "str"


def _class_name(
    value: int | str | None,
    source: Source,
    found: tuple[str, ...] | None,
    given: tuple[str, ...] | None,
) -> str | None:
    """Name of the class that a label means; None if it means none.

    Integers are indices into the names the source declares. Into the classes of another source
    they are indices too, unless those were named after integers themselves.
    """
    if value is None or isinstance(value, str):
        return value
    names = found
    if source.classes and not (found and set(found) <= set(source.classes)):
        names = source.classes
    elif found is None and given and not all(re.fullmatch("-?[0-9]+", name) for name in given):
        names = given
    if names is None:
        return str(value)
    return names[value] if 0 <= value < len(names) else None


def _infer_classes(source: Source, values: list[Any]) -> tuple[str, ...]:
    distinct = sorted({v for v in values if v is not None})
    if not distinct or isinstance(distinct[0], str) or distinct[0] < 0:
        return tuple(str(v) for v in distinct)
    n_classes = distinct[-1] + 1
    if n_classes > _MAX_CLASSES:
        raise DataError(
            f"{source.path}: found labels up to {distinct[-1]} in column {source.label}, expected "
            f"class indices below {_MAX_CLASSES}. If these are targets of a regression or ids, "
            "name another label column; if they are classes, list them under classes."
        )
    return tuple(str(i) for i in range(n_classes))


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


def _flip(codes: np.ndarray, ids: np.ndarray, n_classes: int, flip: FlipLabels) -> np.ndarray:
    """The labels with the asked-for part of them changed; which ones depends on seed and id only.

    Half of each hash orders the rows, the other half picks one of the other classes.
    """
    digests = [hashlib.sha256(f"{flip.seed}:{i}".encode()).digest() for i in ids.tolist()]
    chosen = sorted(range(len(ids)), key=digests.__getitem__)[: round(flip.fraction * len(ids))]
    flipped = codes.copy()
    for row in chosen:
        step = 1 + int.from_bytes(digests[row][16:], "big") % (n_classes - 1)
        flipped[row] = (codes[row] + step) % n_classes
    return flipped


def _correct(rows: pa.Table, rejected: pa.Table, path: str, classes: tuple[str, ...]) -> pa.Table:
    """The rows after a person's review: labels fixed, rows marked as dropped."""
    reviewed = load_file(path)
    key = _review_column(path, reviewed, "source_id", "example_id")
    ids = rows["source_id" if key == "source_id" else "id"].to_pylist()
    row_of = {str(value): at for at, value in enumerate(ids)}
    refused = dict(zip(*(rejected[c].to_pylist() for c in ("source_id", "reason")), strict=True))
    decisions = _values(reviewed, _review_column(path, reviewed, "decision"))
    names: list[Any] = [None] * len(decisions)
    if any(str(d).strip().lower() == "fix" for d in decisions):
        names = _values(reviewed, _review_column(path, reviewed, "new_label", "suggested_label"))
    code_of = {name: code for code, name in enumerate(classes)}
    label = rows["label"].to_pylist()
    is_dropped = [False] * rows.num_rows
    seen: dict[str, int] = {}
    for at, (value, decision, name) in enumerate(
        zip(_values(reviewed, key), decisions, names, strict=True)
    ):
        own, word = str(value), "" if decision is None else str(decision).strip().lower()
        where = f"{path}: row {at} ({key} {own})"
        if at in reviewed.faults:
            raise DataError(
                f"{where}: found a row that is {reviewed.faults[at][0]}, expected UTF-8 rows. "
                "Save the review again."
            )
        if own in seen:
            raise DataError(
                f"{where}: found the same {key} as in row {seen[own]}, expected each once. "
                "Remove one of the two rows."
            )
        seen[own] = at
        if own not in row_of:
            note = f", where it was rejected: {refused[own]}" if own in refused else ""
            raise DataError(
                f"{where}: found a {key} that no row has, expected one of the source{note}. "
                "Remove the row or correct its id."
            )
        if word not in {"", "accept", "fix", "drop"}:
            raise DataError(
                f"{where}: found decision {decision!r}, expected accept, fix, drop or nothing. "
                "Correct it."
            )
        if word == "fix":
            if str(name) not in code_of:
                raise DataError(
                    f"{where}: found new_label {name!r}, expected one of {', '.join(classes)}. "
                    "Write the name of the class."
                )
            label[row_of[own]] = code_of[str(name)]
        is_dropped[row_of[own]] = word == "drop"
    for column, values in (("label", label), ("is_dropped", is_dropped)):
        at = rows.column_names.index(column)
        rows = rows.set_column(at, column, pa.array(values, rows.schema.field(column).type))
    return rows


def _review_column(path: str, reviewed: Loaded, *names: str) -> str:
    for name in names:
        if name in reviewed.table.column_names:
            return name
    raise DataError(
        f"{path}: found the columns {', '.join(reviewed.table.column_names)}, expected "
        f"{' or '.join(names)} among them. Add the column to the review."
    )
