"""The library `datasets`, which no other module imports but `hub_sets` and `hub_folder`.

It loads data sets of the hub and saved folders, finds the splits of a folder of files, and parses
split expressions. Its errors become a DataError, and it prints nothing.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.corpus.cells import SourceRows
from stages.corpus.pieces import Layout, Reading, Split, select
from stages.corpus.remote_file import changed
from stages.corpus.source import ENDINGS, KINDS, Source, ending
from stages.corpus.source_files import list_files
from stages.corpus.yaml_value import in_yaml
from stages.stage import DataError
from storage.manifest import digest

COMPRESSED = (".bz2", ".gz", ".lz4", ".xz", ".zip", ".zst")
"""Endings of files that `datasets` reads and we do not."""


def load_hub(source: Source) -> Any:
    """The `datasets.Dataset` that the source names on the hub, or in its cache.

    Raises:
        DataError: it cannot be loaded, or has several splits and none is named.
    """
    import datasets

    with quiet(), as_data_error(source, advice()):
        found = datasets.load_dataset(
            source.path, source.name, split=source.split, revision=source.revision
        )
    if isinstance(found, datasets.Dataset):
        return found
    if len(found) == 1:
        return next(iter(found.values()))
    raise DataError(
        f"{source.path}: found the splits {', '.join(found)}, expected to be told which. "
        f"Set split, for example split: {in_yaml(next(iter(found)))}."
    )


def advice() -> str:
    """What to do about a data set of the hub that cannot be loaded."""
    import datasets

    if datasets.config.HF_HUB_OFFLINE:
        return (
            "No file or folder here has that name, and HF_HUB_OFFLINE is set, so that of the hub "
            "only data sets in the cache can be loaded: unset it, or point path to a local copy."
        )
    return (
        "No file or folder here has that name. Correct path, name or revision, and log in if the "
        "data set is private."
    )


def saved_splits(path: str, source: Source, piece_bytes: int) -> dict[str, Callable[[], Split]]:
    """The splits of a folder that `save_to_disk` wrote, as functions that cut them into pieces."""
    version = _version(path)
    return {
        name: partial(_split, DatasetPiece(source, version, path, name), rows, piece_bytes)
        for name, rows in _saved(source, path).items()
    }


def hub_split(source: Source, piece_bytes: int) -> Split:
    """The rows of a data set of the hub, or in its cache, as pieces; see `load_hub`."""
    dataset = load_hub(source)
    return _split(DatasetPiece(source, str(dataset._fingerprint)), dataset, piece_bytes)


@dataclass(frozen=True)
class DatasetPiece:
    """Rows of a data set that `datasets` opens; they lie in Arrow files, which are mapped."""

    source: Source
    version: str
    """Another one where the data set is: what was opened before is not it."""
    folder: str | None = None
    """A folder that `save_to_disk` wrote; None for the hub."""
    split: str = ""
    start: int = 0
    n_rows: int = 0

    def read(self, layout: Layout) -> SourceRows:
        """The rows; those with bytes that are not UTF-8 are among the faults."""
        opened = _opened(self.source, self.version, self.folder)
        if self.folder is not None and _version(self.folder) != self.version:
            raise changed(self.folder)
        dataset = opened[self.split] if self.folder is not None else opened
        with quiet(), as_data_error(self.source, "Write the data set again."):
            table = dataset.with_format("arrow")[self.start : self.start + self.n_rows]
        return layout.rows(table.replace_schema_metadata(None))


def _split(piece: DatasetPiece, dataset: Any, piece_bytes: int) -> Split:
    """All rows of a `datasets.Dataset` as pieces."""
    names = class_names(dataset.features.get(piece.source.label))
    n_rows = len(dataset)
    step = max(1, n_rows * piece_bytes // max(dataset.data.nbytes, piece_bytes))
    pieces = [
        replace(piece, start=start, n_rows=min(step, n_rows - start))
        for start in range(0, n_rows, step)
    ]
    schema = dataset.with_format("arrow")[:0].schema.remove_metadata()
    return Split(Layout(schema, class_names=names), tuple(pieces))


@lru_cache(maxsize=1)
def _opened(source: Source, version: str, folder: str | None) -> Any:
    """The data set of a source, which stays open for its next piece."""
    return load_hub(source) if folder is None else _saved(source, folder)


def _version(folder: str) -> str:
    """Another one where somebody has touched a file of a folder."""
    return digest(list_files(folder))


def _saved(source: Source, path: str) -> dict[str, Any]:
    """The splits of a folder that `save_to_disk` wrote."""
    told = Path(path, "dataset_dict.json")
    with quiet(), as_data_error(source, "Write the folder again with save_to_disk."):
        if told.exists():
            splits = json.loads(told.read_text(encoding="utf-8"))["splits"]
            return {split: _saved_rows(Path(path, split)) for split in splits}
        saved = _saved_rows(Path(path))
    return {str(saved.split or "train"): saved}


def _saved_rows(folder: Path) -> Any:
    """The rows in a folder; where there are none `datasets` has written no file and reads none."""
    import datasets

    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if state["_data_files"]:
        return datasets.load_from_disk(str(folder))
    features = datasets.DatasetInfo.from_directory(str(folder)).features
    return datasets.Dataset.from_dict({name: [] for name in features}, features)


def as_dataset(rows: pa.Table) -> Any:
    """The rows of an Arrow table as a `datasets.Dataset`, in memory."""
    import datasets

    return datasets.Dataset(datasets.table.InMemoryTable(rows))


def class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of the classes of a column, by what `datasets` has as its type."""
    import datasets

    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def choose(source: Source, splits: Mapping[str, Callable[[], Split]]) -> Reading:
    """The rows that the source's split expression selects; only the splits it names are looked at.

    `splits` maps the name of each split to a function that gives its pieces.

    Raises:
        DataError: the expression is malformed, names an unknown split, or is missing though there
            are several splits.
    """
    found = ", ".join(splits)
    expression = source.split or (next(iter(splits)) if len(splits) == 1 else None)
    if expression is None:
        raise DataError(
            f"{source.path}: found the splits {found}, expected to be told which. "
            f"Set split, for example split: {in_yaml(next(iter(splits)))}."
        )
    expression = "+".join(splits) if expression == "all" else expression
    terms = [term.strip() for term in expression.split("+")]
    named = [re.split(r"[\[(]", term)[0] for term in terms]
    unknown = [name for name in named if name not in splits]
    if unknown:
        raise DataError(
            f"{source.path}: found the splits {found}, expected {unknown[0]!r} among them. "
            "Correct split; a file or glob is one split, train."
        )
    looked_at = {name: splits[name]() for name in dict.fromkeys(named)}
    n_rows = {name: split.n_rows for name, split in looked_at.items()}
    if terms == named:
        return select(source, looked_at, [(name, 0, n_rows[name]) for name in named])
    import datasets  # A second that whole splits need not pay for.

    try:
        instruction = datasets.ReadInstruction.from_spec(expression)
        parts = instruction.to_absolute(n_rows)
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"{source.path}: found the split expression {expression!r} ({error}), expected one "
            "such as train, train[:1000] or train[:50%]. Correct split."
        ) from error
    chosen = [
        (part.splitname, part.from_ or 0, n_rows[part.splitname] if part.to is None else part.to)
        for part in parts
    ]
    return select(source, looked_at, chosen)


def split_names(names: Sequence[str], source: Source) -> dict[str, list[str]]:
    """The data files among `names`, relative to their folder, by split; see `split_folder`.

    Raises:
        DataError: there are no data files, or a file has the name of a folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Files without content: `datasets` would list an object store again for every pattern.
        for name in names:
            place = Path(folder, name)
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch(exist_ok=False)
            except OSError as error:
                raise DataError(
                    f"{source.path}: found {name}, which is the name of a folder, too, expected "
                    f"names that a disk can have. Write a pattern such as {source.path}/*.parquet."
                ) from error
        splits = split_folder(folder, source)
        return {s: [os.path.relpath(f, folder) for f in files] for s, files in splits.items()}


def split_folder(folder: str, source: Source) -> dict[str, list[str]]:
    """The data files of a local folder by split, which `load_dataset` infers from their names.

    The names of the folder itself and of those above it count for nothing.

    Raises:
        DataError: the folder has no data files, or some of a split are compressed.
    """
    from datasets.data_files import DataFilesList, get_data_patterns

    found: dict[str, list[str]] = {}
    # `datasets` takes the whole path for a pattern: it sees a link whose name has no signs of one.
    with tempfile.TemporaryDirectory() as place:
        link = os.path.join(place, "folder")
        os.symlink(folder, link, target_is_directory=True)
        with suppress(FileNotFoundError):
            for split, globs in get_data_patterns(link).items():
                files = map(str, DataFilesList.from_patterns(globs, base_path=link))
                own = [os.path.join(folder, os.path.relpath(file, link)) for file in files]
                found[str(split)] = sorted(f for f in own if ending(f) in KINDS)
                if found[str(split)]:
                    _refuse_compressed(own, folder, source)
    found = {split: files for split, files in found.items() if files}
    if not found:
        raise DataError(
            f"{source.path}: found a folder without dataset_info.json and without data files, "
            f"expected one written by save_to_disk or files with an ending among {ENDINGS}. "
            "Name the folder one level up or down, or write a glob such as folder/*.parquet."
        )
    return found


def _refuse_compressed(files: Sequence[str], folder: str, source: Source) -> None:
    """Raises where a split would lack the rows of a compressed file; a copy of another lacks none.

    Raises:
        DataError: there is such a file.
    """
    for file in files:
        plain, how = os.path.splitext(file)
        if how in COMPRESSED and ending(plain) in KINDS and plain not in files:
            raise DataError(
                f"{source.path}: found {os.path.relpath(file, folder)} beside files that are not "
                "compressed, expected none that is, as its rows would be missing. Decompress it, "
                "or write a glob of the files that are meant."
            )


@contextmanager
def as_data_error(source: Source, advice: str) -> Iterator[None]:
    """Turns whatever a reader of `datasets` raises into a DataError that ends with `advice`."""
    try:
        yield
    except Exception as error:
        if "corresponds to no data" in str(error):  # What `datasets` says of a table without rows.
            raise DataError(
                f"{source.path}: found no rows, expected at least one. Fill the file."
            ) from error
        cause = error.__cause__ or error
        raise DataError(
            f"{source.path}: found data that cannot be loaded ({type(cause).__name__}: {cause}), "
            f"expected a readable data set. {advice}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silences progress bars and logs of `datasets` and the hub client inside of the block."""
    import datasets
    import huggingface_hub.utils as hub

    bars = [
        module
        for module in (datasets, hub)
        if not (datasets.utils if module is datasets else hub).are_progress_bars_disabled()
    ]
    levels = [(module, module.get_verbosity()) for module in (datasets.logging, hub.logging)]
    for module in bars:
        module.disable_progress_bars()
    for module, _ in levels:
        module.set_verbosity(module.CRITICAL)
    try:
        yield
    finally:
        for module in bars:
            module.enable_progress_bars()
        for module, level in levels:
            module.set_verbosity(level)
