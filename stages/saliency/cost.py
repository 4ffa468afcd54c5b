"""The estimated cost of token attribution, known before anything is computed."""

from stages.model.size import network_size
from stages.model.spec import ModelSpec
from stages.stage import Cost, Work


def gradient_cost(
    model: ModelSpec,
    work: Work,
    n_gradients: int | float,
    token_budget: int,
    n_forward: int | float = 2,
) -> Cost:
    """The cost of `n_gradients` gradients and `n_forward` forward passes alone for each query.

    Gradients are of the explained output with respect to the query's word embeddings. A backward
    pass that makes no weight gradient costs as much as a forward pass.
    """
    size = network_size(model, None)
    share = work.n_queries / max(1, work.n_queries + work.n_examples)
    n_tokens = round(work.n_tokens * share)
    passes = 2 * n_gradients + n_forward
    kept = 4 * token_budget * 2 * sum(n_in + n_out for n_in, n_out in size.linear)
    return Cost(
        forward_rows=round(work.n_queries * (n_gradients + n_forward)),
        backward_rows=round(work.n_queries * n_gradients),
        flops=passes * size.forward_flops(n_tokens),
        written_bytes=64 * n_tokens,
        memory_bytes=size.forward_bytes(token_budget) + kept,
    )


def queries_length(work: Work) -> float:
    """The mean number of tokens of a query."""
    return work.n_tokens / max(1, work.n_queries + work.n_examples)
