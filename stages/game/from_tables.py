"""Games read from tables: the regression of labels on features, or of ones on loss gradients.

The second, of the utility `loss`, needs no classes. With g_i the gradient of example i's loss, a
damped Gauss-Newton step on a set S, with the empirical Fisher matrix for the curvature, lowers the
loss of a query with gradient g_q, to first order, by

    g_q^T (sum_S g_i g_i^T + damping I)^-1 sum_S g_i,

which is the prediction at g_q of a ridge regression of 1 on the g_i: the same engines apply, and
for the mean over queries their mean gradient is the only query. At a small ridge every example
would be promised the same fall, hence the ridge of 1 that `auto` means here. With `target: loss`
the regression predicts an example's own loss instead of 1. [ours]
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.game.fields import GameFields
from stages.game.game import Game
from stages.game.least_squares import RecursiveLeastSquares
from stages.game.prefix_cholesky import PrefixCholesky
from stages.game.regression import Regression
from stages.game.utility import Judge, LinearJudge, fitted
from stages.reading.feature_rows import FeatureRows
from stages.reading.supervision import count_classes, one_hot, read_labels
from stages.reading.vectors import aligned
from stages.stage import DataError, Inputs
from stages.surrogate.kernel import auto_ridge, gram, mean_diagonal, query_lengths
from stages.surrogate.labelled_kernel import LeftOut, Ridge, has_features

RIDGE_EXAMPLES = 2048
"""Most examples that the automatic ridge is chosen on; of more, a random sample of that size. The
choice costs 10 n^3, a minute for 5,000."""
FLOAT32_RIDGE, FLOAT32_ACCURACY_RIDGE = 0.01, 1.0
"""The least ridge at which float32 is trusted, without and with the utility accuracy: rounding
turns queries that are close to the boundary (seen: in half of the values at 0.01, in 2 % at 3)."""
LOSS_RIDGE = 1.0
"""What `ridge: auto` means for the utility `loss`."""


class LabelledGame(NamedTuple):
    """The game over the labelled queries (for `loss` over all), with the ids of its rows."""

    game: Game
    example_ids: Int64[np.ndarray, " examples"]
    """Ascending; player i of the game is the i-th."""
    query_ids: Int64[np.ndarray, " queries"]
    facts: dict[str, Any]
    """For the manifest: engine, ridge, damping, counts of rows used and left out."""

    @property
    def precision(self) -> str:
        """The dtype of the outputs, by name."""
        return str(self.facts["precision"])


class GameTables(NamedTuple):
    """Examples with features and targets, queries with features: games over any of the queries."""

    example_ids: Int64[np.ndarray, " examples"]
    query_ids: Int64[np.ndarray, " queries"]
    """Both ascending."""
    queries: Float[Tensor, "queries _"]
    """One row per query, as the engine takes it: its kernel with the examples, or its features."""
    begin: Callable[[Tensor], Callable[[], Regression]]
    """From rows like those of `queries`, signed or averaged, to a factory of regressions on the
    empty coalition."""
    n_classes: int
    """Of the corpus; 1 for the utility `loss`."""
    temperature: float
    is_linear: bool
    """Whether the utilities are linear in the outputs, so that a mean query may stand for all."""
    dim: int | None
    """Length of a feature vector; None for an engine by kernel."""
    scale: Float[Tensor, " queries"]
    """The most that one example adds to an output of each query (`stages.game.utility`)."""
    facts: dict[str, Any]
    """For the manifest: engine, ridge, damping, precision, examples left out."""

    def game(self, query_ids: np.ndarray, labels: np.ndarray, by_query: bool = False) -> Game:
        """The game over `query_ids`, with their `labels`.

        Where a label is -1, the class that the regression on all examples predicts stands for it.
        """
        at = torch.from_numpy(np.searchsorted(self.query_ids, query_ids))
        rows = self.queries[at]
        n = len(self.example_ids)
        if self.n_classes == 1:
            rows = rows if by_query else rows.mean(0, keepdim=True)
            return Game(n, self.begin(rows), LinearJudge(len(rows)), self.dim, by_query)
        # Class 1 for a query without a label: of two classes it leaves the sign of outputs alone.
        given = torch.from_numpy(np.where(labels < 0, 1, labels))
        judge = Judge(given, self.n_classes, self.temperature, self.scale[at])
        if (labels < 0).any():
            everyone = self.begin(rows * judge.signs(rows.dtype)[:, None])()
            everyone.take(torch.arange(n))
            predicted = judge.predicted(everyone.outputs)
            known = torch.from_numpy(labels >= 0)
            judge = replace(judge, labels=torch.where(known, given, predicted))
        signed = rows * judge.signs(rows.dtype)[:, None]
        if self.is_linear and not by_query:
            mean = signed.mean(0, keepdim=True)
            return Game(n, self.begin(mean), LinearJudge(1, scale=2.0), self.dim)
        return Game(n, self.begin(signed), judge, self.dim, by_query)


def player_ids(inputs: Inputs, fields: GameFields) -> Int64[np.ndarray, " examples"]:
    """Ids, ascending, of the players: examples with a label and with features in every table."""
    n_classes = 1 if fields.utilities == ("loss",) else count_classes(inputs)
    labelled, _ = _labelled_examples(inputs, n_classes)
    ids: np.ndarray = labelled[has_features(inputs, fields.features, "example", labelled)]
    return ids


def read_game(
    inputs: Inputs, fields: GameFields, players: np.ndarray | None = None
) -> LabelledGame:
    """The game of all labelled examples over the labelled queries; for `loss`, of all rows.

    With `players`, ids of examples, no others are read, and the ridge is chosen on these.

    Raises:
        DataError: no example or no query can take part.
    """
    return labelled_game(inputs, fields, read_game_tables(inputs, fields, players))


def labelled_game(inputs: Inputs, fields: GameFields, tables: GameTables) -> LabelledGame:
    """The game of the examples in `tables` over the queries with a label; for `loss`, over all.

    Raises:
        DataError: there is no such query.
    """
    query_ids, labels = labelled_queries(inputs, tables.n_classes)
    unlabelled = inputs.table("label", "query").num_rows - len(query_ids)
    if len(query_ids) == 0:
        raise DataError(
            f"label: found no label among {unlabelled} queries, expected at least 1 to measure a "
            "utility on. Label some queries."
        )
    is_usable = np.isin(query_ids, tables.query_ids)
    if not is_usable.any():
        raise _without_features(fields, "labelled query")
    left_out = LeftOut(tables.facts["n_left_out"], int((~is_usable).sum()))
    facts = {
        **{name: fact for name, fact in tables.facts.items() if name != "n_left_out"},
        "n_examples": len(tables.example_ids),
        "n_queries": int(is_usable.sum()),
        "n_unlabelled_queries": unlabelled,
        **left_out.details(),
    }
    game = tables.game(query_ids[is_usable], labels[is_usable])
    return LabelledGame(game, tables.example_ids, query_ids[is_usable], facts)


def read_game_tables(
    inputs: Inputs, fields: GameFields, players: np.ndarray | None = None
) -> GameTables:
    """What games over the same examples share: features, targets and the ridge.

    With `players`, ids of examples, no others are read.

    Raises:
        DataError: no example has both a label and features.
    """
    n_classes = 1 if fields.utilities == ("loss",) else count_classes(inputs)
    labelled, labels = _labelled_examples(inputs, n_classes)
    if players is not None:
        is_player = np.isin(labelled, players)
        labelled, labels = labelled[is_player], labels[is_player]
    is_usable = has_features(inputs, fields.features, "example", labelled)
    ids, labels = labelled[is_usable], labels[is_usable]
    if len(ids) == 0:
        raise _without_features(fields, "labelled example")
    query_ids = np.sort(inputs.vectors(fields.features[0], "query").ids)
    query_ids = query_ids[has_features(inputs, fields.features, "query", query_ids)]
    targets = _targets(inputs, fields, ids, labels, n_classes)
    engine = fields.engine_for(len(ids))
    build = _kernel_engine if engine == "prefix_cholesky" else _feature_engine
    queries, begin, dim, lengths, facts = build(inputs, fields, ids, query_ids, targets)
    # sqrt(k(t,t) mean k(i,i)) / damping, with damping = ridge mean k(i,i).
    scale = lengths / (facts["ridge"] * facts["damping"]) ** 0.5
    facts = {"engine": engine, **facts, "n_left_out": int((~is_usable).sum())}
    temperature, is_linear = fields.temperature, fields.is_linear(n_classes)
    return GameTables(
        ids, query_ids, queries, begin, n_classes, temperature, is_linear, dim, scale, facts
    )


def labelled_queries(inputs: Inputs, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids, ascending, and labels of the part's labelled queries; for `loss` all, with label 0."""
    if n_classes > 1:
        return read_labels(inputs, "query", n_classes)
    ids = np.sort(inputs.table("label", "query")["id"].to_numpy())
    return ids, np.zeros(len(ids), np.int64)


def _without_features(fields: GameFields, role: str) -> DataError:
    return DataError(
        f"{', '.join(fields.features)}: found no {role} with features, expected at least 1 to play "
        "on. Label some, or look into the view diagnostics for what happened to their features."
    )


def _labelled_examples(inputs: Inputs, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids, ascending, and labels of the labelled examples; for `loss` all, with label 0."""
    if n_classes > 1:
        return read_labels(inputs, "example", n_classes)
    ids = np.sort(inputs.table("label", "example")["id"].to_numpy())
    return ids, np.zeros(len(ids), np.int64)


def _targets(
    inputs: Inputs, fields: GameFields, ids: np.ndarray, labels: np.ndarray, n_classes: int
) -> Float[Tensor, "examples outputs"]:
    """What the regression fits: one-hot labels less 1/C, or for `loss` ones or losses."""
    if n_classes > 1:
        columns = one_hot(torch.from_numpy(labels), n_classes) - 1 / n_classes
        return fitted(columns)
    if fields.target == "one":
        return torch.ones(len(ids), 1, dtype=torch.float64)
    table = inputs.table("diagnostics", "example")
    losses = dict(zip(table["id"].to_pylist(), table["measured"].to_pylist(), strict=True))
    return torch.tensor([[losses[i]] for i in ids.tolist()], dtype=torch.float64)


EngineParts = tuple[
    Tensor, Callable[[Tensor], Callable[[], Regression]], int | None, Tensor, dict[str, Any]
]
"""What an engine contributes to `GameTables`: its `queries`, `begin` and `dim`, the length of each
query's vector, and its `facts`."""


def _kernel_engine(
    inputs: Inputs, fields: GameFields, ids: np.ndarray, query_ids: np.ndarray, targets: Tensor
) -> EngineParts:
    """Queries and regressions of `prefix_cholesky`, which holds the kernel of the examples."""
    features = [
        (
            aligned(inputs.vectors(name, "example"), ids),
            aligned(inputs.vectors(name, "query"), query_ids),
        )
        for name in fields.features
    ]
    kernel, to_examples = gram(features, fields.is_unit)
    sample, ridge = _sample(len(ids)), _asked(fields)
    if ridge == "auto":
        ridge = auto_ridge(kernel[sample[:, None], sample], targets[sample])[0]
    damping = ridge * mean_diagonal(kernel)

    def begin(rows: Tensor) -> Callable[[], Regression]:
        to_queries = rows.T.contiguous()
        return lambda: PrefixCholesky(kernel, to_queries, targets, damping)

    facts = {"ridge": ridge, "damping": damping, "precision": "float64"}
    return to_examples, begin, None, query_lengths(features, fields.is_unit), facts


def _feature_engine(
    inputs: Inputs, fields: GameFields, ids: np.ndarray, query_ids: np.ndarray, targets: Tensor
) -> EngineParts:
    """Queries and regressions of `least_squares`, which reads feature vectors as needed."""
    is_unit = fields.is_unit
    tables = [inputs.vectors(name, "example") for name in fields.features]
    query_tables = [inputs.vectors(name, "query") for name in fields.features]
    rows = FeatureRows(tables, ids, is_unit, torch.float64)
    ridge, damping = chosen_ridge(fields.features, rows, targets, _asked(fields))
    precision = fields.precision
    if precision == "auto":
        least = FLOAT32_ACCURACY_RIDGE if "accuracy" in fields.utilities else FLOAT32_RIDGE
        precision = "float32" if ridge >= least else "float64"
    dtype = torch.float32 if precision == "float32" else torch.float64
    _check_rounding(fields, ridge, dtype)
    read = FeatureRows(tables, ids, is_unit, dtype, rows.scales)
    queries = FeatureRows(query_tables, query_ids, is_unit, torch.float64, rows.scales)
    stored_targets = targets.to(dtype)

    def begin(rows: Tensor) -> Callable[[], Regression]:
        query_rows = rows.to(dtype)
        return lambda: RecursiveLeastSquares(read, query_rows, stored_targets, damping)

    query_features = queries(torch.arange(len(query_ids)))
    dim = query_features.shape[1]
    facts = {"ridge": ridge, "damping": damping, "precision": precision, "dim": dim}
    return query_features, begin, dim, query_features.norm(dim=1), facts


def _check_rounding(fields: GameFields, ridge: float, dtype: torch.dtype) -> None:
    """Refuses a ridge at which `least_squares` cannot tell ties from outputs, or outputs at all.

    The weight of a member that leaves is 1 - f'Pf, which may be as small as the ridge and is off by
    eps / ridge: outputs of the others are off by eps / ridge^2. The bound for ties is
    eps^(2/3) / ridge (`stages.game.utility`).

    Raises:
        DataError: the ridge is below eps^(1/3), in float32 or with the utility accuracy.
    """
    least = torch.finfo(dtype).eps ** (1 / 3)
    if ridge >= least or (dtype == torch.float64 and "accuracy" not in fields.utilities):
        return
    advice = "precision: auto" if dtype == torch.float32 else "engine: prefix_cholesky"
    raise DataError(
        f"ridge: found {ridge:.3g} with engine: least_squares in {str(dtype).split('.')[1]}, "
        f"expected at least {least:.1g}, below which rounding is taken for votes. Set {advice}, "
        "raise the ridge, or leave the utility accuracy out."
    )


def chosen_ridge(
    features: tuple[str, ...], rows: FeatureRows, targets: Tensor, ridge: Ridge
) -> tuple[float, float]:
    """Ridge and damping of a regression on these rows; `auto` by `RIDGE_EXAMPLES` at most.

    Raises:
        DataError: all of these are zero vectors.
    """
    sample = _sample(len(targets))
    sampled = rows(sample)
    if ridge == "auto":
        ridge = auto_ridge(sampled @ sampled.T, targets[sample])[0]
    damping = ridge * float(sampled.square().sum(1).mean())
    if damping == 0:
        raise DataError(
            f"{', '.join(features)}: found only zero vectors among {len(sampled)} examples, "
            "expected features that tell examples apart. Check the stage that writes them."
        )
    return ridge, damping


def _sample(n: int) -> Int64[Tensor, " sample"]:
    """The examples that the ridge is chosen on, ascending."""
    return torch.from_numpy(np.sort(np.random.default_rng(0).permutation(n)[:RIDGE_EXAMPLES]))


def _asked(fields: GameFields) -> Ridge:
    """The ridge that the fields ask for."""
    if fields.ridge != "auto":
        return float(fields.ridge)
    return LOSS_RIDGE if fields.utilities == ("loss",) else "auto"
