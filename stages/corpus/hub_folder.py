"""A folder as the hub has data sets: Parquet by configuration, and a card that declares it.

Written by `datasets` and `huggingface_hub`, as `push_to_hub` does, so that `load_dataset` reads the
folder and the hub shows it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.corpus.huggingface import as_dataset, quiet
from stages.corpus.json_kinds import both, kind_of_all, type_of
from stages.stage import DataError

SHARD_BYTES = 500 << 20
"""Of a Parquet file, before compression; as `push_to_hub` has it."""
SPLIT = "train"
DEFAULT = "default"
CARD = "README.md"


def write_hub_folder(
    folder: Path,
    tables: Mapping[str, pa.Table],
    card: str,
    tags: Sequence[str],
    class_names: Mapping[str, Sequence[str]],
) -> None:
    """Fills an empty folder with data sets and their card.

    Args:
        folder: The folder, which exists.
        tables: Rows by the name of their configuration, `DEFAULT` among them; each has one split.
        card: The text of the card, in Markdown, below what it declares.
        tags: Tags of the card.
        class_names: Of columns whose integers are places of classes, the names of these.

    Raises:
        DataError: there is a type of columns that `datasets` does not have.
    """
    import datasets
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard, DatasetCardData

    infos, configs = {}, {}
    for name, table in _without_json(tables).items():
        rows = _dataset(folder, table, class_names)
        place = "data" if name == DEFAULT else name
        (folder / place).mkdir()
        n_files = max(1, -(-table.nbytes // SHARD_BYTES))
        files = [
            folder / place / f"{SPLIT}-{at:05}-of-{n_files:05}.parquet" for at in range(n_files)
        ]
        with quiet():
            for at, file in enumerate(files):
                rows.shard(n_files, at, contiguous=True).to_parquet(str(file))
        splits = datasets.SplitDict()
        size = {"num_bytes": int(table.nbytes), "num_examples": int(table.num_rows)}
        splits.add(datasets.SplitInfo(name=SPLIT, **size))
        infos[name] = datasets.DatasetInfo(
            features=rows.features,
            splits=splits,
            download_size=sum(file.stat().st_size for file in files),
            dataset_size=int(table.nbytes),
        )
        configs[name] = {"data_files": [{"split": SPLIT, "path": f"{place}/{SPLIT}-*"}]}
    data: Any = DatasetCardData(tags=list(tags), size_categories=[_size(tables[DEFAULT].num_rows)])
    DatasetInfosDict(infos).to_dataset_card_data(data)
    MetadataConfigs(configs).to_dataset_card_data(data)
    DatasetCard(f"---\n{data}\n---\n\n{card}").save(folder / CARD)


def _without_json(tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """The tables with columns of JSON, such as messages, in the one type that holds their cells.

    Trainers read lists of messages. A column whose cells have no one type stays JSON.
    """
    is_json = pa.json_(pa.string())
    cells = {
        name: {
            field.name: [None if c is None else json.loads(c) for c in _texts(table[field.name])]
            for field in table.schema
            if field.type == is_json
        }
        for name, table in tables.items()
    }
    kinds: dict[str, Any] = {}
    for columns in cells.values():
        for column, values in columns.items():
            kinds[column] = both(kinds.get(column), kind_of_all(values))
    types = {column: type_of(kind) for column, kind in kinds.items() if kind is not None}
    typed = dict(tables)
    for name, columns in cells.items():
        for column, values in columns.items():
            if (kind := types.get(column)) is not None:
                place = typed[name].column_names.index(column)
                typed[name] = typed[name].set_column(place, column, pa.array(values, kind))
    return typed


def _texts(cells: pa.ChunkedArray) -> list[str | None]:
    """The JSON of the cells of a column."""
    return [text for chunk in cells.chunks for text in chunk.storage.to_pylist()]


def _dataset(folder: Path, table: pa.Table, class_names: Mapping[str, Sequence[str]]) -> Any:
    """The rows as a `datasets.Dataset`, with the names of classes.

    Raises:
        DataError: there is a type of columns that `datasets` does not have.
    """
    import datasets

    try:
        rows = as_dataset(table)
        features = rows.features.copy()
        for column in set(class_names) & set(features):
            features[column] = datasets.ClassLabel(names=list(class_names[column]))
        with quiet():
            return rows.cast(features)
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{folder}: found columns that `datasets` cannot hold ({error}), expected types that "
            "the hub knows. Name a file that ends in .parquet, .jsonl or .csv."
        ) from error


def _size(n_rows: int) -> str:
    """The category of size that the hub has for so many rows, up to ten billion."""
    ends = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B")
    place = next(at for at in range(len(ends)) if n_rows < 10 ** (at + 3))
    return f"{ends[place - 1]}<n<{ends[place]}" if place else "n<1K"
