"""Where rows come from: a data set of the hub, a saved folder, or files, as one Arrow table.

`datasets` does the reading and is imported nowhere else. Three of its habits are not ours: one bad
byte fails a whole CSV or JSONL file, types are guessed from the first rows, and every local file
leaves a copy in the user's cache. So files are scanned first, broken rows are replaced by empty
ones and remembered with their reason, CSV is read as text and typed at the end over whole columns,
and local files are read through a private cache that is gone when the function returns.

The road not taken is reading Parquet, CSV and JSONL with pyarrow directly: it would lose the hub,
saved folders, `ClassLabel` names and split expressions, all of which users bring.
"""

import codecs
import csv
import difflib
import glob
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.stage import ConfigError, DataError

_KINDS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
_ENDINGS = ", ".join(_KINDS)
_JSON_BLOCK_BYTES = 64 << 20
_NULLS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "<NA>", "#N/A")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARK = re.compile("\ufdd0([0-9a-f]{2})\ufdd1")


@dataclass(frozen=True)
class FlipLabels:
    """Labels that are made wrong on purpose, so that finding them again can be measured."""

    fraction: float
    """Part of the labelled rows whose label is changed, in [0, 1)."""
    seed: int = 0
    """Which rows, and which of the other classes each of them gets."""

    def __post_init__(self) -> None:
        """Refuses a fraction that leaves no right label, or is none."""
        if not 0 <= self.fraction < 1:
            raise ConfigError(
                f"flip_labels.fraction: found {self.fraction}, expected a number in [0, 1). "
                "Write 0.1 to flip one label in ten."
            )


@dataclass(frozen=True)
class Source:
    """One set of rows: where it lies and which of its columns mean what."""

    path: str
    """Id of a data set on the hub, a folder written by `save_to_disk`, a folder of data files, or
    a Parquet, JSONL or CSV path or glob."""
    name: str | None = None
    """Configuration of a data set on the hub."""
    revision: str | None = None
    """Branch, tag or commit of a data set on the hub."""
    split: str | None = None
    """Split expression such as `train`, `train[:1000]` or `train[:50%]+test`; files are `train`."""
    text: str = "text"
    """Column of the text."""
    text_b: str | None = None
    """Column of the second text of a pair."""
    label: str | None = "label"
    """Column of the label; null for queries without labels."""
    id: str | None = None
    """Column that identifies a row for good; without one, the row's number does."""
    classes: tuple[str, ...] | None = None
    """Names of the classes in the order of their indices; otherwise taken from the labels."""
    flip_labels: FlipLabels | None = None
    """Labels to make wrong on purpose, on the corpus only."""
    corrections: tuple[str, ...] = ()
    """Reviewed files, applied in order: columns source_id or example_id, decision, new_label."""

    def __post_init__(self) -> None:
        """Refuses an empty path and class names that are repeated or fewer than two."""
        if not self.path:
            raise ConfigError(
                "path: found an empty string, expected a hub id, folder, file or glob. Set path."
            )
        if self.classes is not None and len(set(self.classes)) < max(2, len(self.classes)):
            raise ConfigError(
                f"classes: found {list(self.classes)}, expected at least two different names. "
                "List every class once, in the order of the label's indices."
            )


class Loaded(NamedTuple):
    """The rows of a source as they were found, before any is judged by its content.

    `table` has the source's columns and all of its rows; a row that could not be read is in
    `faults`, by row number, as (reason, what it looked like), and its cells mean nothing.
    """

    table: pa.Table
    faults: Mapping[int, tuple[str, str]]
    class_names: tuple[str, ...] | None = None
    """Names of the label column when it is a `ClassLabel`."""
    mixed: frozenset[str] = frozenset()
    """Columns that hold values of several types, each written as JSON."""
    is_typed: bool = True
    """Whether the format tells 7 from "7"; CSV does not, all its columns are text here."""


def fingerprint(source: Source) -> str:
    """A SHA-256 in hex that changes when a field of the source or the content behind it does.

    Files and folders are read whole. A hub data set is loaded; its fingerprint and revision count.

    Raises:
        DataError: nothing readable is there.
    """
    digest = hashlib.sha256(json.dumps(asdict(source), sort_keys=True).encode())
    if not _is_local(source.path):
        digest.update(str(_load_hub(source)._fingerprint).encode())
        files: list[str] = []
    elif os.path.isdir(_local(source.path)):
        files = sorted(str(f) for f in Path(_local(source.path)).rglob("*") if f.is_file())
    else:
        files = _matches(source.path)
    for file in [*files, *(match for path in source.corrections for match in _matches(path))]:
        with open(file, "rb") as stream:
            digest.update(os.path.basename(file).encode() + b"\0")
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def load(source: Source) -> Loaded:
    """Every row of the source after its split expression, with the rows that could not be read.

    Raises:
        DataError: nothing readable is there, the split is unknown, or the files do not fit
            together.
    """
    if not _is_local(source.path):
        return _from_dataset(_load_hub(source), source)
    path = _local(source.path)
    if os.path.isdir(path):
        if any(os.path.exists(os.path.join(path, f)) for f in ("state.json", "dataset_dict.json")):
            return _load_saved(path, source)
        return _choose(source, _files_by_split(path, source))
    return _choose(source, {"train": _matches(source.path)})


def load_file(path: str) -> Loaded:
    """Every row of a local file or glob, as `load` gives it.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    return _read_files(_matches(path), Source(path=path, label=None))


def typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A CSV column as integers, floats or booleans if every cell is one, otherwise as it was.

    Empty cells and the usual words for a missing value (NA, null, nan) count as null in a column
    that is not text. Digits that a number would lose, such as the zero of 01234, keep it text.
    """
    if pc.any(pc.match_substring_regex(column, "^[+-]?(0[0-9]|[0-9]{19})")).as_py():
        return column
    values = pc.if_else(pc.is_in(column, value_set=pa.array(_NULLS)), None, column)
    if values.null_count < len(values):
        for kind in (pa.int64(), pa.float64(), pa.bool_()):
            try:
                return pc.cast(values, kind)
            except pa.ArrowInvalid:
                continue
    return column


def _local(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _is_local(path: str) -> bool:
    """Whether `path` names something on disk; an existing path wins over a hub id of that name."""
    if glob.has_magic(path) or os.path.exists(_local(path)) or path.startswith(("/", ".", "~")):
        return True
    if Path(path).suffix.lower() in _KINDS:
        return True
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise DataError(
            f"{path}: found neither a file or folder of that name nor the form of a hub id, "
            "expected owner/name, a local path or a glob. Correct path; for a file at a URL, "
            "download it first."
        )
    return False


def _matches(path: str) -> list[str]:
    """Files that `path` names, sorted, as absolute paths."""
    whole = _local(path)
    if os.path.isfile(whole):
        return [whole]
    if glob.has_magic(path):
        found = sorted(f for f in glob.glob(whole, recursive=True) if os.path.isfile(f))
        if found:
            return found
        raise DataError(
            f"{path}: found no file that the pattern matches (looked for {whole}), expected at "
            "least one. Correct the pattern or the folder the run starts in."
        )
    folder = os.path.dirname(whole)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    close = difflib.get_close_matches(os.path.basename(whole), names, n=1)
    raise DataError(
        f"{path}: found no file or folder at {whole}, expected one with an ending among "
        f"{_ENDINGS}. {f'Did you mean {close[0]}?' if close else 'Correct path.'}"
    )


def _kind(files: Iterable[str], source: Source) -> str:
    kinds = {Path(file).suffix.lower(): file for file in files}
    for ending, file in kinds.items():
        if ending not in _KINDS:
            raise DataError(
                f"{source.path}: found {os.path.basename(file)}, expected a file with an ending "
                f"among {_ENDINGS}. Convert or rename it, or write a glob such as folder/*.csv."
            )
    if len({(_KINDS[e], e == ".tsv") for e in kinds}) > 1:
        raise DataError(
            f"{source.path}: found files of different types ({', '.join(sorted(kinds))}), "
            "expected one type. Write a glob that ends in one of them."
        )
    return _KINDS[next(iter(kinds))]


def _files_by_split(folder: str, source: Source) -> dict[str, list[str]]:
    """Data files of a folder by the split that `load_dataset` reads from their names."""
    from datasets.data_files import DataFilesList, get_data_patterns

    try:
        patterns = get_data_patterns(folder)
        found = {
            str(split): sorted(
                str(file)
                for file in DataFilesList.from_patterns(globs, base_path=folder)
                if Path(file).suffix.lower() in _KINDS
            )
            for split, globs in patterns.items()
        }
    except FileNotFoundError:
        found = {}
    found = {split: files for split, files in found.items() if files}
    if not found:
        raise DataError(
            f"{source.path}: found a folder without dataset_info.json and without data files, "
            f"expected one written by save_to_disk or files with an ending among {_ENDINGS}. "
            "Name the folder one level up or down, or write a glob such as folder/*.parquet."
        )
    return found


def _choose(source: Source, files: Mapping[str, list[str]]) -> Loaded:
    def reader(names: list[str]) -> Callable[[], Loaded]:
        return lambda: _read_files(names, source)

    return _select(source, {split: reader(names) for split, names in files.items()})


def _select(source: Source, splits: Mapping[str, Callable[[], Loaded]]) -> Loaded:
    """Rows that the source's split expression asks for; only the splits it names are read."""
    import datasets

    found = ", ".join(splits)
    expression = source.split or (next(iter(splits)) if len(splits) == 1 else None)
    if expression is None:
        raise DataError(
            f"{source.path}: found the splits {found}, expected to be told which. "
            f"Set split, for example split: {next(iter(splits))}."
        )
    expression = "+".join(splits) if expression == "all" else expression
    named = [re.split(r"[\[(]", part.strip())[0] for part in expression.split("+")]
    unknown = [name for name in named if name not in splits]
    if unknown:
        raise DataError(
            f"{source.path}: found the splits {found}, expected {unknown[0]!r} among them. "
            "Correct split; a file or glob is one split, train."
        )
    loaded = {name: splits[name]() for name in dict.fromkeys(named)}
    try:
        instruction = datasets.ReadInstruction.from_spec(expression)
        pieces = instruction.to_absolute({k: v.table.num_rows for k, v in loaded.items()})
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"{source.path}: found the split expression {expression!r} ({error}), expected one "
            "such as train, train[:1000] or train[:50%]. Correct split."
        ) from error
    tables, faults, offset = [], {}, 0
    for piece in pieces:
        whole = loaded[piece.splitname]
        start, stop = piece.from_ or 0, piece.to
        stop = whole.table.num_rows if stop is None else min(stop, whole.table.num_rows)
        tables.append(whole.table.slice(start, max(stop - start, 0)))
        for row, fault in whole.faults.items():
            if start <= row < stop:
                faults[row - start + offset] = fault
        offset += tables[-1].num_rows
    first = loaded[pieces[0].splitname]
    table = pa.concat_tables(tables, promote_options="default")
    return first._replace(table=table, faults=faults)


def _load_saved(path: str, source: Source) -> Loaded:
    import datasets

    with _quiet(), _explained(source, "Write the folder again with save_to_disk."):
        saved = datasets.load_from_disk(path)
    if isinstance(saved, datasets.Dataset):
        saved = {str(saved.split or "train"): saved}

    def reader(dataset: Any) -> Callable[[], Loaded]:
        return lambda: _from_dataset(dataset, source)

    return _select(source, {str(split): reader(rows) for split, rows in saved.items()})


def _load_hub(source: Source) -> Any:
    import datasets

    advice = "Correct path, name or revision, and log in if the data set is private."
    if datasets.config.HF_HUB_OFFLINE:
        advice = (
            "HF_HUB_OFFLINE is set, so only data sets in the cache can be loaded: unset it, or "
            "point path to a local copy."
        )
    with _quiet(), _explained(source, advice):
        found = datasets.load_dataset(
            source.path, source.name, split=source.split, revision=source.revision
        )
    if isinstance(found, datasets.Dataset):
        return found
    if len(found) == 1:
        return next(iter(found.values()))
    raise DataError(
        f"{source.path}: found the splits {', '.join(found)}, expected to be told which. "
        f"Set split, for example split: {next(iter(found))}."
    )


def _from_dataset(dataset: Any, source: Source) -> Loaded:
    import datasets

    table = dataset.with_format("arrow")[:].replace_schema_metadata(None)
    faults: dict[int, tuple[str, str]] = {}
    mixed = frozenset(f.name for f in table.schema if f.type == pa.json_(pa.string()))
    for at, field in enumerate(table.schema):
        column = table.column(at)
        if field.name in mixed:
            table = table.set_column(at, field.name, pc.cast(column, pa.string()))
            continue
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            column, bad = _decoded(column)
            table = table.set_column(at, field.name, column)
            faults.update(dict.fromkeys(bad, ("not UTF-8", "")))
    for row in faults:
        faults[row] = ("not UTF-8", compact(table.slice(row, 1).to_pylist()[0]))
    feature = dataset.features.get(source.label)
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    return Loaded(table, faults, names, mixed)


def _decoded(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, list[int]]:
    """The column with bad bytes written out, nested cells that hold some null; and those rows."""
    cells: list[Any] = []
    bad: list[int] = []
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    for row, cell in enumerate(pc.cast(column, pa.large_binary()) if is_text else column):
        try:
            value = cell.as_py()
            cells.append(value.decode() if is_text and value is not None else value)
        except UnicodeDecodeError:
            cells.append(value.decode(errors="backslashreplace") if is_text else None)
            bad.append(row)
    return pa.chunked_array([pa.array(cells, column.type)]), bad


def compact(row: Any) -> str:
    r"""A row as one line of JSON, bytes that are no text as \xNN, cut after 2,000 characters."""
    line = json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=str)
    return show(line)[:2000]


def show(text: str) -> str:
    r"""The text with what UTF-8 cannot hold written out: bytes as \xNN, surrogates as \uNNNN."""

    def written(match: re.Match[str]) -> str:
        code = ord(match[0])
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

    return _SURROGATE.sub(written, text)


@contextmanager
def _quiet() -> Iterator[None]:
    """`datasets` and the hub client without progress bars or log lines; restored afterwards."""
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


@contextmanager
def _explained(source: Source, advice: str) -> Iterator[None]:
    """Whatever a reader of `datasets` raises, as a DataError that says what to do."""
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


def _build(kind: str, files: list[str], **options: Any) -> Any:
    import datasets

    # The reader's copy is memory-mapped, so it outlives its file name and dies with the table.
    with _quiet(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        return datasets.load_dataset(
            kind,
            data_files={"train": [glob.escape(file) for file in files]},
            split="train",
            cache_dir=cache,
            **options,
        )


def _read_files(files: list[str], source: Source) -> Loaded:
    kind = _kind(files, source)
    if kind == "parquet":
        with _explained(source, "Write the files again, with the same columns in each."):
            # Without a batch size the reader fails on a file whose first row group is empty.
            return _from_dataset(_build(kind, files, batch_size=1 << 16), source)
    for file in files:
        with open(file, "rb") as stream:
            head = stream.read(2)
        if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise DataError(f"{file}: found UTF-16, expected UTF-8. Save the file as UTF-8.")
        if not head:
            raise DataError(f"{file}: found an empty file, expected rows. Remove it or fill it.")
    with tempfile.TemporaryDirectory() as folder:
        return (_read_csv if kind == "csv" else _read_json)(files, source, folder)


def _read_csv(files: list[str], source: Source, folder: str) -> Loaded:
    import datasets

    separator = "\t" if files[0].lower().endswith(".tsv") else ","
    clean = [_marked(file, os.path.join(folder, f"{i}.csv")) for i, file in enumerate(files)]
    columns = _header(clean[0], files[0], separator)
    for copy, file in zip(clean, files, strict=True):
        found = _header(copy, file, separator)
        if set(found) != set(columns):
            raise DataError(
                f"{file}: found columns {found}, expected {columns} as in {files[0]}. "
                "Give all files of a glob the same columns."
            )
    features = datasets.Features({name: datasets.Value("string") for name in columns})
    with _explained(source, "Quote fields that hold the separator, and save the file again."):
        rows = _build(
            "csv", clean, sep=separator, features=features, keep_default_na=False, na_values=[""]
        )
    table = rows.with_format("arrow")[:].replace_schema_metadata(None)
    faults = {}
    if clean != files:
        bad = np.zeros(table.num_rows, dtype=bool)
        for column in table.columns:
            marked = pc.fill_null(pc.match_substring_regex(column, _MARK.pattern), False)
            bad |= marked.to_numpy()
        for row in np.flatnonzero(bad).tolist():
            cells = table.slice(row, 1).to_pylist()[0]
            shown = {k: v and _MARK.sub(_unmarked, v) for k, v in cells.items()}
            faults[row] = ("not UTF-8", compact(shown))
    return Loaded(table, faults, is_typed=False)


def _marked(file: str, copy: str) -> str:
    """`file` if it is UTF-8, else `copy`, written with every bad byte between noncharacters."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(file, "rb") as stream:
        try:
            while block := stream.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
            return file
        except UnicodeDecodeError:
            stream.seek(0)
        with open(copy, "wb") as target:
            for line in stream:
                text = line.decode("utf-8", "surrogateescape")
                marked = _SURROGATE.sub(lambda m: f"\ufdd0{ord(m[0]) - 0xDC00:02x}\ufdd1", text)
                target.write(marked.encode())
    return copy


def _unmarked(mark: re.Match[str]) -> str:
    return chr(0xDC00 + int(mark[1], 16))


def _header(file: str, name: str, separator: str) -> list[str]:
    """Columns of a CSV file, as pandas calls the ones without a name."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            records = (row for row in csv.reader(stream, delimiter=separator) if row)
            header, first = next(records, []), next(records, [])
    finally:
        csv.field_size_limit(limit)
    columns = [cell or f"Unnamed: {at}" for at, cell in enumerate(header)]
    twice = [cell for at, cell in enumerate(columns) if cell in columns[:at]]
    if twice or any(_MARK.search(cell) for cell in columns):
        raise DataError(
            f"{name}: found the header {[_MARK.sub('?', cell) for cell in columns]}, expected "
            "different names in UTF-8. Rename the columns in the file's first line."
        )
    if len(first) > len(columns):
        raise DataError(
            f"{name}: found {len(first)} fields in the first row, expected the {len(columns)} of "
            "the header. Name every column in the first line."
        )
    return columns


def _read_json(files: list[str], source: Source, folder: str) -> Loaded:
    options = {"parse_agent_traces": False, "chunksize": _JSON_BLOCK_BYTES}
    n_lines, is_plain = 0, True
    for file in files:
        for line in _lines(file):
            n_lines += 1
            is_plain = is_plain and isinstance(line, bytes) and _is_utf8(line)
    rows = None
    if is_plain:
        try:
            rows = _build("json", files, **options)
        except Exception:  # The reader names no row, so every line is looked at below.
            rows = None
    faults: dict[int, tuple[str, str]] = {}
    if rows is None or rows.num_rows != n_lines:
        copy = os.path.join(folder, "clean.jsonl")
        with open(copy, "wb") as target:
            for row, line in enumerate(line for file in files for line in _lines(file)):
                try:
                    target.write(_object(line) + b"\n")
                except _RowError as error:
                    faults[row] = (str(error), _shown(line))
                    target.write(b"{}\n")
        if len(faults) == n_lines:
            raise DataError(
                f"{source.path}: found no JSON object in {n_lines} lines (the first is "
                f"{faults[0][1][:80]!r}), expected one per line or one array of them. "
                "Write it as JSONL."
                if n_lines
                else f"{source.path}: found no rows, expected at least one. Fill the file."
            )
        with _explained(source, "Give a field the same type in every line."):
            rows = _build("json", [copy], **options)
    loaded = _from_dataset(rows, source)
    return loaded._replace(table=_undated(loaded.table, files, source), faults=faults)


def _lines(file: str) -> Iterator[Any]:
    """Lines that are not blank, as bytes; of a file that is one array, its parsed elements."""
    with open(file, "rb") as stream:
        start = stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
        stream.seek(0)
        if start.startswith(b"["):
            try:
                yield from json.loads(stream.read().decode("utf-8-sig", "surrogateescape"))
                return
            except ValueError:
                # Lines that are arrays themselves: each is judged, and refused, alone.
                stream.seek(0)
        for at, line in enumerate(stream):
            line = line.removeprefix(codecs.BOM_UTF8) if at == 0 else line
            if line.strip():
                yield line


class _RowError(ValueError):
    """A line that is no row, with the reason as its text."""


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _object(line: Any) -> bytes:
    """The line's object in JSON that any reader takes."""
    if isinstance(line, bytes):
        if not _is_utf8(line):
            raise _RowError("not UTF-8")
        try:
            line = json.loads(line)
        except (ValueError, RecursionError):
            raise _RowError("not valid JSON") from None
    if not isinstance(line, dict):
        raise _RowError("not valid JSON")
    try:
        return json.dumps(line, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _RowError("not UTF-8") from None


def _shown(line: Any) -> str:
    if isinstance(line, bytes):
        return line.strip().decode(errors="backslashreplace")[:2000]
    return compact(line)


def _undated(table: pa.Table, files: list[str], source: Source) -> pa.Table:
    """The table with texts, labels and ids that look like dates as they were written."""
    for name in {source.text, source.text_b, source.label, source.id} & set(table.column_names):
        at = table.column_names.index(name)
        if pa.types.is_temporal(table.column(at).type):
            cells = []
            for line in (line for file in files for line in _lines(file)):
                try:
                    cells.append(json.loads(_object(line)).get(name))
                except _RowError:
                    cells.append(None)
            table = table.set_column(at, name, pa.chunked_array([pa.array(cells, pa.string())]))
    return table
