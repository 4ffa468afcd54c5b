"""Games read from tables: the regression of labels on features, and that on loss gradients.

The second needs no classes. With g_i the gradient of example i's loss, a damped Gauss-Newton step
on a set S, with the empirical Fisher matrix for the curvature, lowers the loss of a query with
gradient g_q, to first order, by

    g_q^T (sum_S g_i g_i^T + damping I)^-1 sum_S g_i,

which is the prediction at g_q of a ridge regression of 1 on the g_i: the same engines apply, and
for the mean over queries their mean gradient is the only query. At a small ridge every example
would be promised the same fall, hence the ridge of 1 that `auto` means here. With `target: loss`
the regression predicts an example's own loss instead of 1. [ours]
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.answer import count_classes, read_labels
from stages.game import Game
from stages.kernel import aligned, auto_ridge, gram, mean_diagonal, one_hot
from stages.labelled_kernel import LeftOut, Ridge, has_features
from stages.labelled_kernel import check_fields as check_kernel
from stages.least_squares import RecursiveLeastSquares
from stages.mapped_rows import FeatureRows
from stages.prefix_cholesky import PrefixCholesky
from stages.stage import DataError, Inputs
from stages.utility import Judge, LossJudge, Utility
from stages.utility import check_fields as check_utilities

Engine = Literal["auto", "prefix_cholesky", "least_squares"]
Precision = Literal["auto", "float32", "float64"]

KERNEL_EXAMPLES = 10_000
"""Up to which number of examples `auto` holds their kernel, 8 n^2 bytes."""
RIDGE_EXAMPLES = 2048
"""Of more examples than these the ridge is chosen on a sample of so many: its choice costs 10 n^3,
a minute for 5,000."""
FLOAT32_RIDGE = 0.01
"""The least ridge at which float32 is trusted."""
LOSS_RIDGE = 1.0


@dataclass(frozen=True)
class GameFields:
    """The fields that say which game it is."""

    kernel: tuple[str, ...] = ("ntk",)
    """Feature tables; with several, their kernels' mean. For the utility loss: [gradient]."""
    normalize: bool | None = None
    """Scale every feature vector to unit length, which the paper does not. By default so, but not
    for the utility loss, where the lengths of gradients are part of the game."""
    ridge: Ridge = "auto"
    """Relative to the kernel's mean diagonal, the same for every subset; `auto` takes the least
    leave-one-out error on the labels of 2,048 examples at most, and 1 for the utility loss. The
    paper has 1e-6, absolute."""
    engine: Engine = "auto"
    """`prefix_cholesky` holds the kernel of all examples, `least_squares` matrices of the features;
    `auto` takes the first for up to 10,000 examples."""
    precision: Precision = "auto"
    """Of `least_squares`: `auto` is float32 where the ridge is at least 0.01."""
    utilities: tuple[Utility, ...] = ("accuracy", "cross_entropy")
    """What a set of examples is worth; values of all are computed from the same coalitions. For
    corpora without classes, such as completions: [loss], with kernel: [gradient]."""
    temperature: float = 1.0
    """Divides the outputs before the softmax of `cross_entropy`. The paper feeds them raw: 1."""
    target: Literal["one", "loss"] = "one"
    """Of the utility loss: what the regression on the gradients predicts for an example."""

    def check_game(self) -> None:
        """Refuse a game that cannot be played.

        Raises:
            ConfigError: a field is empty, negative, or not a number that can be used.
        """
        check_kernel(self.kernel, self.ridge)
        check_utilities(self.utilities, self.temperature)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The kinds of corpora that can be valued: those without classes by the utility loss."""
        if self.utilities == ("loss",):
            return ("classification", "regression", "completion")
        return ("classification",)

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature tables and the labels."""
        losses = ("diagnostics",) if self.target == "loss" else ()
        return (*self.kernel, "label", *losses)


class Opened(NamedTuple):
    """What a worker keeps."""

    game: Game
    example_ids: Int64[np.ndarray, " examples"]
    """Ascending; player i of the game is the i-th."""
    query_ids: Int64[np.ndarray, " queries"]
    facts: dict[str, Any]


def player_ids(inputs: Inputs, fields: GameFields) -> Int64[np.ndarray, " examples"]:
    """Ids, ascending, of the examples that can play: those with an answer and with features."""
    n_classes = 1 if fields.utilities == ("loss",) else count_classes(inputs)
    known, _ = _players(inputs, n_classes)
    found: np.ndarray = known[has_features(inputs, fields.kernel, "example", known)]
    return found


def read_game(
    inputs: Inputs,
    fields: GameFields,
    chosen: np.ndarray | None = None,
    players: np.ndarray | None = None,
) -> Opened:
    """The game of labelled examples and labelled queries, or of loss gradients.

    With `chosen`, ids of queries, a set is worth one number per query instead of their mean, and
    for a query without a label the class stands in that all examples together predict. With
    `players`, ids of examples, no others are read, and the ridge is chosen on these.

    Raises:
        DataError: no example or no query can take part.
    """
    by_query = chosen is not None
    is_loss = fields.utilities == ("loss",)
    n_classes = 1 if is_loss else count_classes(inputs)
    known, labels = _players(inputs, n_classes)
    if players is not None:
        named = np.isin(known, players)
        known, labels = known[named], labels[named]
    asked, query_labels = _asked(inputs, n_classes, chosen)
    if len(asked) == 0:
        raise DataError(
            f"label: found no label among {inputs.table('label', 'query').num_rows} queries, "
            "expected at least 1 to measure a utility on. Label some queries."
        )
    found = has_features(inputs, fields.kernel, "example", known)
    asked_found = has_features(inputs, fields.kernel, "query", asked)
    left_out = LeftOut(int((~found).sum()), int((~asked_found).sum()))
    ids, labels = known[found], labels[found]
    query_ids, query_labels = asked[asked_found], query_labels[asked_found]
    for role, left in (("labelled example", ids), ("labelled query", query_ids)):
        if len(left) == 0:
            raise DataError(
                f"{', '.join(fields.kernel)}: found no {role} with features, expected at least 1 "
                "to play on. Label some, or look into the view diagnostics for what happened to "
                "their features."
            )
    targets = _targets(inputs, fields, ids, labels, n_classes)
    judge: Judge | LossJudge
    if is_loss:
        judge = LossJudge(len(query_ids) if by_query else 1)
    else:
        # Class 1 for a query without a label: of two classes it leaves the sign of outputs alone.
        given = torch.from_numpy(np.where(query_labels < 0, 1, query_labels))
        judge = Judge(given, n_classes, fields.temperature)
        targets = judge.targets(targets)
    engine = fields.engine
    if engine == "auto":
        engine = "prefix_cholesky" if len(ids) <= KERNEL_EXAMPLES else "least_squares"
    build = _by_kernel if engine == "prefix_cholesky" else _by_features
    game, more = build(inputs, fields, ids, query_ids, targets, judge, by_query)
    unknown = torch.from_numpy(query_labels < 0)
    if isinstance(judge, Judge) and unknown.any():
        regression = game.regression()
        regression.take(torch.arange(game.n))
        predicted = judge.predicted(regression.outputs)
        judge = Judge(torch.where(unknown, predicted, given), n_classes, fields.temperature)
        game, more = build(inputs, fields, ids, query_ids, targets, judge, by_query)
    unlabelled = inputs.table("label", "query")["label"].null_count if not is_loss else 0
    facts = {
        "engine": engine,
        **more,
        "n_examples": len(ids),
        "n_queries": len(query_ids),
        "n_unlabelled_queries": unlabelled,
        **left_out.details(),
    }
    return Opened(game, ids, query_ids, facts)


def _players(inputs: Inputs, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids, ascending, and labels of those who can play; of the loss game all, with label 0."""
    if n_classes > 1:
        return read_labels(inputs, "example", n_classes)
    ids = np.sort(inputs.table("label", "example")["id"].to_numpy())
    return ids, np.zeros(len(ids), np.int64)


def _asked(
    inputs: Inputs, n_classes: int, chosen: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Ids, ascending, and labels of the queries that are asked about; -1 where it is unknown."""
    if n_classes > 1 and chosen is None:
        return read_labels(inputs, "query", n_classes)
    every = np.sort(inputs.table("label", "query")["id"].to_numpy())
    ids = every if chosen is None else every[np.isin(every, chosen)]
    labels = np.zeros(len(ids), np.int64) if n_classes == 1 else np.full(len(ids), -1)
    if n_classes > 1:
        known, found = read_labels(inputs, "query", n_classes)
        kept = np.isin(known, ids)
        labels[np.searchsorted(ids, known[kept])] = found[kept]
    return ids, labels


def _targets(
    inputs: Inputs, fields: GameFields, ids: np.ndarray, labels: np.ndarray, n_classes: int
) -> Float[Tensor, "examples outputs"]:
    if n_classes > 1:
        return one_hot(torch.from_numpy(labels), n_classes) - 1 / n_classes
    if fields.target == "one":
        return torch.ones(len(ids), 1, dtype=torch.float64)
    table = inputs.table("diagnostics", "example")
    losses = dict(zip(table["id"].to_pylist(), table["measured"].to_pylist(), strict=True))
    return torch.tensor([[losses[i]] for i in ids.tolist()], dtype=torch.float64)


def _is_unit(fields: GameFields) -> bool:
    return fields.normalize if fields.normalize is not None else fields.utilities != ("loss",)


def _by_kernel(
    inputs: Inputs,
    fields: GameFields,
    ids: np.ndarray,
    query_ids: np.ndarray,
    targets: Float[Tensor, "examples outputs"],
    judge: Judge | LossJudge,
    by_query: bool,
) -> tuple[Game, dict[str, Any]]:
    features = [
        (
            aligned(inputs.vectors(name, "example"), ids),
            aligned(inputs.vectors(name, "query"), query_ids),
        )
        for name in fields.kernel
    ]
    kernel, to_examples = gram(features, _is_unit(fields))
    sample = _sample(len(ids))
    ridge, facts = _ridge(fields, kernel[sample[:, None], sample], targets[sample])
    to_queries = _turned(to_examples, judge, by_query).T.contiguous()
    damping = ridge * mean_diagonal(kernel)
    game = Game(
        len(ids),
        lambda: PrefixCholesky(kernel, to_queries, targets, damping),
        judge,
        None,
        by_query,
    )
    return game, {**facts, "damping": damping, "precision": "float64"}


def _by_features(
    inputs: Inputs,
    fields: GameFields,
    ids: np.ndarray,
    query_ids: np.ndarray,
    targets: Float[Tensor, "examples outputs"],
    judge: Judge | LossJudge,
    by_query: bool,
) -> tuple[Game, dict[str, Any]]:
    is_unit = _is_unit(fields)
    tables = [inputs.vectors(name, "example") for name in fields.kernel]
    of_queries = [inputs.vectors(name, "query") for name in fields.kernel]
    rows = FeatureRows(tables, ids, is_unit, torch.float64)
    sample = _sample(len(ids))
    some = rows(sample)
    ridge, facts = _ridge(fields, some @ some.T, targets[sample])
    damping = ridge * float(some.square().sum(1).mean())
    if damping == 0:
        raise DataError(
            f"{', '.join(fields.kernel)}: found only zero vectors among {len(some)} examples, "
            "expected features that tell examples apart. Check the stage that writes them."
        )
    precision = fields.precision
    if precision == "auto":
        precision = "float32" if ridge >= FLOAT32_RIDGE else "float64"
    dtype = torch.float32 if precision == "float32" else torch.float64
    read = FeatureRows(tables, ids, is_unit, dtype, rows.scales)
    queries = FeatureRows(of_queries, query_ids, is_unit, torch.float64, rows.scales)
    turned = _turned(queries(torch.arange(len(query_ids))), judge, by_query).to(dtype)
    goal = targets.to(dtype)
    dim = turned.shape[1]
    game = Game(
        len(ids), lambda: RecursiveLeastSquares(read, turned, goal, damping), judge, dim, by_query
    )
    return game, {**facts, "damping": damping, "precision": precision, "dim": dim}


def _turned(
    rows: Float[Tensor, "queries _"], judge: Judge | LossJudge, by_query: bool
) -> Float[Tensor, "some _"]:
    """What the queries' rows are to the game: signed by their class, or their mean."""
    if isinstance(judge, Judge):
        return rows * judge.signs()[:, None]
    return rows if by_query else rows.mean(0, keepdim=True)


def _sample(n: int) -> Int64[Tensor, " some"]:
    """The examples that the ridge is chosen on, ascending."""
    return torch.from_numpy(np.sort(np.random.default_rng(0).permutation(n)[:RIDGE_EXAMPLES]))


def _ridge(fields: GameFields, kernel: Tensor, targets: Tensor) -> tuple[float, dict[str, Any]]:
    if fields.ridge != "auto":
        ridge = float(fields.ridge)
    elif fields.utilities == ("loss",):
        ridge = LOSS_RIDGE
    else:
        ridge, _ = auto_ridge(kernel, targets)
    return ridge, {"ridge": ridge}
