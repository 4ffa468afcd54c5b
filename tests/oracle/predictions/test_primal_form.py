"""Kernel regression in primal form against its dual form, on the same rows.

Tolerance 1e-9: both solve the same system, whose condition is at most 1e5 here.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from memory_inputs import MemoryInputs, ShardedInputs, label_table

from stages.features.feature_sums import FeatureSums
from stages.predictions.kernel_fit import KernelFit
from stages.predictions.kernel_regression import KernelRegression
from stages.predictions.target_sums import TargetSums
from stages.reading.vectors import matrix_of
from stages.stage import Part, Size
from storage.schema import TableSpec

N, M = 60, 7
KERNEL = {"kernel": ("a",)}


def vectors(rng: np.random.Generator, length: int, without: tuple[int, ...] = ()) -> pa.Table:
    """Vectors of examples 0 to 59 and queries 1000 to 1006, less some rows."""
    ids = np.concatenate([np.arange(N), 1000 + np.arange(M)])
    keep = ~np.isin(ids, without)
    numbers = rng.normal(size=(len(ids), length)).astype(np.float32)[keep]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), length)
    roles = np.where(ids < 1000, "example", "query")[keep]
    return pa.table({"id": ids[keep], "role": roles, "vector": lists})


def tables(task: str = "classification", seed: int = 0) -> tuple[dict[str, pa.Table], dict]:
    """Two feature tables that lack some rows, labels that lack others; three classes."""
    rng = np.random.default_rng(seed)
    made = {"a": vectors(rng, 9, (4, 1002)), "b": vectors(rng, 12, (8, 9))}
    labels = {i: None if i % 11 == 5 else int(rng.integers(3)) for i in range(N)}
    if task == "regression":
        given = {i: None if y is None else float(rng.normal()) for i, y in labels.items()}
        rows = [(i, "example", y) for i, y in given.items()] + [
            (1000 + i, "query", 0.0) for i in range(M)
        ]
        ids, roles, targets = zip(*rows, strict=True)
        made["label"] = pa.table({"id": ids, "role": roles, "target": targets})
        return made, {"label": {"task": task, "classes": []}}
    made["label"] = label_table({"example": labels, "query": {1000 + i: None for i in range(M)}})
    return made, {"label": {"classes": ["x", "y", "z"]}}


def merged(inputs: ShardedInputs, stage: Any) -> dict[str, pa.Table]:
    """All tables of a stage whose shards are merged."""
    parts: dict[str, list[pa.Table]] = {spec.name: [] for spec in stage.writes}
    for index in range(inputs.n_shards):
        written = inputs.compute(stage, Part("example", index))
        for name, table in written.items():
            parts[name].append(table)
    return together(stage.writes, stage.merge(parts))


def together(specs: tuple[TableSpec, ...], batches: Any) -> dict[str, pa.Table]:
    found: dict[str, list[pa.RecordBatch]] = {spec.name: [] for spec in specs}
    for name, batch in batches:
        found[name].append(batch)
    return {
        spec.name: spec.check(pa.Table.from_batches(found[spec.name], spec.schema))
        if not found[spec.name]
        else spec.check(pa.Table.from_batches(found[spec.name]))
        for spec in specs
    }


class Cut(ShardedInputs):
    """Shards whose rows `by_shard` yields for the part at work, or all."""

    def by_shard(self, name: str, role: str, most: int | None = None) -> Any:
        if self.part.role:
            yield self.table(name, role)
        else:
            yield from super().by_shard(name, role, most)


def primal(
    made: dict[str, pa.Table], facts: dict[str, Any], n_shards: int = 4, **fields: Any
) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """What the stages of the primal form write for all shards, and the facts of the fit."""
    stage = KernelRegression(**fields).sized(Size(10**6, 10**6, M, 3, {}))
    assert isinstance(stage, KernelRegression)
    assert stage.split == "shard"
    asked = stage.asks[stage.fit] | {"kernel": stage.kernel}
    fit = KernelFit(**asked)
    sums = fit.asks[fit.features] | {"kernel": stage.kernel}
    inputs = Cut(made, facts, n_shards, whole=("kernel_fit",))
    inputs.opened = None
    for one in (FeatureSums(**sums), TargetSums(**sums)):
        written = merged(inputs, one)
        name = one.writes[0].name
        inputs.tables[name] = written.pop(name)
        inputs.tables |= {f"{name}.{beside}": table for beside, table in written.items()}
        inputs.part = Part("", 0)
    inputs.open(fit)
    inputs.tables["kernel_fit"] = inputs.compute(fit, Part("", 0))["kernel_fit"]
    inputs.facts_of["kernel_fit"] = fit.details(inputs)
    inputs.open(stage)
    written = [inputs.compute(stage, Part("example", index)) for index in range(n_shards)]
    of_queries = [inputs.compute(stage, Part("query", index)) for index in range(n_shards)]
    rows = {
        spec.name: pa.concat_tables(
            [one[spec.name] for one in [*written, *of_queries] if one[spec.name].num_rows]
        )
        for spec in stage.writes
        if any(one[spec.name].num_rows for one in written)
    }
    return rows, dict(stage.details(inputs))


def sorted_rows(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    table = table.sort_by("id")
    return table["id"].to_numpy(), matrix_of(table[column])


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("classification", {"kernel": ("a",)}),
        ("classification", {"kernel": ("a",), "normalize": False, "ridge": 0.3}),
        ("classification", {"kernel": ("a", "b")}),
        ("classification", {"kernel": ("a", "b"), "normalize": False}),
        ("classification", {"kernel": ("a", "b"), "per_class": True}),
        ("classification", {"kernel": ("b", "a"), "per_class": True, "normalize": False}),
        ("regression", {"kernel": ("a",)}),
        ("regression", {"kernel": ("a", "b"), "normalize": False, "ridge": 0.01}),
    ],
)
def test_primal_form_equals_dual_form(task: str, fields: dict[str, Any]) -> None:
    made, facts = tables(task)
    found, told = primal(made, facts, **fields)
    dual = MemoryInputs(made, facts)
    dual.open(KernelRegression(**fields, form="dual"))
    expected = dual.compute(KernelRegression(**fields, form="dual"))
    for role in ("example", "query"):
        of_role = [
            t.filter(pa.compute.equal(t["role"], role))
            for t in (found["prediction"], expected["prediction"])
        ]
        (ids, logits), (wanted, outputs) = (sorted_rows(t, "logits") for t in of_role)
        np.testing.assert_array_equal(ids, wanted)
        np.testing.assert_allclose(logits, outputs, rtol=0, atol=2e-7)
    (ids, weights), (wanted, duals) = (
        sorted_rows(t["kernel_dual"], "dual") for t in (found, expected)
    )
    np.testing.assert_array_equal(ids, wanted)
    np.testing.assert_allclose(weights, duals, rtol=1e-9, atol=1e-9 * np.abs(duals).max())
    wanted_facts = KernelRegression(**fields, form="dual").details(dual)
    assert told["ridge"] == wanted_facts["ridge"]
    np.testing.assert_allclose(told["damping"], wanted_facts["damping"], rtol=1e-12)
    errors = [[e["error"] for e in facts["ridge_errors"]] for facts in (told, wanted_facts)]
    np.testing.assert_allclose(*errors, rtol=1e-8)
    if "ridge" not in fields:
        by_ridge = (
            found["ridge_error"]
            .group_by("ridge")
            .aggregate([("squared_error", "sum"), ("n_examples", "sum")])
            .sort_by("ridge")
        )
        means = by_ridge["squared_error_sum"].to_numpy() / by_ridge["n_examples_sum"].to_numpy()
        np.testing.assert_allclose(means, errors[1], rtol=1e-8)
