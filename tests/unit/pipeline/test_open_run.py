"""An opened run: counts, and the user's own rows written back as they came."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import open_run
from pipeline.corpus import read_corpus
from pipeline.errors import RunError
from pipeline.folder import RunFolder
from pipeline.open_run import OpenedRun
from pipeline.results import rows_of
from pipeline.settings import Run
from stages.corpus.source import Source
from storage.catalog import fetch
from storage.schema import StorageError
from storage.table import Store


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("7", 7), (" 7 ", 7), ("7.0", 7), ("200", 200), ("20%", 40), ("0.5%", 1)],
)
def test_rows_of(text: str, count: int) -> None:
    assert rows_of(text, 200) == count
    assert rows_of("100%", 3) == 3


@pytest.mark.parametrize("text", ["", "%", "x", "-1", "-1%", "201", "101%", "1.5", "nan", "inf"])
def test_rows_of_refuses_what_is_no_number_of_rows(text: str) -> None:
    with pytest.raises(RunError, match=r"found .* expected a number of rows up to 200"):
        rows_of(text, 200)


def opened(folder: Path, source: Source) -> OpenedRun:
    """A run that has ingested its corpus and computed nothing."""
    place = RunFolder(folder / "it's a run")
    place.path.mkdir()
    store = Store(str(place.path / "store"))
    corpus = read_corpus(Run(str(place.path), source, shard_size=2), store)
    tables = {
        name: {"manifest": m.key, "shards": [s.key for s in m.shards]}
        for name, m in corpus.tables.items()
    }
    place.write_record(
        {
            "run_id": "it's a run-0",
            "path": str(place.path),
            "store": None,
            "splits": {"example": "train"},
            "tables": {"corpus": tables},
        }
    )
    place.rebuild_catalog()
    return open_run(place.path)


def texts(n: int) -> list[str]:
    return [f"text {i}" for i in range(n)]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([0, 1, 1, 0, 1], None),
        ([0, 1, 1, 0, 1], ("no", "yes")),
        ([0, 1, 1, 0, 1], ("1", "2")),
        ([-1, 1, 1, -1, 1], None),
        ([3, 1, 1, 3, 0], None),
        (["yes", "no", "no", "yes", "no"], None),
        (["yes", "no", "no", "yes", "no"], ("yes", "no")),
        (["1", "2", "2", "1", "2"], None),
    ],
)
@pytest.mark.parametrize("ids", [None, [5, 3, -1, 2**40, 0], ["b", "a", "07", "7", "x"]])
def test_rows_are_written_back_as_they_came(
    tmp_path: Path, labels: list[Any], classes: tuple[str, ...] | None, ids: list[Any] | None
) -> None:
    columns: dict[str, Any] = {"note": [{"a": [i]} for i in range(5)], "Label": labels}
    columns |= {"key": ids} if ids is not None else {}
    columns |= {"text": [f"carried {i}" for i in range(5)], "body": texts(5), "rank": [None] * 5}
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "rows.parquet")
    source = Source(
        str(tmp_path / "rows.parquet"),
        text="body",
        label="Label",
        id="key" if ids is not None else None,
        classes=classes,
    )
    run = opened(tmp_path, source)
    assert run.write_corpus(tmp_path / "out.parquet") == 5
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.column_names == table.column_names
    assert written.to_pylist() == table.to_pylist()
    run.write_corpus(tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == table.to_pylist()


def test_chosen_rows_keep_their_order_and_ours_come_after(tmp_path: Path) -> None:
    table = pa.table({"text": texts(5), "label": [0, 1, 0, 1, 0], "Rank": list("vwxyz")})
    pq.write_table(table, tmp_path / "rows.parquet")
    run = opened(tmp_path, Source(str(tmp_path / "rows.parquet")))
    chosen = run.sql(
        "SELECT example_id, text, label, 'mine' AS rank, 1 AS value FROM examples "
        "WHERE example_id <> 2 ORDER BY example_id DESC"
    )
    assert run.write(chosen, tmp_path / "out.parquet") == 4
    written = pq.read_table(tmp_path / "out.parquet")
    names = ["text", "label", "Rank", "example_id", "assay_rank", "value"]
    assert written.column_names == names
    assert written["Rank"].to_pylist() == ["z", "y", "w", "v"]
    assert set(written["assay_rank"].to_pylist()) == {"mine"}


def test_ids_in_csv_that_are_numbers_come_back_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("uid,text,label\n1,a,x\n20,b,y\n-3,c,y\n")
    run = opened(tmp_path, Source(str(tmp_path / "rows.csv"), id="uid"))
    run.write_corpus(tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["uid"].to_pylist() == [1, 20, -3]


def test_a_view_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,x\nb,y\n")
    run = opened(tmp_path, Source(str(tmp_path / "rows.csv")))
    assert run.views() == ["examples", "issues", "queries", "rejected", "runs"]
    with pytest.raises(RunError, match=r"found no view label_issues.*Add `label_issues: \{\}`"):
        run.flag()
    with pytest.raises(RunError, match=r"found no view shapley.*Add `freeshap: \{\}`"):
        run.select(keep="1")


def test_columns_of_any_name_are_carried_beside_those_of_the_views(tmp_path: Path) -> None:
    names = [
        "filename",
        "FileName",
        "assay_file",
        "file_row_number",
        "file_index",
        "shard",
        "rowid",
    ]
    table = pa.table(
        {"text": ["a", "b"], "label": ["x", "y"], **{n: [f"{n} 0", f"{n} 1"] for n in names}}
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    run = opened(tmp_path, Source(str(tmp_path / "rows.parquet")))
    rows = run.sql("SELECT filename, shard, source_assay_file FROM examples ORDER BY 1").fetchall()
    assert rows == [("filename 0", 0, "assay_file 0"), ("filename 1", 0, "assay_file 1")]
    run.write_corpus(tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == table.to_pylist()


def test_moments_of_time_zones_can_be_looked_at(tmp_path: Path) -> None:
    moment = pa.array([0, 1], pa.timestamp("us", "Europe/Berlin"))
    table = pa.table({"text": ["a", "b"], "label": ["x", "y"], "moment": moment})
    pq.write_table(table, tmp_path / "rows.parquet")
    run = opened(tmp_path, Source(str(tmp_path / "rows.parquet")))
    assert fetch(run.sql("SELECT moment FROM examples ORDER BY 1"))[0][0].startswith("1970-01-01")
    run.write_corpus(tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["moment"].equals(table["moment"])


def test_a_corpus_of_an_earlier_version_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,x\nb,y\n")
    run = opened(tmp_path, Source(str(tmp_path / "rows.csv")))
    for manifest in tmp_path.rglob("extra/*.json"):
        text = manifest.read_text().replace('"type": ', '"other": ')
        kept = {key: value for key, value in json.loads(text).items() if key != "seal"}
        manifest.write_text(json.dumps(kept))
    with pytest.raises(
        RunError, match=r"found a corpus that an earlier version.*expected.*Read it"
    ):
        run.write_corpus(tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("name", ["out.json", "out.txt"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,x\nb,y\n")
    run = opened(tmp_path, Source(str(tmp_path / "rows.csv")))
    with pytest.raises(StorageError, match=r"found the ending .*expected .parquet.*Rename the out"):
        run.write_corpus(tmp_path / name)
