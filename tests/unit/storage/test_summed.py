"""Values that are summed once, against the statements over the rounds, to the last bit."""

import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.tables import EXACT_VALUE, SHAPLEY_ROUND
from storage import summed
from storage.catalog import open_catalog
from storage.manifest import Manifest, digest
from storage.schema import CorruptError, StorageError
from storage.summed import VALUE, sum_values
from storage.table import Store
from storage.views import SUMS, Entry, build_catalog

N = 50


def rounds(store: Store, instance: str, n_rounds: int, scale: float = 1.0) -> Entry:
    """An entry of rounds whose totals go over 18 orders of magnitude, in two utilities."""
    records = []
    for at in range(n_rounds):
        drawn = np.random.default_rng([at, len(instance)])
        n = 2 * N
        total = scale * drawn.normal(size=n) * 10.0 ** drawn.integers(-9, 9, n)
        columns = {
            "round": np.full(n, at),
            "semivalue": ["shapley"] * n,
            "utility": ["accuracy"] * N + ["margin"] * N,
            "example_id": np.tile(np.arange(N), 2),
            "total": total,
            "total_sq": total**2,
            "n_units": np.ones(n, int),
            "n_observed": np.ones(n, int),
            "n_prior": np.zeros(n, int),
        }
        rows = pa.table(columns, schema=SHAPLEY_ROUND.schema)
        key = digest([instance, at, scale])
        records.append(store.write_shard(SHAPLEY_ROUND, key, "", at, rows))
    manifest = Manifest(SHAPLEY_ROUND.name, "freeshap", 4, {}, {}, tuple(records))
    store.write_manifest(manifest)
    return Entry(instance, manifest)


def exact(store: Store) -> Entry:
    columns = [["shapley"] * 3, ["accuracy"] * 3, [1, 2, 3], [0.5, -1.0, 0.0]]
    rows = pa.table(columns, schema=EXACT_VALUE.schema)
    record = store.write_shard(EXACT_VALUE, "exact", "", 0, rows)
    manifest = Manifest(EXACT_VALUE.name, "leave_one_out", 1, {}, {}, (record,))
    store.write_manifest(manifest)
    return Entry("leave_one_out", manifest)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def shown(store: Store, tmp_path: Path) -> Callable[..., list[tuple[Any, ...]]]:
    """The rows of the view `shapley` over entries."""

    def rows(*entries: Entry) -> list[tuple[Any, ...]]:
        build_catalog(tmp_path / "catalog.duckdb", entries, store, "run", {"example": "train"})
        with open_catalog(tmp_path / "catalog.duckdb") as connection:
            return connection.execute("FROM shapley ORDER BY ALL").fetchall()

    return rows


def shards(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(store.root, SUMS).glob("*.parquet")}


@pytest.mark.parametrize("shard_rows", [1 << 20, 30])
def test_values_are_those_of_the_rounds_to_the_last_bit(
    store: Store, shown: Any, shard_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two instances of one table, of which one decides the unit of the exact sums of both."""
    monkeypatch.setattr(summed, "SHARD_ROWS", shard_rows)
    entries = [rounds(store, "freeshap", 5), rounds(store, "tiny", 3, 1e-14), exact(store)]
    values = sum_values(entries, store)
    assert [(v.instance, v.manifest.rows) for v in values] == [
        ("leave_one_out", 3),
        ("freeshap", 2 * N),
        ("tiny", 2 * N),
    ]
    assert len(values[1].manifest.shards) == (4 if shard_rows == 30 else 1)
    before = shown(*entries)
    assert len(before) == 4 * N + 3
    assert shown(*entries, *values) == before


def test_values_are_the_means_of_exact_sums(store: Store, shown: Any) -> None:
    entry = rounds(store, "freeshap", 5)
    rows = store.read_table(entry.manifest).to_pylist()
    finest = max(row["total_sq"] for row in rows) * 2.0**-99
    found = shown(entry, *sum_values([entry], store))
    assert len(found) == 2 * N
    for _, _, utility, example, value, *_ in found:
        own = [r["total"] for r in rows if (r["utility"], r["example_id"]) == (utility, example)]
        assert value == pytest.approx(float(sum(map(Fraction, own)) / 5), rel=1e-15, abs=finest)


def test_what_is_summed_is_summed_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rounds(store, "freeshap", 2)
    values = sum_values([first], store)
    with monkeypatch.context() as patched:
        patched.setattr(summed, "_sum", lambda *_: pytest.fail("summed again"))
        assert sum_values([first], store) == values
    before = shards(store)
    # More rounds, or other rounds beside these, are other shards; the earlier ones stay.
    more = sum_values([rounds(store, "freeshap", 3)], store)
    both = sum_values([first, rounds(store, "other", 2)], store)
    after = shards(store)
    assert before.items() <= after.items()
    keys = {entry.manifest.key for entry in (*values, *more, *both)}
    assert len(keys) == 4
    assert len(after) == 4


@pytest.mark.parametrize("ending", ["parquet", "json"])
@pytest.mark.parametrize("harm", [b"", b"junk", None])
def test_values_that_are_damaged_are_summed_again(
    store: Store, ending: str, harm: bytes | None
) -> None:
    entry = rounds(store, "freeshap", 2)
    values, before = sum_values([entry], store), shards(store)
    (path,) = Path(store.root, SUMS).glob(f"*.{ending}")
    path.unlink() if harm is None else path.write_bytes(harm)
    again = Store(store.root)
    assert [v.manifest.key for v in sum_values([entry], again)] == [v.manifest.key for v in values]
    assert shards(again) == before
    again.read_table(sum_values([entry], again)[0].manifest)


def test_damaged_rounds_are_not_summed(store: Store) -> None:
    entry = rounds(store, "freeshap", 2)
    path = Path(store.path(SHAPLEY_ROUND.name, f"{entry.manifest.shards[1].key}.parquet"))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=path.name):
        sum_values([entry], store)
    assert not shards(store)


def test_a_store_that_cannot_be_written_to_is_summed_at_every_question(
    store: Store, shown: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entry = rounds(store, "freeshap", 2)

    def refuse(*_: Any) -> None:
        raise StorageError("found a folder, expected one that can be written to. Correct it.")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(store, "write_shard", refuse)
        assert sum_values([entry], store) == []
    assert "summed at every question" in caplog.text
    before = shown(entry)
    assert before == shown(entry, *sum_values([entry], store))


def test_values_lie_in_the_order_of_their_ids(store: Store) -> None:
    (value,) = sum_values([rounds(store, "freeshap", 2)], store)
    rows = store.read_table(value.manifest)
    assert rows.schema == VALUE.schema
    assert rows["example_id"].to_pylist() == list(range(N)) * 2
