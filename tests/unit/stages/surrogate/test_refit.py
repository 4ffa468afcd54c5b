"""The regression without some examples and with other answers, against fits from the start.

Tolerance 1e-9: all solve systems whose condition is at most 1e4 here.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import MemoryInputs, label_table

from stages.stage import Vectors
from stages.surrogate.primal import decompose
from stages.surrogate.primal_tables import fit_rows
from stages.surrogate.refit import Refit, dual_refit, judged, primal_refit

N, M, DIM, CLASSES = 24, 5, 6, 3
DAMPING = 0.3
UNANSWERED = (5, 20)


class Case:
    """Vectors of examples 0 to 23 and of queries, of which two examples have no answer."""

    def __init__(self, task: str, parts: int) -> None:
        g = np.random.default_rng(7)
        self.task, self.parts = task, parts
        self.dampings = [DAMPING * (1 + part) for part in range(parts)]
        self.vectors = g.normal(size=(N + M, DIM * parts)).astype(np.float32).astype(float)
        # Ids of rows do not ascend: neither do those of a corpus.
        self.ids = g.permutation(100)[:N]
        self.query_ids = 1000 + g.permutation(50)[:M]
        self.answer_of = {
            int(i): int(g.integers(CLASSES)) if task == "classification" else float(g.normal())
            for at, i in enumerate(self.ids)
            if at not in UNANSWERED
        }

    def columns(self, answers: dict[int, float]) -> np.ndarray:
        """One-hot labels or targets of the examples with these ids, in the order given."""
        values = np.array(list(answers.values()))
        if self.task == "regression":
            return values[:, None]
        return np.eye(CLASSES)[values.astype(int)]

    def fitted(self, removed: list[int], changed: dict[int, float]) -> np.ndarray:
        """The queries' outputs, by ascending id, of a fit without some and with other answers."""
        offset = self.columns(self.answer_of).mean()
        kept = {i: changed.get(i, y) for i, y in self.answer_of.items() if i not in removed}
        rows = [self.ids.tolist().index(i) for i in kept]
        order = N + np.argsort(self.query_ids)
        outputs = []
        for part, targets in enumerate(np.split(self.columns(kept) - offset, self.parts, 1)):
            own = self.vectors[:, part * DIM : (part + 1) * DIM]
            kernel = own[rows] @ own[rows].T + self.dampings[part] * np.eye(len(rows))
            outputs.append(own[order] @ own[rows].T @ np.linalg.solve(kernel, targets))
        return np.concatenate(outputs, 1) + offset

    def details(self) -> dict[str, Any]:
        classes = [] if self.task == "regression" else list("xyz")
        return {"label": {"task": self.task, "classes": classes}}

    def labels(self) -> pa.Table:
        queries = dict.fromkeys(self.query_ids.tolist())
        given = {int(i): self.answer_of.get(int(i)) for i in self.ids}
        if self.task == "classification":
            return label_table({"example": given, "query": queries})
        ids = [*given, *queries]
        roles = ["example"] * N + ["query"] * M
        targets = pa.array([*given.values(), *queries.values()], pa.float64())
        return pa.table({"id": ids, "role": roles, "target": targets})

    def dual(self, candidates: np.ndarray) -> Refit:
        matrices = {"example": self.vectors[:N], "query": self.vectors[N:]}
        ids = {"example": self.ids, "query": self.query_ids}
        vectors = {r: Vectors(ids[r], m.astype(np.float32)) for r, m in matrices.items()}
        inputs = MemoryInputs({"label": self.labels()}, self.details(), vectors)
        return dual_refit(inputs, ("a",), False, self.dampings, candidates)

    def primal(self, candidates: np.ndarray) -> Refit:
        """The same from sums and two shards; the third holds no candidate and is not there."""
        answered = [at for at, i in enumerate(self.ids) if int(i) in self.answer_of]
        columns = self.columns({int(self.ids[at]): self.answer_of[self.ids[at]] for at in answered})
        offset = columns.mean()
        fits = []
        for part, targets in enumerate(np.split(columns - offset, self.parts, 1)):
            own = self.vectors[answered, part * DIM : (part + 1) * DIM]
            fits.append(decompose(torch.from_numpy(own.T @ own), torch.from_numpy(own.T @ targets)))
        facts = {"damping": self.dampings, "scales": [[1.0]] * self.parts}
        details = {**self.details(), "fit": {**facts, "offset": offset, "ridge": 0.1}}
        shards = {("example", 0): slice(0, 8), ("example", 2): slice(8, 24)}
        shards[("query", 0)], shards[("query", 1)] = slice(N, N + 2), slice(N + 2, N + M)
        ids, label = np.concatenate([self.ids, self.query_ids]), self.labels()

        def at_shard(role: str, index: int) -> MemoryInputs:
            rows = shards[role, index]
            flat = pa.array(self.vectors[rows].astype(np.float32).reshape(-1))
            lists = pa.FixedSizeListArray.from_arrays(flat, DIM * self.parts)
            a = pa.table({"id": ids[rows], "vector": lists})
            own = label.take(pa.array(np.arange(N + M)[rows]))
            return MemoryInputs({"a": a, "label": own, "fit": fit_rows(fits)}, details)

        indices = {"query": [0, 1], "example": [0, 2]}
        return primal_refit(at_shard, indices, ("a",), False, "fit", candidates)


@pytest.mark.parametrize(
    ("task", "parts"), [("classification", 1), ("classification", CLASSES), ("regression", 1)]
)
@pytest.mark.parametrize("form", ["dual", "primal"])
def test_it_is_the_fit_from_the_start(form: str, task: str, parts: int) -> None:
    case = Case(task, parts)
    ids = sorted(case.answer_of)
    unanswered = [int(case.ids[at]) for at in UNANSWERED]
    refit = getattr(case, form)(np.array(sorted([*ids[::2], *unanswered, 999])))
    assert refit.example_ids.tolist() == ids[::2]
    assert refit.query_ids.tolist() == sorted(case.query_ids.tolist())
    new = {i: float((case.answer_of[i] + 1) % CLASSES) for i in ids[::2]}
    some, others = ids[:8:2], ids[8:14:2]
    for removed, changed in (
        ([], {}),
        (some, {}),
        ([], {i: new[i] for i in some}),
        (some, {i: new[i] for i in others}),
        # One that is left out is so whatever its label is; the others took no part.
        (some, {i: new[i] for i in some[:2]}),
        ([*some, unanswered[0], 999], {unanswered[1]: 1.0}),
    ):
        found = refit.after(np.array(removed, np.int64), changed)
        np.testing.assert_allclose(found, case.fitted(removed, changed), rtol=0, atol=1e-9)


def test_outputs_are_judged_by_their_label_or_target() -> None:
    outputs = np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7]])
    found = judged(outputs, np.array([1.0, 1.0, 2.0]))
    # Of equal outputs the first is the prediction.
    assert found["accuracy"].tolist() == [1.0, 0.0, 1.0]
    np.testing.assert_allclose(found["margin"], [0.2, 0.0, 0.5])
    shares = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    np.testing.assert_allclose(found["cross_entropy"], -np.log(shares[[0, 1, 2], [1, 1, 2]]))
    of_target = judged(np.array([[1.0], [3.0]]), np.array([0.5, 3.0]))
    assert of_target["squared_error"].tolist() == [0.25, 0.0]
