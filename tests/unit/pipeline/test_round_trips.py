"""What is read is what is kept: a corpus that is written and read again is the same corpus."""

import base64
import csv
import json
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from runs import write_lines

from pipeline.corpus import read_corpus
from pipeline.settings import Run
from pipeline.source_rows import source_rows
from stages.corpus.cells import SourceRows
from stages.corpus.load import load
from stages.corpus.source import Source
from storage.export import write_rows
from storage.table import Store

FORMATS = ("parquet", "jsonl", "csv")
CODES = st.sampled_from(
    [
        *("1.10", "1E5", "007", "+5", "True", "false", "NA", "nan", "null", " x ", "", "1,5"),
        *("2024-01-02", "2024-01-02T03:04:05Z", 'say "so"', "a\nb", "a\r\nb", "1e400", "9" * 30),
    ]
)
TEXT = CODES | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
# Each example is a corpus of its own, so there are few, and a failing one is not made smaller.
RUNS = settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])


def whole(bits: int, is_signed: bool = True) -> st.SearchStrategy[int]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    return st.sampled_from([low, high, 0, 1]) | st.integers(low, high)


def real(width: int) -> st.SearchStrategy[float]:
    return st.floats(width=width, allow_nan=False)


Back = Callable[[Any], Any]


def same(value: Any) -> Any:
    return value


def parsed(value: Any) -> Any:
    """A nested value of JSONL as it is, of CSV from its JSON."""
    return json.loads(value) if isinstance(value, str) else json.loads(json.dumps(value))


def moment(unit: str) -> Back:
    """The count of units since 1970 of a date and time, in UTC where it has an offset."""

    def back(text: str) -> int:
        shift = 0
        if text[-6] in "+-" and "T" in text:
            shift = int(text[-6] + "1") * (int(text[-5:-3]) * 60 + int(text[-2:]))
            text = text[:-6]
        minute = np.datetime64(text, unit) - np.timedelta64(shift, "m")
        return int(minute.astype(f"datetime64[{unit}]").astype(int))

    return back


def digits(value: Any) -> Decimal:
    return Decimal(str(value))


def time_of_day(text: str) -> int:
    hours, minutes, seconds = text.split(":")
    return int((int(hours) * 3600 + int(minutes) * 60 + Decimal(seconds)) * 10**9)


def duration(unit: str) -> Back:
    def back(text: str) -> int:
        sign, seconds = (-1, text[3:-1]) if text[0] == "-" else (1, text[2:-1])
        return int(sign * Decimal(seconds) * {"s": 1, "ns": 10**9}[unit])

    return back


# Type, its values (of temporal types their counts), and how to read one from JSON or CSV.
Kind = tuple[pa.DataType, st.SearchStrategy[Any], Back]
COUNTS = whole(62)
PAIR = pa.struct([("a", pa.uint64()), ("b", pa.list_(pa.string()))])
PAIRS = st.fixed_dictionaries({"a": whole(64, False) | st.none(), "b": st.lists(TEXT, max_size=2)})
KINDS: dict[str, Kind] = {
    "int8": (pa.int8(), whole(8), int),
    "int64": (pa.int64(), whole(64), int),
    "uint64": (pa.uint64(), whole(64, False), int),
    "half": (pa.float16(), real(16).map(np.float16), np.float16),
    "float": (pa.float32(), real(32), lambda text: float(np.float32(text))),
    "double": (pa.float64(), real(64), float),
    "bool": (pa.bool_(), st.booleans(), lambda value: value in (True, "true")),
    "string": (pa.string(), TEXT, same),
    "large": (pa.large_string(), TEXT, same),
    "view": (pa.string_view(), TEXT, same),
    "codes": (pa.dictionary(pa.int8(), pa.string()), TEXT, same),
    "binary": (pa.binary(), st.binary(max_size=5), base64.b64decode),
    "bytes3": (pa.binary(3), st.binary(min_size=3, max_size=3), base64.b64decode),
    "price": (pa.decimal128(10, 2), st.decimals(-(10**7), 10**7, places=2), digits),
    "decimal": (pa.decimal128(38, 2), st.decimals(-(10**30), 10**30, places=2), digits),
    "digits60": (pa.decimal256(60, 3), st.decimals(-(10**30), 10**30, places=3), digits),
    "date": (pa.date32(), whole(31), moment("D")),
    "time": (pa.time64("ns"), st.integers(0, 86_399_999_999_999), time_of_day),
    "second": (pa.timestamp("s"), whole(42), moment("ms")),
    "moment": (pa.timestamp("us"), COUNTS, moment("us")),
    "nanosecond": (pa.timestamp("ns"), COUNTS, moment("ns")),
    "zone": (pa.timestamp("ns", "Europe/Berlin"), COUNTS, moment("ns")),
    "offset": (pa.timestamp("us", "+05:30"), COUNTS, moment("us")),
    "duration": (pa.duration("ns"), COUNTS, duration("ns")),
    "seconds": (pa.duration("s"), COUNTS, duration("s")),
    "list": (pa.list_(pa.int64()), st.lists(whole(64) | st.none(), max_size=3), parsed),
    "lists": (pa.list_(pa.list_(pa.string())), st.lists(st.lists(TEXT), max_size=2), parsed),
    "struct": (PAIR, PAIRS, parsed),
    "map": (
        pa.map_(pa.string(), pa.float64()),
        st.dictionaries(TEXT, real(64), max_size=2).map(lambda pairs: [*pairs.items()]),
        lambda value: [*parsed(value).items()],
    ),
    "nothing": (pa.null(), st.none(), same),
}


def column(kind: pa.DataType, values: list[Any]) -> pa.Array:
    if pa.types.is_temporal(kind):
        width = pa.int32() if kind.bit_width == 32 else pa.int64()
        return pa.array(values, width).view(kind)
    return pa.array(values, kind)


def counts(cells: Any) -> list[Any]:
    """Python values that compare exactly; of temporal types the counts."""
    if pa.types.is_temporal(cells.type):
        cells = cells.cast(pa.int32() if cells.type.bit_width == 32 else pa.int64())
    values: list[Any] = cells.to_pylist()
    return values


def there_and_back(path: Path, *endings: str) -> list[Path]:
    """The corpus in `path`, read into a store and written again, once with each ending."""
    source = Source(str(path), id="id", text="words", label="class")
    store = Store(str(path.parent / f"store of {path.name}"))
    corpus = read_corpus(Run(str(path.parent), source, shard_size=3), store).tables
    shards = [shard for shard in corpus["extra"].shards]
    ids = pa.concat_tables([store.read_shard("extra", s.key, ["id", "row_number"]) for s in shards])
    results = pa.table({"example_id": ids.sort_by("row_number")["id"]})
    rows = source_rows(store, corpus, results, [])
    written = [path.parent / f"{path.stem}-{path.suffix[1:]}.{ending}" for ending in endings]
    for out in written:
        assert write_rows(rows, out) == len(ids)
    return written


def frame(n_rows: int) -> dict[str, list[Any]]:
    return {
        "id": [f"r{i}" for i in range(n_rows)],
        "words": [f"text {i}" for i in range(n_rows)],
        "class": ["ab"[i % 2] for i in range(n_rows)],
    }


def read(path: Path) -> SourceRows:
    return load(Source(str(path), label=None))


@RUNS
@given(st.data())
def test_arrow_types_survive_every_format(data: st.DataObject) -> None:
    n = 4
    columns: dict[str, Any] = frame(n)
    for name, (kind, values, _) in KINDS.items():
        drawn = data.draw(st.lists(values | st.none(), min_size=n, max_size=n), name)
        columns[name] = column(kind, drawn)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pq.write_table(pa.table(columns), folder / "a.parquet")
        given = pq.read_table(folder / "a.parquet")
        outs = there_and_back(folder / "a.parquet", *FORMATS)
        for ending, out in zip(FORMATS, outs, strict=True):
            again = read(out)
            if ending == "parquet":
                written = pq.read_table(out)
            for name, (kind, _, back) in KINDS.items():
                expected = counts(given[name])
                if ending == "parquet":
                    plain = {"view": pa.string(), "codes": pa.string()}.get(name, given[name].type)
                    assert written[name].type == plain
                    assert counts(written[name]) == counts(again.table[name]) == expected, name
                    continue
                values = again.values(name)
                found = [None if value is None else back(value) for value in values]
                if kind == PAIR:
                    expected = [e and dict(e) for e in expected]
                assert found == expected, (name, ending)


SCALARS = st.none() | st.booleans() | whole(70) | real(64) | TEXT
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXT, v, max_size=2), max_leaves=4
)
LINES = {
    "mixed": VALUES,
    "large": whole(72),
    "unsigned": whole(64, False),
    "real": real(64) | whole(60),
    "prose": TEXT,
    "flags": st.booleans(),
    "lists": st.lists(whole(66) | real(64), max_size=3),
    "objects": st.fixed_dictionaries({"a": whole(66), "b": TEXT}, optional={"c": st.booleans()}),
    "calls": st.lists(st.fixed_dictionaries({"name": TEXT, "arguments": VALUES}), max_size=2),
}


def exactly(value: Any) -> Any:
    """The value with its types in sight, as JSON knows them: 1 is 1.0 and is not true."""
    if isinstance(value, dict):
        return {name: exactly(item) for name, item in value.items()}
    if isinstance(value, list):
        return [exactly(item) for item in value]
    return (isinstance(value, bool), value)


@RUNS
@given(st.data())
def test_json_survives_itself_and_parquet(data: st.DataObject) -> None:
    n = 4
    ids = data.draw(st.lists(whole(70) | TEXT, min_size=n, max_size=n, unique_by=str))
    drawn = [data.draw(st.fixed_dictionaries({}, optional=LINES), "row") for _ in range(n)]
    plain = frame(n)
    rows = [
        {**{name: cells[i] for name, cells in plain.items()}, "id": ids[i], **drawn[i]}
        for i in range(n)
    ]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = Path(write_lines(folder / "a.jsonl", rows))
        direct, through = there_and_back(path, "jsonl", "parquet")
        for out in (direct, *there_and_back(through, "jsonl")):
            found = [json.loads(line) for line in out.read_text().split("\n") if line]
            names = dict.fromkeys(name for row in rows for name in row)
            expected = [{name: row.get(name) for name in names} for row in rows]
            assert exactly(found) == exactly(expected)
            assert read(out).values("id") == ids


@RUNS
@given(st.lists(st.tuples(TEXT.filter(str.strip), TEXT | st.none()), min_size=2, max_size=5))
def test_cells_of_csv_survive_every_format(cells: list[tuple[str, str | None]]) -> None:
    ids = [f"{code}{i}" for i, (code, _) in enumerate(cells)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with open(folder / "a.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(["id", "words", "class", "code", "note"])
            for i, (code, note) in enumerate(cells):
                fields = [ids[i], f"text {i}", "ab"[i % 2], code]
                shown = ['"' + field.replace('"', '""') + '"' for field in fields]
                kept = "" if note is None else '"' + note.replace('"', '""') + '"'
                file.write(",".join([*shown, kept]) + "\r\n")
        for out in there_and_back(folder / "a.csv", *FORMATS):
            for rows in (read(out), *map(read, there_and_back(out, "csv"))):
                assert rows.values("id") == ids
                assert rows.values("code") == [code for code, _ in cells]
                assert rows.values("note") == [note for _, note in cells]


@pytest.mark.parametrize("ids", [[3, 2**63 + 1, 2**64 - 1], [-1, 2**64 - 1, 0], [5, "5", "x"]])
@pytest.mark.parametrize("ending", FORMATS)
def test_ids_of_any_size_are_kept(tmp_path: Path, ids: list[Any], ending: str) -> None:
    rows = [{"id": i, "words": f"text {i}", "class": "ab"[n % 2]} for n, i in enumerate(ids)]
    path = Path(write_lines(tmp_path / "a.jsonl", rows))
    out = read(there_and_back(path, ending)[0])
    assert [str(value) for value in out.values("id")] == [str(value) for value in ids]
    if ending != "csv":
        assert out.values("id") == ids


@pytest.mark.parametrize(
    "labels",
    [
        [1, 0, 1],
        [10, 50, 10],
        [True, False, True],
        [1.0, 0.0, 1.0],
        ["1", "0", "1"],
        ["b", "a", "b"],
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_labels_are_written_as_the_source_has_them(
    tmp_path: Path, labels: list[Any], kind: str
) -> None:
    columns = {**frame(3), "class": labels}
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        write_lines(path, pa.table(columns).to_pylist())
    for out in there_and_back(path, "parquet", "jsonl"):
        written = read(out).values("class")
        assert exactly(written) == exactly(labels)
        assert [type(value) for value in written] == [type(value) for value in labels]
