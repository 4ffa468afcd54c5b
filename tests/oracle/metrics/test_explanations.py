"""Metrics of explanations against their definitions: loops over lists, and explicit refits.

Tolerance of removal 1e-9: with ridge 0.2 on unit vectors the condition of K + damping I is below
200.
"""

import itertools
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import MemoryInputs

from stages.metrics.agreement import Agreement
from stages.metrics.bootstrap import draws
from stages.metrics.contamination import Contamination
from stages.metrics.removal import Removal
from stages.metrics.specificity import Specificity
from stages.metrics.support_size import SupportSize
from stages.model.seeded import generator_of
from stages.pairs.scores import ATTRIBUTION
from stages.pairs.support import SUPPORT, SUPPORT_SIZE
from stages.stage import Vectors

N, M, C, D = 30, 12, 3, 5
RIDGE, TOP = 0.2, 4
CLASSES = ["red", "green", "blue"]
METHODS = ("first", "plain", "spectra")
UNLABELLED, WITHOUT_VECTOR = 4, 9


class Run(MemoryInputs):
    """A small run: ids with gaps, an example without a label, one without a vector."""

    def __init__(self, seed: int = 0) -> None:
        g = self.drawn = np.random.default_rng(seed)
        self.ids = {"example": 3 * np.arange(N) + 1, "query": 2 * np.arange(M)}
        self.true = {role: g.integers(0, C, len(ids)) for role, ids in self.ids.items()}
        self.labels: dict[str, list[int | None]] = {
            role: labels.tolist() for role, labels in self.true.items()
        }
        for i in (0, 7, 13, 20):
            self.labels["example"][i] = int(self.true["example"][i] + 1) % C
        self.labels["example"][UNLABELLED] = None
        self.labels["query"][3] = None
        self.logits = {role: g.normal(size=(len(ids), C)) for role, ids in self.ids.items()}
        self.matrix = {
            role: g.normal(size=(len(ids), D)).astype(np.float32) for role, ids in self.ids.items()
        }
        self.topics = {role: g.integers(0, 4, len(ids)) for role, ids in self.ids.items()}
        self.scores = {name: g.normal(size=(M, N)) for name in ("first", "plain")}
        self.scores["plain"][5] = -np.abs(self.scores["plain"][5])
        self.sizes = g.integers(0, 6, (M, C + 1))
        self.spectrum = [
            g.permutation(N)[: g.integers(0, 9)].tolist() if j != 2 else [] for j in range(M)
        ]
        tables: dict[str, Any] = {
            "label": lambda: pa.concat_tables(map(self.label_rows, self.ids)),
            "extra": lambda: pa.concat_tables(map(self.topic_rows, self.ids)),
            "prediction": lambda: pa.concat_tables(map(self.logit_rows, self.ids)),
            "spectra": self.support_rows,
            "spectra.support_size": self.size_rows,
            "first": lambda: self.score_rows("first"),
            "plain": lambda: self.score_rows("plain"),
        }
        kept = {"example": np.delete(np.arange(N), WITHOUT_VECTOR), "query": np.arange(M)}
        vectors = {
            role: Vectors(self.ids[role][at], self.matrix[role][at]) for role, at in kept.items()
        }
        super().__init__(tables, {"label": {"classes": CLASSES}}, vectors)

    def own(self, role: str) -> dict[str, pa.Array]:
        return {"id": pa.array(self.ids[role]), "role": pa.array([role] * len(self.ids[role]))}

    def label_rows(self, role: str) -> pa.Table:
        labels = pa.array(self.labels[role], pa.int64())
        true = pa.array(self.true[role], mask=np.full(len(labels), role == "query"))
        return pa.table({**self.own(role), "label": labels, "true_label": true})

    def topic_rows(self, role: str) -> pa.Table:
        n = len(self.ids[role])
        blank = {"source_id": [""] * n, "row_number": np.arange(n)}
        return pa.table({**self.own(role), **blank, "kind": [f"t{t}" for t in self.topics[role]]})

    def logit_rows(self, role: str) -> pa.Table:
        flat = pa.array(self.logits[role].astype(np.float32).reshape(-1))
        return pa.table({**self.own(role), "logits": pa.FixedSizeListArray.from_arrays(flat, C)})

    def support_rows(self) -> pa.Table:
        rows = [
            (int(self.ids["query"][j]), k, rank + 1, int(self.ids["example"][i]), 0.0, rank)
            for j, spectrum in enumerate(self.spectrum)
            for k in (-1, 1)
            for rank, i in enumerate(spectrum if k == -1 else spectrum[::-1])
        ]
        return pa.Table.from_pylist(
            [dict(zip(SUPPORT.schema.names, row, strict=True)) for row in rows], SUPPORT.schema
        )

    def size_rows(self) -> pa.Table:
        rows = [
            (int(self.ids["query"][j]), k, int(self.sizes[j, k]))
            for j in range(M)
            for k in range(-1, C)
        ]
        names, schema = SUPPORT_SIZE.schema.names, SUPPORT_SIZE.schema
        return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema)

    def score_rows(self, name: str) -> pa.Table:
        scores = self.scores[name]
        queries, examples = (grid.ravel() for grid in np.indices(scores.shape))
        local = (
            pa.array(-(scores.ravel() ** 2)) if name == "first" else pa.nulls(M * N, pa.float64())
        )
        columns = [pa.array(self.ids["query"][queries]), pa.array(self.ids["example"][examples])]
        table = [*columns, pa.array(scores.ravel()), local, local]
        return pa.Table.from_arrays(table, schema=ATTRIBUTION.schema)

    def places(self, method: str, sign: int = 1) -> dict[int, list[int]]:
        """Places of the listed examples of every query, by place, in order."""
        found = {}
        for j in range(M):
            if method == "spectra":
                own = self.spectrum[j]
                n = min(TOP, len(own))
                listed = own
                if len(own) > TOP:
                    listed = [own[round(t * (len(own) - 1) / (n - 1))] for t in range(n)]
            else:
                own = (sign * self.scores[method][j]).tolist()
                ranked = sorted(range(N), key=lambda i: -own[i])
                listed = [i for i in ranked if own[i] > 0][:TOP]
            if listed:
                found[j] = listed
        return found

    def loss(self, i: int) -> float:
        logits, label = self.logits["example"][i].astype(np.float32), self.labels["example"][i]
        assert label is not None
        return math.log(sum(math.exp(x) for x in logits)) - float(logits[label])


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


def test_lists_are_the_best_scores_and_spectra_spread_evenly() -> None:
    run = Run()
    found = Contamination(methods=METHODS, top=TOP).lists(run)
    for method in METHODS:
        own = {run.ids["query"][j]: run.ids["example"][at] for j, at in run.places(method).items()}
        assert {q: one.ids.tolist() for q, one in found[method].items()} == {
            q: ids.tolist() for q, ids in own.items()
        }
    # The local end: the last of a spectrum; here the smallest score, as local is its square, less.
    assert all(one.local_end == one.ids[-1] for one in found["spectra"].values())
    assert all(one.local_end == one.ids[-1] for one in found["first"].values())
    assert all(one.local_end == one.ids[0] for one in found["plain"].values())
    harmful = Contamination(methods=("plain",), top=TOP, side="harmful").lists(run)["plain"]
    for j, at in run.places("plain", -1).items():
        assert harmful[2 * j].ids.tolist() == run.ids["example"][at].tolist()
    towards = Contamination(methods=("spectra",), top=9, contrast="green").lists(run)["spectra"]
    for j, spectrum in enumerate(run.spectrum):
        expected = run.ids["example"][spectrum[::-1]].tolist()
        assert (towards[2 * j].ids.tolist() if 2 * j in towards else []) == expected


def test_lists_of_equal_length_are_cut_to_the_shortest() -> None:
    run = Run()
    whole = Contamination(methods=METHODS, top=TOP).lists(run)
    cut = Contamination(methods=METHODS, top=TOP, equal_length=True).lists(run)
    common = set.intersection(*(set(lists) for lists in whole.values()))
    assert 0 < len(common) < M
    for method in METHODS:
        assert set(cut[method]) == common
    for query in common:
        shortest = min(len(lists[query].ids) for lists in whole.values())
        assert {len(lists[query].ids) for lists in cut.values()} == {shortest}
        assert cut["first"][query].ids.tolist() == whole["first"][query].ids[:shortest].tolist()
        assert set(cut["spectra"][query].ids) <= set(run.ids["example"][run.spectrum[query // 2]])


def test_specificity_is_the_mean_over_pairs() -> None:
    run = Run()
    metric = Specificity(methods=METHODS, top=TOP, resamples=40, seed=3)
    rows, facts, details = metric.compute(run, quiet)
    assert facts == {"n_queries": M}
    predicted = run.logits["query"].astype(np.float32).argmax(1)
    for row in rows:
        lists = run.places(row["method"])
        assert row["queries"] == len(lists)
        assert row["length"] == pytest.approx(np.mean([len(one) for one in lists.values()]))
        order = list(lists)

        def mean(places: Any, is_alike: bool, lists: Any = lists, order: Any = order) -> float:
            found = []
            for a, b in itertools.combinations(places, 2):
                q, p = order[a], order[b]
                if q != p and (not is_alike or predicted[q] == predicted[p]):
                    one, other = set(lists[q]), set(lists[p])
                    found.append(len(one & other) / len(one | other))
            return float(np.mean(found)) if found else math.nan

        for name, is_alike in (("overlap", False), ("same_class", True)):
            assert row[name] == pytest.approx(mean(range(len(order)), is_alike))
            again = [mean(drawn, is_alike) for drawn in draws(len(order), 40, 3)]
            low, high = np.nanquantile(again, (0.025, 0.975))
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low, high))
    assert {(one["method"], one["query_id"]) for one in details} == {
        (method, 2 * j) for method in METHODS for j in run.places(method)
    }


def test_the_same_lists_overlap_wholly_and_apart_not_at_all() -> None:
    run = Run()
    run.scores["first"][:] = run.scores["first"][0]
    run.spectrum = [[2 * j, 2 * j + 1] for j in range(M)]
    rows = Specificity(methods=("first", "spectra"), top=TOP, resamples=5).compute(run, quiet)[0]
    assert [row["overlap"] for row in rows] == [1.0, 0.0]


@pytest.mark.parametrize("side", ["helpful", "harmful"])
def test_contamination_counts_wrong_labels_and_high_losses(side: Any) -> None:
    run = Run()
    methods = METHODS if side == "helpful" else METHODS[:2]
    metric = Contamination(methods=methods, top=TOP, side=side, outliers=0.2, resamples=40, seed=1)
    rows, facts, details = metric.compute(run, quiet)
    known = [i for i in range(N) if i != UNLABELLED]
    wrong = {i for i in known if run.labels["example"][i] != run.true["example"][i]}
    outliers = set(sorted(known, key=lambda i: -run.loss(i))[: round(0.2 * len(known))])
    assert len(wrong) == 4
    assert facts["wrong_base"] == 4 / len(known)
    assert facts["outliers_base"] == len(outliers) / len(known)
    for row in rows:
        lists = run.places(row["method"], 1 if side == "helpful" else -1)
        for name, bad in (("wrong", wrong), ("outliers", outliers)):
            shares = [len(bad & set(one)) / len(one) for one in lists.values()]
            assert row[name] == pytest.approx(np.mean(shares))
            means = [np.mean([shares[at] for at in drawn]) for drawn in draws(len(lists), 40, 1)]
            interval = np.quantile(means, (0.025, 0.975))
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(tuple(interval))
            counts = [one[name] for one in details if one["method"] == row["method"]]
            assert counts == [len(bad & set(one)) for one in lists.values()]


def test_a_corpus_that_knows_no_true_labels_has_outliers_alone() -> None:
    unknown = Run()
    label = unknown.whole_table("label")
    nothing = pa.nulls(label.num_rows, pa.int64())
    unknown.tables["label"] = label.set_column(3, "true_label", nothing)
    rows, facts, details = Contamination(methods=("first",)).compute(unknown, quiet)
    assert facts["wrong_base"] is None
    assert (rows[0]["wrong"], rows[0]["wrong_low"]) == (None, None)
    assert rows[0]["outliers"] is not None
    assert details[0]["wrong"] is None


def refitted(run: Run, query: int, removed: list[int], damping: float) -> np.ndarray:
    """Outputs of a kernel regression that never saw the removed examples, 1/C left out."""
    kept = [i for i in range(N) if i not in (UNLABELLED, WITHOUT_VECTOR) and i not in set(removed)]
    unit = {
        role: rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for role, rows in ((r, run.matrix[r].astype(float)) for r in run.matrix)
    }
    own = unit["example"][kept]
    targets = np.array([[(run.labels["example"][i] == c) - 1 / C for c in range(C)] for i in kept])
    dual = np.linalg.solve(own @ own.T + damping * np.eye(len(kept)), targets)
    found: np.ndarray = (own @ unit["query"][query]) @ dual
    return found


@pytest.mark.parametrize("measure", ["margin", "output"])
@pytest.mark.parametrize("equal_length", [False, True])
def test_removal_is_a_refit_without_the_rows(measure: Any, equal_length: bool) -> None:
    run = Run()
    metric = Removal(
        methods=METHODS, top=TOP, ridge=RIDGE, measure=measure, equal_length=equal_length
    )
    rows, facts, details = metric.compute(run, quiet)
    # Unit vectors: the mean diagonal of the kernel is 1.
    assert facts["damping"] == pytest.approx(RIDGE)
    predicted = run.logits["query"].astype(np.float32).argmax(1)
    lists = metric.lists(run)
    seen = set()
    for one in details:
        j = one["query_id"] // 2
        expected = np.intersect1d(lists[one["method"]][2 * j].ids, fitted_ids(run))
        assert one["removed"] == expected.tolist()
        places = [(i - 1) // 3 for i in one["removed"]]
        values = []
        for gone in ([], places):
            outputs = refitted(run, j, gone, RIDGE)
            c = int(predicted[j])
            assert one["predicted"] == c
            others = max(outputs[k] for k in range(C) if k != c) if measure == "margin" else 0.0
            values.append(outputs[c] - others)
        assert one["before"] == pytest.approx(values[0], abs=1e-9)
        assert one["change"] == pytest.approx(values[1] - values[0], abs=1e-9)
        seen.add((one["method"], j))
    assert len(seen) > 2 * M if not equal_length else len(seen) % 3 == 0
    for row in rows:
        own = [one for one in details if one["method"] == row["method"]]
        assert row["queries"] == len(own)
        assert row["change"] == pytest.approx(np.mean([one["change"] for one in own]))
        assert row["length"] == pytest.approx(np.mean([len(one["removed"]) for one in own]))


def fitted_ids(run: Run) -> np.ndarray:
    """Ids of the examples that take part in a fit."""
    return np.delete(run.ids["example"], [UNLABELLED, WITHOUT_VECTOR])


def test_removal_of_one_example_is_its_leave_one_out() -> None:
    run = Run()
    run.spectrum = [[(2 * j) % N] for j in range(M)]
    metric = Removal(methods=("spectra",), ridge=RIDGE, measure="output", queries=5)
    details = metric.compute(run, quiet)[2]
    assert len({one["query_id"] for one in details}) <= 5
    for one in details:
        j, c = one["query_id"] // 2, one["predicted"]
        places = [(i - 1) // 3 for i in one["removed"]]
        whole, less = refitted(run, j, [], RIDGE)[c], refitted(run, j, places, RIDGE)[c]
        assert one["change"] == pytest.approx(less - whole, abs=1e-9)


def test_retraining_trains_a_head_on_the_rest() -> None:
    run = Run()
    # All examples have vectors here: a head needs them all.
    run.vectors = lambda name, role: Vectors(run.ids[role], run.matrix[role])  # type: ignore[method-assign]
    metric = Removal(methods=METHODS, top=TOP, by="retrain", queries=4, seed=5)
    rows, facts, details = metric.compute(run, quiet)
    ids = np.delete(run.ids["example"], UNLABELLED)
    assert facts == {"n_queries": 4, "n_examples": len(ids)}
    visits = torch.randperm(len(ids), generator=generator_of("removal/5")).tolist()

    def outputs(query: int, removed: list[int]) -> torch.Tensor:
        head = torch.nn.Linear(D, C)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        step = torch.optim.Adam(head.parameters(), lr=3e-3)
        places = [(int(ids[at]) - 1) // 3 for at in visits if ids[at] not in removed]
        x = torch.from_numpy(run.matrix["example"][places])
        y = torch.tensor([run.labels["example"][i] for i in places])
        for _ in range(10):
            for start in range(0, len(places), 16):
                step.zero_grad()
                own = slice(start, start + 16)
                torch.nn.functional.cross_entropy(head(x[own]), y[own]).backward()
                step.step()
        with torch.no_grad():
            said: torch.Tensor = head(torch.from_numpy(run.matrix["query"][query])).double()
        return said

    predicted = run.logits["query"].astype(np.float32).argmax(1)
    assert len({one["query_id"] for one in details}) == 4
    for one in details:
        j = one["query_id"] // 2
        c, values = int(predicted[j]), []
        for gone in ([], one["removed"]):
            said = outputs(j, gone)
            values.append(float(said[c] - max(said[k] for k in range(C) if k != c)))
        # float32 weights after 20 steps; the fused Adam rounds otherwise.
        assert one["before"] == pytest.approx(values[0], abs=1e-5)
        assert one["change"] == pytest.approx(values[1] - values[0], abs=1e-5)
    assert {row["method"] for row in rows} == set(METHODS)


@pytest.mark.parametrize("topic", [None, "kind"])
def test_agreement_counts_topics(topic: Any) -> None:
    run = Run()
    metric = Agreement(methods=METHODS, top=TOP, topic=topic, resamples=40)
    rows, facts, details = metric.compute(run, quiet)
    of = run.topics if topic else run.true
    # The true label is known of examples alone; of queries the label stands for it.
    queries = [j for j in range(M) if topic or run.labels["query"][j] is not None]
    assert facts["n_queries"] == len(queries)
    for row in rows:
        lists = {j: at for j, at in run.places(row["method"]).items() if j in queries}
        shares, ends, chances = [], [], []
        for j, at in lists.items():
            own = of["query"][j]
            shares.append(sum(of["example"][i] == own for i in at) / len(at))
            end = at[0] if row["method"] == "plain" else at[-1]
            ends.append(float(of["example"][end] == own))
            chances.append(sum(t == own for t in of["example"]) / N)
        assert row["queries"] == len(lists)
        assert row["agreement"] == pytest.approx(np.mean(shares))
        assert row["local_end"] == pytest.approx(np.mean(ends))
        assert row["chance"] == pytest.approx(np.mean(chances))
        again = [np.mean([shares[at] for at in drawn]) for drawn in draws(len(shares), 40, 0)]
        low, high = np.quantile(again, (0.025, 0.975))
        assert (row["agreement_low"], row["agreement_high"]) == pytest.approx((low, high))
        assert [one["agreement"] for one in details if one["method"] == row["method"]] == shares


def average_rank(values: list[float], value: float) -> float:
    """Place of a value: those below, and half of the others that are equal."""
    return sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2


def test_sizes_against_confidence_and_correctness() -> None:
    run = Run()
    metric = SupportSize(methods=("spectra",), resamples=40, seed=2)
    rows, facts, _ = metric.compute(run, quiet)
    logits = run.logits["query"].astype(np.float32).astype(float)
    certain = [max(np.exp(row) / np.exp(row).sum()) for row in logits]
    predicted = logits.argmax(1)
    known = [j for j in range(M) if run.labels["query"][j] is not None]
    right = [j for j in known if run.labels["query"][j] == predicted[j]]
    assert 0 < len(right) < len(known)
    assert facts == {
        "n_queries": M,
        "n_labelled": len(known),
        "accuracy": pytest.approx(len(right) / len(known)),
    }
    n_of = [sum(label == c for label in run.labels["example"]) for c in range(C)]
    second = [sorted(range(C), key=lambda k: -row[k])[1] for row in logits]
    sizes: dict[tuple[str | None, str | None], list[float]] = {(None, None): certain}
    for kind, of_query in (("general", [-1] * M), ("runner_up", second)):
        counts = [float(run.sizes[j, of_query[j]]) for j in range(M)]
        sizes[kind, "count"] = counts
        sizes[kind, "share"] = [n / n_of[c] for n, c in zip(counts, predicted, strict=True)]
    assert [(row["contrast"], row["size"]) for row in rows] == list(sizes)
    for row in rows:
        own = sizes[row["contrast"], row["size"]]

        def spearman(at: Any, own: Any = own) -> float:
            a, b = ([side[j] for j in at] for side in (own, certain))
            ranked = [[average_rank(side, value) for value in side] for side in (a, b)]
            return float(np.corrcoef(*ranked)[0, 1])

        def area(at: Any, own: Any = own) -> float:
            good = [own[j] for j in at if j in right]
            bad = [own[j] for j in at if j not in right]
            won = [(a > b) + (a == b) / 2 for a in good for b in bad]
            return float(np.mean(won)) if won else math.nan

        assert row["mean"] == pytest.approx(np.mean(own))

        def gain(at: Any, area: Any = area) -> float:
            return float(area(at) - area(at, certain))

        cases = (
            ("spearman", spearman, list(range(M))),
            ("auc", area, known),
            ("gain", gain, known),
        )
        for name, of, among in cases:
            assert row[name] == pytest.approx(of(among))
            again = [of([among[at] for at in drawn]) for drawn in draws(len(among), 40, 2)]
            low, high = np.nanquantile(again, (0.025, 0.975))
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low, high))
