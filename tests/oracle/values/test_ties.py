"""Accuracy where outputs tie in exact arithmetic, in every engine and precision.

Examples are one-hot vectors, so that a query sees those of its own group alone: with n_c of its n
members in class c, its output for c is (n_c - n / C) / (n + damping), and the classes at the top
are those with the largest count. Whole numbers, hence exactly what ties.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from jaxtyping import Int64
from memory_inputs import MemoryInputs, label_table, vector_table

from stages.game.coalitions import coalition
from stages.game.from_tables import read_game
from stages.game.permutations import walk
from stages.game.sampling import Valuation
from stages.game.sums import MarginalSums
from stages.stage import DataError

N, M, GROUPS = 60, 30, 5
KINDS = [
    ("prefix_cholesky", "float64", 1e-6, 300.0),
    ("prefix_cholesky", "float64", 1.0, 1.0),
    ("least_squares", "float64", 1e-5, 1.0),
    ("least_squares", "float32", 0.01, 1.0),
    ("least_squares", "float32", 1.0, 300.0),
    ("least_squares", "float32", 1000.0, 1.0),
]


class Groups:
    """Groups and labels of examples and queries; and what a coalition is worth, by counting."""

    def __init__(self, c: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.c = c
        self.group, self.query_group = (torch.randint(GROUPS, (k,), generator=g) for k in (N, M))
        self.label, self.query_label = (torch.randint(c, (k,), generator=g) for k in (N, M))

    def inputs(self, length: float) -> MemoryInputs:
        labels = {
            "example": dict(enumerate(self.label.tolist())),
            "query": dict(enumerate(self.query_label.tolist(), 1000)),
        }
        basis = torch.eye(GROUPS) * length
        tables = {
            "label": label_table(labels),
            "ntk": vector_table(basis[self.group], basis[self.query_group]),
        }
        return MemoryInputs(tables, {"label": {"classes": [str(i) for i in range(self.c)]}})

    def accuracy(self, members: Int64[torch.Tensor, " members"]) -> float:
        counts = torch.zeros(GROUPS, self.c, dtype=torch.int64)
        counts.index_put_(
            (self.group[members], self.label[members]), torch.tensor(1), accumulate=True
        )
        seen = counts[self.query_group]
        at_top = seen == seen.amax(1, keepdim=True)
        own = at_top[torch.arange(M), self.query_label]
        return float((own.double() / at_top.sum(1)).mean())


@pytest.mark.parametrize("c", [2, 3])
@pytest.mark.parametrize(("engine", "precision", "ridge", "length"), KINDS)
def test_a_tie_is_one_in_exact_arithmetic(
    engine: str, precision: str, ridge: float, c: int, length: float
) -> None:
    """Every marginal beside coalitions of all sizes, and along permutations, by counting.

    Tolerance: float32 adds up halves and thirds of queries to 1e-6.
    """
    groups = Groups(c, seed=3)
    fields = Valuation(
        utilities=("accuracy",),
        engine=engine,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        ridge=ridge,
        normalize=False,
        block=5,
        orders=1,
    )
    game = read_game(groups.inputs(length), fields).game
    design = fields.design(game)
    assert design is not None
    generator = torch.Generator().manual_seed(0)
    n_marginals = n_ties = 0
    for size in (0, 1, 5, 26, N):
        order = torch.randperm(N, generator=generator)
        members = set(order[:size].tolist())
        for _, ids, first, found in coalition(game, design, order, size, ("accuracy",)):
            for block, gains in zip(ids.tolist(), found.tolist(), strict=True):
                joined = sorted(members - set(block))
                assert len(joined) == first
                before = groups.accuracy(torch.tensor(joined, dtype=torch.int64))
                for example, gain in zip(block, gains, strict=True):
                    joined.append(example)
                    after = groups.accuracy(torch.tensor(joined))
                    assert gain == pytest.approx(after - before, abs=1e-6)
                    n_ties += round(2 * M * (after - before)) % 2
                    before, n_marginals = after, n_marginals + 1
    assert n_marginals == 5 * N
    assert n_ties > N / 2 or c > 2
    order = torch.randperm(N, generator=generator)
    tally = MarginalSums(("accuracy",), {"accuracy": np.ones((1, N))})
    for _ in walk(game, [order], [N], ("accuracy",), tally, game.ends(("accuracy",))):
        tally.close_unit()
    worth = [groups.accuracy(order[:k]) for k in range(N + 1)]
    torch.testing.assert_close(
        tally.total[0, 0][order], torch.tensor(np.diff(worth)), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("precision", "ridge"), [("float32", 1e-3), ("float64", 1e-6)])
def test_a_ridge_is_refused_where_rounding_would_vote(precision: str, ridge: float) -> None:
    fields = Valuation(engine="least_squares", precision=precision, ridge=ridge)  # type: ignore
    with pytest.raises(DataError, match=f"ridge: found .* least_squares in {precision}"):
        read_game(Groups(2, 0).inputs(1.0), fields)
    if precision == "float64":
        read_game(Groups(2, 0).inputs(1.0), replace(fields, utilities=("cross_entropy",)))
