"""Kernel regression against retraining: leave-one-out, the automatic ridge, the stage's rows.

Tolerance 1e-9 where the condition of K + damping I is at most 1e5; see the test of FreeShap.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import MemoryInputs, label_table
from torch import Tensor

from stages.predictions.kernel_regression import KernelRegression
from stages.reading.supervision import one_hot
from stages.stage import DataError, Size, Vectors
from stages.surrogate.default_kernel import NTK
from stages.surrogate.kernel import (
    RIDGE_GRID,
    auto_ridge,
    closed_form_loo,
    gram,
    mean_diagonal,
    solve,
)


def problem(n: int, dim: int, c: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(n + dim + c)
    features = torch.randn(n, dim, dtype=torch.float64, generator=g)
    labels = (features[:, 0] > 0).long() + torch.randint(c - 1, (n,), generator=g)
    return features @ features.T, one_hot(labels, c) - 1 / c


def retrained(kernel: Tensor, targets: Tensor, damping: float) -> Tensor:
    """The prediction for each row of a fit on all the others."""
    n = len(kernel)
    predictions = []
    for i in range(n):
        rest = [j for j in range(n) if j != i]
        damped = kernel[rest][:, rest] + damping * torch.eye(n - 1, dtype=torch.float64)
        predictions.append(kernel[i, rest] @ torch.linalg.solve(damped, targets[rest]))
    return torch.stack(predictions)


@pytest.mark.parametrize(("n", "dim", "c"), [(20, 5, 2), (15, 40, 3), (2, 3, 2)])
def test_closed_form_equals_retraining(n: int, dim: int, c: int) -> None:
    kernel, targets = problem(n, dim, c)
    found = closed_form_loo(targets, solve(kernel, targets, 0.3))
    torch.testing.assert_close(found, retrained(kernel, targets, 0.3), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("n", "dim", "c"), [(25, 4, 2), (20, 50, 3)])
def test_automatic_ridge_equals_brute_force(n: int, dim: int, c: int) -> None:
    kernel, targets = problem(n, dim, c)
    ridge, errors = auto_ridge(kernel, targets)
    expected = []
    for candidate in RIDGE_GRID:
        residual = targets - retrained(kernel, targets, candidate * mean_diagonal(kernel))
        expected.append(float(residual.square().sum(1).mean()))
    # Ridge 1e-4 over four features: condition 1e5 in the solve, 1e4 in the leave-one-out quotient.
    np.testing.assert_allclose(errors, expected, rtol=1e-8)
    assert ridge == RIDGE_GRID[int(np.argmin(expected))]


class InMemory(MemoryInputs):
    """Twenty examples of which id 3 is dropped, four queries without labels."""

    def __init__(self) -> None:
        g = np.random.default_rng(2)
        rows = {
            role: Vectors(np.arange(n), g.normal(size=(n, 6)).astype(np.float32))
            for role, n in (("example", 20), ("query", 4))
        }
        self.kept = np.delete(np.arange(20), 3)
        self.labels = (rows["example"].matrix[self.kept, 0] > 0).astype(np.int64)
        super().__init__(
            {"label": self.answers}, {"label": {"classes": ["negative", "positive"]}}, rows
        )

    def answers(self) -> pa.Table:
        known = dict(zip(self.kept.tolist(), self.labels.tolist(), strict=True))
        return label_table({"example": known, "query": {0: None, 1: None}})


def test_the_stage_writes_out_of_sample_outputs_of_every_row() -> None:
    stage, inputs = KernelRegression(NTK, normalize=False), InMemory()
    inputs.opened = stage.open(inputs)
    batches = [batch for name, batch in stage.compute(inputs) if name == "prediction"]
    rows = stage.writes[0].check(pa.Table.from_batches(batches))
    assert rows["source"].unique().to_pylist() == ["kernel"]
    assert rows["role"].to_pylist() == ["example"] * 19 + ["query"] * 4
    assert rows["id"].to_pylist() == [*inputs.kept.tolist(), 0, 1, 2, 3]

    facts = stage.details(inputs)
    features, queries = (
        torch.from_numpy(inputs.vectors_of[role].matrix.astype(np.float64))
        for role in ("example", "query")
    )
    features = features[inputs.kept]
    targets = one_hot(torch.from_numpy(inputs.labels), 2) - 0.5
    kernel = features @ features.T
    assert facts["damping"] == pytest.approx(facts["ridge"] * mean_diagonal(kernel))
    damped = kernel + facts["damping"] * torch.eye(19, dtype=torch.float64)
    of_queries = queries @ features.T @ torch.linalg.solve(damped, targets)
    expected = torch.cat([retrained(kernel, targets, facts["damping"]), of_queries]) + 0.5
    # Outputs are stored as float32.
    np.testing.assert_allclose(np.array(rows["logits"].to_pylist()), expected, rtol=0, atol=1e-6)
    best = min(facts["ridge_errors"], key=lambda tried: tried["error"])
    assert best["ridge"] == facts["ridge"]


class Numbers(InMemory):
    """The same rows with targets instead of labels; id 3 is dropped, id 4 has no target."""

    def __init__(self) -> None:
        super().__init__()
        self.targets = 7 + 2 * self.vectors_of["example"].matrix[self.kept, 0].astype(np.float64)
        self.facts_of["label"] = {"classes": [], "task": "regression"}

    def answers(self) -> pa.Table:
        ids, targets = self.kept, self.targets.tolist()
        targets[list(ids).index(4)] = None
        nothing = pa.nulls(len(ids), pa.int64())
        return pa.table({"id": ids, "label": nothing, "target": pa.array(targets, pa.float64())})


def outputs(stage: KernelRegression, inputs: InMemory) -> tuple[pa.Table, Any]:
    inputs.opened = stage.open(inputs)
    batches = [batch for name, batch in stage.compute(inputs) if name == "prediction"]
    return stage.writes[0].check(pa.Table.from_batches(batches)), stage.details(inputs)


@pytest.mark.parametrize("ridge", [0.5, "auto"])
def test_a_regression_is_fitted_to_centred_targets_and_judged_by_retraining(ridge: Any) -> None:
    inputs = Numbers()
    rows, facts = outputs(KernelRegression(NTK, normalize=False, ridge=ridge), inputs)
    known = [i for i in range(20) if i not in (3, 4)]
    assert rows["id"].to_pylist() == [*known, 0, 1, 2, 3]
    features, queries = (
        torch.from_numpy(inputs.vectors_of[role].matrix.astype(np.float64))
        for role in ("example", "query")
    )
    y = torch.from_numpy(inputs.targets)[[list(inputs.kept).index(i) for i in known]]
    kernel = features[known] @ features[known].T
    targets = (y - y.mean())[:, None]
    assert facts["damping"] == pytest.approx(facts["ridge"] * mean_diagonal(kernel))
    damped = kernel + facts["damping"] * torch.eye(18, dtype=torch.float64)
    of_queries = queries @ features[known].T @ torch.linalg.solve(damped, targets)
    expected = torch.cat([retrained(kernel, targets, facts["damping"]), of_queries]) + y.mean()
    np.testing.assert_allclose(np.array(rows["logits"].to_pylist()), expected, rtol=0, atol=2e-6)
    if ridge == "auto":
        errors = [tried["error"] for tried in facts["ridge_errors"]]
        brute = [
            float((targets - retrained(kernel, targets, r * mean_diagonal(kernel))).square().mean())
            for r in RIDGE_GRID
        ]
        np.testing.assert_allclose(errors, brute, rtol=1e-7)
        assert facts["ridge"] == RIDGE_GRID[int(np.argmin(brute))]


class Parts(InMemory):
    """Three classes, two feature tables, each of three parts of which the middle is larger."""

    def __init__(self) -> None:
        super().__init__()
        g = np.random.default_rng(3)
        unit = np.repeat([1.0, 30.0, 0.1], 4)
        self.vectors_of |= {
            (name, role): Vectors(np.arange(n), (g.normal(size=(n, 12)) * unit).astype("f4"))
            for name in ("ntk", "other")
            for role, n in (("example", 20), ("query", 4))
        }
        self.labels = np.arange(19) % 3
        self.facts_of["label"] = {"classes": ["a", "b", "c"], "task": "classification"}

    def replace_matrices(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        for key, (ids, matrix) in list(self.vectors_of.items()):
            self.vectors_of[key] = Vectors(ids, change(matrix))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kernel", [("ntk",), ("ntk", "other")])
@pytest.mark.parametrize("ridge", [0.3, "auto"])
def test_per_class_is_one_regression_for_each_class(
    normalize: bool, kernel: tuple[str, ...], ridge: Any
) -> None:
    inputs = Parts()
    stage = KernelRegression(kernel=kernel, normalize=normalize, ridge=ridge, per_class=True)
    rows, facts = outputs(stage, inputs)
    targets = one_hot(torch.from_numpy(inputs.labels), 3) - 1 / 3
    grams = []
    for c in range(3):
        own = slice(4 * c, 4 * c + 4)
        tables = [
            tuple(
                torch.from_numpy(inputs.vectors_of[name, role].matrix[rows_][:, own])
                for role, rows_ in (("example", inputs.kept), ("query", slice(None)))
            )
            for name in kernel
        ]
        grams.append(gram(tables, normalize))
    if ridge == "auto":
        errors = sum(
            np.array(auto_ridge(among, targets[:, [c]])[1]) for c, (among, _) in enumerate(grams)
        )
        np.testing.assert_allclose([t["error"] for t in facts["ridge_errors"]], errors, rtol=1e-9)
        ridge = RIDGE_GRID[int(np.argmin(errors))]
    assert facts["ridge"] == ridge
    columns = []
    for c, (among, to) in enumerate(grams):
        damping = ridge * mean_diagonal(among)
        assert facts["damping"][c] == pytest.approx(damping)
        damped = among + damping * torch.eye(19, dtype=torch.float64)
        of_queries = to @ torch.linalg.solve(damped, targets[:, [c]])
        columns.append(torch.cat([retrained(among, targets[:, [c]], damping), of_queries]) + 1 / 3)
    found = np.array(rows["logits"].to_pylist())
    np.testing.assert_allclose(found, torch.cat(columns, dim=1), rtol=0, atol=1e-6)


def test_one_kernel_for_all_classes_has_one_part_whatever_is_set() -> None:
    """In primal form class c would else be fitted on the c-th part of the vectors alone."""
    size = Size(n_examples=9000, first_examples=9000, n_queries=9, n_classes=3, lengths={})
    assert KernelRegression(NTK, parts=3).sized(size).asks["kernel_fit"]["parts"] == 1
    of_classes = KernelRegression(NTK, parts=2, per_class=True).sized(size)
    assert of_classes.asks["kernel_fit"]["parts"] == 3


@pytest.mark.parametrize("normalize", [True, False])
def test_equal_parts_are_one_kernel(normalize: bool) -> None:
    inputs = Parts()
    inputs.replace_matrices(lambda matrix: np.tile(matrix[:, :4], 3))
    parts, of_parts = outputs(KernelRegression(NTK, normalize, per_class=True), inputs)
    inputs.replace_matrices(lambda matrix: matrix[:, :4])
    whole, of_whole = outputs(KernelRegression(NTK, normalize), inputs)
    assert of_parts["ridge"] == of_whole["ridge"]
    np.testing.assert_allclose(
        np.array(parts["logits"].to_pylist()), np.array(whole["logits"].to_pylist()), atol=1e-6
    )


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("inputs", "fields"),
    [
        (InMemory(), {}),
        (Numbers(), {}),
        (Parts(), {"kernel": ("ntk", "other")}),
        (Parts(), {"kernel": ("ntk", "other"), "per_class": True}),
    ],
)
def test_queries_alone_get_what_they_get_with_all(
    inputs: InMemory, fields: dict[str, Any], normalize: bool
) -> None:
    """From the weights that were written, which are all that is left of the fit."""
    stage = KernelRegression(**{"kernel": NTK, "normalize": normalize, **fields})
    inputs.opened = stage.open(inputs)
    written = dict(stage.compute(inputs))
    whole = pa.Table.from_batches([b for name, b in stage.compute(inputs) if name == "prediction"])
    inputs.opened = None
    inputs.tables["kernel_dual"] = pa.Table.from_batches([written["kernel_dual"]])
    ((_, found),) = stage.of_queries(inputs)
    expected = whole.filter(pa.compute.equal(whole["role"], "query"))
    assert found["id"].to_pylist() == expected["id"].to_pylist()
    assert found.schema.names == expected.schema.names
    np.testing.assert_allclose(
        found["logits"].to_pylist(), expected["logits"].to_pylist(), rtol=1e-6, atol=1e-6
    )


def test_what_per_class_cannot_cut_is_refused() -> None:
    inputs = Parts()
    inputs.replace_matrices(lambda matrix: matrix[:, :11])
    with pytest.raises(DataError, match="found vectors of length 11, expected a multiple of 3"):
        KernelRegression(NTK, per_class=True).open(inputs)
    with pytest.raises(DataError, match="per_class: found true in a corpus with task: regression"):
        KernelRegression(NTK, per_class=True).open(Numbers())
    with pytest.raises(DataError, match="per_class: found true in a corpus with task: regression"):
        KernelRegression(NTK, per_class=True, form="primal").open(Numbers())


def test_a_completion_has_nothing_to_regress_on() -> None:
    inputs = Numbers()
    inputs.facts_of["label"] = {"classes": [], "task": "completion"}
    with pytest.raises(DataError, match="found 0 classes in a corpus with task: completion"):
        KernelRegression(NTK).open(inputs)
