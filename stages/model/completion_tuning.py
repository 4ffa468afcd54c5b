"""A language model fine-tuned on a set of completions for so many steps, again and again.

Every training begins with the same weights and takes the same number of steps, whatever the set: a
small set is visited several times, of a large one a part. Batches are drawn by a name.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn

from stages.model.batches import Tokens, batches
from stages.model.fine_tuning import LONGEST_GRADIENT, FineTuning, shuffled
from stages.model.layers import parameters_above, trained_layers
from stages.model.measurement import Measurement, forward, load_measurement
from stages.model.precision import Precision, mixed
from stages.model.spec import ModelSpec, Trained
from stages.model.training import Learner, Rows, groups, learner, outputs, reset
from stages.stage import Inputs, StageError


def load_untuned(
    inputs: Inputs, model: ModelSpec, train: Trained, by_sides: bool = False
) -> Measurement:
    """The model in float32 with fresh adapters, where `train` has some; its trained one stays.

    Its outputs are means over tokens; with `by_sides` it reads the sides of pairs, and they are
    sums, as in the loss of DPO.
    """
    own = Trained() if model.adapter is not None else train
    spec = replace(model, train=own, dtype="float32", reduction="sum" if by_sides else "mean")
    return load_measurement(spec, inputs, by_sides=by_sides)


def completion_learner(measurement: Measurement, tokens: Tokens) -> Learner:
    """A learner of the weights that `train` of the model's spec names; of adapters A and B.

    Raises:
        ConfigError: it names none.
    """
    network, train = measurement.network, measurement.spec.train
    tuned: list[nn.Parameter]
    if adapters := [p for name, p in network.named_parameters() if ".lora_" in name]:
        tuned = adapters
    elif train.last_blocks is not None and train.layers == ("*",):
        tuned = list(parameters_above(network, train.last_blocks).values())
    else:
        layers = trained_layers(network, train)
        weights = [layer.weight for layer in layers.values()]
        tuned = [weight for weight in weights if isinstance(weight, nn.Parameter)]

    def batch(rows: Rows) -> dict[str, torch.Tensor]:
        return measurement.batch(tokens, rows)

    return learner(network, batch, tokens.lengths, tuned, [])


def tune(
    learner: Learner,
    rows: Rows,
    n_steps: int,
    how: FineTuning,
    token_budget: int,
    name: str,
    precision: Precision = "float32",
) -> None:
    """Trains from the initial weights on `rows`, for `n_steps` batches drawn by `name`.

    A step lowers the mean over the batch of the rows' losses. Memory: the activations of
    `token_budget` padded tokens.

    Raises:
        StageError: a loss is not finite.
    """
    reset(learner)
    drawn = visits(learner.lengths[rows], how.batch_size, name)

    def parts(batch: Rows) -> Iterator[Any]:
        for part in batches(learner.lengths[batch], token_budget):
            inputs = learner.batch(batch[part])
            with mixed(learner.device, precision):
                likelihoods = forward(learner.network, inputs)  # means over the tokens of a row
            yield -likelihoods.sum() / len(batch)

    descend(learner, [rows[next(drawn)] for _ in range(n_steps)], how, parts)


def descend(
    learner: Learner,
    visited: Sequence[Rows],
    how: FineTuning,
    losses: Callable[[Rows], Iterator[Any]],
) -> None:
    """Steps of AdamW from the weights as they are, one for each batch in `visited`.

    `losses` gives the parts of a batch's loss one by one, so that one graph is held at a time.

    Raises:
        StageError: a loss is not finite.
    """
    rated = groups(learner, (how.learning_rate, how.learning_rate))
    optimiser = torch.optim.AdamW(rated, weight_decay=how.weight_decay, fused=True)
    for at, batch in enumerate(visited):
        for group in optimiser.param_groups:
            group["lr"] = how.learning_rate * how.factor(at, len(visited))
        optimiser.zero_grad()
        for loss in losses(batch):
            if not loss.isfinite():
                raise StageError(
                    f"fine-tuning: found a loss that is not finite in step {at + 1}, expected a "
                    "training that settles. Lower learning_rate."
                )
            loss.backward()
        torch.nn.utils.clip_grad_norm_((*learner.body, *learner.head), LONGEST_GRADIENT)
        optimiser.step()
    optimiser.zero_grad()


def losses(learner: Learner, rows: Rows, token_budget: int) -> np.ndarray:
    """The loss of each row under the current weights, in nats a token; shape (rows,)."""
    found: np.ndarray = -outputs(learner, rows, token_budget)[0].numpy()
    return found


def visits(lengths: Rows, batch_size: int, name: str) -> Iterator[Int64[np.ndarray, " batch"]]:
    """Batches of row numbers without end, epoch after epoch, drawn by `name`."""
    epoch = 0
    while True:
        yield from shuffled(lengths, batch_size, f"{name}/{epoch}")
        epoch += 1
