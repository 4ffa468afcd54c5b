"""The rows of a source as one Arrow table, and a fingerprint of the source's content."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from stages.corpus.cells import SourceRows
from stages.corpus.files import read_files
from stages.corpus.huggingface import files_by_split, from_dataset, load_hub, load_saved, select
from stages.corpus.source import Source, is_local, local, matches
from stages.stage import DataError


def fingerprint(source: Source) -> str:
    """A SHA-256 in hex that changes when a field of the source or the content of its files does.

    All bytes of its files and folders count, and so do those of reviews and of a file of features.
    A hub data set is loaded; its own fingerprint and revision count.

    Raises:
        DataError: its path names no file, folder or data set that can be read.
    """
    digest = hashlib.sha256(json.dumps(asdict(source), sort_keys=True).encode())
    if not is_local(source.path):
        digest.update(str(load_hub(source)._fingerprint).encode())
        files: list[str] = []
    elif os.path.isdir(local(source.path)):
        files = sorted(str(f) for f in Path(local(source.path)).rglob("*") if f.is_file())
    else:
        files = matches(source.path)
    files += [match for path in source.corrections for match in matches(path)]
    if source.features_file is not None:
        files.append(_checked(source.features_file))
    for file in files:
        with open(file, "rb") as stream:
            digest.update(os.path.basename(file).encode() + b"\0")
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def load(source: Source) -> SourceRows:
    """All rows that the source's split expression selects, and those that could not be read.

    Raises:
        DataError: the path names nothing that can be read, the split is unknown, or the files do
        not fit
            together.
    """
    if not is_local(source.path):
        return from_dataset(load_hub(source), source)
    path = local(source.path)
    if os.path.isdir(path):
        if any(os.path.exists(os.path.join(path, f)) for f in ("state.json", "dataset_dict.json")):
            return load_saved(path, source)
        return _choose(source, files_by_split(path, source))
    return _choose(source, {"train": matches(source.path)})


def load_file(path: str) -> SourceRows:
    """All rows of a local file or glob, as `load` returns them.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    return read_files(matches(path), Source(path=path, label=None))


def _checked(path: str) -> str:
    if not os.path.isfile(local(path)):
        raise DataError(
            f"{path}: found no such file, expected the vectors that features names, as numpy.save "
            "writes them. Correct features."
        )
    return local(path)


def _choose(source: Source, files: Mapping[str, list[str]]) -> SourceRows:
    def reader(names: list[str]) -> Callable[[], SourceRows]:
        return lambda: read_files(names, source)

    return select(source, {split: reader(names) for split, names in files.items()})
