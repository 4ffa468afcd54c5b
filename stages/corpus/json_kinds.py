"""The types of JSON cells: what a column of them is, and the Arrow type that holds it without loss.

The kind of some cells is that of the first with that of the second, and so on, in any grouping:
pieces of a column are learnt apart.
"""

from typing import Any, NamedTuple

import pyarrow as pa

_EXACT = 2**53
"""Integers up to this absolute value are floats without loss."""


class _JSON(NamedTuple):
    """Cells of several types, kept as JSON."""


class _Whole(NamedTuple):
    """Whole numbers, the smallest and the largest."""

    low: int
    high: int

    def type(self) -> pa.DataType | None:
        """The Arrow type that holds them; None if there is none."""
        if -(2**63) <= self.low and self.high < 2**63:
            return pa.int64()
        return pa.uint64() if 0 <= self.low and self.high < 2**64 else None


class _Objects(NamedTuple):
    """Objects with the same keys."""

    fields: dict[str, Any]


class _Lists(NamedTuple):
    items: Any


_PLAIN = {bool: pa.bool_(), str: pa.string(), float: pa.float64()}
_MIXED = _JSON()


def kind_of_all(cells: list[Any]) -> Any:
    """The kind of all cells of a list together; see `kind_of`."""
    types = set(map(type, cells))
    if len(types) == 1 and (only := next(iter(types))) not in (list, dict):
        return _Whole(min(cells), max(cells)) if only is int else kind_of(cells[0])
    kind = None
    for cell in cells:
        kind = both(kind, kind_of(cell))
    return kind


def kind_of(cell: Any) -> Any:
    """What the cell is: None, a class of `_PLAIN`, `_Whole`, `_Lists`, `_Objects` or `_MIXED`."""
    kind = type(cell)
    if kind is int:
        return _Whole(cell, cell)
    if kind is list:
        items = kind_of_all(cell)
        return _MIXED if items is _MIXED else _Lists(items)
    if kind is dict:
        fields = {name: kind_of(value) for name, value in cell.items()}
        # An object without keys has no type in a file of Parquet.
        return _Objects(fields) if fields and _MIXED not in fields.values() else _MIXED
    return None if cell is None else kind


def both(first: Any, second: Any) -> Any:
    """The kind of cells some of which are of the first kind and some of the second."""
    if first is None:
        return second
    # The keys of equal objects may be in another order; that of the first stands.
    if second is None or first == second:
        return first
    if isinstance(first, _Whole) and isinstance(second, _Whole):
        return _Whole(min(first.low, second.low), max(first.high, second.high))
    for whole, other in ((first, second), (second, first)):
        if isinstance(whole, _Whole) and other is float:
            return float if -_EXACT <= whole.low and whole.high <= _EXACT else _MIXED
    if isinstance(first, _Lists) and isinstance(second, _Lists):
        items = both(first.items, second.items)
        return _MIXED if items is _MIXED else _Lists(items)
    if isinstance(first, _Objects) and isinstance(second, _Objects):
        if first.fields.keys() == second.fields.keys():
            fields = {n: both(kind, second.fields[n]) for n, kind in first.fields.items()}
            return _MIXED if _MIXED in fields.values() else _Objects(fields)
    return _MIXED


def type_of(kind: Any) -> pa.DataType | None:
    """The Arrow type of a column of this kind; None if its cells are kept as JSON."""
    if kind is None:
        return pa.null()
    if isinstance(kind, _Whole):
        return kind.type()
    if isinstance(kind, _Lists):
        items = type_of(kind.items)
        return None if items is None else pa.list_(items)
    if isinstance(kind, _Objects):
        fields = {name: type_of(value) for name, value in kind.fields.items()}
        return None if None in fields.values() else pa.struct(list(fields.items()))
    return None if kind is _MIXED else _PLAIN[kind]
