"""What one row does must not touch another: batches that do not fit, numbers that are none."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages import feature_pass
from stages.batching import Tokens
from stages.feature_pass import Made, Told, check_precision, feature_rows, halving
from stages.stage import ConfigError, StageError
from stages.tables import DIAGNOSTICS

TEXT = pa.table({"id": [7, 3, 5, 9], "role": ["example"] * 4})
TOKENS = Tokens({"input_ids": [[1], [1, 2], [1, 2, 3], [4]]})


def fitting(most: int) -> Any:
    """A computation with room for `most` rows at a time."""

    def compute(rows: np.ndarray) -> Made:
        if len(rows) > most:
            raise torch.OutOfMemoryError("no room")
        numbers = rows[:, None].astype(float)
        return Made(rows, numbers, numbers)

    return compute


@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(most: int) -> None:
    told = Told()
    made = list(halving(fitting(most), np.arange(7), told))
    assert np.concatenate([m.rows for m in made]).tolist() == list(range(7))
    assert max(len(m.rows) for m in made) <= most
    assert told.is_exact == (most == 7)
    facts = told.details()
    assert (facts.get("is_exact_bytes") is False) == (most < 7)
    assert bool(facts["notices"]) == (most < 7)


def test_the_allocator_of_cpus_is_understood() -> None:
    def compute(rows: np.ndarray) -> Made:
        if len(rows) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return fitting(1)(rows)

    assert len(list(halving(compute, np.arange(2), Told()))) == 2


def test_a_row_that_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(StageError, match=r"row 4 of the shard does not fit alone.*max_length"):
        list(halving(fitting(0), np.array([4]), Told()))


def test_other_failures_pass_through() -> None:
    def compute(rows: np.ndarray) -> Made:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(halving(compute, np.arange(4), Told()))


def written(vectors: Any, numbers: Any, dtype: Any) -> tuple[dict[str, pa.Table], Told]:
    told = Told()
    made = Made(np.arange(4), np.array(vectors, np.float32), np.array(numbers, float)[:, None])
    rows = feature_rows("ntk", TEXT, TOKENS, made, dtype, told)
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


def test_bfloat16_is_refused_where_it_is_not_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_pass, "has_bfloat16", lambda device: False)
    check_precision("cpu", "float32")
    with pytest.raises(ConfigError, match=r"found bfloat16 on cpu.*precision: float32"):
        check_precision("cpu", "bfloat16")
