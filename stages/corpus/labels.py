"""The labels of a source as class indices.

A label is a name. `spelled` is the one place that says which cells spell the same one: 1, "1",
1.0 and " 1" do. Numbers are names as well, so 10, 20 and 50 are three classes. Only where the names
have an order that a person gave (`classes:`, or a `ClassLabel`), and a number is none of them, is
it the place of its class.

A class without rows is none, also where it is declared: every method would reckon with an outcome
that cannot be seen, and the same rows would give other results. It stays where the run has a model
that comes with an output for each declared class, and where a single class would remain.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus import label_notices as told
from stages.corpus.cells import NULLS, SourceRows, is_number, is_text
from stages.corpus.source import Source
from stages.corpus.yaml_value import in_yaml
from stages.stage import DataError, Role

_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)(\.0+)?")
_BOOLEANS = {"true": "True", "false": "False"}


class Labels(NamedTuple):
    """The classes of a source, and what each of the different cells of its label column means."""

    codes: np.ndarray
    """Class index of each cell; -1 where it is no label or names no class, and at the end."""
    is_missing: np.ndarray
    """Whether a cell is no label; True at the end, for null."""
    classes: tuple[str, ...]
    kind: Literal["int", "str", "classlabel"]
    """Whether the labels are numbers, names, or numbers that a `ClassLabel` has names for."""
    written: tuple[Any, ...] = ()
    """For each class, the cell that the source has for it."""
    notices: tuple[str, ...] = ()
    """What a person should know of these labels."""


def spelled(cell: Any) -> str | None:
    """The name that a cell spells as a label; None where it holds no label.

    Whole numbers, as numbers or as text, are spelled in decimal digits, true and false as Python
    has them, and text without the white space around it. Codes such as 007 and 1E5 stay as written.

    Raises:
        ValueError: it is a number that is not whole.
    """
    if isinstance(cell, str):
        text = cell.strip()
        if _WHOLE.fullmatch(text):
            return str(int(text.split(".")[0]))
        return _BOOLEANS.get(text.lower(), text) or None
    if cell is None or cell != cell:
        return None
    if isinstance(cell, float) and not cell.is_integer():
        raise ValueError(f"{cell!r} is not whole")
    return str(cell) if isinstance(cell, bool) else str(int(cell))


def read_labels(
    source: Source,
    empty: SourceRows,
    distinct: pa.Array | None,
    n_rows: np.ndarray,
    corpus_classes: tuple[str, ...] | None,
    role: Role,
    keeps_absent: bool = False,
    reviewed: frozenset[str] = frozenset(),
) -> Labels:
    """What the labels of a source mean; the classes are those that usable rows have.

    `distinct` holds the different cells of the rows that are not rejected so far, in the order in
    which they come, as `distinct_cells` finds them, and `n_rows` how many rows have each; None
    where the source has no labels. `empty` has the columns of the source. `corpus_classes` are
    the classes of the corpus, for queries, or None. `keeps_absent` keeps declared classes that no
    row has; those in `reviewed`, to which a person will correct labels, are kept in any case.

    Raises:
        DataError: the cells are no whole numbers or strings, the examples have fewer than two
            classes, or no label is one of the classes.
    """
    declared = corpus_classes or source.classes or empty.class_names
    if distinct is None:
        return Labels(np.array([-1]), np.array([True]), declared or (), "str")
    column = SourceRows(
        pa.table({"cell": distinct}),
        {},
        mixed=frozenset({"cell"} if source.label in empty.mixed else ()),
    )
    cells = column.values("cell")
    keys = _keys(source, empty, cells)
    names = _names(source, empty, cells, keys, corpus_classes)
    present = {name for name in names if name is not None}
    classes = declared or _in_order(present, cells, keys)
    code_of = _codes(names, classes)
    if present and max(code_of) < 0:
        told.refuse_strangers(source, cells, names, classes, role)
    absent: tuple[str, ...] = ()
    if role == "example":
        found = {*code_of, *_codes([*reviewed], classes)}
        absent = tuple(name for code, name in enumerate(classes) if code not in found)
        # Of a single class nothing is left to tell it from.
        keeps_absent = keeps_absent or len(classes) - len(absent) < 2
        if not keeps_absent:
            classes = tuple(name for name in classes if name not in absent)
            code_of = _codes(names, classes)
    if role == "example" and len(classes) < 2:
        raise DataError(
            f"{source.path}: found {len(classes)} class ({', '.join(classes) or 'no label at all'})"
            f" in column {source.label}, expected at least two. Name another label column, or list "
            f"all classes, such as `classes: {in_yaml([*(classes or ('one',)), 'another'])}`."
        )
    codes = np.array([*code_of, -1])
    is_missing = np.array([*(key is None for key in keys), True])
    labels = Labels(codes, is_missing, classes, _kind(empty, keys))
    if role == "query":
        return labels._replace(notices=told.strangers(source, cells, names, code_of, classes))
    written = _written(source, empty, cells, code_of, classes)
    has_class = codes[:-1] >= 0
    of_class = np.bincount(
        codes[:-1][has_class], weights=n_rows[has_class], minlength=len(classes)
    ).astype(np.int64)
    notices = (
        *told.absent(absent, keeps_absent),
        *told.doubtful(source, of_class, classes),
        *told.respelled(cells, code_of, written),
    )
    return labels._replace(written=written, notices=notices)


def class_code(name: str, classes: Sequence[str]) -> int:
    """The index of the class that `name` spells; -1 if it spells none."""
    return _codes([name], classes)[0]


def distinct_cells(
    source: Source, loaded: SourceRows, usable: np.ndarray
) -> tuple[pa.Array, np.ndarray]:
    """The different cells of the label column, and for each row the place of its own; -1 of null.

    Rows that are not usable count as null.

    Raises:
        DataError: the column is of a type that holds no labels.
    """
    column = label_cells(source, loaded).combine_chunks()
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    if not is_text(column.type) and not any(check(column.type) for check in plain):
        raise DataError(
            f"{source.path}: found {column.type} in the label column {source.label}, expected "
            "whole numbers or strings. Give every row one class, or name another column."
        )
    column = pc.if_else(pa.array(usable), column, pa.scalar(None, column.type))
    encoded = pc.dictionary_encode(column)
    return encoded.dictionary, pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)


def label_cells(source: Source, loaded: SourceRows) -> pa.ChunkedArray:
    """The label column; numbers of 16 bits, which Arrow does not compare, as the same of 32."""
    column = loaded.table[source.label]
    return pc.cast(column, pa.float32()) if pa.types.is_float16(column.type) else column


def _keys(source: Source, loaded: SourceRows, cells: list[Any]) -> list[str | None]:
    """What each cell spells; None for a missing label.

    In a CSV of numbers, also the usual words for a missing value are none.
    """
    keys = []
    for cell in cells:
        try:
            keys.append(spelled(cell))
        except (ValueError, TypeError):
            kind = "label" if isinstance(cell, float) else type(cell).__name__
            raise DataError(
                f"{source.path}: found the {kind} {cell!r} in column {source.label}, expected "
                "whole numbers or strings. Name a column of classes, or set task: regression."
            ) from None
    if loaded.class_names is not None:
        return [None if key == "-1" else key for key in keys]
    if loaded.is_typed:
        return keys
    words = [key for key in keys if key is not None and key not in NULLS]
    numbers = [_number(word) for word in words]
    if words and None not in numbers:
        fraction = next((w for w, n in zip(words, numbers, strict=True) if n and n % 1), None)
        if fraction is not None:
            raise DataError(
                f"{source.path}: found the label {fraction} in column {source.label}, expected "
                "whole numbers or strings. Name a column of classes, or set task: regression."
            )
        return [None if key in NULLS else key for key in keys]
    return keys


def _number(text: str) -> float | None:
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _names(
    source: Source,
    loaded: SourceRows,
    cells: list[Any],
    keys: list[str | None],
    corpus_classes: tuple[str, ...] | None,
) -> list[str | None]:
    """The name of the class that each cell means, whether or not there is such a class.

    A number is the place of its class where names have an order and are no numbers themselves: the
    names of a `ClassLabel` column, those that the source declares, or those of the corpus.
    """
    own = loaded.class_names
    ordered = own
    if source.classes and not (own and set(own) <= set(source.classes)):
        ordered = source.classes
    elif own is None:
        ordered = corpus_classes
    if ordered is None:
        return keys
    known = {spelled(name) for name in ordered}
    if own is None and any(map(_WHOLE.fullmatch, ordered)):
        strange = [key for key in keys if key is not None and key not in known]
        if not strange or ordered is corpus_classes:
            return keys
        places = {str(at) for at in range(len(ordered))}
        if not {key for key in keys if key is not None} <= places:
            raise DataError(
                f"{source.path}: found the labels {told.some(strange)} in column {source.label}, "
                f"which are none of classes: {told.some(ordered)}, and others that are no places "
                "in it, expected one of both. List all names under `classes:`, or leave it out."
            )
        known = set()
    names: list[str | None] = []
    for cell, key in zip(cells, keys, strict=True):
        at = -1
        if key is not None and (own is not None or key not in known):
            at = int(cell) if isinstance(cell, bool) else int(key) if _WHOLE.fullmatch(key) else -1
        names.append(ordered[at] if 0 <= at < len(ordered) else key)
    return names


def _codes(names: Sequence[str | None], classes: Sequence[str]) -> list[int]:
    """The index of each name among the classes, however they are spelled; -1 of a stranger."""
    code_of = {spelled(name): code for code, name in reversed([*enumerate(classes)])}
    code_of |= {name: code for code, name in enumerate(classes)}
    return [-1 if n is None else code_of.get(n, code_of.get(spelled(n), -1)) for n in names]


def _in_order(present: set[str], cells: list[Any], keys: list[str | None]) -> tuple[str, ...]:
    """The names in their order, numbers first; true and false as the source writes them."""
    numbers = sorted((name for name in present if _WHOLE.fullmatch(name)), key=int)
    ways: dict[str, set[str]] = {}
    for cell, key in zip(cells, keys, strict=True):
        if key is not None and key in _BOOLEANS.values():
            ways.setdefault(key, set()).add(cell.strip() if isinstance(cell, str) else str(cell))
    return (
        *numbers,
        *(
            min(ways[name]) if len(ways.get(name, ())) == 1 else name
            for name in sorted(present - set(numbers))
        ),
    )


def _kind(loaded: SourceRows, keys: list[str | None]) -> Literal["int", "str", "classlabel"]:
    if loaded.class_names is not None:
        return "classlabel"
    known = [key for key in keys if key is not None]
    return "int" if known and all(_WHOLE.fullmatch(key) for key in known) else "str"


def _written(
    source: Source,
    loaded: SourceRows,
    cells: list[Any],
    code_of: list[int],
    classes: tuple[str, ...],
) -> tuple[Any, ...]:
    """For each class, the first cell that means it; of one without, what a cell would hold."""
    first: dict[int, Any] = {}
    for cell, code in zip(cells, code_of, strict=True):
        first.setdefault(code, cell)
    given = [cell for code, cell in first.items() if code >= 0]
    in_order = loaded.class_names or source.classes or classes
    are_places = all(isinstance(cell, int) and not isinstance(cell, bool) for cell in given)
    written = [
        first[code] if code in first else (in_order.index(name) if are_places else name)
        for code, name in enumerate(classes)
    ]
    if not loaded.is_typed and all(is_number(str(cell)) for cell in written):
        return tuple(map(int, written))
    return tuple(written)
