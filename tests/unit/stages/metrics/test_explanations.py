from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from memory_inputs import MemoryInputs

from stages.metrics.agreement import Agreement
from stages.metrics.bootstrap import bootstrap, draws, mean_of
from stages.metrics.contamination import Contamination, is_outlier
from stages.metrics.explanations import read_logits, spread
from stages.metrics.ranks import auc, ranks, spearman
from stages.metrics.removal import Removal
from stages.metrics.specificity import Specificity
from stages.metrics.support_size import SupportSize
from stages.pairs.scores import ATTRIBUTION
from stages.pairs.support import SUPPORT
from stages.stage import ConfigError, DataError


@pytest.mark.parametrize("cls", [Specificity, Contamination, Removal, Agreement, SupportSize])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"methods": ()}, r"methods: found \[\], expected at least one, each once"),
        ({"methods": ("support", "support")}, "expected at least one, each once"),
        ({"resamples": 0}, "resamples: found 0 with seed: 0, expected at least 1"),
        ({"seed": -1}, "resamples: found 1000 with seed: -1"),
    ],
)
def test_fields_of_all(cls: Any, fields: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cls(**fields)


@pytest.mark.parametrize(
    ("cls", "fields", "said"),
    [
        (Agreement, {"top": 0}, "top: found 0, expected at least 1"),
        (Specificity, {"top": 0}, "top: found 0, expected at least 1"),
        (Specificity, {"queries": 1}, "queries: found 1, expected at least 2"),
        (Contamination, {"outliers": 1.0}, "outliers: found 1.0, expected a share"),
        (Removal, {"queries": 0}, "queries: found 0, expected at least 1"),
        (Removal, {"kernel": ()}, "kernel: found no table"),
        (Removal, {"ridge": 0.0}, "ridge: found 0.0, expected a positive number"),
    ],
)
def test_fields_of_one(cls: Any, fields: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cls(**fields)


def tables(**given: Any) -> MemoryInputs:
    found = {
        name: pa.Table.from_pylist(rows) if isinstance(rows, list) else rows
        for name, rows in given.items()
    }
    return MemoryInputs(found, {"label": {"classes": ["a", "b"]}})


def test_tables_that_are_no_lists() -> None:
    inputs = tables(probe=pa.table({"class": [0]}), support=SUPPORT.schema.empty_table())
    with pytest.raises(DataError, match="probe: found a table with the columns class, expected"):
        Contamination(methods=("probe",)).lists(inputs)
    with pytest.raises(DataError, match="support: found support spectra with side: harmful"):
        Contamination(methods=("support",), side="harmful").lists(inputs)
    for contrast in ("red", 2, -1):
        with pytest.raises(ConfigError, match="contrast: found .* expected a class of a, b"):
            Contamination(methods=("support",), contrast=contrast).lists(inputs)
    assert Contamination(methods=("support",), contrast="b").lists(inputs) == {"support": {}}
    assert Contamination(methods=("support",), contrast=0).lists(inputs) == {"support": {}}


def test_a_method_that_lists_nothing_has_a_row_without_numbers() -> None:
    roles = ["query", "example", "query"]
    flat = pa.array([0.0, 1.0] * 3)
    logits = pa.FixedSizeListArray.from_arrays(flat, 2)
    inputs = tables(
        none=ATTRIBUTION.schema.empty_table(),
        label=pa.table({"id": [0, 1, 2], "role": roles, "label": [0, 0, 1], "true_label": [1] * 3}),
        prediction=pa.table({"id": [0, 1, 2], "role": roles, "logits": logits}),
    )
    for cls in (Specificity, Agreement, Contamination):
        (row,) = cls(methods=("none",)).compute(inputs, lambda *_: None).rows
        assert row["queries"] == 0
        empty = {name for name in row if name not in ("method", "queries")}
        assert {row[name] for name in empty} == {None}


def test_topics_that_are_not_there() -> None:
    rows = [{"id": 1, "role": "query", "source_id": "", "row_number": 0, "kind": None}]
    inputs = tables(extra=rows, label=[])
    with pytest.raises(DataError, match="topic: found no column fine .* expected one of kind"):
        Agreement(topic="fine")._topics(inputs, "query")
    with pytest.raises(DataError, match="topic: found no query with a topic"):
        Agreement(topic="kind")._topics(inputs, "query")


def test_topics_are_the_same_numbers_beside_missing_ones() -> None:
    def topics(role: Any, kinds: list[Any]) -> dict[int, str]:
        blank = {"source_id": "", "row_number": 0}
        rows = [{"id": i, "role": role, **blank, "kind": kind} for i, kind in enumerate(kinds)]
        return Agreement(topic="kind")._topics(tables(extra=rows), role)

    assert topics("query", [1, 2]) == {0: "1", 1: "2"}
    assert topics("example", [1.0, None, float("nan"), 2.0]) == {0: "1", 3: "2"}
    assert topics("example", [1.5, 2.0]) == {0: "1.5", 1: "2"}


def test_predictions_of_the_other_role_are_none() -> None:
    empty = pa.table({"id": pa.array([], pa.int64()), "role": pa.array([], pa.string())})
    with pytest.raises(DataError, match="prediction: found no prediction of a row with role query"):
        read_logits(tables(prediction=empty), "prediction", "query")


def test_reads_name_what_is_needed() -> None:
    assert SupportSize(methods=("a", "b")).reads == (
        *("a.support_size", "b.support_size"),
        *("prediction", "label"),
    )
    assert "ntk" in Removal().reads
    assert {"embedding", "prediction"} <= set(Removal(by="retrain").reads)
    assert "extra" not in Agreement().reads
    assert "extra" in Agreement(topic="fine").reads


@pytest.mark.parametrize(("n", "wanted"), [(0, 3), (1, 3), (3, 3), (10, 1), (10, 4), (1000, 7)])
def test_spread_keeps_both_ends_and_no_place_twice(n: int, wanted: int) -> None:
    places = spread(n, wanted).tolist()
    assert len(set(places)) == len(places) == min(n, wanted)
    assert places == sorted(places)
    if n > 1 and wanted > 1:
        assert (places[0], places[-1]) == (0, n - 1)


def test_outliers_are_the_largest_losses() -> None:
    logits = np.array([[3.0, 0.0], [0.0, 3.0], [0.0, 3.0], [0.0, 0.0]])
    found = is_outlier(logits, np.array([0, 0, 0, 1]), 0.25)
    assert found.tolist() == [False, True, False, False]


def test_ranks_share_places_and_constants_have_no_correlation() -> None:
    assert ranks(np.array([5.0, 1.0, 5.0, 9.0])).tolist() == [2.5, 1.0, 2.5, 4.0]
    assert np.isnan(spearman(np.ones(3), np.arange(3.0)))
    assert np.isnan(auc(np.arange(3.0), np.ones(3, bool)))
    assert auc(np.ones(4), np.array([True, False, True, False])) == 0.5


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    g = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        found = mean_of(g.normal(size=60), 200, seed)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0 <= found.high
    # A percentile interval of 60 values covers a little less than 95 %.
    assert 0.90 <= hits / 300 <= 0.98


def test_what_does_not_exist_has_no_interval() -> None:
    assert mean_of([], 10, 0).named("x") == {"x": None, "x_low": None, "x_high": None}
    assert bootstrap(lambda rows: float("nan"), 3, 10, 0).value is None
    alone = bootstrap(lambda rows: 1.0 if len(set(rows.tolist())) == 30 else float("nan"), 30, 5, 0)
    assert tuple(alone) == (1.0, None, None)
    assert all((a == b).all() for a, b in zip(draws(9, 3, 1), draws(9, 3, 1), strict=True))
