"""Training of a network on subsets of the rows, each time from the same initial weights.

Without dropout, and with constant learning rates.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stages.model.batches import batches
from stages.model.measurement import cross_entropy, forward
from stages.stage import ConfigError, StageError

Rows = Int[np.ndarray, " rows"]
Batch = Callable[[Rows], dict[str, Tensor]]
"""The network's arguments for the rows with these numbers."""
RATES = {"anew": (1e-5, 3e-3), "one_pass": (1e-3, 3e-2)}
"""Learning rates of weights that come with the model, and of a fresh head.

Accuracies with all-MiniLM-L6-v2 and the other defaults, on 400 SST-2 queries: a head alone
0.69, 0.75 and 0.79 after 50, 100 and 300 rows, the whole model 0.68 and 0.78 after 50 and 100; in
one pass a head 0.62, 0.70 and 0.79, the whole model 0.73 after 100. After 50 rows at ten times the
rates both are so overconfident that their cross-entropy is worse than that of a guess.
"""


@dataclass(frozen=True)
class Training:
    """How a model is trained on a set of examples.

    The defaults are those of arXiv:2406.04606, with a rate for fresh heads.
    """

    kind: Literal["anew", "one_pass"] = "anew"
    """`anew` trains from the start on every subset, by Adam. `one_pass` takes one plain gradient
    step per example, in the order in which they join, and measures the model between steps."""
    epochs: int = 10
    """Passes over the examples; a single one with `one_pass`."""
    batch_size: int = 16
    """Examples of a gradient step; a single one with `one_pass`."""
    learning_rate: float | None = None
    """Learning rate of weights that come with the model; null takes 1e-5, and 1e-3 in one pass."""
    head_learning_rate: float | None = None
    """Learning rate of a fresh head, `probe` or `random`; null takes 3e-3, and 3e-2 in one pass."""

    def __post_init__(self) -> None:
        """Refuses numbers that are not positive."""
        rates = (self.learning_rate, self.head_learning_rate)
        is_positive = all(rate is None or 0 < rate < float("inf") for rate in rates)
        if self.epochs < 1 or self.batch_size < 1 or not is_positive:
            raise ConfigError(
                f"training: found epochs: {self.epochs}, batch_size: {self.batch_size}, "
                f"learning_rate: {self.learning_rate}, head_learning_rate: "
                f"{self.head_learning_rate}, expected positive numbers. Raise them."
            )

    @property
    def rates(self) -> tuple[float, float]:
        """Learning rates of the model's own weights, and of a fresh head."""
        own, head = RATES[self.kind]
        return self.learning_rate or own, self.head_learning_rate or head


@dataclass(frozen=True)
class Learner:
    """A network, the rows that it is trained on or predicts, and its initial weights.

    `batch` gives the network's arguments for rows by number, `lengths` the tokens of each row;
    `body` are the trained weights that come with the model, `head` those of a fresh head.
    """

    network: nn.Module
    batch: Batch
    lengths: Rows
    body: tuple[nn.Parameter, ...]
    head: tuple[nn.Parameter, ...]
    start: tuple[Tensor, ...]
    """Initial values of body and head, before any training."""

    @property
    def device(self) -> torch.device:
        """Where the trained weights lie."""
        return self.start[0].device


def learner(
    network: nn.Module,
    batch: Batch,
    lengths: Rows,
    tuned: list[nn.Parameter],
    fresh: list[nn.Parameter],
) -> Learner:
    """A learner that trains the weights `tuned`, of which `fresh` are those of a fresh head."""
    heads = {id(parameter) for parameter in fresh}
    body = tuple(parameter for parameter in tuned if id(parameter) not in heads)
    for parameter in (*body, *fresh):
        parameter.requires_grad_(True)
    start = tuple(parameter.detach().clone() for parameter in (*body, *fresh))
    return Learner(network, batch, lengths, body, tuple(fresh), start)


def train(learner: Learner, labels: Int[Tensor, " all_rows"], order: Rows, how: Training) -> None:
    """Trains from the initial weights on the rows `order`, which every epoch visits in that order.

    A step lowers the mean cross-entropy of a batch; the last batch may be smaller.
    """
    reset(learner)
    optimiser = torch.optim.Adam(groups(learner, how.rates), fused=True)
    for _ in range(how.epochs):
        for start in range(0, len(order), how.batch_size):
            step(learner, optimiser, labels, order[start : start + how.batch_size])


def one_pass(
    learner: Learner,
    labels: Int[Tensor, " all_rows"],
    order: Rows,
    sizes: tuple[int, ...],
    how: Training,
) -> Iterator[None]:
    """Trains by a gradient step for each row of `order`, and yields after each of `sizes` rows.

    Source: G-Shapley, Ghorbani and Zou 2019, arXiv:1904.02868, algorithm 2.
    """
    reset(learner)
    optimiser = torch.optim.SGD(groups(learner, how.rates))
    start = 0
    for size in sizes:
        for row in range(start, size):
            step(learner, optimiser, labels, order[row : row + 1])
        start = size
        yield


def outputs(learner: Learner, rows: Rows, token_budget: int) -> Float[Tensor, "classes rows"]:
    """The outputs of the network with its current weights for the rows, in float64.

    Raises:
        StageError: an output is not finite.
    """
    by_batch, order = [], []
    for batch in batches(learner.lengths[rows], token_budget):
        with torch.no_grad():
            by_batch.append(forward(learner.network, learner.batch(rows[batch])))
        order.append(batch)
    joined = torch.cat(by_batch)[np.argsort(np.concatenate(order))].double().cpu().T
    if not joined.isfinite().all():
        raise StageError(
            "training: found outputs that are not finite, expected a training that settles. Lower "
            "learning_rate and head_learning_rate."
        )
    return joined


def prefix_outputs(
    learner: Learner,
    labels: Int[Tensor, " all_rows"],
    order: Int[np.ndarray, " examples"],
    visits: Int[np.ndarray, " examples"],
    sizes: tuple[int, ...],
    queries: Int[np.ndarray, " queries"],
    training: Training,
    token_budget: int,
) -> Iterator[Float[Tensor, "classes queries"]]:
    """Outputs for the queries after training on the first p examples of `order`, p in `sizes`.

    `visits` is the order in which every training visits its examples; one pass visits them in
    `order`.
    Cost: for each size p, epochs * p rows forward and backward and the queries forward; in one pass
    each example once.
    """
    if training.kind == "one_pass":
        for _ in one_pass(learner, labels, order, sizes, training):
            yield outputs(learner, queries, token_budget)
        return
    for size in sizes:
        train(learner, labels, visits[np.isin(visits, order[:size])], training)
        yield outputs(learner, queries, token_budget)


def reset(learner: Learner) -> None:
    """Gives the trained weights their initial values."""
    with torch.no_grad():
        for parameter, value in zip((*learner.body, *learner.head), learner.start, strict=True):
            parameter.copy_(value)


def groups(learner: Learner, rates: tuple[float, float]) -> list[dict[str, Any]]:
    """Parameters for an optimiser, with the learning rates of body and head."""
    pairs = zip((learner.body, learner.head), rates, strict=True)
    return [{"params": list(weights), "lr": rate} for weights, rate in pairs if weights]


def step(
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    labels: Int[Tensor, " all_rows"],
    rows: Rows,
    longest: float | None = None,
) -> Float[Tensor, "rows classes"]:
    """The outputs for a batch before a step that lowers its mean cross-entropy.

    A gradient longer than `longest`, where that is given, is cut to this length.
    """
    optimiser.zero_grad()
    logits = forward(learner.network, learner.batch(rows))
    loss: Any = cross_entropy(logits, labels[torch.from_numpy(rows)].to(logits.device)).mean()
    loss.backward()
    if longest is not None:
        torch.nn.utils.clip_grad_norm_((*learner.body, *learner.head), longest)
    optimiser.step()
    return logits.detach()
