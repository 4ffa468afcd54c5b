from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.shard_facts import ShardFacts
from stages.gradients.rows import BatchVectors, feature_rows
from stages.tables import DIAGNOSTICS

TEXT = pa.table({"id": [7, 3, 5, 9], "role": ["example"] * 4})
N_TOKENS = np.array([1, 2, 3, 1])


def written(vectors: Any, numbers: Any, dtype: Any) -> tuple[dict[str, pa.Table], ShardFacts]:
    told = ShardFacts()
    measured = np.array(numbers, float)[:, None]
    made = BatchVectors(np.arange(4), np.array(vectors, np.float32), measured)
    rows = feature_rows("ntk", TEXT, N_TOKENS, made, dtype, told.tell)
    found = {name: pa.Table.from_batches([batch]) for name, batch in rows}
    DIAGNOSTICS.check(found["diagnostics"])
    return found, told


def test_rows_that_are_not_finite_are_put_aside() -> None:
    vectors = [[3.0, 4.0], [np.nan, 1.0], [1.0, 0.0], [0.0, np.inf]]
    found, told = written(vectors, [1.0, 2.0, np.inf, 4.0], "float32")
    assert found["ntk"]["id"].to_pylist() == [7]
    assert found["ntk"]["vector"].to_pylist() == [[3.0, 4.0]]
    diagnostics = found["diagnostics"].to_pydict()
    assert diagnostics["status"] == ["ok", "not finite", "not finite", "not finite"]
    assert diagnostics["norm"][:3] == [5.0, None, 1.0]
    assert diagnostics["measured"] == [1.0, 2.0, None, 4.0]
    assert diagnostics["n_tokens"] == [1, 2, 3, 1]
    assert told.n_not_finite == 3


def test_what_float16_cannot_hold_is_an_overflow() -> None:
    vectors = [[1e5, 0.0], [1.5, -2.5], [65504.0, 0.0], [0.0, 1.0]]
    found, told = written(vectors, [0.0] * 4, "float16")
    assert found["ntk"].schema.field("vector").type.value_type == pa.float16()
    assert found["ntk"]["id"].to_pylist() == [3, 5, 9]
    assert found["diagnostics"]["status"].to_pylist() == ["overflow", "ok", "ok", "ok"]
    assert found["diagnostics"]["norm"][0].as_py() == pytest.approx(1e5)
    assert told.n_not_finite == 1
