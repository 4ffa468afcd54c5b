"""A language model trained on a set of preference pairs by DPO, again and again.

The loss of a pair is -log s(h) with h = beta * (log p(w) - log r(w) - log p(l) + log r(l)): p the
model, r the reference, w the chosen and l the rejected answer, s the logistic function (Rafailov et
al. 2023, arXiv:2305.18290, equation 7). The reference is the model before any training. Its
log-likelihoods of the rows that a training visits are taken first, so that the weights are in
memory once. All else is as in `stages.model.completion_tuning`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int

from stages.model.batches import batches
from stages.model.completion_tuning import descend, visits
from stages.model.fine_tuning import FineTuning
from stages.model.measurement import forward
from stages.model.precision import Precision, mixed
from stages.model.training import Learner, Rows, outputs, reset


def log_likelihoods(
    learner: Learner, pairs: Int[np.ndarray, " pairs"], token_budget: int
) -> Float64[np.ndarray, "pairs 2"]:
    """Of each pair the log-likelihood of the chosen and the rejected answer, in nats.

    Rows 2 i and 2 i + 1 of the learner are the sides of pair i; its outputs are sums over tokens.
    """
    found: np.ndarray = outputs(learner, _sides(pairs), token_budget)[0].numpy().reshape(-1, 2)
    return found


def reward_margins(
    now: Float64[np.ndarray, "pairs 2"], reference: Float64[np.ndarray, "pairs 2"], beta: float
) -> Float64[np.ndarray, " pairs"]:
    """H of each pair, from log-likelihoods; above 0 the chosen answer gained more."""
    gained = now - reference
    margins: np.ndarray = beta * (gained[:, 0] - gained[:, 1])
    return margins


def tune_pairs(
    learner: Learner,
    pairs: Int[np.ndarray, " pairs"],
    n_steps: int,
    how: FineTuning,
    beta: float,
    token_budget: int,
    name: str,
    precision: Precision = "float32",
) -> None:
    """Trains from the initial weights on `pairs`, for `n_steps` batches drawn by `name`.

    A step lowers the mean over the batch of the pairs' losses. Memory: the activations of
    `token_budget` padded tokens.

    Raises:
        StageError: a loss is not finite.
    """
    reset(learner)
    longest = learner.lengths.reshape(-1, 2).max(1)
    drawn = visits(longest[pairs], how.batch_size, name)
    visited = [pairs[next(drawn)] for _ in range(n_steps)]
    used = np.unique(np.concatenate(visited))
    reference = torch.from_numpy(log_likelihoods(learner, used, token_budget))

    def losses(batch: Rows) -> Iterator[Any]:
        for part in batches(longest[batch], max(1, token_budget // 2)):
            inputs = learner.batch(_sides(batch[part]))
            with mixed(learner.device, precision):
                now = forward(learner.network, inputs)
            at = torch.from_numpy(np.searchsorted(used, batch[part]))
            gained = now[:, 0].double().reshape(-1, 2) - reference[at].to(now.device)
            margins = beta * (gained[:, 0] - gained[:, 1])
            yield torch.nn.functional.softplus(-margins).sum() / len(batch)

    descend(learner, visited, how, losses)


def _sides(pairs: Int[np.ndarray, " pairs"]) -> Int[np.ndarray, " sides"]:
    """The rows of both sides of each pair, side by side."""
    rows: np.ndarray = np.column_stack([2 * pairs, 2 * pairs + 1]).reshape(-1)
    return rows
