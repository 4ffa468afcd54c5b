"""Parquet files as pieces of whole row groups; a large group is cut into ranges of rows."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stages.corpus.cells import SourceRows, as_schema
from stages.corpus.pieces import Each, Layout, Split, in_order, one_list
from stages.corpus.source import Source
from stages.corpus.source_files import SourceFile, open_file
from stages.stage import DataError
from storage.parquet_rows import RowGroups

_CHUNK_ROWS = 1 << 15
_ROW_BYTES = 160
"""Taken for the size of a row that is shorter: as Python's objects it is not."""


@dataclass(frozen=True)
class ParquetPiece:
    """Rows of some consecutive row groups of a file."""

    path: str
    """Of the source, for errors."""
    file: SourceFile
    groups: tuple[int, ...]
    start: int
    """First row, counted from that of the first group."""
    n_rows: int
    is_whole: bool
    """Whether these are all rows of the groups."""

    def read(self, layout: Layout) -> SourceRows:
        """The rows, in the types of the layout."""
        try:
            table = self._whole() if self.is_whole else self._range()
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(self.file.path, error) from error
        try:
            table = table.replace_schema_metadata(None)
            return layout.rows(as_schema(table, layout.schema))
        except pa.ArrowException as error:
            raise _unlike(self.path, error) from error

    def _whole(self) -> pa.Table:
        with open_file(self.file) as stream:
            fragment = _fragment(stream).subset(row_group_ids=list(self.groups))
            return fragment.to_table(use_threads=False)

    def _range(self) -> pa.Table:
        reading = _reading_at(self)
        stop = self.start + self.n_rows
        is_left_open = False
        try:
            table = reading.read(self.start, stop).combine_chunks()
            # Of a file without a version nobody would see that it has changed.
            is_left_open = self.file.version is not None and reading.at < reading.n_rows
        finally:
            if is_left_open:
                _left_open.append((self.file, self.groups, reading))
            else:
                reading.close()
        # As Parquet is written, the bytes of a shard depend on the chunks of its cells.
        cuts = range(self.start - self.start % _CHUNK_ROWS, stop, _CHUNK_ROWS)
        parts = [(max(at, self.start), min(at + _CHUNK_ROWS, stop)) for at in cuts]
        return pa.concat_tables(table.slice(a - self.start, b - a) for a, b in parts)


_left_open: list[tuple[SourceFile, tuple[int, ...], RowGroups]] = []
"""The last reading of a range of rows in this process: the next range often follows it."""


def _reading_at(piece: ParquetPiece) -> RowGroups:
    """A reading of the groups of a piece that is not beyond its first row."""
    stream = open_file(piece.file)  # It raises where the file has changed.
    if _left_open:
        file, groups, reading = _left_open.pop()
        if (file, groups) == (piece.file, piece.groups) and reading.at <= piece.start:
            stream.close()
            return reading
        reading.close()
    return RowGroups(stream, piece.groups)


def parquet_split(
    files: Sequence[SourceFile], source: Source, each: Each, piece_bytes: int
) -> Split:
    """All rows of the files; columns of several widths get the widest, if nothing is lost.

    Raises:
        DataError: a file cannot be read, the files do not fit together, or there is no row.
    """
    found = in_order(each, _look, (source, piece_bytes), files)
    first = found[0][0]
    for file, (schema, _) in zip(files, found, strict=True):
        if set(schema.names) != set(first.names):
            raise DataError(
                f"{file.path}: found columns {schema.names}, expected {first.names} as "
                f"in {files[0].path}. Write the files again, with the same columns in each."
            )
    names = one_list(source.path, [_class_names(schema, source) for schema, _ in found])
    plain = [schema.remove_metadata() for schema, _ in found]
    try:
        schema = pa.unify_schemas(plain, promote_options="permissive")
        for other in plain:
            other.empty_table().select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise _unlike(source.path, error) from error
    pieces = tuple(piece for _, of_file in found for piece in of_file)
    if not pieces:
        raise DataError(f"{source.path}: found no rows, expected at least one. Fill the file.")
    return Split(Layout(schema, class_names=names), pieces)


def _look(
    shared: tuple[Source, int], file: SourceFile
) -> tuple[pa.Schema, tuple[ParquetPiece, ...]]:
    """The columns of a file, and its pieces, from its footer alone."""
    source, piece_bytes = shared
    try:
        with open_file(file) as stream:
            fragment = _fragment(stream)
            schema = _as_stored(fragment.physical_schema)
            groups = [
                (g.id, g.num_rows, max(g.total_byte_size, g.num_rows * _ROW_BYTES))
                for g in fragment.row_groups
            ]
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file.path, error) from error
    twice = [name for name, times in Counter(schema.names).items() if times > 1]
    if twice:
        raise DataError(
            f"{file.path}: found several columns that are called {', '.join(twice)}, expected "
            "names of their own. Rename all but one."
        )
    pieces: list[ParquetPiece] = []
    together: list[int] = []
    rows = size = 0
    for at, (group, n_rows, n_bytes) in enumerate(groups):
        together.append(group)
        rows, size = rows + n_rows, size + n_bytes
        is_last = at + 1 == len(groups)
        if not is_last and size + groups[at + 1][2] <= piece_bytes:
            continue
        step = max(1, -(-rows // max(1, round(size / piece_bytes))))
        for start in range(0, rows, step):
            part = min(step, rows - start)
            piece = ParquetPiece(source.path, file, tuple(together), start, part, part == rows)
            pieces.append(piece)
        together, rows, size = [], 0, 0
    return schema, tuple(pieces)


def _as_stored(schema: pa.Schema) -> pa.Schema:
    """The columns of a file, types of other libraries as the lists and numbers that they hold.

    Such are tensors. Whether a type is known depends on what the process has imported.
    """
    for at, field in enumerate(schema):
        is_own = field.type in (pa.json_(pa.string()), pa.uuid())
        if isinstance(field.type, pa.BaseExtensionType) and not is_own:
            schema = schema.set(at, pa.field(field.name, field.type.storage_type))
    return schema


def _fragment(stream: Any) -> Any:
    import pyarrow.dataset  # It imports pandas, which `assay --help` should not pay for.

    return pyarrow.dataset.ParquetFileFormat().make_fragment(stream)


def _unreadable(path: str, error: Exception) -> DataError:
    return DataError(
        f"{path}: found a file that cannot be loaded ({error}), expected Parquet. Write "
        "the file again."
    )


def _unlike(path: str, error: Exception) -> DataError:
    return DataError(
        f"{path}: found columns of types that do not fit together ({error}), expected "
        "one type in all files. Write the files again, with the same types in each."
    )


def _class_names(schema: pa.Schema, source: Source) -> tuple[str, ...] | None:
    """The names of the label's classes that `datasets` has written into a file; None without."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[source.label]
    except (KeyError, TypeError, ValueError):
        return None
    is_class = isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    return tuple(feature["names"]) if is_class and feature.get("names") else None
