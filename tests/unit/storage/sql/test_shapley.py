import random
from collections.abc import Iterator
from pathlib import Path

import duckdb
import mpmath
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import storage.schema
from stages.tables import SHAPLEY_ROUND

SQL = Path(storage.schema.__file__).parent / "sql"
MACRO = (SQL / "macros" / "student_t_cdf.sql").read_text(encoding="utf-8")
COLUMNS = (
    "method, semivalue, utility, example_id, value, stderr, n_samples, n_observed, p_helpful, "
    "rank, run_id"
)


@pytest.fixture
def macro() -> "Iterator[duckdb.DuckDBPyConnection]":
    connection = duckdb.connect()
    connection.execute(MACRO)
    yield connection
    connection.close()


def exact(t: float, df: int) -> float:
    with mpmath.workdps(40):
        half = mpmath.mpf(1) / 2
        squared = mpmath.mpf(t) ** 2
        tail = mpmath.betainc(df * half, half, 0, df / (df + squared), regularized=True) / 2
        return float(1 - tail if t > 0 else tail)


def test_student_t_is_exact_to_twelve_digits(macro: "duckdb.DuckDBPyConnection") -> None:
    sizes = [1, 2, 3, 4, 5, 9, 32, 33, 59, 60, 61, 81, 82, 199, 999, 2000]
    points = [0.0, 1e-9, 0.01, 0.3, 1.0, 1.7, 2.5, 4.0, 6.0, 8.0, 8.99, 9.5, 40.0, 1e4, 1e9]
    points += [-t for t in points]
    pairs = [(t, df) for t in points for df in sizes]
    macro.register("pair", pa.table({"t": [t for t, _ in pairs], "df": [df for _, df in pairs]}))
    found = macro.execute("SELECT student_t_cdf(t, df) FROM pair").fetchall()
    expected = [[exact(t, df)] for t, df in pairs]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("df", [1, 2, 19, 59, 60, 199, 2000])
def test_student_t_rises_from_zero_to_one(macro: "duckdb.DuckDBPyConnection", df: int) -> None:
    query = f"SELECT student_t_cdf((range - 3000) / 200.0, {df}) FROM range(6001) ORDER BY range"
    values = np.array(macro.execute(query).fetchall()).ravel()
    # Where the tail has run out of digits, only rounding is left.
    assert np.diff(values).min() > -1e-13
    assert np.diff(values[1800:4201:20]).min() > 0
    assert values.min() >= 0
    assert values.max() <= 1
    np.testing.assert_allclose(values + values[::-1], 1, rtol=0, atol=1e-15)


def test_student_t_of_nothing_is_null(macro: "duckdb.DuckDBPyConnection") -> None:
    row = macro.execute("SELECT student_t_cdf(NULL, 3), student_t_cdf(1.0, NULL)").fetchone()
    assert row == (None, None)


def catalog(folder: Path, units: dict[int, list[list[float]]], n_prior: int = 0) -> Path:
    """A catalog over one Parquet file per round; `units[example]` is a list of rounds of units."""
    n_rounds = max(len(rounds) for rounds in units.values())
    files = []
    for index in range(n_rounds):
        rows = [
            {
                "round": index,
                "semivalue": "shapley",
                "utility": "accuracy",
                "example_id": example,
                "total": sum(rounds[index]),
                "total_sq": sum(x * x for x in rounds[index]),
                "n_units": len(rounds[index]),
                "n_observed": len(rounds[index]),
                "n_prior": n_prior,
            }
            for example, rounds in units.items()
            if index < len(rounds)
        ]
        files.append(str(folder / f"{index}.parquet"))
        pq.write_table(pa.Table.from_pylist(rows, schema=SHAPLEY_ROUND.schema), files[-1])
    random.Random(0).shuffle(files)
    path = folder / "catalog.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(MACRO)
        connection.execute("CREATE SCHEMA tables")
        connection.execute(
            "CREATE VIEW tables.shapley_round AS SELECT 'freeshap' AS method, 'run' AS run_id, * "
            f"FROM read_parquet({files})"
        )
        text = (SQL / "summed" / "shapley_round.sql").read_text(encoding="utf-8")
        connection.execute(f"CREATE VIEW shapley AS {text}")
    return path


def rows_of(path: Path, threads: int = 2) -> dict[int, dict[str, object]]:
    """The view's rows by example, through a fresh connection."""
    with duckdb.connect(str(path), read_only=True, config={"threads": threads}) as connection:
        relation = connection.sql("SELECT * FROM shapley")
        assert ", ".join(relation.columns) == COLUMNS
        return {
            row[3]: dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()
        }


@pytest.mark.parametrize("n_prior", [0, 16])
def test_value_error_and_probability_are_those_of_the_units(tmp_path: Path, n_prior: int) -> None:
    generator = np.random.default_rng(0)
    units = {i: generator.normal(0.1 * i, 1, (4, 5)).tolist() for i in range(6)}
    units[5] = [[0.5] * 5] * 4
    found = rows_of(catalog(tmp_path, units, n_prior))
    own = {i: np.array(rounds).ravel().var(ddof=1) for i, rounds in units.items()}
    for example, rounds in units.items():
        flat = np.array(rounds).ravel()
        mixed = 19 * own[example] + n_prior * np.mean(list(own.values()))
        error = np.sqrt(mixed / (19 + n_prior) / 20)
        if not error:
            continue
        row = found[example]
        assert row["value"] == pytest.approx(flat.mean(), abs=1e-14)
        assert row["stderr"] == pytest.approx(error, rel=1e-12)
        assert row["p_helpful"] == pytest.approx(exact(flat.mean() / error, 19), abs=1e-11)
        assert (row["n_samples"], row["n_observed"], row["semivalue"]) == (20, 20, "shapley")
    by_value = sorted(units, key=lambda example: -found[example]["value"])
    assert [found[example]["rank"] for example in by_value] == [1, 2, 3, 4, 5, 6]


def test_units_without_spread(tmp_path: Path) -> None:
    """Constants whose squares cannot be summed exactly; zeros; rows that were seen once."""
    units = {
        1: [[0.1, 0.1, 0.1]] * 7,
        2: [[-1e-7 / 3] * 3] * 7,
        3: [[0.0] * 3] * 7,
        4: [[0.5]],
        5: [[0.0] * 3] * 7,
        6: [[1.0, -1.0]],
    }
    found = rows_of(catalog(tmp_path, units))
    assert [found[i]["stderr"] for i in range(1, 6)] == [0, 0, 0, None, 0]
    assert [found[i]["p_helpful"] for i in range(1, 7)] == [1, 0, 0.5, None, 0.5, 0.5]
    assert found[1]["value"] == pytest.approx(0.1, rel=1e-15)
    assert found[2]["value"] == pytest.approx(-1e-7 / 3, rel=1e-12)
    assert [found[i]["rank"] for i in range(1, 7)] == [2, 6, 3, 1, 4, 5]
    assert found[6]["stderr"] == pytest.approx(1)


def test_nothing_but_zeros_has_values(tmp_path: Path) -> None:
    found = rows_of(catalog(tmp_path, {1: [[0.0, 0.0]]}))
    assert (found[1]["value"], found[1]["p_helpful"]) == (0, 0.5)


def test_values_do_not_depend_on_threads(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    units = {
        i: (generator.normal(size=(12, 1)) * 10.0 ** generator.integers(-9, 9, (12, 1))).tolist()
        for i in range(3000)
    }
    path = catalog(tmp_path, units, n_prior=16)
    expected = rows_of(path, 1)
    assert all(rows_of(path, threads) == expected for threads in (2, 8))
