"""Examples to choose from, with the probability of each class being the right one, and their order.

What `coreset` and the metric of selections share.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from stages.game.fields import FeatureFields, n_directions
from stages.game.from_tables import chosen_ridge, labelled_queries
from stages.reading.feature_rows import FeatureRows
from stages.reading.supervision import one_hot
from stages.stage import DataError, Inputs
from stages.surrogate.greedy import Order, Wanted, take_greedily
from stages.surrogate.labelled_kernel import has_features
from stages.surrogate.noise_model import judged_by_shard, read_noise_model
from stages.surrogate.short_basis import shortened

HALF_QUERIES = 1000
"""Labelled queries that count as much as all examples: m queries have the weight m / (m + this)."""


class Pool(NamedTuple):
    """The examples that have a label, a prediction and features, ascending by id."""

    ids: Int64[np.ndarray, " examples"]
    labels: Int64[np.ndarray, " examples"]
    right: Float[Tensor, "examples classes"]
    """Probability of each class being the right one."""
    score: Float[np.ndarray, " examples"]
    """`label_score`: the opinion about the given label, low where it is doubted."""

    @property
    def is_doubted(self) -> Bool[np.ndarray, " examples"]:
        """Whether the given label is wrong rather than right."""
        at = torch.arange(len(self.ids)), torch.from_numpy(self.labels)
        doubted: np.ndarray = (self.right[at] < 0.5).numpy()
        return doubted

    def at(self, rows: Int64[np.ndarray, " rows"]) -> "Pool":
        """These rows of it."""
        right = self.right[torch.from_numpy(rows)]
        return Pool(self.ids[rows], self.labels[rows], right, self.score[rows])


class Known(NamedTuple):
    """Queries that have a label and features, ascending by id."""

    ids: Int64[np.ndarray, " queries"]
    labels: Int64[np.ndarray, " queries"]


def read_pool(inputs: Inputs, fields: FeatureFields, predictions: str, noise: str) -> Pool:
    """The examples that can be taken, of instances of predictions and of `label_noise` on them.

    Raises:
        DataError: there are none.
    """
    model = read_noise_model(inputs.table(noise))[0]
    judged = [j for j in judged_by_shard(inputs, predictions) if len(j.ids)]
    if judged:
        ids = np.concatenate([j.ids for j in judged])
        order = np.argsort(ids)
        right = torch.cat([j.posterior(model) for j in judged])
        labels = torch.cat([j.labels for j in judged]).numpy()
        scores = [j.scores(model).numpy() for j in judged]
        pool = Pool(ids, labels, right, np.concatenate(scores)).at(order)
        usable = has_features(inputs, fields.features, "example", pool.ids)
        if usable.any():
            return pool.at(np.flatnonzero(usable))
    raise DataError(
        f"coreset: found no labelled example with a prediction in {predictions} and "
        f"features in {', '.join(fields.features)}, expected at least 1. Look into the view "
        "diagnostics for what happened to the features."
    )


def usable_queries(inputs: Inputs, fields: FeatureFields, n_classes: int) -> Known:
    """The queries that have a label and features; there may be none."""
    ids, answers = labelled_queries(inputs, n_classes)
    if not len(ids):
        return Known(ids, answers)
    usable = has_features(inputs, fields.features, "query", ids)
    return Known(ids[usable], answers[usable])


def order_of(
    inputs: Inputs,
    fields: FeatureFields,
    pool: Pool,
    queries: Known,
    share: float,
    seed: int = 0,
) -> Order:
    """The order of a pool in which any first part trains well (`stages/surrogate/greedy.py`).

    What the regression should say is known of the queries; of the pool it is `Pool.right`. Rows
    whose label is doubted come last.

    Raises:
        DataError: all features are zero.
    """
    n_classes = pool.right.shape[1]
    tables = [inputs.vectors(name, "example") for name in fields.features]
    rows = FeatureRows(tables, pool.ids, fields.is_unit, torch.float64)
    targets = one_hot(torch.from_numpy(pool.labels), n_classes) - 1 / n_classes
    _, damping = chosen_ridge(fields.features, rows, targets, fields.ridge)
    short = shortened(rows, len(pool.ids), n_directions(n_classes))
    wanted = Wanted.of(short, pool.right - 1 / n_classes)
    if len(queries.ids):
        query_tables = [inputs.vectors(name, "query") for name in fields.features]
        others = FeatureRows(query_tables, queries.ids, fields.is_unit, torch.float64, rows.scales)
        known = one_hot(torch.from_numpy(queries.labels), n_classes) - 1 / n_classes
        weight = len(queries.ids) / (len(queries.ids) + HALF_QUERIES)
        wanted = wanted.mixed(Wanted.of(short.along(others), known), weight)
    generator = np.random.default_rng(seed)
    return take_greedily(
        short, targets, pool.labels, wanted, damping, share, ~pool.is_doubted, generator
    )
