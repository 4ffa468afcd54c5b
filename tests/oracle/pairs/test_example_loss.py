"""The example's loss against autograd's, and the same for every query."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import MemoryInputs, ShardedInputs

from stages.pairs.example_loss import ExampleLoss
from stages.stage import ConfigError, DataError

N, QUERIES = 8, (101, 100, 102)
LABELS = [0, 2, None, 1, 1, 0, 2, 0]


def inputs_of(memory: Any, logits: np.ndarray, task: str, answers: list[Any]) -> Any:
    """Examples without a prediction (7) or a label (2), the queries behind them."""
    ids = [*range(N - 1), *QUERIES]
    flat = pa.array(logits.astype(np.float32).reshape(-1))
    roles = ["example"] * (N - 1) + ["query"] * len(QUERIES)
    prediction = pa.table(
        {
            "id": ids,
            "role": roles,
            "source": ["probe"] * len(ids),
            "logits": pa.FixedSizeListArray.from_arrays(flat, logits.shape[1]),
        }
    )
    kinds = {"label": pa.int64(), "target": pa.float64()}
    own = "label" if task == "classification" else "target"
    columns = {
        name: pa.array(answers if name == own else [None] * N, kind) for name, kind in kinds.items()
    }
    label = pa.table({"id": range(N), "role": ["example"] * N, **columns})
    details = {"label": {"task": task, "classes": ["a", "b", "c"]}}
    return memory({"prediction": prediction, "label": label}, details=details)


class InShards(ShardedInputs):
    """The same tables in shards, which one task reads one after the other."""

    run = MemoryInputs.run


def losses_of(logits: np.ndarray) -> dict[int, float]:
    found = {}
    for i, label in enumerate(LABELS[: N - 1]):
        if label is not None:
            row = torch.tensor(logits[i].astype(np.float32)).double()
            found[i] = float(torch.nn.functional.cross_entropy(row[None], torch.tensor([label])))
    return found


@pytest.mark.parametrize("make", [MemoryInputs, InShards])
def test_cross_entropies(make: Any) -> None:
    logits = np.random.default_rng(0).normal(size=(10, 3)) * 3
    logits[5] = [90.0, 0.0, 0.0]
    found = inputs_of(make, logits, "classification", LABELS).run(ExampleLoss(top_k=None))
    expected = losses_of(logits)
    assert expected[5] == 0
    pairs = [(row["query_id"], row["example_id"]) for row in found.to_pylist()]
    assert pairs == [(q, i) for q in sorted(QUERIES) for i in sorted(expected)]
    for row in found.to_pylist():
        loss = expected[row["example_id"]]
        assert row["score"] == pytest.approx(-loss, rel=1e-12)
        assert row["global_score"] == pytest.approx(loss, rel=1e-12)
        assert row["local_score"] == (-1 if loss else 0)


@pytest.mark.parametrize("make", [MemoryInputs, InShards])
def test_the_largest_losses(make: Any) -> None:
    logits = np.random.default_rng(1).normal(size=(10, 3))
    found = inputs_of(make, logits, "classification", LABELS).run(ExampleLoss(top_k=2))
    expected = losses_of(logits)
    worst = sorted(sorted(expected, key=lambda i: -expected[i])[:2])
    assert found["example_id"].to_pylist() == worst * 3
    assert (found["score"].to_numpy() < 0).all()


def test_of_equal_losses_those_of_the_smallest_ids_are_kept() -> None:
    logits = np.zeros((10, 3))
    found = inputs_of(InShards, logits, "classification", LABELS).run(ExampleLoss(top_k=3))
    assert found["example_id"].to_pylist() == [0, 1, 3] * 3


@pytest.mark.parametrize("make", [MemoryInputs, InShards])
def test_squared_errors_of_a_regression(make: Any) -> None:
    outputs = np.random.default_rng(2).normal(size=(10, 1))
    targets = [0.5, -1.0, None, 2.0, 0.0, 1.0, 3.0, 4.0]
    found = inputs_of(make, outputs, "regression", targets).run(ExampleLoss(top_k=None))
    assert found.num_rows == 3 * 6
    for row in found.to_pylist():
        i = row["example_id"]
        assert row["score"] == pytest.approx(
            -((float(np.float32(outputs[i, 0])) - targets[i]) ** 2)
        )


def test_what_cannot_be_done(memory: Any) -> None:
    with pytest.raises(ConfigError, match="top_k: found -1"):
        ExampleLoss(top_k=-1)
    with pytest.raises(DataError, match="0 labelled examples"):
        inputs_of(memory, np.zeros((10, 3)), "classification", [None] * N).run(ExampleLoss())
