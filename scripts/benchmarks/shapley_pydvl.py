"""pyDVL's truncated Monte-Carlo Shapley in the game of the case `shapley`, alone in its process.

    python shapley_pydvl.py GAME.npz FOUND.npz

GAME.npz holds `kernel`, `to_queries` (examples, queries), `damping`, `labels`, `query_labels`
(0 and 1), `order` and `every`. It runs in the environment of pyDVL.

pyDVL has a model fit each prefix of a permutation anew. This one does that as cheaply as it can be
done: the kernel is there, a row is its place in it, and a fit is one Cholesky solve. It is not
cloned before each fit, which would copy the kernel.

With `every` 1 `TMCShapleyValuation` values one permutation of its own, without truncation;
otherwise its utility alone is asked for one prefix in the middle of every so many.
"""

import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np
from pydvl.valuation.dataset import Dataset
from pydvl.valuation.methods.shapley import TMCShapleyValuation
from pydvl.valuation.samplers.truncation import NoTruncation
from pydvl.valuation.scorers import SupervisedScorer
from pydvl.valuation.stopping import MaxUpdates
from pydvl.valuation.types import Sample
from pydvl.valuation.utility import ModelUtility
from scipy.linalg import cho_factor, cho_solve


class KernelRidge:
    """Kernel ridge regression of labels less 1/2; a row of x is a number of an example."""

    def __init__(self, kernel: np.ndarray, to_queries: np.ndarray, damping: float) -> None:
        self.kernel, self.damping = kernel, damping
        self.to_queries = np.ascontiguousarray(to_queries.T)

    def fit(self, x: np.ndarray, y: np.ndarray) -> "KernelRidge":
        """One Cholesky factor, n^3 / 3."""
        self.rows = x[:, 0]
        matrix = self.kernel[np.ix_(self.rows, self.rows)]
        matrix.flat[:: len(matrix) + 1] += self.damping
        # The transpose is the same matrix in the order of LAPACK, which then copies nothing.
        factor = cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
        self.dual = np.zeros(len(self.kernel))
        self.dual[self.rows] = cho_solve(factor, y - 0.5, check_finite=False)
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Classes of the queries."""
        return (self.to_queries[x[:, 0]] @ self.dual > 0).astype(np.int64)

    def score(self, x: np.ndarray, y: np.ndarray) -> float:
        """Accuracy on all queries, of which a row of x is the number."""
        return float(np.mean((self.to_queries @ self.dual > 0) == y))


def main() -> None:
    """Times a permutation and leaves what it found."""
    with np.load(sys.argv[1]) as game:
        given: dict[str, Any] = dict(game)
    n, order, every = len(given["kernel"]), given["order"], int(given["every"])
    model = KernelRidge(given["kernel"], given["to_queries"], float(given["damping"]))
    data, queries = (
        Dataset(np.arange(len(labels))[:, None], labels)
        for labels in (given["labels"], given["query_labels"])
    )
    scorer = SupervisedScorer(model, queries, default=0.5)
    utility = ModelUtility(model, scorer, clone_before_fit=False, catch_errors=False)
    found: dict[str, Any] = {"version": version("pydvl")}
    utility.with_dataset(data)(Sample(None, order[:100]))
    if every == 1:
        valuation = TMCShapleyValuation(
            utility, NoTruncation(), MaxUpdates(1), seed=0, progress=False
        )
        start = time.process_time()
        valuation.fit(data)
        found["cpu_s"] = time.process_time() - start
        # The last prefix is the permutation.
        found |= {"order": model.rows, "marginals": valuation.result.values}
    else:
        found |= {"sizes": [], "utilities": []}
        asked, total = utility.with_dataset(data), 0.0
        for first in range(0, n, every):
            width = min(every, n - first)
            size = first + (width + 1) // 2
            spent = []
            for _ in range(3):
                start = time.process_time()
                worth = asked(Sample(None, order[:size]))
                spent.append(time.process_time() - start)
            total += width * min(spent)
            found["sizes"].append(size)
            found["utilities"].append(worth)
        found["cpu_s"] = total
    np.savez(sys.argv[2], **found)


if __name__ == "__main__":
    main()
