"""Fine-tuning as it is done in practice: AdamW, a rate that warms up and decays, shuffled batches.

Every training begins with the same weights, without dropout, and every number that is drawn follows
from a name, so that it can be repeated. Batches hold rows of much the same length, as with
`group_by_length` of transformers, so that little is spent on padding.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.model.seeded import generator_of
from stages.model.training import Learner, Rows, groups, reset, step
from stages.stage import ConfigError

POOL = 20
"""Batches whose rows are sorted by length among each other."""
LONGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class FineTuning:
    """How a model is fine-tuned."""

    epochs: int = 4
    """Passes over the examples."""
    batch_size: int = 16
    """Examples of a gradient step."""
    learning_rate: float = 5e-5
    """Largest learning rate of weights that come with the model."""
    head_learning_rate: float = 1e-3
    """Largest learning rate of a fresh head, `probe` or `random`."""
    weight_decay: float = 0.01
    """Decay of the weights in a step, as a multiple of the learning rate."""
    warmup: float = 0.1
    """Share of the steps in which the rate grows to its largest; then it falls to 0."""

    def __post_init__(self) -> None:
        """Refuses numbers that are out of range."""
        rates = (self.learning_rate, self.head_learning_rate)
        is_in_range = all(0 < rate < float("inf") for rate in rates) and 0 <= self.warmup < 1
        if min(self.epochs, self.batch_size) < 1 or not is_in_range or not self.weight_decay >= 0:
            raise ConfigError(
                f"fine_tuning: found epochs: {self.epochs}, batch_size: {self.batch_size}, "
                f"learning rates: {list(rates)}, weight_decay: {self.weight_decay}, warmup: "
                f"{self.warmup}, expected positive numbers, a weight_decay of at least 0 and a "
                "warmup of at least 0 and less than 1. Correct them."
            )

    @property
    def rates(self) -> tuple[float, float]:
        """Largest learning rates of the model's own weights, and of a fresh head."""
        return self.learning_rate, self.head_learning_rate

    def factor(self, at: int, n_steps: int) -> float:
        """What the largest rates are multiplied by in step `at`, from 0, of `n_steps`."""
        warm = math.ceil(self.warmup * n_steps)
        return min((at + 1) / max(1, warm), (n_steps - at) / max(1, n_steps - warm))


def fine_tune(
    learner: Learner, labels: Int[Tensor, " all_rows"], rows: Rows, how: FineTuning, name: str
) -> Iterator[Float[Tensor, "rows classes"]]:
    """Fine-tunes from the initial weights on `rows`; after each epoch yields what was seen in it.

    That are the outputs for every row when it was visited, before the step that it was part of;
    they cost no pass of their own. `name` is the seed. Once the last epoch is taken, the learner's
    weights are the trained ones.

    Source: AdamW, Loshchilov and Hutter 2019, arXiv:1711.05101, with the linear schedule of BERT.
    """
    reset(learner)
    rated = groups(learner, how.rates)
    largest = [group["lr"] for group in rated]
    optimiser = torch.optim.AdamW(rated, weight_decay=how.weight_decay, fused=True)
    lengths = learner.lengths[rows]
    n_steps, at = how.epochs * -(-len(rows) // how.batch_size), 0
    for epoch in range(how.epochs):
        seen: list[Tensor] = []
        visited: list[Rows] = []
        for batch in shuffled(lengths, how.batch_size, f"{name}/{epoch}"):
            for group, rate in zip(optimiser.param_groups, largest, strict=True):
                group["lr"] = rate * how.factor(at, n_steps)
            seen.append(step(learner, optimiser, labels, rows[batch], LONGEST_GRADIENT).cpu())
            visited.append(batch)
            at += 1
        yield torch.cat(seen)[np.argsort(np.concatenate(visited))]


def shuffled(lengths: Rows, batch_size: int, name: str) -> Iterator[Rows]:
    """Row numbers of the batches of one epoch, drawn by `name`; each row comes once.

    Rows in random order are cut into pools of `POOL` batches; each pool is sorted by length and cut
    into batches, and these come in random order. One batch may be smaller.
    """
    drawn = generator_of(name)
    order = torch.randperm(len(lengths), generator=drawn).numpy()
    found: list[Rows] = []
    for start in range(0, len(order), POOL * batch_size):
        pool = order[start : start + POOL * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        found += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    for at in torch.randperm(len(found), generator=drawn).tolist():
        yield found[at]
