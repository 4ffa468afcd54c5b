"""The chosen examples against a sort of the scores."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from memory_inputs import MemoryInputs

from stages.predictions.row_selection import RowSelection
from stages.stage import ConfigError, DataError


def judged(n: int, seed: int = 0) -> pa.Table:
    """Scores of n examples in no order."""
    g = np.random.default_rng(seed)
    return pa.table({"example_id": g.permutation(n) * 3, "label_score": g.random(n)})


def chosen(table: pa.Table, **fields: Any) -> dict[str, list[int]]:
    rows = MemoryInputs({"label_issues": table}).run(RowSelection(**fields)).to_pandas()
    return {why: sorted(rows[rows["why"] == why]["id"]) for why in ("top", "beside")}


def test_the_lowest_scores_are_chosen_and_others_drawn_beside_them() -> None:
    table = judged(200)
    found = chosen(table, top=0.1, beside=0.25)
    lowest = table.sort_by("label_score")["example_id"].to_pylist()[:20]
    assert found["top"] == sorted(lowest)
    assert len(found["beside"]) == 50
    assert not set(found["beside"]) & set(lowest)
    assert chosen(table.take(np.arange(200)[::-1]), top=0.1, beside=0.25) == found
    assert len(chosen(table, top=0.1)["beside"]) == 20
    assert chosen(table, top=0.1, beside=0.0)["beside"] == []
    assert len(chosen(table, top=0.9)["beside"]) == 20


def test_what_is_drawn_beside_is_like_the_others() -> None:
    table = judged(2000)
    found = chosen(table, top=0.1, beside=0.2)
    score = dict(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
    others = [s for i, s in score.items() if i not in set(found["top"])]
    drawn = [score[i] for i in found["beside"]]
    # Four standard errors of a mean of 400 numbers between 0 and 1.
    assert np.mean(drawn) == pytest.approx(np.mean(others), abs=4 * 0.3 / 20)


def test_of_pairs_those_with_the_largest_sums_are_chosen() -> None:
    table = pa.table({"example_id": [1, 2, 3, 1, 4], "score": [2.0, 3.0, -1.0, 2.0, 3.5]})
    stage = RowSelection(scores="similarity", top=0.5, beside=0.0)
    rows = MemoryInputs({"similarity": table}).run(stage)
    assert sorted(rows["id"].to_pylist()) == [1, 4]


def test_what_cannot_be_chosen_is_refused() -> None:
    for fields in ({"top": 0.0}, {"top": 1.5}, {"beside": -0.1}):
        with pytest.raises(ConfigError, match=r"found .* expected a share"):
            RowSelection(**fields)
    with pytest.raises(DataError, match="expected example_id beside label_score or score"):
        chosen(pa.table({"example_id": [1], "other": [0.5]}))
    with pytest.raises(DataError, match="found no scores"):
        chosen(judged(3).slice(0, 0))
