"""A word's score from the tokens of neighbouring texts: the aggregate E of LAFA.

With h_w the word embedding of a word w and m_ik the score of token k of neighbour i, which has T_i
tokens, of M neighbours,

    E(w) = 1/M sum_i 1/T_i sum_k m_ik kappa(h_w, h_ik).

Source: Zhang et al. 2022, arXiv:2204.10893, section 3, with the kernels and constants there.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

KernelName = Literal["rbf", "cubic", "cosine", "laplacian", "inverse_distance", "indicator"]
LENGTH, GAMMA, OFFSET = 2.0, 7.0, 0.0
"""The length scale l of rbf and Laplacian, gamma and c0 of the cubic kernel."""
NEAREST, FARTHEST = 0.3, 3.0
"""The bounds that `inverse_distance` clips distances to."""


def kernel(
    name: KernelName, a: Float[Tensor, "words dim"], b: Float[Tensor, "tokens dim"]
) -> Float[Tensor, "words tokens"]:
    """The kernel kappa of all pairs of word embeddings. Cost words tokens dim.

    rbf takes the norm as the paper prints it, not squared. A zero vector has cosine 0 with all.
    """
    if name == "rbf":
        return torch.exp(-_distance(a, b) / LENGTH**2)
    if name == "laplacian":
        return torch.exp(-torch.cdist(a, b, p=1) / LENGTH**2)
    if name == "inverse_distance":
        return 1 / _distance(a, b).clamp(NEAREST, FARTHEST)
    if name == "cubic":
        return (GAMMA * (a @ b.T) + OFFSET) ** 3
    if name == "cosine":
        return torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T
    return (a[:, None] == b[None]).all(2).to(a.dtype)


def aggregate(
    name: KernelName,
    table: Float[Tensor, "vocabulary dim"],
    words: Int[Tensor, " words"],
    texts: Sequence[Int[Tensor, " _"]],
    scores: Sequence[Float[Tensor, " _"]],
) -> Float[Tensor, " words"]:
    """The aggregate E of each word over the neighbours; 0 without neighbours.

    `texts` holds the token ids of each neighbour, at least one, and `scores` a score for each.

    Cost words tokens dim, tokens of all neighbours together; of the indicator words + tokens.
    """
    total = torch.zeros(len(words), dtype=torch.float64, device=table.device)
    if not texts:
        return total
    ids = torch.cat(list(texts)).to(table.device)
    shares = torch.cat([of_text.double() / len(of_text) for of_text in scores]) / len(texts)
    shares = shares.to(table.device)
    if name == "indicator":
        by_id = torch.zeros(len(table), dtype=torch.float64, device=table.device)
        by_id.index_add_(0, ids, shares)
        return by_id[words]
    # The same token has the same kernel value: each is computed once.
    distinct, index = torch.unique(ids, return_inverse=True)
    summed = torch.zeros(len(distinct), dtype=torch.float64, device=table.device)
    summed.index_add_(0, index, shares)
    return kernel(name, table[words].double(), table[distinct].double()) @ summed


def _distance(a: Tensor, b: Tensor) -> Tensor:
    # By differences: products would lose the distance of equal words to rounding.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
