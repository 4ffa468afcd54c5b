"""Support sets of a prediction, and their spectra from what matters globally to what is near.

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

Source: Agussurja, Lu and Low 2024, arXiv:2408.05976 (methods.md 2.2).
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
    """Rows in float64 whose inner products are the similarity; a zero row stays zero."""
    rows = rows.astype(np.float64)
    if similarity == "inner_product":
        return rows
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1.0))


class Frontier(NamedTuple):
    """A spectrum, from global to local."""

    at: Int64[np.ndarray, " spectrum"]
    """Places of the examples."""
    global_score: Float[np.ndarray, " spectrum"]
    local_score: Float[np.ndarray, " spectrum"]


def frontier(
    ids: Int64[np.ndarray, " rows"],
    global_score: Float[np.ndarray, " rows"],
    local_score: Float[np.ndarray, " rows"],
) -> Frontier:
    """The rows that no other surpasses in one score without falling behind in the other.

    Equal in one, the larger in the other stands for both; equal in both, the smaller id. So every
    bound on the local score has one answer. Cost rows log rows.
    """
    order = np.lexsort((ids, -global_score, -local_score))
    ranked = global_score[order]
    before = np.concatenate([[-np.inf], np.maximum.accumulate(ranked)])[: len(ranked)]
    at = order[ranked > before][::-1]
    return Frontier(at, global_score[at], local_score[at])


class Merged(NamedTuple):
    """The spectra of several groups, one after the other, each from global to local."""

    at: Int64[np.ndarray, " kept"]
    """Places of the rows that are kept."""
    rank: Int64[np.ndarray, " kept"]
    """From 1 in each group."""


def merged(
    groups: Sequence[Int64[np.ndarray, " rows"]],
    members: Sequence[Int64[np.ndarray, " rows"]],
    global_score: Float[np.ndarray, " rows"],
    local_score: Float[np.ndarray, " rows"],
) -> Merged:
    """The frontier of each group of rows of several frontiers, which is that of all.

    Rows with the same `groups` (by the first, then the second) belong together, and `members` order
    those with equal scores.
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
    return Merged(np.concatenate(kept), np.concatenate(ranks))


def global_scores(
    logits: Float[np.ndarray, "rows classes"], predicted: int, contrast: int, weight: Weight
) -> Float[np.ndarray, " rows"]:
    """How global examples are for queries of class `predicted`: large near or across a boundary."""
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
    """Which examples lie between the query and the class `contrast`, whatever their own class."""
    own, mine = examples[:, predicted], query[predicted]
    if contrast != GENERAL:
        return np.asarray(own - examples[:, contrast] < mine - query[contrast])
    if general == "every_class":
        others = np.arange(len(query)) != predicted
        margins = own[:, None] - examples[:, others]
        return np.asarray((margins < mine - query[others]).all(1))
    return np.asarray(own < mine)


def runner_up(logits: Float[np.ndarray, "rows classes"]) -> Int64[np.ndarray, " rows"]:
    """The class with the second largest logit, the first among equals."""
    rest = logits.copy()
    rest[np.arange(len(rest)), logits.argmax(1)] = -np.inf
    return np.asarray(rest.argmax(1))
