"""A model's outputs for texts of which each token keeps only some elements of its embedding.

A token that keeps the share r has each element of its embedding with probability r, and 0 in its
place otherwise (Zhao and Aletras 2023, arXiv:2305.10496, equation 3).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from stages.model.batches import batches
from stages.model.seeded import generator_of
from stages.saliency.ablation import Kind, chosen_values
from stages.saliency.from_embeddings import FromEmbeddings
from stages.saliency.outputs import ExplainedOutputs


def retention(scores: Float[np.ndarray, " tokens"], mean: float) -> Float[np.ndarray, " tokens"]:
    """The share of its embedding that each token keeps: more where its score is larger.

    r_i = m + c (s_i - mean of s), with the largest c that leaves all r_i between 0 and 1. So their
    mean is `mean`, m, whatever the method; and scores of another unit or zero keep the same. Where
    all scores are equal, so are the r_i. With m = 0.5, those of -s are 1 - r_i.
    """
    above = scores - scores.mean()
    highest, lowest = above.max(), -above.min()
    if not (highest > 0 and lowest > 0):
        return np.full(len(scores), mean)
    shares: np.ndarray = mean + min((1 - mean) / highest, mean / lowest) * above
    return shares.clip(0, 1)


def softly_ablated(
    embedded: FromEmbeddings,
    explained: ExplainedOutputs,
    kept: Sequence[np.ndarray],
    n_draws: int,
    seed: int,
    token_budget: int,
    kind: Kind = "probability",
) -> Float[np.ndarray, "rows draws"]:
    """Each row's explained output, in every draw of what its tokens keep.

    `kept` holds the share that each token of a row keeps, special ones counted. `kind` is that of
    `variant_outputs`. Draw d of a row keeps the element whose uniform number is below the share,
    and these numbers depend on the seed, the query, the output and d alone: two methods differ by
    their shares, not by chance. Cost: a forward pass for each draw of each row.
    """
    rows = np.repeat(np.arange(explained.n), n_draws)
    dim = embedded.table.shape[1]
    outputs = np.zeros(len(rows))
    for batch in batches(explained.tokens.lengths[rows], token_budget):
        arguments = embedded.batch(explained.tokens, rows[batch])
        embeddings = embedded.table[arguments["input_ids"]]
        for place, number in enumerate(batch.tolist()):
            row, draw = divmod(number, n_draws)
            name = f"{seed}/{explained.query_ids[row]}/{explained.outputs[row]}/{draw}"
            shares = torch.from_numpy(kept[row]).float()
            uniform = torch.rand(len(shares), dim, generator=generator_of(name))
            is_kept = (uniform < shares[:, None]).to(embeddings.device)
            embeddings[place, : len(shares)] *= is_kept
        targets = explained.targets.take(rows[batch])
        with torch.no_grad():
            logits = embedded.choices(arguments, targets.distribution, embeddings)
        outputs[batch] = chosen_values(logits, targets, kind)
    return outputs.reshape(explained.n, n_draws)
