"""An order of preference pairs by how near they are to the middle of margins and influences.

As `select` has it (arXiv:2510.13212, section 4): a number's place is its rank among all pairs, from
0 to 1, and the best pair is the one whose places are the nearest to 1/2 on the mean.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Float64, Int64

ALIKE = 1e-3
"""Margins of rewards no larger than this are of a model that is its own reference."""


def by_middle(
    margins: pa.Table | None,
    scores: pa.Table | None,
    ids: Int64[np.ndarray, " pairs"],
    without: Int64[np.ndarray, " queries"],
) -> Int64[np.ndarray, " ordered"]:
    """The pairs `ids` in order, nearest to the middle first; those without a number are left out.

    Args:
        margins: Rows of `answer_margin`; None where margins do not count.
        scores: Rows of `attribution`, all pairs of rows; None where influences do not count.
        ids: The pairs that are ordered.
        without: Queries whose influences do not count.
    """
    numbers = []
    if margins is not None:
        kept = margins.filter(pc.is_valid(margins["loss"]))
        numbers.append((kept["id"].to_numpy(), _margin(kept)))
    if scores is not None:
        kept = scores.filter(pc.invert(pc.is_in(scores["query_id"], pa.array(without))))
        mean = kept.group_by("example_id").aggregate([("score", "mean")])
        numbers.append((mean["example_id"].to_numpy(), mean["score_mean"].to_numpy()))
    for own, _ in numbers:
        ids = np.intersect1d(ids, own)
    distance = np.zeros(len(ids))
    for own, values in numbers:
        order = np.argsort(own)
        distance += from_middle(values)[order][np.searchsorted(own[order], ids)]
    nearest: np.ndarray = ids[np.lexsort((ids, distance))]
    return nearest


def places(values: Float[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
    """The place of each number among all, from 0 to 1; equal ones share the first of theirs."""
    found: np.ndarray = np.searchsorted(np.sort(values), values) / max(1, len(values) - 1)
    return found


def from_middle(values: Float[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
    """The distance of each number's place from 1/2: 0 in the middle, 1/2 at the ends."""
    distance: np.ndarray = np.abs(places(values) - 0.5)
    return distance


def _margin(pairs: pa.Table) -> Float64[np.ndarray, " pairs"]:
    """The margin of DPO or, where the model is its own reference, of likelihoods per token."""
    margin: np.ndarray = pairs["reward_margin"].to_numpy()
    if not len(margin) or np.abs(margin).max() > ALIKE:
        return margin
    sides = [
        pairs[f"{side}_logp"].to_numpy() / pairs[f"{side}_tokens"].to_numpy()
        for side in ("chosen", "rejected")
    ]
    found: np.ndarray = sides[0] - sides[1]
    return found
