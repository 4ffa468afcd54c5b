from typing import Any

import numpy as np
import pytest
from memory_inputs import MemoryInputs, label_table

from stages.stage import ConfigError, DataError, Vectors
from stages.surrogate.labelled_kernel import check_fields, read_labelled_kernel


def in_memory(labels: dict[tuple[str, int], int | None], classes: list[str]) -> MemoryInputs:
    """Two feature tables over the same rows; some examples are dropped, some labels unknown."""
    generator = np.random.default_rng(0)
    rows = {
        (name, role): Vectors(ids, generator.normal(size=(len(ids), 4)).astype(np.float32))
        for name in ("ntk", "embedding")
        for role, ids in (("example", np.array([4, 2, 9, 1])), ("query", np.array([3, 1, 2])))
    }
    by_role: dict[str, dict[int, int | None]] = {"example": {}, "query": {}}
    for (role, i), y in labels.items():
        by_role[role][i] = y
    return MemoryInputs({"label": label_table(by_role)}, {"label": {"classes": classes}}, rows)


LABELS = {
    ("example", 9): 1,
    ("example", 1): 0,
    ("example", 2): None,
    ("query", 1): 1,
    ("query", 2): None,
}


def test_rows_without_a_label_take_no_part() -> None:
    found = read_labelled_kernel(in_memory(LABELS, ["no", "yes"]), ("ntk", "embedding"), True, 0.1)
    assert found.example_ids.tolist() == [1, 9]
    assert found.targets.tolist() == [[0.5, -0.5], [-0.5, 0.5]]
    assert found.query_ids.tolist() == [3, 1, 2]
    assert found.query_labels.tolist() == [-1, 1, -1]
    assert found.damping == pytest.approx(0.1)
    assert found.ridge_errors == ()


def test_an_automatic_ridge_comes_with_its_errors() -> None:
    found = read_labelled_kernel(in_memory(LABELS, ["no", "yes"]), ("ntk",), False, "auto")
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
        read_labelled_kernel(in_memory(labels, classes), ("ntk",), True, 1.0)


@pytest.mark.parametrize(("kernel", "ridge"), [((), "auto"), (("ntk",), 0.0), (("ntk",), -1.0)])
def test_unusable_fields_are_refused(kernel: tuple[str, ...], ridge: Any) -> None:
    with pytest.raises(ConfigError):
        check_fields(kernel, ridge)
