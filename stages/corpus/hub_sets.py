"""Data sets of the hub: their files where they are Parquet, and otherwise what `datasets` reads.

A data set of Parquet files is read file by file, as any other source of that type is. Of others the
types of the columns are those that `datasets` finds; they are streamed, past its cache, unless they
are in it already. Without the hub (HF_HUB_OFFLINE) the cache is all there is.
"""

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa

from stages.corpus.cells import SourceRows, from_table
from stages.corpus.huggingface import advice, as_data_error, class_names, quiet, select
from stages.corpus.source import Source, ending
from stages.stage import DataError


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


def stream_hub(found: HubSet, source: Source) -> SourceRows:
    """The rows that the source's split expression selects, read from the hub past the cache.

    Of `train[:1000]` no more than 1,000 rows are read.

    Raises:
        DataError: it cannot be read, or its rows do not fit together.
    """

    def reader(split: str) -> Callable[[], SourceRows]:
        def read() -> SourceRows:
            tables: list[pa.Table] = []
            left = _most_rows(source.split, split)
            with quiet(), as_data_error(source, advice()):
                rows = found.builder.as_streaming_dataset(split).with_format("arrow")
                for table in rows.iter(batch_size=1000):
                    tables.append(table if left is None else table.slice(0, left))
                    left = None if left is None else left - tables[-1].num_rows
                    if left == 0:
                        break
            if not tables:
                raise DataError(
                    f"{source.path}: found no rows, expected at least one. Name others."
                )
            try:
                if any(set(t.column_names) != set(tables[0].column_names) for t in tables):
                    raise pa.ArrowInvalid("the columns differ")
                whole = from_table(pa.concat_tables(tables, promote_options="permissive"))
            except pa.ArrowException as error:
                raise DataError(
                    f"{source.path}: found rows of the split {split} that do not fit together "
                    f"({error}), expected the same columns and types. Name one of its files as "
                    f"hf://datasets/{source.path}/FILE."
                ) from error
            return whole._replace(class_names=found.class_names(source.label))

        return read

    return select(source, {split: reader(split) for split in found.files})


def _most_rows(expression: str | None, split: str) -> int | None:
    """How many rows of a split an expression needs at most; None where its end is not a number."""
    most = 0
    for part in (expression or "").split("+"):
        if re.split(r"[\[(]", part.strip())[0] == split:
            stop = re.fullmatch(r"[^\[(]+\[\d*:(\d+)\]", part.strip())
            if stop is None:
                return None
            most = max(most, int(stop[1]))
    return most or None
