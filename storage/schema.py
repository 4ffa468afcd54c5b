"""Declarations of tables: the columns and key that every shard of a table must have.

Every table of assay is declared by a `TableSpec`: its name, its columns, its key. The writer
(`storage.table`) calls `TableSpec.check` on every shard, so a table on disk always has exactly the
declared columns, a unique, non-null key in ascending order, and finite numbers in them. Columns of
the user's own may hold anything.

Errors of this room:

    StorageError
      SchemaError       the rows do not have the declared columns, key or finite values
      FileError
        MissingError    a shard, manifest, run or catalog that should be there is not
        CorruptError    a file is there and does not hold what was written
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FILE_COLUMN = "assay_file"
"""Column of every base view: the file that a row lies in. No column of a source is stored so."""


class StorageError(Exception):
    """Something about a table on disk is not as it should be."""


class SchemaError(StorageError):
    """Rows do not have the columns, the key or the finite values that their table declares."""


class FileError(StorageError):
    """A file of a store is gone or damaged; `file` is its table and name, where it has these."""

    def __init__(self, message: str, file: tuple[str, str] | None = None):
        super().__init__(message)
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors of tasks come back from other processes.
        return type(self), (str(self), self.file)


class MissingError(FileError):
    """A shard, manifest, run or catalog that should exist does not."""


class CorruptError(FileError):
    """A file exists but its content is not what was written, or not what its name says it is."""


@dataclass(frozen=True)
class TableSpec:
    """The declaration of one table.

    A column declared as a variable list of floats, `pa.list_(pa.float32())`, holds vectors: rows
    must bring a fixed-size list of that value type, of any one length. Where float32 is declared,
    float16 may be brought as well and is stored as such; whoever computes with it casts it up. The
    manifest pins length and value type and refuses shards that disagree. A `pa.large_list` of
    floats holds rows of unequal length and is no vector column.

    Attributes:
        name: Folder of the table in the store.
        schema: Columns in order.
        key: Columns that identify a row inside one shard; rows are stored in ascending key order.
        carries_columns: Whether columns of the user's own may follow the declared ones.
    """

    name: str
    schema: pa.Schema
    key: tuple[str, ...]
    carries_columns: bool = False

    @property
    def signature(self) -> list[Any]:
        """The whole declaration in JSON's types; part of the keys of the table's shards."""
        columns = [[field.name, str(field.type)] for field in self.schema]
        return [self.name, columns, list(self.key), self.carries_columns]

    def check(self, table: pa.Table) -> pa.Table:
        """The rows in key order, after checks that they are as declared.

        Raises:
            SchemaError: a column is missing, has another type, or is not declared; a key is null
                or repeated; a float is NaN or infinite.
        """
        self._check_columns(table.schema, table.num_rows)
        table = table.combine_chunks()
        if table.num_rows == 0:
            return table
        for name in self.key:
            if table[name].null_count:
                raise SchemaError(
                    f"{self.name}: key column {name} has {table[name].null_count} nulls, expected "
                    "none. Give every row an id."
                )
        table = table.sort_by([(name, "ascending") for name in self.key]).combine_chunks()
        self._check_unique(table)
        for name in self.schema.names:
            self._check_finite(table.schema.field(name), table[name])
        return table

    def vector_length(self, schema: pa.Schema) -> int | None:
        """Length of the table's vector column in `schema`; None for a table without vectors."""
        kind = self._vector_type(schema)
        return int(kind.list_size) if kind is not None else None

    def dtype(self, schema: pa.Schema) -> str | None:
        """Value type of the table's vector column in `schema`, by NumPy's name: "float16"."""
        kind = self._vector_type(schema)
        return str(np.dtype(kind.value_type.to_pandas_dtype())) if kind is not None else None

    def _vector_type(self, schema: pa.Schema) -> pa.DataType | None:
        """Arrow type of the vector column in `schema`; None for a table without vectors."""
        for field in self.schema:
            if pa.types.is_list(field.type) and field.name in schema.names:
                actual = schema.field(field.name).type
                if pa.types.is_fixed_size_list(actual):
                    return actual
        return None

    def _check_columns(self, actual: pa.Schema, rows: int) -> None:
        declared = self.schema.names
        missing = [name for name in declared if name not in actual.names]
        extra = [name for name in actual.names if name not in declared]
        if missing or (extra and not self.carries_columns):
            raise SchemaError(
                f"{self.name}: found columns {actual.names}, expected {declared}"
                f"{' and any others after them' if self.carries_columns else ''}. "
                "Make the stage yield the declared columns."
            )
        if actual.names[: len(declared)] != declared:
            raise SchemaError(
                f"{self.name}: found columns in the order {actual.names}, expected {declared} "
                "first. Reorder the columns the stage yields."
            )
        for field in self.schema:
            found = actual.field(field.name).type
            if rows and not _matches(field.type, found):
                raise SchemaError(
                    f"{self.name}: column {field.name} has type {found}, expected {field.type}. "
                    "Cast it in the stage that writes it."
                )

    def _check_unique(self, table: pa.Table) -> None:
        same = np.ones(max(table.num_rows - 1, 0), dtype=bool)
        for name in self.key:
            column = table[name]
            equal = pc.equal(column.slice(1), column.slice(0, table.num_rows - 1))
            same &= equal.to_numpy(zero_copy_only=False).astype(bool)
        if same.any():
            position = int(np.flatnonzero(same)[0])
            row = {name: table[name][position].as_py() for name in self.key}
            raise SchemaError(
                f"{self.name}: key {row} occurs twice, expected unique keys. "
                "Drop or rename the repeated row."
            )

    def _check_finite(self, field: pa.Field, column: pa.ChunkedArray) -> None:
        values = column
        if pa.types.is_fixed_size_list(field.type) or pa.types.is_large_list(field.type):
            values = pc.list_flatten(column)
        if not pa.types.is_floating(values.type):
            return
        finite = pc.is_finite(values)
        if not pc.all(finite, skip_nulls=True, min_count=0).as_py():
            bad = int(pc.sum(pc.invert(finite)).as_py())
            raise SchemaError(
                f"{self.name}: column {field.name} holds {bad} NaN or infinite values, expected "
                "finite numbers. Look for an overflow in the model or lower its precision demands."
            )


def _matches(declared: pa.DataType, found: pa.DataType) -> bool:
    """Whether a column of the type `found` may stand where `declared` is declared."""
    if pa.types.is_list(declared) and pa.types.is_floating(declared.value_type):
        values = {declared.value_type}
        if pa.types.is_float32(declared.value_type):
            values.add(pa.float16())
        return bool(pa.types.is_fixed_size_list(found) and found.value_type in values)
    return bool(declared == found)
