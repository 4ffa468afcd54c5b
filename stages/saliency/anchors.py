"""Anchor words between a baseline and a word: the discrete paths of DIG and UDIG.

With w the embedding of a word, w' that of the baseline and m anchors, a path is searched from the
word to the baseline; each anchor a is a word of the vocabulary, chosen so that it deviates least
from its monotone correction towards the previous anchor's embedding v:

    M(a; w', v)_j = a_j                     where a_j lies between w'_j and v_j,
                    v_j - (v_j - w'_j) / m  elsewhere.

`greedy` chooses the smallest |a - M|, `maxcount` the largest number of dimensions that lie between.
Candidates are the k words nearest to the next of m uniform points on the straight line from w to w'
(UDIG), or to the previous anchor (DIG); the baseline and words already on the path are none. Where
no candidate is left the baseline itself is the anchor. Equal candidates: the nearer one.

The path then goes through the corrected anchors, each corrected towards the previous *corrected*
one, so that it is monotone in every dimension, with f rounds of midpoints in between: it has
2^f (m + 1) + 1 points.

All of it depends on the word and the baseline alone. Distances to the points of a straight line
need one product of the word with the vocabulary: |e - u|^2 = |e|^2 - 2 (1 - t) e.w' - 2 t e.w +
const for u = w' + t (w - w').

Source: Sanyal and Ren 2021, arXiv:2108.13654 (DIG), and Sinha Roy and Kundu 2024, arXiv:2412.03886
(UDIG), whose papers could be read in part only: the steps are those of the authors' code. There
UDIG fails where no candidate is left; here it goes on.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.stage import ConfigError

Strategy = Literal["greedy", "maxcount"]
Candidates = Literal["uniform", "previous"]
"""Where an anchor's candidates are near: the next uniform point, or the previous anchor."""
NO_ANCHOR = -1
"""The token id that stands for the baseline among anchors."""
WORDS = 16
"""Words searched at a time, so that the vectors of their candidates stay in the CPU cache."""


def corrected(
    anchor: Float[Tensor, "... dim"],
    baseline: Float[Tensor, " dim"],
    upper: Float[Tensor, "... dim"],
    m: int,
) -> tuple[Float[Tensor, "... dim"], Tensor]:
    """The monotone correction M of an anchor, and the dimensions that needed none.

    `upper` is v, the previous anchor's embedding, and `m` the number of anchors. The second value
    is boolean, (..., dim): whether the anchor lies between baseline and `upper` there.
    """
    lies = (anchor - baseline) * (anchor - upper) <= 0
    # A product underflows near zero: the comparisons decide there.
    lies &= (torch.minimum(baseline, upper) <= anchor) & (anchor <= torch.maximum(baseline, upper))
    return torch.where(lies, anchor, upper - (upper - baseline) / m), lies


def search(
    table: Float[Tensor, "vocabulary dim"],
    words: Int[Tensor, " words"],
    baseline: Float[Tensor, " dim"],
    baseline_id: int | None,
    m: int,
    k: int,
    strategy: Strategy,
    candidates: Candidates,
) -> Int[Tensor, "words m"]:
    """Token ids of the anchors of each word, in order from the word towards the baseline.

    `words` and `baseline_id` are token ids, `m` is the number of anchors and `k` of candidates.

    Cost per word: 2 vocabulary dim, and m times a selection of k from the vocabulary and 5 k dim;
    for `previous` m products with the vocabulary. Memory: WORDS rows of the vocabulary, and WORDS k
    dim numbers.
    """
    parts = [
        _search(table, block, baseline, baseline_id, m, k, strategy, candidates)
        for block in (words[at : at + WORDS] for at in range(0, len(words), WORDS))
    ]
    return torch.cat(parts) if parts else words.new_zeros(0, m)


def _search(
    table: Tensor,
    words: Tensor,
    baseline: Tensor,
    baseline_id: int | None,
    m: int,
    k: int,
    strategy: Strategy,
    candidates: Candidates,
) -> Tensor:
    squares = table.square().sum(1)
    k = min(k, len(table))
    to_word, to_baseline = table[words] @ table.T, table @ baseline
    previous = table[words]
    # Token ids that may not become anchors: the word, the baseline, and the anchors so far.
    used = words.new_full((len(words), m + 2), NO_ANCHOR - 1)
    used[:, 0] = words
    if baseline_id is not None:
        used[:, 1] = baseline_id
    anchors = []
    for step in range(m):
        if candidates == "uniform":
            t = (m - step) / (m + 1)
            distances = squares - 2 * ((1 - t) * to_baseline + t * to_word)
        else:
            distances = squares - 2 * (previous @ table.T)
        near = distances.topk(k, largest=False).indices
        vectors = table[near]
        fixed, lies = corrected(vectors, baseline, previous[:, None], m)
        if strategy == "greedy":
            cost = (vectors - fixed).square().sum(2)
        else:
            cost = -lies.sum(2).to(table.dtype) + torch.arange(k, device=table.device) / k
        cost[(near[:, :, None] == used[:, None, :]).any(2)] = torch.inf
        best = cost.argmin(1, keepdim=True)
        is_none = torch.isinf(cost.gather(1, best))
        anchor = near.gather(1, best).masked_fill(is_none, NO_ANCHOR).squeeze(1)
        used[:, step + 2] = anchor.masked_fill(is_none.squeeze(1), NO_ANCHOR - 1)
        previous = torch.where(is_none, baseline, table[anchor.clamp(min=0)])
        anchors.append(anchor)
    return torch.stack(anchors, 1)


def walk(
    table: Float[Tensor, "vocabulary dim"],
    words: Int[Tensor, " words"],
    anchors: Int[Tensor, "words m"],
    baseline: Float[Tensor, " dim"],
    midpoints: int,
) -> Float[Tensor, "points words dim"]:
    """The points of each word's path, from the baseline to the word.

    `anchors` are those of `search`; `midpoints` is the number f of rounds of midpoints.
    """
    m = anchors.shape[1]
    upper = table[words]
    points = [upper]
    for ids in anchors.T:
        anchor = torch.where((ids == NO_ANCHOR)[:, None], baseline, table[ids.clamp(min=0)])
        upper, _ = corrected(anchor, baseline, upper, m)
        points.append(upper)
    points.append(baseline.expand_as(upper))
    path = torch.stack(points[::-1])
    for _ in range(midpoints):
        middle = (path[:-1] + path[1:]) / 2
        # Between two words the middle may round to outside of them.
        middle = middle.clamp(path[:-1].minimum(path[1:]), path[:-1].maximum(path[1:]))
        finer = torch.empty(2 * len(path) - 1, *path.shape[1:], dtype=path.dtype).to(path)
        finer[::2], finer[1::2] = path, middle
        path = finer
    return path


def n_points(m: int, midpoints: int) -> int:
    """The number of points of a path with `m` anchors and so many rounds of midpoints."""
    return (1 << midpoints) * (m + 1) + 1


def check_anchors(m: int, k: int, midpoints: int) -> None:
    """Refuses numbers of anchors, candidates and rounds of midpoints that make no path.

    Raises:
        ConfigError: a number is out of range.
    """
    if m < 1 or k < 1 or not 0 <= midpoints <= 8:
        raise ConfigError(
            f"path: found anchors: {m}, neighbours: {k}, midpoints: {midpoints}, expected at least "
            "1, at least 1, and 0 to 8. Correct them."
        )
