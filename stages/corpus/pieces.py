"""A source as pieces: consecutive rows of a file or data set that a task reads without the others.

What a piece alone cannot tell, such as the type of a column of JSON, is learnt from all of them
before one is read. So the rows are the same, however the source is cut into pieces and wherever
these are read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import pyarrow as pa

from stages.corpus.cells import SourceRows, from_table, join
from stages.corpus.source import Source
from stages.stage import DataError

PIECE_BYTES = 16 << 20
"""Of a source in one piece, about: its text in Python's objects takes several times as much."""

Each = Callable[[Callable[[Any, Any], Any], Any, Sequence[Any]], Iterator[tuple[int, Any]]]
"""Calls a function with what all calls share and each of some items, wherever that is done; yields
the place of each item and the result, in the order of finishing."""


def in_turn(
    function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]
) -> Iterator[tuple[int, Any]]:
    """The `Each` that calls one after the other, here."""
    for at, item in enumerate(items):
        yield at, function(shared, item)


def in_order(
    each: Each, function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]
) -> list[Any]:
    """The results of all calls, in the order of the items."""
    results: list[Any] = [None] * len(items)
    for at, result in each(function, shared, items):
        results[at] = result
    return results


@dataclass(frozen=True)
class Layout:
    """What the rows of all pieces of a split have in common."""

    schema: pa.Schema
    """Columns and types, as the files have them."""
    mixed: frozenset[str] = frozenset()
    """Columns whose cells are of several types, each kept as JSON."""
    is_typed: bool = True
    class_names: tuple[str, ...] | None = None

    def rows(
        self, table: pa.Table, faults: Mapping[int, tuple[str, str]] | None = None
    ) -> SourceRows:
        """The rows of a table of this layout, and those of them that could not be read."""
        checked = from_table(table)
        return checked._replace(
            faults={**checked.faults, **(faults or {})},
            mixed=self.mixed | checked.mixed,
            is_typed=self.is_typed,
            class_names=self.class_names,
        )

    @cached_property
    def empty(self) -> SourceRows:
        """The layout as rows, of which there are none."""
        return self.rows(self.schema.empty_table())


@runtime_checkable
class Piece(Protocol):
    """Some consecutive rows of a source."""

    n_rows: int

    def read(self, layout: Layout) -> SourceRows:
        """The rows; see `stages.corpus.load.load` for what is raised."""


class Split(NamedTuple):
    """All rows of one split of a source, as pieces in their order."""

    layout: Layout
    pieces: tuple[Any, ...]
    notices: tuple[str, ...] = ()

    @property
    def n_rows(self) -> int:
        """Number of rows, those that cannot be read included."""
        return sum(piece.n_rows for piece in self.pieces)


@dataclass(frozen=True)
class Part:
    """The rows `start` to `stop` of a piece, which are the rows from `first` on of the source."""

    piece: Piece
    layout: Layout
    start: int
    stop: int
    first: int

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


class Reading(NamedTuple):
    """The rows that a source's split expression selects, as parts that can be read one by one."""

    path: str
    empty: SourceRows
    """The columns, types and classes of all rows, without a row."""
    parts: tuple[Part, ...]
    notices: tuple[str, ...]

    @property
    def n_rows(self) -> int:
        """Number of rows, those that cannot be read included."""
        return sum(part.n_rows for part in self.parts)


def read_part(reading: tuple[str, SourceRows], part: Part) -> SourceRows:
    """The rows of a part, with the columns of the whole reading; `reading` is its path and `empty`.

    Raises:
        DataError: the part cannot be read, or does not fit the columns.
    """
    path, empty = reading
    rows = part.piece.read(part.layout)
    if (part.start, part.n_rows) != (0, rows.table.num_rows):
        faults = {
            row - part.start: fault
            for row, fault in rows.faults.items()
            if part.start <= row < part.stop
        }
        rows = rows._replace(table=rows.table.slice(part.start, part.n_rows), faults=faults)
    if (rows.table.schema, rows.mixed) != (empty.table.schema, empty.mixed):
        try:
            joined = join([empty, rows])
        except pa.ArrowException as error:
            raise unlike(path, error) from error
        rows = rows._replace(table=joined.table)
    return empty._replace(table=rows.table, faults=rows.faults)


def read_all(reading: Reading) -> SourceRows:
    """All rows of a reading at once.

    Raises:
        DataError: a part cannot be read, or does not fit the columns.
    """
    read = [read_part((reading.path, reading.empty), part) for part in reading.parts]
    faults = {
        part.first + row: fault
        for part, rows in zip(reading.parts, read, strict=True)
        for row, fault in rows.faults.items()
    }
    tables = [rows.table for rows in read] or [reading.empty.table]
    whole = pa.concat_tables(tables)
    return reading.empty._replace(table=whole, faults=faults, notices=reading.notices)


def select(
    source: Source, splits: Mapping[str, Split], chosen: Sequence[tuple[str, int, int]]
) -> Reading:
    """The reading of some rows: name of the split, first row and the row after the last, each.

    Raises:
        DataError: the columns of the splits do not fit together, or the names of their classes.
    """
    parts: list[Part] = []
    n_rows = 0
    for name, start, stop in chosen:
        split = splits[name]
        at = 0
        for piece in split.pieces:
            begin, end = max(start - at, 0), min(stop - at, piece.n_rows)
            if begin < end:
                parts.append(Part(piece, split.layout, begin, end, n_rows))
                n_rows += end - begin
            at += piece.n_rows
    try:
        empty = join([splits[name].layout.empty for name, _, _ in chosen])
    except pa.ArrowException as error:
        raise unlike(source.path, error) from error
    names = one_list(source.path, [splits[name].layout.class_names for name, _, _ in chosen])
    notices = tuple(notice for split in splits.values() for notice in split.notices)
    return Reading(source.path, empty._replace(class_names=names), tuple(parts), notices)


def one_list(path: str, declared: Sequence[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """The names of the classes by index, which files or splits may declare in part, or not at all.

    Raises:
        DataError: two declare others, so that one number would mean two classes.
    """
    longest: tuple[str, ...] = ()
    for names in declared:
        for at, (one, other) in enumerate(zip(longest, names or (), strict=False)):
            if one != other:
                raise DataError(
                    f"{path}: found that class {at} is {one!r} in one part of it and {other!r} in "
                    "another, expected the same names of classes in all. Cast the labels to one "
                    "ClassLabel, or write them as names."
                )
        longest = max(longest, names or (), key=len)
    return longest or None


def unlike(path: str, error: Exception) -> DataError:
    """The error of splits whose columns do not fit together."""
    return DataError(
        f"{path}: found splits whose columns do not fit together ({error}), expected "
        "one type of a column in all of them. Name one split, or write them again."
    )
