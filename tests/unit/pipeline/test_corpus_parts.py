"""A corpus read in parts: wherever and however it is cut into parts, the same bytes."""

import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import corpus_writer
from pipeline.corpus import Corpus, read_corpus
from pipeline.settings import Run
from stages.corpus import csv_quotes, parquet_files, source_files
from stages.corpus.load import reading
from stages.corpus.pieces import in_turn, read_part
from stages.corpus.source import FlipLabels, Source
from stages.stage import DataError
from storage.parquet_rows import RowGroups
from storage.table import Store

WHOLE = 1 << 30
TEXTS = ["plain", 'two\nlines, "quoted"', "é 映画 🎬", "a,b;c", "  spaced ", "x" * 300]


def rows(n: int) -> list[dict[str, Any]]:
    """Rows with what readers stumble over; every seventh has the id of an earlier row."""
    found: list[dict[str, Any]] = []
    for at in range(n):
        row = {"id": f"r{at if at % 7 else at // 2}", "text": f"{TEXTS[at % 6]} {at}"}
        row |= {"label": "abc"[at % 3], "note": ["", "7", "NA"][at % 3]}
        found.append(row)
    found[5]["text"] = ""
    found[11]["label"] = None
    found[n - 1]["label"] = "a"
    return found


def as_csv(path: Path, lines: list[dict[str, Any]]) -> Path:
    def cell(value: Any) -> str:
        return "" if value is None else '"' + str(value).replace('"', '""') + '"'

    text = "id,text,label,note\n"
    text += "".join(",".join(cell(value) for value in row.values()) + "\n" for row in lines)
    broken = text.replace('"r17"', '"too","many"').encode()
    path.write_bytes(broken.replace(b"plain 24", b"plain \xff 24"))
    return path


def as_jsonl(path: Path, lines: list[dict[str, Any]]) -> Path:
    coded = [json.dumps(row, ensure_ascii=False) for row in lines]
    coded[17] = "{broken"
    coded[30] = json.dumps({**lines[30], "note": 7.5, "more": {"deep": [1]}})
    path.write_text("\n\n".join(coded))
    return path


def as_parquet(path: Path, lines: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(lines), path, row_group_size=13)
    return path


WRITERS = {"csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet}


def elsewhere(function: Any, shared: Any, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Calls as other processes make them: of copies, and finishing in another order."""
    for at in reversed(range(len(items))):
        call = pickle.loads(pickle.dumps((function, shared, items[at])))
        yield at, pickle.loads(pickle.dumps(call[0](*call[1:])))


def files(store: Path) -> dict[str, bytes]:
    return {str(f.relative_to(store)): f.read_bytes() for f in store.rglob("*.parquet")}


@pytest.fixture
def given(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    kind = request.param
    path = WRITERS[kind](tmp_path / f"rows.{kind}", rows(60))
    queries = as_jsonl(tmp_path / "queries.jsonl", rows(40))
    review = tmp_path / "review.csv"
    review.write_text("source_id,decision,new_label\nr8,fix,c\nr50,drop,\n")
    source = Source(str(path), id="id", flip_labels=FlipLabels(0.3), corrections=(str(review),))
    return Run(str(tmp_path / "run"), source, Source(str(queries), id="id"), shard_size=16)


@pytest.mark.parametrize("given", WRITERS, indirect=True)
def test_neither_parts_nor_workers_change_a_byte(
    given: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_quotes, "_BEYOND", 16)
    monkeypatch.setattr(corpus_writer, "REJECTED_ROWS", 4)
    wanted = read_corpus(given, Store(str(tmp_path / "whole")), piece_bytes=WHOLE)
    assert wanted.tables["rejected"].rows > 9
    assert {s.role for s in wanted.tables["text"].shards} == {"example", "query"}
    whole = files(tmp_path / "whole")
    for size in (1, 400):
        place = tmp_path / f"parts{size}"
        found = read_corpus(given, Store(str(place)), each=elsewhere, piece_bytes=size)
        assert {t: m.key for t, m in found.tables.items()} == {
            t: m.key for t, m in wanted.tables.items()
        }
        assert found.notices == wanted.notices
        assert {t: m.details for t, m in found.tables.items()} == {
            t: m.details for t, m in wanted.tables.items()
        }
        assert files(place) == whole
        dry = read_corpus(given, Store(str(tmp_path / "none")), is_dry=True, piece_bytes=size)
        assert dry.tables["extra"].key == wanted.tables["extra"].key
    assert not (tmp_path / "none").exists()


def test_a_large_row_group_is_decoded_once_a_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = rows(6000)
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "rows.parquet")
    run = Run(str(tmp_path / "run"), Source(str(tmp_path / "rows.parquet"), id="id"))
    wanted = read_corpus(run, Store(str(tmp_path / "whole")), piece_bytes=WHOLE)
    begun: list[RowGroups] = []

    class Counted(RowGroups):
        def __init__(self, stream: Any, groups: Sequence[int]):
            super().__init__(stream, groups)
            begun.append(self)

    monkeypatch.setattr(parquet_files, "RowGroups", Counted)
    monkeypatch.setattr(parquet_files, "_left_open", [])
    monkeypatch.setattr(parquet_files, "_CHUNK_ROWS", 512)
    found = read_corpus(run, Store(str(tmp_path / "parts")), piece_bytes=60_000)
    assert {t: m.key for t, m in found.tables.items()} == {
        t: m.key for t, m in wanted.tables.items()
    }
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert len(begun) == 2
    assert begun[1].at == len(lines)


def test_a_file_that_changes_within_a_row_group_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows(6000)), path)
    parts = reading(Source(str(path), id="id"), in_turn, 60_000)
    read_part((str(path), parts.empty), parts.parts[0])
    data = path.read_bytes()
    path.write_bytes(data)
    with pytest.raises(DataError, match="changed since it was listed"):
        read_part((str(path), parts.empty), parts.parts[1])


def test_rows_of_an_earlier_reading_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing tells one version of a file from another, as of some servers."""
    same = source_files.SourceFile(str(tmp_path / "rows.jsonl"), 1, (0, 0, 0))
    monkeypatch.setattr(source_files, "file_on_disk", lambda path: same)
    monkeypatch.setattr(source_files, "_is_same", lambda listed, state: True)
    path = tmp_path / "rows.jsonl"
    for text in ("old", "new"):
        path.write_text("".join(f'{{"text": "{text}", "label": {at}}}\n' for at in (0, 1)))
        store = Store(str(tmp_path / text))
        found = read_corpus(Run(str(tmp_path / "run"), Source(str(path))), store)
        (shard,) = found.tables["text"].shards
        assert store.read_shard("text", shard.key)["text"].to_pylist() == [text, text]


def vectors(tmp_path: Path, is_file: bool) -> Run:
    """Rows with vectors, two of another length where they are a column."""
    cells: list[Any] = np.arange(180, dtype=np.float64).reshape(60, 3).tolist()
    lines = [{"text": f"t {at}", "label": at % 2, "v": cells[at]} for at in range(60)]
    if is_file:
        np.save(tmp_path / "v.npy", np.array(cells))
    else:
        lines[0]["v"], lines[41]["v"], lines[42]["v"] = [1.0, 2.0], [9.0] * 5, None
    path = as_jsonl(tmp_path / "rows.jsonl", lines)
    features = str(tmp_path / "v.npy") if is_file else "v"
    return Run(str(tmp_path / "run"), Source(str(path), features=features), shard_size=16)


@pytest.mark.parametrize("is_file", [True, False])
def test_vectors_lie_with_their_rows_however_they_are_read(tmp_path: Path, is_file: bool) -> None:
    given = vectors(tmp_path, is_file)
    read_corpus(given, Store(str(tmp_path / "whole")), piece_bytes=WHOLE)
    for size in (1, 300):
        place = tmp_path / f"parts{size}"
        read_corpus(given, Store(str(place)), each=elsewhere, piece_bytes=size)
        assert files(place) == files(tmp_path / "whole")


def test_a_file_in_another_order_keeps_its_shards(tmp_path: Path) -> None:
    """Rows of one shard then lie all over the source."""
    lines = [{"id": at, "text": f"t {at}", "label": at % 2} for at in range(60)]
    source = Source(str(tmp_path / "rows.jsonl"), id="id")
    given = Run(str(tmp_path / "run"), source, shard_size=8)

    def read(order: list[int], place: str, size: int) -> Corpus:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(lines[i]) + "\n" for i in order))
        return read_corpus(given, Store(str(tmp_path / place)), each=elsewhere, piece_bytes=size)

    # The first rows as they were, which is why their cut is taken.
    mixed = [*range(8), *np.random.default_rng(0).permutation(np.arange(8, 60)).tolist()]
    for size in (1, WHOLE):
        read([*range(60)], f"store{size}", size)
        again = read(mixed, f"store{size}", size)
        store = Store(str(tmp_path / f"store{size}"))
        shards = [store.read_shard("text", s.key)["id"] for s in again.tables["text"].shards]
        assert [ids.to_pylist() for ids in shards] == [
            [*range(start, min(start + 8, 60))] for start in range(0, 60, 8)
        ]
    assert files(tmp_path / "store1") == files(tmp_path / f"store{WHOLE}")


def test_what_is_killed_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "rows.parquet", rows(60))
    given = Run(str(tmp_path / "run"), Source(str(path), id="id"), shard_size=10)

    def killed(function: Any, shared: Any, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for at, result in elsewhere(function, shared, items):
            yield at, result
            if function.__name__ == "make_shards" and at < len(items) / 2:
                raise KeyboardInterrupt

    wanted = read_corpus(given, Store(str(tmp_path / "unbroken")))
    store = Store(str(tmp_path / "store"))
    with pytest.raises(KeyboardInterrupt):
        read_corpus(given, store, each=killed, piece_bytes=1)
    begun = files(tmp_path / "store")
    assert 0 < len(begun) < len(files(tmp_path / "unbroken"))
    assert not list((tmp_path / "store").glob("[a-z]*/*.json"))
    found = read_corpus(given, store, each=elsewhere, piece_bytes=1)
    assert found.tables["extra"].key == wanted.tables["extra"].key
    assert files(tmp_path / "store") == files(tmp_path / "unbroken")


def test_decisions_about_rows_that_are_not_there_are_found_across_parts(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "rows.parquet", rows(40))
    review = tmp_path / "review.csv"
    review.write_text("source_id,decision\nr1,drop\nr39,drop\nnobody,drop\nr5,drop\n")
    source = Source(str(path), id="id", corrections=(str(review),))
    with pytest.raises(DataError, match=r"line 4 \(source_id nobody\): found a source_id that no"):
        read_corpus(Run(str(tmp_path), source), Store(str(tmp_path / "s")), piece_bytes=1)
    review.write_text("source_id,decision\nr1,drop\nr5,drop\n")
    with pytest.raises(DataError, match=r"line 3 .*it was rejected: empty text"):
        read_corpus(Run(str(tmp_path), source), Store(str(tmp_path / "s")), piece_bytes=1)
