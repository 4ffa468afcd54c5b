"""The kernel regression fitted anew without some of its examples, or with other answers for them.

With M = (K + damping I)^-1, A = M Y and the outputs f(t) = K[t,:] A for queries t, less the offset:
where the answers of the examples L change by D, and the examples R are then left out,

    A' = A + M[:,L] D,    f'(t) = f(t) + G[t,L] D,    G = K[t,:] M,
    f''(t) = f'(t) - G[t,R] (M[R,R])^-1 A'[R],

from the block inverse. Exact, with damping and offset held as in `stages.metrics.removal`. Only the
columns of the examples that may change are needed. In dual form they follow from a Cholesky factor
of the kernel, in primal form (`stages.surrogate.primal`), with g = U' phi, from

    G[t,i] = g_t' (s + damping)^-1 g_i,
    M[i,j] = (1[i = j] - g_i' (s + damping)^-1 g_j) / damping,
    A[i] = (y_i - f(i)) / damping.

Source: the block inverse and the push-through identity. [derived]
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.reading.answered_rows import answered_rows
from stages.reading.feature_rows import shard_features
from stages.stage import Inputs, Role
from stages.surrogate.dual import cut
from stages.surrogate.kernel import factor, gram
from stages.surrogate.labelled_kernel import read_features
from stages.surrogate.primal_tables import read_fit


class Share(NamedTuple):
    """What the candidates do to the outputs that share a kernel; mostly these are all."""

    reach: Float[Tensor, "queries candidates"]
    """Columns of G."""
    block: Float[Tensor, "candidates candidates"]
    """Rows and columns of M."""
    dual: Float[Tensor, "candidates outputs"]
    """Rows of A."""


class Refit(NamedTuple):
    """A kernel regression of which some examples, the candidates, may be left out or changed."""

    example_ids: Int64[np.ndarray, " candidates"]
    """Ascending."""
    query_ids: Int64[np.ndarray, " queries"]
    """Ascending."""
    outputs: Float[Tensor, "queries outputs"]
    """Of the fit on all examples as they are, with the offset."""
    answers: Float[Tensor, "candidates outputs"]
    """One-hot labels, or targets."""
    shares: tuple[Share, ...]

    def after(
        self,
        removed: Int64[np.ndarray, " removed"],
        changed: Mapping[int, float] | None = None,
    ) -> Float[np.ndarray, "queries outputs"]:
        """The outputs of a fit without the examples `removed`, and with other answers for some.

        `changed` has the new label or target by the example's id. Ids that are no candidates, and
        so took no part in the fit, change nothing. Cost queries |R| outputs + |R|^3.
        """
        gone = torch.from_numpy(np.flatnonzero(np.isin(self.example_ids, removed)))
        wanted = changed or {}
        at = torch.from_numpy(np.flatnonzero(np.isin(self.example_ids, list(wanted))))
        rise = self._new(self.example_ids[at.numpy()], wanted) - self.answers[at]
        outputs = []
        rises = rise.chunk(len(self.shares), 1)
        befores = self.outputs.chunk(len(self.shares), 1)
        for share, of_share, before in zip(self.shares, rises, befores, strict=True):
            now = before + share.reach[:, at] @ of_share
            dual = share.dual[gone] + share.block[gone][:, at] @ of_share
            block = share.block[gone][:, gone]
            outputs.append(now - share.reach[:, gone] @ torch.linalg.solve(block, dual))
        found: np.ndarray = torch.cat(outputs, 1).numpy()
        return found

    def _new(
        self, ids: Int64[np.ndarray, " changed"], answers: Mapping[int, float]
    ) -> Float[Tensor, "changed outputs"]:
        """One-hot labels or targets that these examples would have."""
        values = torch.tensor([answers[i] for i in ids.tolist()], dtype=torch.float64)[:, None]
        n_outputs = self.answers.shape[1]
        return values if n_outputs == 1 else (values == torch.arange(n_outputs)).double()


def dual_refit(
    inputs: Inputs,
    kernel: tuple[str, ...],
    normalize: bool,
    dampings: Sequence[float],
    candidates: Int64[np.ndarray, " candidates"],
) -> Refit:
    """The regression in dual form; of `candidates`, which ascend, those that it was fitted on.

    `dampings` holds one for each kernel: one in all, or one for each class. Cost n^3 / 3 and
    2 n^2 operations a candidate for each kernel; memory 8 n (2 n + m + 2 candidates) bytes for n
    examples and m queries.

    Raises:
        DataError: see `stages.surrogate.labelled_kernel.read_features`.
    """
    answers, query_ids, features, _ = read_features(inputs, kernel)
    ids = candidates[np.isin(candidates, answers.ids)]
    at = torch.from_numpy(np.searchsorted(answers.ids, ids))
    order = torch.from_numpy(np.argsort(query_ids, kind="stable"))
    n_parts = len(dampings)
    shares, outputs = [], []
    for part, targets in enumerate(answers.targets.chunk(n_parts, 1)):
        own = features if n_parts == 1 else cut(features, part, n_parts)
        among_examples, to_examples = gram(own, normalize)
        lower = factor(among_examples, dampings[part])
        del among_examples
        to_examples = to_examples[order]
        dual = torch.cholesky_solve(targets, lower)
        units = torch.zeros(len(lower), len(at), dtype=torch.float64)
        units[at, torch.arange(len(at))] = 1.0
        columns = torch.cholesky_solve(units, lower)
        shares.append(Share(to_examples @ columns, columns[at], dual[at]))
        outputs.append(answers.offset + to_examples @ dual)
    own_answers = answers.targets[at] + answers.offset
    return Refit(ids, query_ids[order.numpy()], torch.cat(outputs, 1), own_answers, tuple(shares))


def primal_refit(
    at_shard: Callable[[Role, int], Inputs],
    shards: Mapping[Role, Sequence[int]],
    kernel: tuple[str, ...],
    normalize: bool,
    fit: str,
    candidates: Int64[np.ndarray, " candidates"],
) -> Refit:
    """The regression in primal form, by the instance `fit` of `kernel_fit`.

    `at_shard` gives the tables of one shard, of which `shards` names those of all queries and those
    that hold candidates: no others are read. Memory: the fit, the vectors of a shard, the numbers
    of queries and candidates along the fit's directions, and 8 bytes for each pair of candidates.

    Raises:
        DataError: the labels or vectors cannot be used.
    """
    regression = read_fit(at_shard("query", shards["query"][0]), fit)
    n_parts = len(regression.parts)
    found_queries: list[list[Any]] = [[] for _ in regression.parts]
    found_rows: list[list[Any]] = [[] for _ in regression.parts]
    for shard in shards["query"]:
        tables = [at_shard("query", shard).table(name) for name in kernel]
        for part, (fitted, _, scales) in enumerate(regression.parts):
            ids, rows = shard_features(tables, normalize, part, n_parts, scales)
            if len(ids):
                found_queries[part].append((ids, rows @ fitted.basis))
    for shard in shards["example"]:
        inputs = at_shard("example", shard)
        label, tables = inputs.table("label"), [inputs.table(name) for name in kernel]
        for part, (fitted, _, scales) in enumerate(regression.parts):
            read = answered_rows(inputs, label, tables, normalize, part, n_parts, scales)
            answered = read.ids[read.is_answered]
            is_wanted = torch.from_numpy(np.isin(answered, candidates))
            if is_wanted.any():
                rows = read.features[torch.from_numpy(read.is_answered)][is_wanted]
                own = answered[is_wanted.numpy()], rows @ fitted.basis, read.answers[is_wanted]
                found_rows[part].append(own)
    shares, outputs = [], []
    for part, (fitted, damping, _) in enumerate(regression.parts):
        query_ids, queries = _ascending(found_queries[part])
        ids, rows, answers = _ascending(found_rows[part])
        targets = answers.chunk(n_parts, 1)[part] - regression.offset
        shrunk = 1 / (fitted.eigenvalues + damping)
        weights = fitted.targets * shrunk[:, None]
        leverage = (rows * shrunk) @ rows.T
        block = (torch.eye(len(rows), dtype=torch.float64) - leverage) / damping
        reach = (queries * shrunk) @ rows.T
        shares.append(Share(reach, block, (targets - rows @ weights) / damping))
        outputs.append(regression.offset + queries @ weights)
    return Refit(ids, query_ids, torch.cat(outputs, 1), answers, tuple(shares))


def judged(
    outputs: Float[np.ndarray, "queries outputs"], answers: Float[np.ndarray, " queries"]
) -> dict[str, Float[np.ndarray, " queries"]]:
    """How good each query's outputs are for its label, or the one output for its target.

    accuracy: 1 where the label has the largest output, the first of equal ones.
    margin: the label's output less the largest other.
    cross_entropy: minus the log of the label's share in softmax(outputs), as `loss` in the view
        `predictions`.
    squared_error: of a regression, in place of these.
    """
    if outputs.shape[1] == 1:
        return {"squared_error": (outputs[:, 0] - answers) ** 2}
    labels = answers.astype(np.int64)
    rows = np.arange(len(labels))
    own = outputs[rows, labels]
    others = outputs.copy()
    others[rows, labels] = -np.inf
    largest = outputs.max(1)
    total = np.log(np.exp(outputs - largest[:, None]).sum(1)) + largest
    return {
        "accuracy": (outputs.argmax(1) == labels).astype(np.float64),
        "margin": own - others.max(1),
        "cross_entropy": total - own,
    }


def _ascending(parts: Sequence[tuple[np.ndarray, *tuple[Tensor, ...]]]) -> tuple[Any, ...]:
    """Ids of all parts, ascending, and their rows of each tensor."""
    ids = np.concatenate([part[0] for part in parts])
    order = np.argsort(ids, kind="stable")
    at = torch.from_numpy(order)
    columns = zip(*(part[1:] for part in parts), strict=True)
    return ids[order], *(torch.cat(column)[at] for column in columns)
