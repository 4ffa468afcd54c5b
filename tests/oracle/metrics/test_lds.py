"""The linear datamodeling score against loops over queries and subsets, and what it must obey."""

import itertools
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from memory_inputs import MemoryInputs, label_table

from stages.metrics.bootstrap import draws
from stages.metrics.lds import Lds
from stages.metrics.metric import Instance
from stages.metrics.outcomes import log_odds, read_outcomes
from stages.pairs.scores import ATTRIBUTION
from stages.stage import ConfigError, DataError, Vectors
from stages.tables import OUTCOME, SUBSET

N, M, C, SUBSETS, REPEATS, SIZE = 14, 6, 3, 8, 2, 7
RIDGE = 0.3
UNLABELLED = 4


class Run(MemoryInputs):
    """Outcomes of 8 subsets, each trained on twice, scores of pairs and of examples alone."""

    def __init__(self, seed: int = 0) -> None:
        g = np.random.default_rng(seed)
        self.example_ids, self.query_ids = 3 * np.arange(N) + 1, 2 * np.arange(M)
        self.labels = {i: int(g.integers(0, C)) for i in self.example_ids.tolist()}
        self.answers: dict[int, int | None] = {
            q: int(g.integers(0, C)) for q in self.query_ids.tolist()
        }
        self.answers[UNLABELLED] = None
        self.said = g.normal(size=(M, C)).astype(np.float32)
        self.members = [np.sort(g.choice(self.example_ids, SIZE, False)) for _ in range(SUBSETS)]
        self.logits = g.normal(size=(SUBSETS, REPEATS, M, C)).astype(np.float32)
        self.scores = g.normal(size=(M, N))
        self.values = g.normal(size=N)
        self.drawn = g
        kept = {"example": self.example_ids, "query": self.query_ids}
        self.matrix = {role: g.normal(size=(len(ids), 5)) for role, ids in kept.items()}
        tables: dict[str, Any] = {
            "label": lambda: label_table({"example": dict(self.labels), "query": self.answers}),
            "truth.subset": self.subset_rows,
            "truth.outcome": self.outcome_rows,
            "prediction": self.predicted_rows,
            "pairs": lambda: self.score_rows(self.scores),
            "values": self.value_rows,
        }
        vectors = {
            role: Vectors(ids, self.matrix[role].astype(np.float32)) for role, ids in kept.items()
        }
        super().__init__(tables, {"label": {"classes": ["a", "b", "c"]}}, vectors)

    def trained(self) -> list[tuple[int, int, int, int]]:
        """Round, subset within it, and which subset and repeat that is; two subsets a round."""
        each = itertools.product(range(SUBSETS), range(REPEATS))
        return [(s // 2, (s % 2) * REPEATS + r, s, r) for s, r in each]

    def subset_rows(self) -> pa.Table:
        rows = [
            # In the order in which they joined, which is another one each time.
            (a, b, SIZE, self.drawn.permutation(self.members[s]).tolist())
            for a, b, s, _ in self.trained()
        ]
        return self.table_of(rows, SUBSET.schema)

    def outcome_rows(self) -> pa.Table:
        rows = [
            (a, b, SIZE, int(q), self.logits[s, r, j].tolist())
            for a, b, s, r in self.trained()
            for j, q in reversed(list(enumerate(self.query_ids)))
        ]
        table = self.table_of(rows, OUTCOME.schema)
        flat = pa.array(np.concatenate(table["logits"].to_pylist()), pa.float32())
        lists = pa.FixedSizeListArray.from_arrays(flat, C)
        return table.set_column(4, "logits", pa.chunked_array([lists]))

    def predicted_rows(self) -> pa.Table:
        lists = pa.FixedSizeListArray.from_arrays(pa.array(self.said.reshape(-1)), C)
        return pa.table({"id": self.query_ids, "role": ["query"] * M, "logits": lists})

    def score_rows(self, scores: np.ndarray) -> pa.Table:
        pairs = [
            (int(self.query_ids[j]), int(self.example_ids[i]), float(scores[j, i]), None, None)
            for j, i in itertools.product(range(M), range(N))
            if not np.isnan(scores[j, i])
        ]
        return self.table_of(pairs, ATTRIBUTION.schema)

    def value_rows(self) -> pa.Table:
        columns = {"semivalue": ["loo"] * N, "utility": ["margin"] * N}
        return pa.table({**columns, "example_id": self.example_ids, "value": self.values})

    @staticmethod
    def table_of(rows: Any, schema: pa.Schema) -> pa.Table:
        return pa.Table.from_pylist([dict(zip(schema.names, r, strict=True)) for r in rows], schema)

    def class_of(self, speaks: str) -> list[int]:
        predicted = self.said.argmax(1).tolist()
        if speaks == "prediction":
            return [int(c) for c in predicted]
        given = [self.answers[q] for q in self.query_ids.tolist()]
        return [int(p) if c is None else c for c, p in zip(given, predicted, strict=True)]

    def truth(self, speaks: str) -> list[list[float]]:
        """Of each query the log-odds after training on each subset, the mean of both trainings."""
        found = []
        for j, c in enumerate(self.class_of(speaks)):
            row = []
            for s in range(SUBSETS):
                each = []
                for r in range(REPEATS):
                    weights = [math.exp(float(x)) for x in self.logits[s, r, j]]
                    p = weights[c] / sum(weights)
                    each.append(math.log(p / (1 - p)))
                row.append(sum(each) / REPEATS)
            found.append(row)
        return found


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


def rank(values: list[float], value: float) -> float:
    return sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2


def correlation(a: list[float], b: list[float]) -> float:
    """Spearman's; 0 where one side says the same of all."""
    if len(set(a)) == 1 or len(set(b)) == 1:
        return 0.0
    ranked = [[rank(side, value) for value in side] for side in (a, b)]
    return float(np.corrcoef(*ranked)[0, 1])


def sums_of(run: Run, scores: np.ndarray) -> list[list[float]]:
    place = {i: at for at, i in enumerate(run.example_ids.tolist())}
    return [
        [sum(float(row[place[i]]) for i in members.tolist()) for members in run.members]
        for row in scores
    ]


def row_of(found: Any, method: str, signed: bool = False) -> dict[str, Any]:
    (row,) = (r for r in found.rows if (r["method"], r["signed"]) == (method, signed))
    return dict(row)


@pytest.mark.parametrize("speaks", ["label", "prediction"])
def test_the_score_is_the_mean_of_the_queries_correlations(speaks: Any) -> None:
    run = Run()
    metric = Lds(methods=("pairs",), truth="truth", explained={"pairs": speaks}, resamples=30)
    found = metric.compute(run, quiet)
    row, sums, truth = row_of(found, "pairs"), sums_of(run, run.scores), run.truth(speaks)
    each = [correlation(a, b) for a, b in zip(sums, truth, strict=True)]
    assert [one["lds"] for one in found.details] == pytest.approx(each)
    assert row["lds"] == pytest.approx(np.mean(each))
    assert (row["kept"], row["constant"], row["queries"]) == (1.0, 0, M)
    again = []
    for subsets, queries in zip(draws(SUBSETS, 30, 0), draws(M, 30, 0, stream=4), strict=True):
        of_query = [
            correlation(*([side[j][s] for s in subsets] for side in (sums, truth))) for j in queries
        ]
        again.append(np.mean(of_query))
    ends = np.quantile(again, (0.025, 0.975))
    assert (row["lds_low"], row["lds_high"]) == pytest.approx(tuple(ends))


def test_a_likeness_is_judged_as_it_is_and_signed_by_the_label() -> None:
    run = Run()
    metric = Lds(methods=("pairs",), truth="truth", explained={"pairs": "likeness"}, resamples=2)
    found = metric.compute(run, quiet)
    signed = run.scores.copy()
    for j, c in enumerate(run.class_of("label")):
        for i, label in enumerate(run.labels.values()):
            signed[j, i] *= 1 if label == c else -1 / (C - 1)
    for is_signed, scores in ((False, run.scores), (True, signed)):
        pairs = zip(sums_of(run, scores), run.truth("label"), strict=True)
        expected = np.mean([correlation(a, b) for a, b in pairs])
        assert row_of(found, "pairs", is_signed)["lds"] == pytest.approx(expected)


def test_values_of_examples_alone_say_the_same_of_every_query() -> None:
    run = Run()
    found = Lds(methods=("values",), truth="truth", resamples=2).compute(run, quiet)
    row = row_of(found, "values")
    pairs = zip(sums_of(run, np.tile(run.values, (M, 1))), run.truth("label"), strict=True)
    assert row["lds"] == pytest.approx(np.mean([correlation(a, b) for a, b in pairs]))
    assert (row["semivalue"], row["utility"]) == ("loo", "margin")


def test_scores_that_make_the_outcomes_are_perfect_and_only_their_order_counts() -> None:
    run = Run()
    weights = run.drawn.normal(size=(M, N))
    for j, row in enumerate(sums_of(run, weights)):
        for s, outcome in enumerate(row):
            c = run.class_of("label")[j]
            run.logits[s, :, j] = 0
            run.logits[s, :, j, c] = outcome
    for factor, expected in ((1.0, 1.0), (100.0, 1.0), (-2.0, -1.0), (0.0, 0.0)):
        run.scores = factor * weights
        found = Lds(methods=("pairs",), truth="truth", resamples=5).compute(run, quiet)
        row = row_of(found, "pairs")
        assert row["lds"] == pytest.approx(expected, abs=1e-12)
        assert row["constant"] == (M if factor == 0 else 0)
    # Two trainings that agree leave nothing to noise.
    assert found.facts["reliability"] == pytest.approx(1.0)


def test_pairs_without_a_row_count_nothing_and_are_told() -> None:
    run = Run()
    run.scores[run.drawn.random((M, N)) < 0.5] = np.nan
    found = Lds(methods=("pairs",), truth="truth", resamples=2).compute(run, quiet)
    filled = np.nan_to_num(run.scores)
    pairs = zip(sums_of(run, filled), run.truth("label"), strict=True)
    assert row_of(found, "pairs")["lds"] == pytest.approx(
        np.mean([correlation(a, b) for a, b in pairs])
    )
    assert row_of(found, "pairs")["kept"] == pytest.approx((~np.isnan(run.scores)).mean())


def test_the_ceiling_is_the_root_of_what_two_halves_share() -> None:
    run = Run()
    # A signal with half as much noise, so that halves agree and not by chance.
    signal = run.drawn.normal(size=(SUBSETS, 1, M, C))
    run.logits = (signal + 0.3 * run.drawn.normal(size=run.logits.shape)).astype(np.float32)
    facts = Lds(methods=("pairs",), truth="truth", resamples=20).compute(run, quiet).facts
    classes = np.array(run.class_of("label"))
    halves = [log_odds(run.logits[:, r].astype(np.float64), classes).T.tolist() for r in (0, 1)]
    r = np.mean([correlation(a, b) for a, b in zip(*halves, strict=True)])
    assert r > 0.5
    assert facts["reliability"] == pytest.approx(2 * r / (1 + r))
    assert facts["ceiling"] == pytest.approx((2 * r / (1 + r)) ** 0.5)
    assert facts["ceiling_low"] <= facts["ceiling"] <= facts["ceiling_high"]
    assert (facts["n_subsets"], facts["repeats"], facts["subset_size"]) == (SUBSETS, REPEATS, SIZE)


def test_the_kernel_is_left_out_of_and_fitted_again() -> None:
    run = Run()
    metric = Lds(kernel=("features",), ridge=RIDGE, truth="truth", resamples=2)
    found = metric.compute(run, quiet)
    unit = {
        role: m / np.linalg.norm(m, axis=1)[:, None]
        for role, m in (
            (role, matrix.astype(np.float32).astype(np.float64))
            for role, matrix in run.matrix.items()
        )
    }
    labels = np.array(list(run.labels.values()))
    classes = run.class_of("label")

    def outputs(rows: list[int]) -> np.ndarray:
        f = unit["example"][rows]
        targets = np.eye(C)[labels[rows]] - 1 / C
        weights: np.ndarray = np.linalg.solve(f @ f.T + RIDGE * np.eye(len(f)), targets)
        return np.asarray(unit["query"] @ f.T @ weights)

    everyone = list(range(N))
    alone = np.array(
        [
            [
                outputs(everyone)[j, c] - outputs([i for i in everyone if i != out])[j, c]
                for out in everyone
            ]
            for j, c in enumerate(classes)
        ]
    )
    place = {i: at for at, i in enumerate(run.example_ids.tolist())}
    refit = np.array(
        [log_odds(outputs([place[i] for i in s.tolist()]), np.array(classes)) for s in run.members]
    ).T
    truth = run.truth("label")
    for name, sums in (
        ("kernel_leave_one_out", sums_of(run, alone)),
        ("kernel_refit", refit.tolist()),
    ):
        each = [correlation(a, b) for a, b in zip(sums, truth, strict=True)]
        assert row_of(found, name)["lds"] == pytest.approx(np.mean(each), abs=1e-9)


def test_methods_are_those_of_the_run_and_speak_for_what_they_declare() -> None:
    instances = {
        "prediction": Instance(None, ("prediction",), None),
        "truth": Instance(None, ("outcome", "subset"), None),
        "tracin": Instance(None, ("attribution",), "label"),
        "bm25": Instance(None, ("attribution",), "likeness"),
        "values": Instance(None, ("shapley_round", "shapley_stratum"), None),
    }
    made = Lds(truth="truth").with_instances(lambda: instances)
    assert made.methods == ("tracin", "bm25", "values")
    assert dict(made.explained) == {"tracin": "label", "bm25": "likeness", "values": "label"}
    other = Lds(explained={"bm25": "label"}).with_instances(lambda: instances)
    assert other.explained["bm25"] == "label"
    with pytest.raises(ConfigError, match="found no instance that scores"):
        Lds().with_instances(lambda: {"truth": instances["truth"]})


def test_what_cannot_be_correlated_over_is_refused() -> None:
    run = Run()
    run.members = [run.members[0]] * SUBSETS
    with pytest.raises(DataError, match="found 1 distinct subsets, expected at least 5"):
        read_outcomes(run, "truth")
    run = Run()
    sizes = pa.array([SIZE + at % 2 for at in range(SUBSETS * REPEATS)])
    table = run.subset_rows().set_column(2, "size", sizes)
    run.tables["truth.subset"] = table
    with pytest.raises(DataError, match="found subsets of 2 sizes"):
        read_outcomes(run, "truth")
    run = Run()
    with pytest.raises(DataError, match="found 5, which has no outcome"):
        Lds(methods=("pairs",), truth="truth", queries=(5,)).compute(run, quiet)
    run.tables["truth.outcome"] = run.outcome_rows().slice(1)
    with pytest.raises(DataError, match="expected one for each pair"):
        read_outcomes(run, "truth")


@pytest.mark.parametrize("fields", [{"methods": ("a", "a")}, {"resamples": 0}, {"queries": ()}])
def test_fields_that_judge_nothing_are_refused(fields: Any) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Lds(**fields)
