"""Kernel regression in dual form: a fit on all examples at once, from their kernel."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.reading.feature_rows import not_a_multiple
from stages.reading.supervision import Answers
from stages.surrogate.kernel import (
    RIDGE_GRID,
    auto_ridge,
    closed_form_loo,
    gram,
    mean_diagonal,
    solve,
)
from stages.surrogate.labelled_kernel import LeftOut, Ridge

Features = list[tuple[Tensor, Tensor]]
"""Of each feature table the rows of the examples and those of the queries."""


class DualFit(NamedTuple):
    """The fitted regression and its outputs; of classes that share a kernel they sum to one."""

    example_ids: Int64[np.ndarray, " examples"]
    query_ids: Int64[np.ndarray, " queries"]
    of_examples: Float[Tensor, "examples outputs"]
    """Leave-one-out: each from a fit on all the other examples."""
    of_queries: Float[Tensor, "queries outputs"]
    dual: Float[Tensor, "examples outputs"]
    """(K + damping I)^-1 times the targets, of each output by its own kernel."""
    ridge: float
    dampings: tuple[float, ...]
    """One for each kernel."""
    ridge_errors: tuple[float, ...]
    """Leave-one-out error for each of `kernel.RIDGE_GRID`; empty if the ridge was given."""
    left_out: LeftOut = LeftOut()


def fit_dual(
    answers: Answers,
    query_ids: Int64[np.ndarray, " queries"],
    features: Features,
    n_parts: int,
    normalize: bool,
    ridge: Ridge,
) -> DualFit:
    """The regression on all examples, with `n_parts` kernels, and its out-of-sample outputs.

    The vectors of each table are cut into that many equal parts; part k is the kernel of the k-th
    of as many equal shares of the outputs. Cost per part n^3, and 10 n^3 for `auto`; memory 24 n^2
    bytes, of one part at a time.

    Raises:
        DataError: a table's vectors cannot be cut so, or are all zero in a part.
    """
    shares = answers.targets.chunk(n_parts, dim=1)
    held = [gram(features, normalize)] if n_parts == 1 else None

    def kernels(part: int) -> tuple[Tensor, Tensor]:
        """The kernel of a part among the examples, and from queries to examples."""
        return held[part] if held is not None else gram(cut(features, part, n_parts), normalize)

    errors: tuple[float, ...] = ()
    if ridge == "auto":
        tried = [auto_ridge(kernels(part)[0], share)[1] for part, share in enumerate(shares)]
        errors = tuple(float(total) for total in np.sum(tried, axis=0))
        ridge = RIDGE_GRID[int(np.argmin(errors))]
    of_examples, of_queries, duals, dampings = [], [], [], []
    for part, share in enumerate(shares):
        kernel, query_kernel = kernels(part)
        dampings.append(ridge * mean_diagonal(kernel))
        solution = solve(kernel, share, dampings[-1])
        of_examples.append(answers.offset + closed_form_loo(share, solution))
        of_queries.append(answers.offset + query_kernel @ solution.dual)
        duals.append(solution.dual)
    return DualFit(
        answers.ids,
        query_ids,
        torch.cat(of_examples, dim=1),
        torch.cat(of_queries, dim=1),
        torch.cat(duals, dim=1),
        ridge,
        tuple(dampings),
        errors,
    )


def cut(features: Features, part: int, n_parts: int) -> Features:
    """Part number `part` of `n_parts` equal parts of the vectors of every table.

    Raises:
        DataError: a table's vectors have another length than a multiple of `n_parts`.
    """
    columns = []
    for examples, _ in features:
        width, rest = divmod(examples.shape[1], n_parts)
        if rest or not width:
            raise not_a_multiple(examples.shape[1], n_parts)
        columns.append(slice(part * width, (part + 1) * width))
    return [
        (examples[:, own], queries[:, own])
        for (examples, queries), own in zip(features, columns, strict=True)
    ]
