"""The gradient at the query itself, times its word embeddings."""

import numpy as np
from jaxtyping import Int
from torch import Tensor

from stages.saliency.from_embeddings import FromEmbeddings, differentiate
from stages.saliency.outputs import ExplainedOutputs, ScoredOutput


def gradient_times_input(
    embedded: FromEmbeddings, explained: ExplainedOutputs, token_budget: int
) -> list[ScoredOutput]:
    """For each explained output the product, summed over the dimensions of each token's embedding.

    In the unit of the output; positive raises it. Cost: a forward and a backward pass for each.
    """
    scored = [ScoredOutput(np.zeros(0))] * explained.n

    def points(row: int, _: Int[np.ndarray, " points"]) -> Tensor:
        return embedded.vectors(explained.tokens.columns["input_ids"][row])[None]

    def accumulate(row: int, _: Int[np.ndarray, " points"], gradient: Tensor, __: Tensor) -> None:
        products = gradient[0].double() * points(row, _)[0].double()
        text_tokens = explained.offsets[row].is_text
        scored[row] = ScoredOutput(products.sum(1).cpu().numpy() * text_tokens, 1)

    ones = [1] * explained.n
    differentiate(
        *(embedded, explained.tokens, explained.targets, ones, points, accumulate, token_budget)
    )
    return scored
