"""A row that a feature table lacks is left out, as if the corpus had never had it, and counted."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from memory_inputs import MemoryInputs

from stages.predictions.kernel_regression import KernelRegression
from stages.predictions.label_issues import LabelIssues
from stages.predictions.label_noise import LabelNoise
from stages.predictions.probe import Probe
from stages.stage import DataError, Vectors
from stages.surrogate.labelled_kernel import read_labelled_kernel
from stages.values.freeshap import FreeShap
from stages.values.leave_one_out import LeaveOneOut

KERNELS = ("ntk", "layers")
ROLES = {"example": 30, "query": 8}


class InMemory(MemoryInputs):
    """30 examples and 8 queries with labels, and two feature tables of which some rows are gone.

    `gone` names rows as (table, role, id). With `is_forgotten` the label table lacks them as well.
    Targets of a regression are far apart, so that the mean tells which rows it was taken over.
    """

    def __init__(
        self,
        *gone: tuple[str, str, int],
        is_forgotten: bool = False,
        task: str = "classification",
    ) -> None:
        generator = np.random.default_rng(3)
        rows: dict[tuple[str, str], Vectors] = {}
        labels = []
        for role, n in ROLES.items():
            # Ids out of order, as shards that grew over time leave them.
            ids = np.roll(np.arange(n), 3)
            for table in (*KERNELS, "embedding"):
                matrix = generator.normal(size=(n, 6)).astype(np.float16)
                kept = [at for at, i in enumerate(ids) if (table, role, i) not in gone]
                rows[table, role] = Vectors(ids[kept], matrix[kept])
            forgotten = {i for _, r, i in gone if r == role} if is_forgotten else set()
            kept_ids = [i for i in range(n) if i not in forgotten]
            labels += [(i, role, i % 3 % 2, float(i**2)) for i in kept_ids]
        columns = zip(*labels, strict=True)
        names = ["id", "role", "label", "target"]
        label = pa.table(list(map(pa.array, columns)), names)
        undecided = pa.nulls(len(label), pa.int64())
        classes = ["no", "yes"] if task == "classification" else []
        super().__init__(
            {"label": label.append_column("label_before_review", undecided)},
            {"label": {"task": task, "classes": classes}},
            rows,
        )

    def result(self, stage: Any) -> tuple[pa.Table, dict[str, Any]]:
        """Rows and facts of a stage."""
        self.opened = stage.open(self) if hasattr(stage, "open") else None
        first = stage.writes[0].name
        batches = [batch for name, batch in stage.compute(self) if name == first]
        rows = stage.writes[0].check(pa.Table.from_batches(batches))
        return rows, dict(stage.details(self))


# Examples 4 and 17 and query 5 lack one table or the other, query 2 both.
GONE = (
    ("ntk", "example", 4),
    ("layers", "example", 17),
    ("layers", "query", 5),
    ("ntk", "query", 2),
    ("layers", "query", 2),
)
COUNTS = {"n_without_features": 2, "n_queries_without_features": 2}


def test_of_several_tables_the_rows_in_all_of_them_are_used() -> None:
    found = read_labelled_kernel(InMemory(*GONE), KERNELS, True, 0.1)
    assert found.example_ids.tolist() == [i for i in range(30) if i not in (4, 17)]
    assert sorted(found.query_ids.tolist()) == [0, 1, 3, 4, 6, 7]
    assert found.left_out == (2, 2)
    expected = read_labelled_kernel(InMemory(*GONE, is_forgotten=True), KERNELS, True, 0.1)
    assert expected.left_out == (0, 0)
    for one, other in zip(found[:6], expected[:6], strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_table_is_not_asked_for_rows_of_another() -> None:
    found = read_labelled_kernel(InMemory(*GONE), ("ntk",), True, 0.1)
    assert found.left_out == (1, 1)
    assert 17 in found.example_ids


def test_a_dropped_row_without_features_is_not_missed() -> None:
    inputs = InMemory(("ntk", "example", 4))
    label = inputs.tables["label"]
    is_dropped = pc.and_(pc.equal(label["role"], "example"), pc.equal(label["id"], 4))
    inputs.tables["label"] = label.filter(pc.invert(is_dropped))
    assert read_labelled_kernel(inputs, ("ntk",), True, 0.1).left_out == (0, 0)


def test_no_features_at_all_are_an_error() -> None:
    gone = [("ntk", "example", i) for i in range(15)]
    gone += [("layers", "example", i) for i in range(15, 30)]
    with pytest.raises(DataError, match="ntk, layers: found features of none of the 30 labelled"):
        read_labelled_kernel(InMemory(*gone), KERNELS, True, 0.1)


@pytest.mark.parametrize(
    ("stage", "task"),
    [
        (KernelRegression(kernel=KERNELS), "classification"),
        (KernelRegression(kernel=KERNELS, per_class=True), "classification"),
        (KernelRegression(kernel=KERNELS), "regression"),
        (FreeShap(kernel=KERNELS, units_per_round=2), "classification"),
        (LeaveOneOut(kernel=KERNELS), "classification"),
    ],
    ids=["KernelRegression", "per_class", "regression", "FreeShap", "LeaveOneOut"],
)
def test_methods_give_what_they_give_without_the_rows(stage: Any, task: str) -> None:
    rows, facts = InMemory(*GONE, task=task).result(stage)
    expected, none_missing = InMemory(*GONE, is_forgotten=True, task=task).result(stage)
    assert rows.equals(expected)
    assert {name: facts[name] for name in COUNTS} == COUNTS
    assert facts["notices"] == ["left out for want of features: labelled examples 2, queries 2"]
    assert {none_missing[name] for name in COUNTS} == {0}
    assert "notices" not in none_missing


def test_label_issues_judges_the_rows_that_have_a_prediction() -> None:
    judged = []
    for is_forgotten in (False, True):
        inputs = InMemory(*GONE, is_forgotten=is_forgotten)
        inputs.tables["kernel_regression"] = inputs.result(KernelRegression(kernel=KERNELS))[0]
        inputs.tables["label_noise"], facts = inputs.result(LabelNoise())
        inputs.facts_of["label_noise"] = facts
        judged.append((inputs.result(LabelIssues())[0], facts))
    (rows, facts), (expected, none_missing) = judged
    assert rows.equals(expected)
    assert rows["example_id"].to_pylist() == [i for i in range(30) if i not in (4, 17)]
    assert facts["n_without_features"] == 2
    assert facts["notices"][0].endswith("have no features and hence no prediction: 2")
    assert none_missing["n_without_features"] == 0
    assert not [said for said in none_missing["notices"] if "no features" in said]


def test_label_issues_without_any_prediction_are_an_error() -> None:
    inputs = InMemory()
    rows = inputs.result(KernelRegression(kernel=KERNELS))[0]
    inputs.tables["kernel_regression"] = rows.filter(pc.equal(rows["role"], "query"))
    with pytest.raises(DataError, match="found no prediction in kernel_regression for a labelled"):
        inputs.result(LabelNoise())
    inputs.tables["kernel_regression"] = pa.concat_tables([rows, rows])
    with pytest.raises(DataError, match="found 60 predictions for 30 labelled examples"):
        inputs.result(LabelNoise())


def test_the_probe_is_fitted_on_the_rows_that_have_an_embedding() -> None:
    gone = (("embedding", "example", 4), ("embedding", "example", 29))
    rows, _ = InMemory(*gone).result(Probe())
    expected, _ = InMemory(*gone, is_forgotten=True).result(Probe())
    assert rows.equals(expected)
    assert not rows.equals(InMemory().result(Probe())[0])
