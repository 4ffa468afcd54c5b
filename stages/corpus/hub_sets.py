"""Data sets of the hub: their files where they are Parquet, and otherwise what `datasets` reads.

A data set of Parquet files is read file by file, as any other source of that type is. Of others the
types of the columns are those that `datasets` finds, which puts them into its cache; where the
split expression names few rows, such as `train[:1000]`, these alone are streamed. Without the hub
(HF_HUB_OFFLINE) the cache is all there is.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from stages.corpus.cells import SourceRows, as_schema
from stages.corpus.huggingface import advice, as_data_error, class_names, quiet
from stages.corpus.pieces import Layout, Split
from stages.corpus.source import Source, ending
from stages.stage import DataError

STREAMED_ROWS = 100_000
"""Most rows that are streamed: the driver holds them."""


class HubSet(NamedTuple):
    """A data set of the hub as its commit has it; nothing but names is loaded."""

    builder: Any
    """What `datasets` reads it with."""
    files: dict[str, list[str]]
    """URLs of its data files, by split."""

    @property
    def is_parquet(self) -> bool:
        """Whether it consists of Parquet files, of which all rows and columns are wanted."""
        config = self.builder.config
        is_whole = not any(getattr(config, name, None) for name in ("columns", "filters"))
        return is_whole and {ending(f) for urls in self.files.values() for f in urls} == {
            ".parquet"
        }

    @property
    def is_cached(self) -> bool:
        """Whether `datasets` has it in its cache, as a table that need not be downloaded."""
        return os.path.isdir(self.builder.cache_dir)

    @property
    def version(self) -> str:
        """Changes with the commit and the configuration of the data set."""
        return f"{self.builder.hash} {self.builder.config_id}"

    def class_names(self, column: str | None) -> tuple[str, ...] | None:
        """The names of the classes of a column that the data set declares as a `ClassLabel`."""
        return class_names((self.builder.info.features or {}).get(column))


def hub_set(source: Source) -> HubSet | None:
    """The data set that the source names on the hub; None where that cannot or may not be asked.

    Raises:
        DataError: there is no such data set, or no such configuration of it.
    """
    import datasets

    if datasets.config.HF_HUB_OFFLINE:
        return None
    with quiet(), as_data_error(source, advice()):
        builder = datasets.load_dataset_builder(source.path, source.name, revision=source.revision)
    files = builder.config.data_files
    if not files or any(not url.startswith("hf://") for urls in files.values() for url in urls):
        return None
    return HubSet(builder, {str(split): list(map(str, urls)) for split, urls in files.items()})


def is_streamed(found: HubSet, source: Source) -> bool:
    """Whether a data set that is not in Parquet is read past the cache of `datasets`.

    It is where the cache does not have it and its split expression names few rows. Of others tasks
    read single rows from the cache, which holds them on disk.
    """
    most = [most_rows(source.split, split) for split in found.files]
    is_bounded = all(rows is not None and rows <= STREAMED_ROWS for rows in most)
    return is_bounded and not found.is_cached


def streamed_splits(found: HubSet, source: Source) -> dict[str, Callable[[], Split]]:
    """The splits of a data set, read from the hub past the cache, as functions that look at them.

    Each is one piece, which is streamed once to learn its columns and whenever it is read.
    """
    return {split: partial(_look, found, source, split) for split in found.files}


@dataclass(frozen=True)
class StreamedPiece:
    """The rows of a split that the source's split expression needs, streamed from the hub."""

    source: Source
    split: str
    n_rows: int

    def read(self, layout: Layout) -> SourceRows:
        """The rows; those with bytes that are not UTF-8 are among the faults."""
        found = hub_set(self.source)
        if found is None:
            raise DataError(
                f"{self.source.path}: found no way to the hub any more, expected its rows. Give "
                "the same command again once it can be reached."
            )
        tables = list(_tables(found, self.source, self.split))
        try:
            joined = pa.concat_tables(tables, promote_options="permissive")
            whole = as_schema(joined, layout.schema)
        except pa.ArrowException as error:
            raise _unlike(self.source, self.split, error) from error
        return layout.rows(whole)


def _look(found: HubSet, source: Source, split: str) -> Split:
    """The rows of a split as one piece.

    Raises:
        DataError: it cannot be read, has no rows, or they do not fit together.
    """
    schema: pa.Schema | None = None
    n_rows = 0
    try:
        for table in _tables(found, source, split):
            own = table.schema.remove_metadata()
            if schema is not None and set(own.names) != set(schema.names):
                raise pa.ArrowInvalid("the columns differ")
            schemas = [own] if schema is None else [schema, own]
            schema = pa.unify_schemas(schemas, promote_options="permissive")
            n_rows += table.num_rows
    except pa.ArrowException as error:
        raise _unlike(source, split, error) from error
    if schema is None:
        raise DataError(f"{source.path}: found no rows, expected at least one. Name others.")
    layout = Layout(schema, class_names=found.class_names(source.label))
    return Split(layout, (StreamedPiece(source, split, n_rows),))


def _tables(found: HubSet, source: Source, split: str) -> Iterator[pa.Table]:
    """The rows of a split, some at a time; of `train[:1000]` no more than 1,000 are read."""
    left = most_rows(source.split, split)
    with quiet(), as_data_error(source, advice()):
        rows = found.builder.as_streaming_dataset(split).with_format("arrow")
        batches = iter(rows.iter(batch_size=1000))
    while left is None or left > 0:
        with quiet(), as_data_error(source, advice()):
            table = next(batches, None)
        if table is None:
            return
        table = table if left is None else table.slice(0, left)
        left = None if left is None else left - table.num_rows
        yield table


def _unlike(source: Source, split: str, error: Exception) -> DataError:
    return DataError(
        f"{source.path}: found rows of the split {split} that do not fit together "
        f"({error}), expected the same columns and types. Name one of its files as "
        f"hf://datasets/{source.path}/FILE."
    )


def most_rows(expression: str | None, split: str) -> int | None:
    """How many first rows of a split an expression such as `train[:100]+test` needs.

    None where its end is not a number.
    """
    if expression is None:
        return None
    most = 0
    for part in expression.split("+"):
        if re.split(r"[\[(]", part.strip())[0] in (split, "all"):
            stop = re.fullmatch(r"[^\[(]+\[\d*:(\d+)\]", part.strip())
            if stop is None:
                return None
            most = max(most, int(stop[1]))
    return most
