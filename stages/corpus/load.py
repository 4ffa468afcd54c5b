"""The rows of a source as one Arrow table, and a fingerprint of the source's content."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from stages.corpus.cells import SourceRows
from stages.corpus.files import file_split
from stages.corpus.huggingface import (
    choose,
    hub_split,
    load_hub,
    saved_splits,
    split_folder,
    split_names,
)
from stages.corpus.pieces import PIECE_BYTES, Each, Reading, Split, in_turn, read_all, select
from stages.corpus.source import ENDINGS, Source, is_local, is_url, local
from stages.corpus.source_files import (
    SourceFile,
    file_on_disk,
    list_files,
    names_below,
    open_file,
)
from stages.stage import DataError

SAVED = ("state.json", "dataset_dict.json")
"""Files that a folder has which `save_to_disk` wrote."""


def fingerprint(source: Source) -> str:
    """A SHA-256 in hex that changes when a field of the source or the content of its files does.

    All bytes of its files and folders count, and so do those of reviews and of a file of features.
    A hub data set is loaded; its own fingerprint and revision count.

    Raises:
        DataError: its path names no file, folder or data set that can be read.
    """
    digest = hashlib.sha256(json.dumps(asdict(source), sort_keys=True).encode())
    files: list[SourceFile] = []
    if is_url(source.path) or is_local(source.path):
        files += list_files(source.path)
    else:
        digest.update(str(load_hub(source)._fingerprint).encode())
    files += [file for path in source.corrections for file in list_files(path)]
    if source.features_file is not None:
        files += _vectors(source.features_file)
    for file in files:
        digest.update(os.path.basename(file.path).encode() + b"\0")
        digest.update(_content(file))
    return digest.hexdigest()


def reading(source: Source, each: Each = in_turn, piece_bytes: int = PIECE_BYTES) -> Reading:
    """The rows that the source's split expression selects, as parts that are read one by one.

    Cost: the footers of Parquet files; of JSONL and CSV all bytes, which say the types of columns
    and where rows begin. That work is done by `each`.

    Raises:
        DataError: the path names nothing that can be read, the split is unknown, or the files do
            not fit together.
    """
    splits: dict[str, Callable[[], Split]]
    files = files_by_split(source)
    if files is not None:
        splits = {
            name: partial(file_split, of_split, source, each, piece_bytes)
            for name, of_split in files.items()
        }
    elif is_local(source.path):
        splits = saved_splits(local(source.path), source, piece_bytes)
    else:
        # The hub has evaluated the expression.
        split = hub_split(source, piece_bytes)
        return select(source, {"": split}, [("", 0, split.n_rows)])
    return choose(source, splits)


def load(source: Source) -> SourceRows:
    """All rows that the source's split expression selects, and those that could not be read.

    Raises:
        DataError: see `reading`.
    """
    return read_all(reading(source))


def load_file(path: str) -> SourceRows:
    """All rows of a file, URL or glob, as `load` returns them.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    source = Source(path=path, label=None)
    split = file_split(list_files(path), source, in_turn, PIECE_BYTES)
    return read_all(select(source, {"": split}, [("", 0, split.n_rows)]))


def files_by_split(source: Source) -> dict[str, tuple[SourceFile, ...]] | None:
    """The data files of a source by split, each in the order of its rows.

    A file or pattern is one split, `train`; those of a folder are told by the names of its files.
    None for what the library `datasets` reads: a saved folder, or a data set of the hub.

    Raises:
        DataError: the path names nothing that can be read.
        storage.schema.StorageError: a store or server refuses, or cannot be reached.
    """
    path = source.path
    if not is_url(path) and not is_local(path):
        return None
    if not is_url(path) and os.path.isdir(local(path)):
        if any(os.path.exists(os.path.join(local(path), name)) for name in SAVED):
            return None
        folder = split_folder(local(path), source)
        return {split: tuple(map(file_on_disk, files)) for split, files in folder.items()}
    files = list_files(path)
    below = names_below(path, files)
    if below is None:
        return {"train": files}
    if set(SAVED) & set(below):
        raise DataError(
            f"{path}: found a folder that save_to_disk wrote, expected data files with an ending "
            f"among {ENDINGS}: such a folder can be read on disk only. Copy it, or write the data "
            "set with to_parquet."
        )
    splits = split_names(list(below), source)
    return {split: tuple(below[name] for name in names) for split, names in splits.items()}


def _content(file: SourceFile) -> bytes:
    """What changes with the content of a file: its SHA-256, at a URL that of its version."""
    if is_url(file.path) and file.version is not None:
        return hashlib.sha256(json.dumps([file.bytes, file.version]).encode()).digest()
    with open_file(file.path) as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _vectors(path: str) -> tuple[SourceFile, ...]:
    try:
        return list_files(path)
    except DataError as error:
        raise DataError(
            f"{path}: found no such file, expected the vectors that features names, as numpy.save "
            "writes them. Correct features."
        ) from error
