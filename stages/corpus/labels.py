"""The labels of a source as class indices, and labels that are flipped on purpose."""

import hashlib
import re
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import SourceRows, is_text, typed
from stages.corpus.source import FlipLabels, Source
from stages.stage import DataError, Role

_MAX_CLASSES = 1000


class Labels(NamedTuple):
    """The class index of every row of a source, and the names of the classes."""

    codes: np.ndarray
    """Class index of each row; -1 where its label is missing or names no class."""
    is_missing: np.ndarray
    """Whether a row has no label."""
    classes: tuple[str, ...]
    kind: Literal["int", "str", "classlabel"]
    """Type of the label column."""


def read_labels(
    source: Source,
    loaded: SourceRows,
    usable: np.ndarray,
    corpus_classes: tuple[str, ...] | None,
    role: Role,
) -> Labels:
    """The labels of all rows; without declared classes they are inferred from usable rows alone.

    `usable` says of each row whether it is not rejected so far; `corpus_classes` are the classes
    of the corpus, for queries, or None.

    Raises:
        DataError: the label column holds neither whole numbers nor strings, or the examples have
            fewer than two classes.
    """
    n_rows, final = len(usable), corpus_classes or source.classes
    if source.label is None:
        none = np.full(n_rows, -1)
        return Labels(none, np.ones(n_rows, dtype=bool), final or (), "str")
    column = loaded.table[source.label].combine_chunks()
    if source.label in loaded.mixed:
        cells = [None if v is None else str(v) for v in loaded.values(source.label)]
        column = pa.array(cells, pa.string())
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    if not is_text(column.type) and not any(check(column.type) for check in plain):
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
    names = [_class_name(v, source, loaded.class_names, corpus_classes) for v in values]
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
    index = {name: code for code, name in enumerate(final)}
    # One more entry than values: the index -1 of null selects the last.
    code_of = np.array([index.get(n, -1) if n is not None else -1 for n in names] + [-1])
    missing_of = np.array([v is None for v in values] + [True])
    entries = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    return Labels(code_of[entries], missing_of[entries], final, kind)


def flip(codes: np.ndarray, ids: np.ndarray, n_classes: int, flip: FlipLabels) -> np.ndarray:
    """The class indices with the fraction `flip.fraction` of them changed to another class.

    Which rows change, and to which class, depends on the seed and their ids alone: half of each
    hash orders the rows, the other half picks one of the other classes.
    """
    digests = [hashlib.sha256(f"{flip.seed}:{i}".encode()).digest() for i in ids.tolist()]
    chosen = sorted(range(len(ids)), key=digests.__getitem__)[: round(flip.fraction * len(ids))]
    flipped = codes.copy()
    for row in chosen:
        step = 1 + int.from_bytes(digests[row][16:], "big") % (n_classes - 1)
        flipped[row] = (codes[row] + step) % n_classes
    return flipped


def _label(source: Source, value: Any) -> int | str | None:
    """A cell of the label column as a whole number or a string; None where it holds no label.

    Raises:
        DataError: it is a number that is not whole.
    """
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise DataError(
        f"{source.path}: found the label {value!r} in column {source.label}, expected whole "
        "numbers or strings. Name a column of classes, or set task: regression."
    )


def _label_kind(loaded: SourceRows, values: list[Any]) -> Literal["int", "str", "classlabel"]:
    if loaded.class_names is not None:
        return "classlabel"
    return "int" if any(isinstance(v, int) for v in values) else "str"


def _class_name(
    value: int | str | None,
    source: Source,
    found: tuple[str, ...] | None,
    corpus_classes: tuple[str, ...] | None,
) -> str | None:
    """Name of the class that a label means; None if it means none of the classes.

    `found` are the names of a `ClassLabel` column, `corpus_classes` those of the corpus. Integers
    are indices into the names that the source declares. They are indices into the classes of the
    corpus, too, unless those are integers themselves.
    """
    if value is None or isinstance(value, str):
        return value
    names = found
    if source.classes and not (found and set(found) <= set(source.classes)):
        names = source.classes
    elif (
        found is None
        and corpus_classes
        and not all(re.fullmatch("-?[0-9]+", name) for name in corpus_classes)
    ):
        names = corpus_classes
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
            f"class indices below {_MAX_CLASSES}. If these are targets, set task: regression; if "
            "ids, name another label column; if classes, list them under classes."
        )
    return tuple(str(i) for i in range(n_classes))
