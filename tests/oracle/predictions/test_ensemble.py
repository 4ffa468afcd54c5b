"""The ensemble against its formula by a loop, and what it is for."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from memory_inputs import MemoryInputs, ShardedInputs, label_table

from stages.predictions.ensemble import Ensemble
from stages.stage import ConfigError, DataError


def predictions(outputs: np.ndarray, ids: np.ndarray, seed: int = 0) -> pa.Table:
    """Rows in no order."""
    order = np.random.default_rng(seed).permutation(len(ids))
    return pa.table(
        {
            "id": pa.array(ids[order]),
            "role": ["example"] * len(ids),
            "source": ["kernel"] * len(ids),
            "logits": pa.FixedSizeListArray.from_arrays(
                pa.array(outputs[order].astype(np.float32).reshape(-1)), outputs.shape[1]
            ),
        }
    )


def labelled(tables: dict[str, pa.Table], labels: np.ndarray) -> tuple[Any, Any]:
    """The tables with labels of rows 0 on, and what is known of these."""
    names = [str(c) for c in range(labels.max() + 1)]
    given = label_table({"example": dict(enumerate(labels.tolist()))})
    return {**tables, "label": given}, {"label": {"task": "classification", "classes": names}}


def run(tables: dict[str, pa.Table], labels: np.ndarray, **fields: Any) -> pa.Table:
    found = MemoryInputs(*labelled(tables, labels)).run(Ensemble(**fields))
    assert set(found["role"].to_pylist()) == {"example"}
    assert set(found["source"].to_pylist()) == {"ensemble"}
    return found


def test_the_outputs_are_means_of_scaled_ones() -> None:
    g = np.random.default_rng(0)
    ids = g.permutation(1000)[:40]
    # The second lacks some rows, and has others; its outputs are far larger.
    first, second = g.normal(size=(40, 3)), 50 + 90 * g.normal(size=(35, 3))
    others = np.concatenate([ids[:30], [2000, 2001, 2002, 2003, 2004]])
    found = run(
        {
            "kernel_regression": predictions(first, ids),
            "cross_fitting": predictions(second, others),
        },
        np.arange(9) % 3,
    )
    assert found["id"].to_pylist() == sorted(ids[:30].tolist())
    scaled = []
    for outputs in (first, second):
        apart = [[x - sum(row) / 3 for x in row] for row in outputs.tolist()]
        flat = [x for row in apart for x in row]
        spread = (sum(x * x for x in flat) / len(flat)) ** 0.5
        scaled.append([[x / spread for x in row] for row in apart])
    for row_id, logits in zip(found["id"].to_pylist(), found["logits"].to_pylist(), strict=True):
        at = ids.tolist().index(row_id)
        expected = [(a + b) / 2 for a, b in zip(scaled[0][at], scaled[1][at], strict=True)]
        assert logits == pytest.approx(expected, abs=1e-5)


def test_neither_scale_nor_shift_nor_shards_matter() -> None:
    g = np.random.default_rng(1)
    ids, a, b = np.arange(30), g.normal(size=(30, 4)), g.normal(size=(30, 4))
    tables = {"a": predictions(a, ids), "b": predictions(b, ids)}
    labels = np.arange(30) % 4
    plain = run(tables, labels, predictions=("a", "b"))
    moved = run({**tables, "b": predictions(7 * b + 3, ids, 5)}, labels, predictions=("b", "a"))
    np.testing.assert_allclose(plain["logits"].to_pylist(), moved["logits"].to_pylist(), atol=1e-5)
    cut = ShardedInputs(*labelled(tables, labels), n_shards=3)
    found = super(ShardedInputs, cut).run(Ensemble(predictions=("a", "b")))
    assert found.equals(plain)


def test_errors_that_are_not_shared_cancel() -> None:
    g = np.random.default_rng(2)
    truth = g.integers(0, 3, 600)
    signal = 2 * np.eye(3)[truth]
    both = [signal + 1.5 * g.normal(size=signal.shape) for _ in range(2)]
    tables = {name: predictions(o, np.arange(600)) for name, o in zip("ab", both, strict=True)}
    found = np.array(run(tables, truth, predictions=("a", "b"))["logits"].to_pylist())
    right = [(o.argmax(1) == truth).mean() for o in (found, *both)]
    assert right[0] > max(right[1:]) + 0.03


def test_what_tells_nothing_of_the_labels_has_no_part() -> None:
    g = np.random.default_rng(4)
    labels, ids = g.integers(0, 2, 300), np.arange(300)
    good = 2 * np.eye(2)[labels] + g.normal(size=(300, 2))
    # Those of rows that are left out contradict every label where features say nothing.
    against = [0.5 - 0.1 * np.eye(2)[labels] + 0.01 * g.normal(size=(300, 2)) for _ in "ab"]
    tables = {
        "good": predictions(good, ids),
        **{name: predictions(o, ids) for name, o in zip("ab", against, strict=True)},
    }
    inputs = MemoryInputs(*labelled(tables, labels))
    alone = inputs.run(Ensemble(predictions=("a", "good")))
    apart = good - good.mean(1, keepdims=True)
    np.testing.assert_allclose(alone["logits"].to_pylist(), apart / apart.std(), atol=1e-5)
    facts = Ensemble(predictions=("a", "good")).details(inputs)
    assert facts["mean_of"] == ["good"]
    assert facts["notices"] == [
        "the predictions of a tell no more of the labels than how frequent each class is, and have "
        "no part in the ensemble"
    ]
    # Where all are so, all count.
    inputs.run(Ensemble(predictions=("a", "b")))
    facts = Ensemble(predictions=("a", "b")).details(inputs)
    assert facts == {"n_examples": 300, "mean_of": ["a", "b"]}


def test_what_makes_no_ensemble() -> None:
    ids, g = np.arange(10), np.random.default_rng(3)
    two, three = (predictions(g.normal(size=(10, n)), ids) for n in (2, 3))
    far, flat = predictions(g.normal(size=(10, 2)), ids + 50), predictions(np.ones((10, 2)), ids)
    for other, told in (
        (three, "found 3 outputs in b, expected 2, one per class"),
        (far, "found no example that a and b all predict"),
        (flat, "b: found outputs of which none differs"),
        (two.slice(0, 0), "b: found no prediction of an example"),
    ):
        with pytest.raises(DataError, match=told):
            run({"a": two, "b": other}, ids % 2, predictions=("a", "b"))
    for names in ((), ("a",), ("a", "a"), ("a", "b", "a")):
        with pytest.raises(ConfigError, match="expected two or more different instances"):
            Ensemble(predictions=names)
