from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.stage import ConfigError, DataError, Vectors
from stages.surrogate.labelled_kernel import check_fields, read_labelled_kernel


class InMemory:
    """Two feature tables over the same rows; some examples are dropped, some labels unknown."""

    part = None
    opened = None

    def __init__(self, labels: dict[tuple[str, int], int | None], classes: list[str]) -> None:
        generator = np.random.default_rng(0)
        self.labels, self.classes = labels, classes
        self.rows = {
            (name, role): Vectors(ids, generator.normal(size=(len(ids), 4)).astype(np.float32))
            for name in ("ntk", "embedding")
            for role, ids in (("example", np.array([4, 2, 9, 1])), ("query", np.array([3, 1, 2])))
        }

    def table(self, name: str, role: str | None = None) -> pa.Table:
        rows = [(i, r, y) for (r, i), y in self.labels.items() if role in (None, r)]
        return pa.table(
            {
                "id": pa.array([row[0] for row in rows], pa.int64()),
                "role": pa.array([row[1] for row in rows], pa.string()),
                "label": pa.array([row[2] for row in rows], pa.int64()),
                "true_label": pa.array([None] * len(rows), pa.int64()),
            }
        )

    def vectors(self, name: str, role: str) -> Vectors:
        return self.rows[name, role]

    def details(self, name: str) -> dict[str, Any]:
        return {"classes": self.classes}


LABELS = {
    ("example", 9): 1,
    ("example", 1): 0,
    ("example", 2): None,
    ("query", 1): 1,
    ("query", 2): None,
}


def test_rows_without_a_label_take_no_part() -> None:
    found = read_labelled_kernel(InMemory(LABELS, ["no", "yes"]), ("ntk", "embedding"), True, 0.1)
    assert found.example_ids.tolist() == [1, 9]
    assert found.targets.tolist() == [[0.5, -0.5], [-0.5, 0.5]]
    assert found.query_ids.tolist() == [3, 1, 2]
    assert found.query_labels.tolist() == [-1, 1, -1]
    assert found.damping == pytest.approx(0.1)
    assert found.ridge_errors == ()
    labelled = found.with_labelled_queries()
    assert labelled.query_ids.tolist() == [1]
    assert labelled.query_kernel.tolist() == found.query_kernel[1:2].tolist()


def test_an_automatic_ridge_comes_with_its_errors() -> None:
    found = read_labelled_kernel(InMemory(LABELS, ["no", "yes"]), ("ntk",), False, "auto")
    assert found.damping == pytest.approx(found.ridge * float(found.kernel.diagonal().mean()))
    assert min(found.ridge_errors) > 0


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (LABELS, ["one"], "found 1 classes"),
        ({("example", 1): 2}, ["no", "yes"], "found labels 2 to 2 among example"),
        ({("example", 1): None}, ["no", "yes"], "no example with a label"),
        ({("example", 5): 1}, ["no", "yes"], "ntk: found features of none of the 1 labelled"),
    ],
)
def test_unusable_labels_are_refused(
    labels: dict[tuple[str, int], int | None], classes: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_labelled_kernel(InMemory(labels, classes), ("ntk",), True, 1.0)


def test_queries_without_any_label_measure_nothing() -> None:
    found = read_labelled_kernel(InMemory({("example", 1): 1}, ["a", "b"]), ("ntk",), True, 1.0)
    with pytest.raises(DataError, match="found no label among 3 queries"):
        found.with_labelled_queries()


@pytest.mark.parametrize(("kernel", "ridge"), [((), "auto"), (("ntk",), 0.0), (("ntk",), -1.0)])
def test_unusable_fields_are_refused(kernel: tuple[str, ...], ridge: Any) -> None:
    with pytest.raises(ConfigError):
        check_fields(kernel, ridge)
