"""SQL of users, and run folders of others: they read the run's tables, and do nothing else."""

import datetime
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipeline.api import open_run
from storage.manifest import open_sealed, sealed_json
from storage.schema import StorageError

READS = {
    "SELECT 1 AS x": 1,
    "WITH t AS (SELECT 1 AS x) FROM t": 1,
    "FROM examples SELECT count(*)": 1,
    "VALUES (1), (2)": 2,
    "DESCRIBE examples": 3,
    "SHOW TABLES": 3,
    "SUMMARIZE examples": 3,
    "EXPLAIN SELECT 1": 1,
    "explain analyze FROM examples": 1,
    "-- a comment\nSELECT 1;": 1,
    "PIVOT (SELECT role, id FROM tables.text) ON role IN ('example') USING count(id)": 1,
}
WRITES = [
    "COPY examples TO '{there}'",
    "COPY (SELECT 1) TO '{inside}'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{inside}'",
    "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{inside}'",
    "SELECT 1; COPY (SELECT 1) TO '{inside}'",
    "ATTACH '{inside}' AS other",
    "CREATE TABLE t AS SELECT 1",
    "INSERT INTO provenance.class VALUES (9, 'x')",
    "EXPORT DATABASE '{there}'",
    "SET enable_external_access = true",
    "PRAGMA database_list",
    "INSTALL httpfs",
    "LOAD '{there}'",
    "CALL enable_logging(storage = 'file', storage_path = '{there}')",
    "PREPARE p AS SELECT 1",
    "COPY (PIVOT (SELECT 1 AS a) ON a) TO '{inside}'",
    "",
    "-- nothing",
]
OUTSIDE = [
    "FROM read_csv('{secret}')",
    "FROM '{secret}'",
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM glob('{folder}/*')",
    "FROM read_text('{store}/../../secret.csv')",
    "FROM query('COPY (SELECT 1) TO ''{there}''')",
    "FROM enable_logging(storage = 'file', storage_path = '{there}')",
    "FROM record",
]


@pytest.fixture
def own(unbroken: Any, assay: Any, tmp_path: Path) -> Path:
    """A copy of a finished run, whose catalog was built where it lies."""
    folder = tmp_path / "run"
    shutil.copytree(unbroken.folder, folder)
    assay("status", folder)
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    return folder


def filled(statement: str, run: Path) -> str:
    """A statement with the paths of a run and its neighbourhood."""
    folder = run.parent
    return statement.format(
        there=folder / "made",
        inside=run / "store" / "made.parquet",
        secret=folder / "secret.csv",
        folder=folder,
        store=run / "store",
    )


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def test_statements_that_read(own: Path, assay: Any) -> None:
    # All in one process each way: a command takes a tenth of a second.
    opened = open_run(own, is_shut_in=True)
    for statement, n_rows in READS.items():
        assert len(opened.sql(statement).fetchall()) >= n_rows, statement
    rows = json.loads(assay("sql", own, "DESCRIBE examples", "--json").stdout)
    assert "text" in {row["column_name"] for row in rows}


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("SELECT txt FROM examples", ["no column 'txt' (did you mean text?)", "examples has "]),
        ("SELECT label FROM runs", ["no column 'label'", "runs has", "a column of examples"]),
        ("SELECT e.nothing FROM examples AS e JOIN queries AS q ON true", ["; queries has "]),
        ("WITH a AS (SELECT 1 AS b) SELECT c FROM a", ["no column 'c'", "it names none"]),
    ],
)
def test_a_column_that_is_not_there(
    statement: str, told: list[str], own: Path, complaint: Any
) -> None:
    said = complaint("sql", own, statement)
    for part in told:
        assert part in said


def test_statements_that_do_more_are_refused(own: Path, complaint: Any) -> None:
    before = listing(own.parent)
    for opened in (open_run(own), open_run(own, is_shut_in=True)):
        for statement in WRITES:
            with pytest.raises(StorageError, match=r"expected one statement that reads"):
                opened.sql(filled(statement, own))
    said = complaint("sql", own, filled(WRITES[0], own))
    assert "found COPY" in said
    assert listing(own.parent) == before


def test_the_command_reads_nothing_but_the_store(own: Path, assay: Any, complaint: Any) -> None:
    before = listing(own.parent)
    opened = open_run(own, is_shut_in=True)
    for statement in OUTSIDE:
        with pytest.raises(StorageError):
            opened.sql(filled(statement, own)).fetchall()
    complaint("sql", own, filled(OUTSIDE[0], own))
    shards = sorted((own / "store" / "text").glob("*.parquet"))
    assert opened.sql(f"FROM '{shards[0]}'").fetchall()
    assert listing(own.parent) == before
    for ending, read in {
        "csv": "read_csv",
        "json": "read_json",
        "jsonl": "read_json",
        "parquet": "read_parquet",
    }.items():
        out = own.parent / f"rows.{ending}"
        assay("sql", own, "SELECT id FROM tables.text ORDER BY ALL LIMIT 7", "--out", out)
        assert len(duckdb.sql(f"FROM {read}('{out}')").fetchall()) == 7
    assert listing(own.parent) == sorted(
        [*before, *(str(own.parent / f"rows.{e}") for e in ("csv", "json", "jsonl", "parquet"))]
    )


def test_an_own_run_joins_other_files(own: Path) -> None:
    # As from a notebook: what a person's own session may read.
    secret = own.parent / "secret.csv"
    assert open_run(own).sql(f"SELECT b FROM read_csv('{secret}')").fetchall() == [(2,)]


def harmful_catalog(folder: Path) -> None:
    """Makes `examples` of a run's catalog write a file when it is asked."""
    with duckdb.connect(str(folder / "catalog.duckdb")) as connection:
        connection.execute("DROP VIEW examples")
        secret = folder.parent / "secret.csv"
        connection.execute(f"CREATE VIEW examples AS SELECT * FROM read_csv('{secret}')")


def test_the_sql_of_another_catalog_is_not_run(own: Path, assay: Any) -> None:
    harmful_catalog(own)
    opened = open_run(own)
    assert "text" in opened.sql("FROM examples LIMIT 1").columns
    # Nor is such a run let out of its store.
    secret = own.parent / "secret.csv"
    with pytest.raises(StorageError, match="leaves the run's tables"):
        opened.sql(f"FROM read_csv('{secret}')")
    opened.write_review(opened.sql(REVIEWED), own.parent / "review.csv")
    assert (own.parent / "review.csv").read_text().count("\n") == 3
    # A record that calls it the run's own does not help: it is built again.
    sha256 = hashlib.sha256((own / "catalog.duckdb").read_bytes()).hexdigest()
    spoil_record(own, lambda record: record["catalog"].update(sha256=sha256))
    assay("status", own)
    assert hashlib.sha256((own / "catalog.duckdb").read_bytes()).hexdigest() != sha256
    assert open_run(own).sql(f"SELECT b FROM read_csv('{secret}')").fetchall() == [(2,)]


REVIEWED = (
    "SELECT example_id, source_id, text, label_name AS given_label, label_name AS suggested_label, "
    "0.5 AS label_score FROM examples LIMIT 2"
)


def test_a_run_of_somebody_elses_is_opened_without_its_catalog(
    unbroken: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "unpacked"
    shutil.copytree(unbroken.folder, folder)
    (folder / "catalog.duckdb").write_bytes(b"")
    asked = "SELECT instance, rows FROM runs ORDER BY ALL"
    for view in ("examples", "shapley", "predictions"):
        asked += f"; FROM {view} ORDER BY ALL"
    theirs, own = open_run(folder), open_run(unbroken.folder)
    for statement in asked.split("; "):
        assert theirs.sql(statement).fetchall() == own.sql(statement).fetchall()


def spoil_record(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = open_sealed((folder / "run.json").read_bytes())
    change(record)
    (folder / "run.json").write_text(sealed_json(record))


def test_names_of_a_record_are_checked(own: Path, complaint: Any) -> None:
    good = (own / "run.json").read_bytes()
    evil = "x') TO 'made.csv'; --"
    changes: list[Callable[[dict[str, Any]], None]] = [
        lambda record: record["tables"].update({evil: record["tables"]["corpus"]}),
        lambda record: record["tables"]["corpus"].update(
            {evil: record["tables"]["corpus"]["text"]}
        ),
        lambda record: record["tables"]["corpus"].update(
            {"../../etc": record["tables"]["corpus"]["text"]}
        ),
        lambda record: record["tables"]["corpus"]["text"].update(manifest="../x"),
        lambda record: record["tables"]["corpus"]["text"].update(shards=["../x"]),
        lambda record: record.update(tables=[1]),
        lambda record: record.update(run_id=3),
        lambda record: record.update(store=["x"]),
    ]
    for change in changes:
        (own / "run.json").write_bytes(good)
        spoil_record(own, change)
        for command in (["sql", own, "SELECT 1"], ["status", own]):
            said = complaint(*command)
            assert "run.json: found" in said


def test_names_of_a_manifest_are_checked(own: Path, complaint: Any) -> None:
    (own / "catalog.duckdb").write_bytes(b"")
    key = json.loads((own / "run.json").read_text())["tables"]["corpus"]["text"]["manifest"]
    path = own / "store" / "text" / f"{key}.json"
    good = open_sealed(path.read_bytes())
    for change in (
        {"shards": [{**good["shards"][0], "key": "../../../secret"}]},
        {"shards": [{**good["shards"][0], "rows": "many"}]},
        {"shards": [{**good["shards"][0], "rows": 2**80}]},
        {"details": []},
        {"version": "1; DROP"},
    ):
        path.write_text(sealed_json({**good, **change}))
        assert "manifest as it was written" in complaint("sql", own, "SELECT 1")


def test_names_of_stages_are_checked(write_config: Any, complaint: Any, tmp_path: Path) -> None:
    evil = "x' AS method; COPY (SELECT 1) TO 'made.csv'; --"
    config = write_config(tmp_path, stages={evil: {"stage": "prediction"}})
    assert "stages: found the name" in complaint("plan", config)


TWICE = "SELECT 1 AS a, 2 AS a, 3 AS A, 4 AS a_1 -- as joined views have them"
APART = {"a": 1, "a_2": 2, "A_3": 3, "a_1": 4}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_columns_of_one_name_keep_their_own_values(ending: str, own: Path, assay: Any) -> None:
    assert json.loads(assay("sql", own, TWICE, "--json").stdout) == [APART]
    out = own.parent / f"twice.{ending}"
    assay("sql", own, TWICE, "--out", out)
    (row,) = duckdb.sql(f"FROM '{out}'").df().to_dict("records")
    assert row == APART
    opened = open_run(own)
    moment = TWICE.replace("SELECT", "SELECT now() AS t,")
    assert opened.sql(moment).fetchall()[0][1:] == (1, 2, 3, 4)
    assert opened.sql(TWICE).df().to_dict("records") == [APART]


def test_json_has_no_number_that_is_none(own: Path, assay: Any) -> None:
    told = assay("sql", own, "SELECT 'NaN'::DOUBLE AS a, ['inf'::DOUBLE, 1.5] AS b", "--json")
    assert json.loads(told.stdout, parse_constant=pytest.fail) == [{"a": None, "b": [None, 1.5]}]


def test_moments_with_a_time_zone(own: Path, assay: Any) -> None:
    moment = "SELECT '2024-01-02 03:04:05.678901+01'::TIMESTAMPTZ AS t"
    expected = datetime.datetime(2024, 1, 2, 2, 4, 5, 678901, tzinfo=datetime.UTC)
    opened = open_run(own)
    assert opened.sql(moment).fetchall() == [(expected,)]
    assert opened.sql(f"{moment}, NULL::TIMESTAMPTZ AS n, 1 AS one").fetchall() == [
        (expected, None, 1)
    ]
    far = opened.sql("SELECT 'infinity'::TIMESTAMPTZ AS a, '-infinity'::TIMESTAMPTZ AS b")
    assert [moment.year for moment in far.fetchall()[0]] == [9999, 1]
    assert "2024-01-02 02:04:05.678901+00" in assay("sql", own, moment).stdout
    out = own.parent / "t.csv"
    assay("sql", own, moment, "--out", out)
    assert "2024-01-02 02:04:05.678901+00" in out.read_text()
