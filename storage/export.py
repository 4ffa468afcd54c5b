"""Rows as a Parquet, JSONL or CSV file that holds every value as it is.

Parquet keeps the Arrow types. What JSON and CSV have no form for is written as text that can be
read back without loss: decimals of more than 15 digits, times in ISO 8601 with as many decimals as
they have, durations too (`PT1.5S`), bytes in base64. In CSV a null is an empty field, the empty
text is `""`, and what is nested is JSON. Columns of the type `pyarrow.json_` hold JSON, which is
written as it stands.
"""

import base64
import contextlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.schema import StorageError

ENDINGS = (".parquet", ".jsonl", ".csv")
_BLOCK_ROWS = 8192
_FLOAT_DIGITS = 15
"""Decimal digits that survive in any float64."""
_YEARS = (np.datetime64("0001", "Y"), np.datetime64("9998", "Y"))
_QUOTED = frozenset('",\r\n')


def write_rows(rows: pa.Table, path: Path) -> int:
    """Writes rows to `path`, as Parquet, JSONL or CSV by its ending; returns how many.

    Raises:
        StorageError: the ending is none of these, or the file cannot be written.
    """
    with new_file(path) as temporary:
        if path.suffix == ".parquet":
            pq.write_table(rows, temporary, compression="zstd", store_schema=True)
        else:
            write = _write_json if path.suffix == ".jsonl" else _write_csv
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                write(rows, file)
    return int(rows.num_rows)


@contextlib.contextmanager
def new_file(path: Path, endings: tuple[str, ...] = ENDINGS) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place if the block ends without an error.

    Raises:
        StorageError: the ending is none of `endings`, or the file cannot be written.
    """
    if path.suffix not in endings:
        raise StorageError(
            f"{path}: found the ending {path.suffix!r}, expected {', '.join(endings)}. "
            "Rename the output."
        )
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder, whose content is that of `path` if the block ends without an error.

    An empty folder that is there stays the same one: somebody may stand in it.

    Raises:
        StorageError: there is a file, or a folder that holds something, or nothing can be written.
    """
    place = path.resolve()
    is_there = place.exists()
    if is_there and (not place.is_dir() or any(place.iterdir())):
        raise StorageError(
            f"{path}: found a {'folder that holds something' if place.is_dir() else 'file'}, "
            "expected an empty or a new folder. Name another, or remove it."
        )
    temporary = (place if is_there else place.parent) / f".{uuid.uuid4().hex}"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if is_there:
            for made in list(temporary.iterdir()):
                os.replace(made, place / made.name)
        else:
            os.replace(temporary, place)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: found that it cannot be written ({error}), expected a folder with room. Name "
        "another output."
    )


def json_texts(cells: pa.Array) -> list[str]:
    """Every value of an array as JSON; null is `null`."""
    texts = iter(_json_of_type(cells.type)(cells.drop_null()))
    return [next(texts) if is_valid else "null" for is_valid in cells.is_valid().to_pylist()]


def _write_json(rows: pa.Table, file: TextIO) -> None:
    names = [json.dumps(name, ensure_ascii=False) for name in rows.column_names]
    for columns in _blocks(rows):
        for row in zip(*map(json_texts, columns), strict=True):
            cells = ",".join(f"{n}:{text}" for n, text in zip(names, row, strict=True))
            file.write(f"{{{cells}}}\n")


def _write_csv(rows: pa.Table, file: TextIO) -> None:
    file.write(",".join(map(_field, rows.column_names)) + "\n")
    for columns in _blocks(rows):
        for row in zip(*map(_fields, columns), strict=True):
            file.write(",".join(row) + "\n")


def _blocks(rows: pa.Table) -> Iterable[list[pa.Array]]:
    for start in range(0, rows.num_rows, _BLOCK_ROWS):
        yield [pa.concat_arrays(column.chunks) for column in rows.slice(start, _BLOCK_ROWS).columns]


def _fields(cells: pa.Array) -> list[str]:
    """Every value as a field of a CSV file."""
    kind = cells.type
    if _is_string(kind):
        return ["" if text is None else _field(text) for text in cells.to_pylist()]
    is_json = kind == pa.json_(pa.string())
    fields = []
    for text, is_valid in zip(json_texts(cells), cells.is_valid().to_pylist(), strict=True):
        # A text inside of JSON is a text here, too; what is nested stays JSON.
        if text.startswith('"') and (is_json or not pa.types.is_nested(kind)):
            text = json.loads(text)
        fields.append(_field(text) if is_valid else "")
    return fields


def _field(text: str) -> str:
    is_plain = text and not _QUOTED.intersection(text) and text == text.strip()
    return text if is_plain else '"' + text.replace('"', '""') + '"'


def _is_string(kind: pa.DataType) -> bool:
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(check(kind) for check in checks)


def _json_of_type(kind: pa.DataType) -> Callable[[pa.Array], list[str]]:
    """The function that gives the JSON of arrays of this type without nulls."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _extended
    for check, texts in (
        (types.is_list, _lists),
        (types.is_large_list, _lists),
        (types.is_fixed_size_list, _lists),
        (types.is_struct, _objects),
        (types.is_map, _maps),
        (types.is_boolean, _cast),
        (types.is_integer, _cast),
        (types.is_decimal, _decimals),
        (types.is_floating, _floats),
        (types.is_duration, _durations),
        (types.is_timestamp, _timestamps),
        (types.is_date, _dates),
        (types.is_time, _times),
        (types.is_null, _cast),
        (_is_string, _strings),
    ):
        if check(kind):
            return texts
    return _bytes


def _extended(cells: pa.Array) -> list[str]:
    if cells.type == pa.json_(pa.string()):
        texts: list[str] = cells.storage.to_pylist()
        return texts
    if cells.type == pa.uuid():
        return _quoted(map(str, cells.to_pylist()))
    return json_texts(cells.storage)


def _cast(cells: pa.Array) -> list[str]:
    texts: list[str] = pc.cast(cells, pa.string()).to_pylist()
    return texts


def _quoted(texts: Iterable[str]) -> list[str]:
    return [json.dumps(text, ensure_ascii=False) for text in texts]


def _strings(cells: pa.Array) -> list[str]:
    return _quoted(cells.to_pylist())


def _bytes(cells: pa.Array) -> list[str]:
    return _quoted(base64.b64encode(value).decode() for value in cells.to_pylist())


def _decimals(cells: pa.Array) -> list[str]:
    """Numbers; as text where they may have more digits than readers of JSON keep."""
    texts = [format(value, "f") for value in cells.to_pylist()]
    return _quoted(texts) if cells.type.precision > _FLOAT_DIGITS else texts


def _floats(cells: pa.Array) -> list[str]:
    """The fewest digits that stand for each number, in the precision that it has."""
    words = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    texts = np.asarray(cells.to_numpy(zero_copy_only=False)).astype(str).tolist()
    return [words.get(text, text) for text in texts]


def _dates(cells: pa.Array) -> list[str]:
    days = pc.cast(pc.cast(cells, pa.date32()), pa.int32()).to_numpy(zero_copy_only=False)
    return _quoted(np.datetime_as_string(days.astype("datetime64[D]")).tolist())


def _times(cells: pa.Array) -> list[str]:
    return _quoted(_cast(cells))


def _timestamps(cells: pa.Array) -> list[str]:
    """Date and time in ISO 8601; where the type has a time zone, with the offset from UTC there."""
    unit = cells.type.unit
    moments = pc.cast(cells, pa.int64()).to_numpy(zero_copy_only=False)
    moments = moments.astype(f"datetime64[{unit}]")
    years = moments.astype("datetime64[Y]")
    # pyarrow knows the offsets of time zones, and wraps years that are far away.
    if cells.type.tz is not None and np.all((years >= _YEARS[0]) & (years <= _YEARS[1])):
        with contextlib.suppress(pa.ArrowException):  # A time zone of which nothing is known here.
            return _quoted(map(_with_offset, _cast(cells)))
    zone = "" if cells.type.tz is None else "+00:00"
    return _quoted(f"{text}{zone}" for text in np.datetime_as_string(moments).tolist())


def _with_offset(text: str) -> str:
    """`2024-01-02 03:04:05+0100`, or with Z, as ISO 8601 has it."""
    text = text.replace(" ", "T", 1)
    return f"{text[:-1]}+00:00" if text.endswith("Z") else f"{text[:-2]}:{text[-2:]}"


def _durations(cells: pa.Array) -> list[str]:
    """Durations of ISO 8601, in seconds."""
    decimals = {"s": 0, "ms": 3, "us": 6, "ns": 9}[cells.type.unit]
    texts = []
    for count in pc.cast(cells, pa.int64()).to_pylist():
        whole, rest = divmod(abs(count), 10**decimals)
        part = f".{rest:0{decimals}d}".rstrip("0") if rest else ""
        texts.append(f"{'-' if count < 0 else ''}PT{whole}{part}S")
    return _quoted(texts)


def _lists(cells: pa.Array) -> list[str]:
    items = iter(json_texts(cells.flatten()))
    lengths = pc.list_value_length(cells).to_pylist()
    return ["[" + ",".join(next(items) for _ in range(length)) + "]" for length in lengths]


def _objects(cells: pa.Array) -> list[str]:
    names = [json.dumps(field.name, ensure_ascii=False) for field in cells.type]
    columns = [json_texts(column) for column in cells.flatten()]
    return [
        "{" + ",".join(f"{n}:{text}" for n, text in zip(names, row, strict=True)) + "}"
        for row in zip(*columns, strict=True)
    ]


def _maps(cells: pa.Array) -> list[str]:
    """Objects; a key that is no text is its JSON as text."""
    keys = [text if text.startswith('"') else json.dumps(text) for text in json_texts(cells.keys)]
    pairs = [f"{key}:{text}" for key, text in zip(keys, json_texts(cells.items), strict=True)]
    offsets = cells.offsets.to_pylist()
    return [f"{{{','.join(pairs[start:stop])}}}" for start, stop in itertools.pairwise(offsets)]
