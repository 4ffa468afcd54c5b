"""Kernel regression in primal form against its dual form, on the same rows.

Tolerance 1e-9: both solve the same system, whose condition is at most 1e5 here. Outputs are stored
in float32.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import WHOLE, MemoryInputs, ShardedInputs, label_table

from stages.features.feature_sums import FeatureSums
from stages.pairs.kernel_representer import KernelRepresenter
from stages.predictions.kernel_fit import KernelFit
from stages.predictions.kernel_regression import KernelRegression
from stages.predictions.target_sums import TargetSums
from stages.reading.vectors import matrix_of
from stages.stage import Part, Size

N, M = 60, 7


def vectors(rng: np.random.Generator, length: int, without: tuple[int, ...] = ()) -> pa.Table:
    """Vectors of examples 0 to 59 and queries 1000 to 1006, less some rows."""
    ids = np.concatenate([np.arange(N), 1000 + np.arange(M)])
    keep = ~np.isin(ids, without)
    numbers = rng.normal(size=(len(ids), length)).astype(np.float32)[keep]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), length)
    roles = np.where(ids < 1000, "example", "query")[keep]
    return pa.table({"id": ids[keep], "role": roles, "vector": lists})


def tables(task: str) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """Two feature tables that lack some rows, labels that lack others; three classes."""
    rng = np.random.default_rng(0)
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


def primal(
    made: dict[str, pa.Table], facts: dict[str, Any], n_shards: int, **fields: Any
) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """What the stages of the primal form write for all shards, and the facts of the regression."""
    stage = KernelRegression(**fields).sized(Size(10**6, 10**6, M, 3, {}))
    assert isinstance(stage, KernelRegression)
    assert stage.split == "shard"
    fit = KernelFit(**stage.asks[stage.fit] | {"kernel": stage.kernel})
    inputs = ShardedInputs(made, facts, n_shards, whole=("kernel_fit",))
    for sums in (FeatureSums, TargetSums):
        inputs.run(sums(**fit.asks[fit.features] | {"kernel": stage.kernel}))
        first, *others = inputs.written.items()
        inputs.tables |= dict([first, *((f"{first[0]}.{name}", rows) for name, rows in others)])
    inputs.part = WHOLE
    inputs.tables["kernel_fit"] = MemoryInputs.run(inputs, fit)
    inputs.facts_of["kernel_fit"] = fit.details(inputs)
    inputs.open(stage)
    parts = [Part(role, index) for role in ("example", "query") for index in range(n_shards)]
    written = [inputs.compute(stage, part) for part in parts]
    rows = {
        spec.name: pa.concat_tables([one[spec.name] for one in written if one[spec.name].num_rows])
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
@pytest.mark.parametrize("n_shards", [4, 61])
def test_primal_form_equals_dual_form(task: str, n_shards: int, fields: dict[str, Any]) -> None:
    """Of 61 shards all have one row at most, which may lack an answer or features."""
    made, facts = tables(task)
    found, told = primal(made, facts, n_shards, **fields)
    dual = MemoryInputs(made, facts)
    stage = KernelRegression(**fields, form="dual")
    dual.run(stage)
    compare(found, told, dual.written, stage.details(dual))


@pytest.mark.parametrize(
    ("longest", "fields"),
    [
        (5, {"kernel": ("a",)}),
        (10, {"kernel": ("a", "b"), "normalize": False}),
        (2, {"kernel": ("a",), "normalize": False, "per_class": True}),
    ],
)
def test_a_sketch_of_long_vectors_stands_for_them(
    longest: int, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part of each table is cut to a sketch of its own, scaled to unit length before that."""
    monkeypatch.setattr("stages.reading.feature_rows.LONGEST", longest)
    made, facts = tables("classification")
    found, told = primal(made, facts, 4, **fields)
    for name in fields["kernel"]:
        rows = torch.from_numpy(matrix_of(made[name]["vector"]).astype(np.float64))
        if fields.get("normalize", True):
            rows = torch.nn.functional.normalize(rows)
        parts = rows.chunk(3 if "per_class" in fields else 1, 1)
        short = torch.cat([cut(part, longest // len(fields["kernel"])) for part in parts], 1)
        lists = pa.FixedSizeListArray.from_arrays(
            pa.array(short.numpy().reshape(-1)), short.shape[1]
        )
        made[name] = made[name].set_column(2, "vector", lists)
    dual = MemoryInputs(made, facts)
    stage = KernelRegression(**{**fields, "normalize": False}, form="dual")
    dual.run(stage)
    compare(found, told, dual.written, stage.details(dual))


@pytest.mark.parametrize("longest", [10, 4096])
@pytest.mark.parametrize("normalize", [True, False])
def test_what_examples_add_is_the_output(
    longest: int, normalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whole vectors and of sketches, whose tables are scaled by the same numbers as in the fit.

    To 1e-5 of the output: scores are products of float32 features.
    """
    monkeypatch.setattr("stages.reading.feature_rows.LONGEST", longest)
    fields: dict[str, Any] = {"kernel": ("a", "b"), "normalize": normalize}
    made, facts = tables("classification")
    found, told = primal(made, facts, 4, **fields)
    regression = ("kernel_regression", "kernel_regression.kernel_dual")
    made |= zip(regression, (found["prediction"], found["kernel_dual"]), strict=True)
    inputs = ShardedInputs(made, {**facts, "kernel_regression": told}, 4, whole=regression)
    scores = inputs.run(KernelRepresenter(**fields, top_k=None))
    added = scores.group_by("query_id").aggregate([("score", "sum")]).sort_by("query_id")
    outputs = found["prediction"].filter(pa.compute.equal(found["prediction"]["role"], "query"))
    ids, logits = sorted_rows(outputs, "logits")
    np.testing.assert_array_equal(added["query_id"], ids)
    np.testing.assert_allclose(added["score_sum"], logits.max(1) - 1 / 3, rtol=0, atol=1e-5)


def cut(rows: torch.Tensor, length: int) -> torch.Tensor:
    """Rows of one table, each number of which is added to one of `length` numbers or taken off."""
    drawn = np.random.default_rng(rows.shape[1])
    to = drawn.permutation(rows.shape[1]) % length
    sign = drawn.integers(0, 2, rows.shape[1]) * 2.0 - 1.0
    short = torch.zeros(len(rows), length, dtype=rows.dtype)
    for number, (place, factor) in enumerate(zip(to, sign, strict=True)):
        short[:, place] += factor * rows[:, number]
    return short


def compare(
    found: dict[str, pa.Table],
    told: Mapping[str, Any],
    expected: dict[str, pa.Table],
    wanted_facts: Mapping[str, Any],
) -> None:
    """Rows and facts of the primal form are those of the dual form."""
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
    for name in ("ridge", "n_examples"):
        assert told[name] == wanted_facts[name]
    np.testing.assert_allclose(told["damping"], wanted_facts["damping"], rtol=1e-12)
    errors = [[e["error"] for e in facts["ridge_errors"]] for facts in (told, wanted_facts)]
    np.testing.assert_allclose(*errors, rtol=1e-8)
    if errors[0]:
        by_ridge = (
            found["ridge_error"]
            .group_by("ridge")
            .aggregate([("squared_error", "sum"), ("n_examples", "sum")])
            .sort_by("ridge")
        )
        means = by_ridge["squared_error_sum"].to_numpy() / by_ridge["n_examples_sum"].to_numpy()
        np.testing.assert_allclose(means, errors[1], rtol=1e-8)
