"""Data sets of the hub: their files where they are Parquet, and otherwise what `datasets` reads.

A data set of Parquet files is read file by file, as any other source of that type is. Of others the
types of the columns are those that `datasets` finds, which puts them into its cache; where the
split expression names few rows, such as `train[:1000]`, these alone are streamed. Without the hub
(HF_HUB_OFFLINE) the cache is all there is.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from stages.corpus.cells import SourceRows
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


@dataclass(frozen=True)
class TablePiece:
    """Rows that are read already."""

    table: pa.Table
    n_rows: int

    def read(self, layout: Layout) -> SourceRows:
        """The rows; those with bytes that are not UTF-8 are among the faults."""
        return layout.rows(self.table)


def streamed(found: HubSet, source: Source) -> dict[str, Callable[[], Split]] | None:
    """The splits of a data set, cut after the last row that the split expression names.

    Only these rows are read, past the cache. None where they are more than `STREAMED_ROWS` or not
    named by number, and where the cache has the data set: there, tasks can read single rows.
    """
    most = {split: most_rows(source.split, split) for split in found.files}
    is_bounded = all(rows is not None and rows <= STREAMED_ROWS for rows in most.values())
    if found.is_cached or not is_bounded or not source.split:
        return None
    return {s: partial(_first_rows, found, source, s, rows or 0) for s, rows in most.items()}


def _first_rows(found: HubSet, source: Source, split: str, left: int) -> Split:
    """The first rows of a split.

    Raises:
        DataError: it cannot be read, has no rows, or they do not fit together.
    """
    tables: list[pa.Table] = []
    with quiet(), as_data_error(source, advice()):
        rows = found.builder.as_streaming_dataset(split).with_format("arrow")
        for table in rows.iter(batch_size=max(1, min(left, 1000))):
            tables.append(table.slice(0, left).replace_schema_metadata(None))
            left -= tables[-1].num_rows
            if left <= 0:
                break
    try:
        if not tables or any(set(t.column_names) != set(tables[0].column_names) for t in tables):
            raise pa.ArrowInvalid("the columns differ" if tables else "there are none")
        whole = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"{source.path}: found rows of the split {split} that do not fit together ({error}), "
            "expected the same columns and types. Name one of its files as "
            f"hf://datasets/{source.path}/FILE."
        ) from error
    layout = Layout(whole.schema, class_names=found.class_names(source.label))
    return Split(layout, (TablePiece(whole, whole.num_rows),))


def most_rows(expression: str | None, split: str) -> int | None:
    """How many first rows of a split an expression such as `train[:100]+test` needs.

    None where its end is not a number.
    """
    most = 0
    for part in (expression or split).split("+"):
        if re.split(r"[\[(]", part.strip())[0] in (split, "all"):
            stop = re.fullmatch(r"[^\[(]+\[\d*:(\d+)\]", part.strip())
            if stop is None:
                return None
            most = max(most, int(stop[1]))
    return most
