"""The rows of a source as one Arrow table, and a fingerprint of the source's content."""

import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial

from stages.corpus.cells import SourceRows
from stages.corpus.files import file_split
from stages.corpus.hub_sets import HubSet, hub_set, is_streamed, streamed_splits
from stages.corpus.huggingface import (
    choose,
    hub_split,
    load_hub,
    saved_splits,
    split_folder,
    split_names,
)
from stages.corpus.known_hashes import hashes, note_key
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
from storage.table import Store

SAVED = ("state.json", "dataset_dict.json")
"""Files that a folder has which `save_to_disk` wrote."""


def fingerprint(source: Source, store: Store | None = None, is_dry: bool = False) -> str:
    """A SHA-256 in hex that changes when a field of the source or the content of its files does.

    All bytes of its files and folders count, and so do those of reviews and of a file of features.
    Those of local files are read where a note in `store` does not say that they are known
    (`stages.corpus.known_hashes`); the note is kept up to date unless the reading is dry. Of files
    at URLs the size and the version count that the store or server tells; where it tells none, the
    bytes. A hub data set is loaded; its own fingerprint and revision count.

    Raises:
        DataError: its path names no file, folder or data set that can be read.
        storage.schema.StorageError: a store or server refuses, or cannot be reached.
    """
    begun_ns = time.time_ns()
    digest = hashlib.sha256(json.dumps(asdict(source), sort_keys=True).encode())
    files: list[SourceFile] = []
    if not _is_on_hub(source.path):
        files += list_files(source.path)
    else:
        found = hub_set(source)
        if found is None:
            digest.update(str(load_hub(source)._fingerprint).encode())
        elif (by_split := _parquet_files(found)) is None:
            digest.update(found.version.encode())
        else:
            told = [found.class_names(source.label), {s: len(by_split[s]) for s in by_split}]
            digest.update(json.dumps(told).encode())
            files += itertools.chain.from_iterable(by_split.values())
    files += [file for path in source.corrections for file in list_files(path)]
    if source.features_file is not None:
        files += _vectors(source.features_file)
    on_disk = [file for file in files if not is_url(file.path)]
    known = hashes(on_disk, begun_ns, note_key(source), store, is_dry)
    for file in files:
        digest.update(_name(file, source).encode() + b"\0")
        is_known = file.path in known
        digest.update(bytes.fromhex(known[file.path]) if is_known else _told(file))
    return digest.hexdigest()


def reading(source: Source, each: Each = in_turn, piece_bytes: int = PIECE_BYTES) -> Reading:
    """The rows that the source's split expression selects, as parts that are read one by one.

    Cost: the footers of Parquet files; of JSONL and CSV all bytes, which say the types of columns
    and where rows begin. That work is done by `each`.

    Raises:
        DataError: the path names nothing that can be read, the split is unknown, or the files do
            not fit together.
        storage.schema.StorageError: a store or server refuses, or cannot be reached.
    """

    def splits(files: Mapping[str, tuple[SourceFile, ...]]) -> dict[str, Callable[[], Split]]:
        return {
            name: partial(file_split, of_split, source, each, piece_bytes)
            for name, of_split in files.items()
        }

    if not _is_on_hub(source.path):
        files = files_by_split(source)
        if files is None:
            return choose(source, saved_splits(local(source.path), source, piece_bytes))
        return choose(source, splits(files))
    found = hub_set(source)
    by_split = _parquet_files(found) if found is not None else None
    if found is None or (by_split is None and not is_streamed(found, source)):
        # `datasets` evaluates the expression itself.
        split = hub_split(source, piece_bytes)
        return select(source, {"": split}, [("", 0, split.n_rows)])
    if by_split is None:
        return choose(source, streamed_splits(found, source))
    read = choose(source, splits(by_split))
    names = read.empty.class_names or found.class_names(source.label)
    return read._replace(empty=read.empty._replace(class_names=names))


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
    None for what the library `datasets` reads: a saved folder, or a data set of the hub that is
    not in Parquet.

    Raises:
        DataError: the path names nothing that can be read.
        storage.schema.StorageError: a store or server refuses, or cannot be reached.
    """
    path = source.path
    if _is_on_hub(path):
        found = hub_set(source)
        return None if found is None else _parquet_files(found)
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


def _is_on_hub(path: str) -> bool:
    return not is_url(path) and not is_local(path)


def _parquet_files(found: HubSet) -> dict[str, tuple[SourceFile, ...]] | None:
    """The files of a data set of the hub by split, by its listing; None unless all are Parquet."""
    if not found.is_parquet:
        return None
    urls = itertools.chain.from_iterable(found.files.values())
    commits = {match[0] for url in urls if (match := re.match("hf://datasets/[^@]+@[^/]+", url))}
    listed = {file.path: file for commit in sorted(commits) for file in list_files(commit)}
    return {split: tuple(listed[url] for url in urls) for split, urls in found.files.items()}


def _name(file: SourceFile, source: Source) -> str:
    """The name of a file below the folder of its source, which tells its split; of others its own.

    A folder that was moved has the same names.
    """
    whole = source.path if is_url(source.path) else local(source.path)
    root = f"{whole.rstrip('/')}/"
    name = file.path.removeprefix(root)
    return name if name != file.path else os.path.basename(name)


def _told(file: SourceFile) -> bytes:
    """A SHA-256 that changes with a file at a URL, as far as its store or server tells."""
    if file.version is not None:
        return hashlib.sha256(json.dumps([file.bytes, file.version]).encode()).digest()
    with open_file(file) as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _vectors(path: str) -> tuple[SourceFile, ...]:
    try:
        return list_files(path)
    except DataError as error:
        raise DataError(
            f"{path}: found no such file, expected the vectors that features names, as numpy.save "
            "writes them. Correct features."
        ) from error
