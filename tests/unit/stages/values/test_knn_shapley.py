from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from memory_inputs import MemoryInputs, label_table

import storage.schema
from stages.catalogue import load
from stages.stage import ConfigError, DataError, Part, Vectors, Work
from stages.values.knn_shapley import KNN_BLOCK, KnnShapley

SQL = Path(storage.schema.__file__).parent / "sql"
COLUMNS = (
    "method semivalue utility example_id value stderr n_samples n_observed p_helpful rank run_id"
)
N_EXAMPLES, N_QUERIES = 12, 9


class InMemory(MemoryInputs):
    """Twelve examples and nine queries in blocks of three; `without` names rows without a vector.

    Labels that are None are unknown.
    """

    def __init__(self, unknown: Any = (), without: Any = ()) -> None:
        g = np.random.default_rng(0)
        labels: dict[str, dict[int, int | None]] = {}
        rows = {}
        for role, n in (("example", N_EXAMPLES), ("query", N_QUERIES)):
            known = enumerate(g.integers(0, 2, n).tolist())
            labels[role] = {i: None if (role, i) in unknown else y for i, y in known}
            matrix = g.normal(size=(n, 4)).astype(np.float16)
            kept = np.array([i for i in range(n) if (role, i) not in without], int)
            rows[role] = Vectors(kept, matrix[kept])
        details = {"label": {"classes": ["a", "b"]}}
        super().__init__({"label": label_table(labels)}, details, rows, Part("query", 0), block=3)

    def block_of(
        self, stage: KnnShapley, index: int = 0
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows and facts of one block."""
        self.part = Part("query", index)
        self.opened = self.opened or stage.open(self)
        batches = [batch for _, batch in stage.compute(self)]
        rows = KNN_BLOCK.check(pa.Table.from_batches(batches, KNN_BLOCK.schema)).to_pylist()
        return rows, dict(stage.details(self))


def test_rows_without_label_or_features_take_no_part() -> None:
    """Values are those of a corpus that never had them."""
    unknown = [("example", 3), ("query", 1), ("query", 5)]
    without = [("example", 7), ("query", 2), ("query", 5), ("example", 3)]
    rows, facts = InMemory(unknown, without).block_of(KnnShapley(neighbours=3))
    assert [row["example_id"] for row in rows] == [i for i in range(N_EXAMPLES) if i not in (3, 7)]
    assert {row["n_queries"] for row in rows} == {1}
    assert facts == {
        "n_examples": 10,
        "n_without_features": 1,
        "n_without_label": 1,
        "n_left_out": 1,
        "notices": ["left out for want of features: labelled examples 1"],
    }
    bare = InMemory()
    gone = {("example", 3), ("example", 7), ("query", 1), ("query", 2)}
    given = bare.tables["label"]
    kept = [(row["role"], row["id"]) not in gone for row in given.to_pylist()]
    labels = pc.if_else(pa.array(kept), given["label"], None)
    bare.tables["label"] = given.set_column(2, "label", labels)
    assert bare.block_of(KnnShapley(neighbours=3))[0] == rows


def test_a_block_without_labels_has_no_rows_and_is_counted() -> None:
    inputs = InMemory([("query", i) for i in (3, 4, 5)])
    stage = KnnShapley()
    assert inputs.block_of(stage, 1) == (
        [],
        {"n_examples": 12, "n_without_features": 0, "n_without_label": 3, "n_left_out": 0},
    )
    assert len(inputs.block_of(stage, 2)[0]) == N_EXAMPLES


@pytest.mark.parametrize("role", ["example", "query"])
@pytest.mark.parametrize("what", ["unknown", "without"])
def test_nothing_to_value_or_to_value_with(role: str, what: str) -> None:
    everyone = {what: [(role, i) for i in range(N_EXAMPLES)]}
    counts = {"example": "0 examples and 9 queries", "query": "12 examples and 0 queries"}
    with pytest.raises(DataError, match=f"embedding: found {counts[role]} with a label and feat"):
        InMemory(**everyone).block_of(KnnShapley())


def test_fields_are_checked() -> None:
    with pytest.raises(ConfigError, match="found neighbours: 0, expected at least 1"):
        KnnShapley(neighbours=0)
    assert load("knn_shapley") is KnnShapley


def test_cost_grows_with_pairs() -> None:
    works = [
        Work(n_examples=n, n_queries=m, n_tokens=0, n_classes=2, dim=384, n_shards=n // 1000)
        for n, m in ((10_000, 500), (10_000, 1000), (20_000, 1000), (20_000, 1001))
    ]
    costs = [KnnShapley().cost(work) for work in works]
    assert costs[1].flops == pytest.approx(2 * costs[0].flops)
    assert 2 * costs[1].flops < costs[2].flops < 2.2 * costs[1].flops
    assert [cost.written_bytes // 24 for cost in costs] == [10_000, 10_000, 20_000, 40_000]
    assert costs[2].memory_bytes < 20_000 * 600 + 2e6


def view_rows(blocks: list[dict[int, tuple[float, int]]], threads: int) -> list[tuple[Any, ...]]:
    """Rows of the view over blocks, each {example: (total, queries)}."""
    rows = [
        {"method": "knn_shapley", "run_id": "run", "example_id": i, "total": t, "n_queries": n}
        for block in blocks
        for i, (t, n) in block.items()
    ]
    with duckdb.connect(config={"threads": threads}) as connection:
        connection.execute("CREATE SCHEMA tables")
        connection.register("block_rows", pa.Table.from_pylist(rows))
        connection.execute("CREATE TABLE tables.knn_block AS FROM block_rows")
        text = (SQL / "summed" / "knn_block.sql").read_text(encoding="utf-8")
        relation = connection.sql(f"SELECT * FROM ({text}) ORDER BY example_id")
        assert " ".join(relation.columns) == COLUMNS
        return relation.fetchall()


def test_the_view_takes_the_mean_over_all_queries() -> None:
    found = view_rows([{1: (0.5, 3), 2: (-1.0, 3)}, {1: (0.25, 1), 2: (1.0, 1)}], 1)
    head = ("knn_shapley", "shapley", "knn")
    assert found == [
        (*head, 1, 0.1875, 0.0, None, None, 1.0, 1, "run"),
        (*head, 2, 0.0, 0.0, None, None, 0.5, 2, "run"),
    ]
    assert view_rows([{1: (0.0, 3)}], 1)[0][4] == 0.0


def test_the_view_depends_neither_on_threads_nor_on_the_order_of_blocks() -> None:
    g = np.random.default_rng(0)
    blocks = [
        {i: (float(g.normal() * 10.0 ** g.integers(-9, 3)), 7) for i in range(3000)}
        for _ in range(9)
    ]
    expected = view_rows(blocks, 1)
    exact = {i: sum(block[i][0] for block in blocks) / 63 for i in range(3000)}
    assert all(row[4] == pytest.approx(exact[row[3]], rel=1e-12, abs=1e-15) for row in expected)
    assert view_rows(blocks[::-1], 1) == expected
    assert view_rows(blocks, 8) == expected
