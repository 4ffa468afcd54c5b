"""Support sets of a prediction, and their spectra from the most global example to the most local.

With f the features that a linear head reads, logits W f + b, c the class that is predicted for the
query t and mu_k = logit_c - logit_k the margin over another class k,

    R(t; k) = { i of class c : mu_k(i) < mu_k(t) }

are the examples of the predicted class that lie between the query and class k: on the near side of
the hyperplane through f_t that is parallel to the boundary, w_k . (f_t - f_i) > 0 with
w_k = W_c - W_k, which is the same, as the bias cancels. An example i has

    global  g = -mu_k(i)      local  l = f_i . f_t

and the spectrum is every example that is the most global among those more local than some bound:
z_delta = argmax { g : i in R, l > delta }, over all delta, from the most global to the most local.
Sweeping delta gives exactly the Pareto frontier of (l, g) on R, which one pass over R in order of l
finds. The general set, without a class k, has three readings, see `General`.

Status of the formulas: the text of the paper could not be read. R(t; k), g, l and z_delta are as
its public reviews quote them; that w_k is W_c - W_k, the form by margins, the Pareto construction,
the readings of the general set and the order of ties are derived here.

Source: Agussurja, Lu and Low 2024, arXiv:2408.05976.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from stages.tables import GENERAL

General = Literal["logit", "every_class", "runner_up"]
"""`logit`: the examples with a smaller logit of class c, and g = -logit_c. `every_class`: those in
R(t; k) for every k, and g = -logit_c. `runner_up`: R(t; k) for the k with the second largest logit
of the query, and its g."""
Membership = Literal["label", "label_and_prediction"]
"""Which examples are of class c: those labelled so, or of these the ones that the model predicts
so, too, which leaves out wrong labels: they have the largest g and would lead every spectrum."""
Weight = Literal["negative_logit", "residual"]
"""How g is measured. `residual` is 1 - p_c, in proportion to the weight of an example in the
representer theorem of the cross-entropy, with p the softmax of all logits, or of those of c and k
for the set towards k: there the order is the same."""


Similarity = Literal["inner_product", "cosine"]
"""The local score; the inner product, which is quoted of the paper, favours long vectors."""


def scaled(
    rows: Float[np.ndarray, "rows dim"], similarity: Similarity
) -> Float[np.ndarray, "rows dim"]:
    """Feature rows in float64 whose inner products are the local score; a zero row stays zero."""
    rows = rows.astype(np.float64)
    if similarity == "inner_product":
        return rows
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1.0))


class Frontier(NamedTuple):
    """A spectrum, from the most global example to the most local."""

    at: Int64[np.ndarray, " spectrum"]
    """Positions of the examples in the arrays that `frontier` was given."""
    global_score: Float[np.ndarray, " spectrum"]
    local_score: Float[np.ndarray, " spectrum"]


def frontier(
    ids: Int64[np.ndarray, " rows"],
    global_score: Float[np.ndarray, " rows"],
    local_score: Float[np.ndarray, " rows"],
) -> Frontier:
    """The Pareto frontier of the two scores: the rows that no other row dominates.

    Of rows equal in one score the one with the larger other score is kept, of rows equal in both
    the one with the smaller id. So every bound on the local score has one answer. Cost rows log
    rows.
    """
    order = np.lexsort((ids, -global_score, -local_score))
    ranked = global_score[order]
    before = np.concatenate([[-np.inf], np.maximum.accumulate(ranked)])[: len(ranked)]
    at = order[ranked > before][::-1]
    return Frontier(at, global_score[at], local_score[at])


class MergedFrontiers(NamedTuple):
    """The spectra of several groups of rows, one after the other, each from global to local."""

    at: Int64[np.ndarray, " kept"]
    """Positions of the rows that are kept."""
    rank: Int64[np.ndarray, " kept"]
    """Ranks of these rows in the spectrum of their group, from 1."""


def merged(
    groups: Sequence[Int64[np.ndarray, " rows"]],
    members: Sequence[Int64[np.ndarray, " rows"]],
    global_score: Float[np.ndarray, " rows"],
    local_score: Float[np.ndarray, " rows"],
) -> MergedFrontiers:
    """The frontier of each group, from the concatenated frontiers of several shards.

    That is the frontier of all rows of the group. `groups` are the key columns that rows of a group
    have in common, and `members` the columns that order rows with equal scores.
    """
    order = np.lexsort((*reversed(members), *reversed(groups)))
    differs = np.ones(len(order), dtype=bool)
    differs[1:] = np.any([np.diff(group[order]) != 0 for group in groups], axis=0)
    starts = np.flatnonzero(differs)
    kept, ranks = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start, stop in zip(starts, np.append(starts, len(order))[1:], strict=True):
        at = order[start:stop]
        front = frontier(np.arange(len(at)), global_score[at], local_score[at]).at
        kept.append(at[front])
        ranks.append(np.arange(1, len(front) + 1))
    return MergedFrontiers(np.concatenate(kept), np.concatenate(ranks))


def global_scores(
    logits: Float[np.ndarray, "rows classes"], predicted: int, contrast: int, weight: Weight
) -> Float[np.ndarray, " rows"]:
    """Global scores g of examples, by their logits, for queries predicted as class `predicted`.

    Large for examples near the boundary to class `contrast`, or across it.
    """
    own = logits[:, predicted]
    if contrast != GENERAL:
        margin: np.ndarray = own - logits[:, contrast]
        return -margin if weight == "negative_logit" else np.asarray(1 / (1 + np.exp(margin)))
    if weight == "negative_logit":
        return np.asarray(-own)
    with np.errstate(over="ignore"):
        odds = np.exp(logits - own[:, None]).sum(1)
    return np.asarray(1 - 1 / odds)


def is_between(
    examples: Float[np.ndarray, "rows classes"],
    query: Float[np.ndarray, " classes"],
    predicted: int,
    contrast: int,
    general: General,
) -> Bool[np.ndarray, " rows"]:
    """Whether each example lies between the query and class `contrast`, whatever its own class.

    `examples` and `query` are logits.
    """
    own, of_query = examples[:, predicted], query[predicted]
    if contrast != GENERAL:
        return np.asarray(own - examples[:, contrast] < of_query - query[contrast])
    if general == "every_class":
        others = np.arange(len(query)) != predicted
        margins = own[:, None] - examples[:, others]
        return np.asarray((margins < of_query - query[others]).all(1))
    return np.asarray(own < of_query)


def runner_up(logits: Float[np.ndarray, "rows classes"]) -> Int64[np.ndarray, " rows"]:
    """The class with each row's second largest logit, the first among equals."""
    rest = logits.copy()
    rest[np.arange(len(rest)), logits.argmax(1)] = -np.inf
    return np.asarray(rest.argmax(1))
