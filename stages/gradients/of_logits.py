"""Loss gradients put together from gradients of all logits and the logits, without the model.

These come from two instances: one of `ntk` with `logit: all`, whose vectors hold the gradients of
the classes one after the other, and one of `prediction` of the same model. With f_c the logit of
class c, a loss of the logits has by the chain rule the gradient

    grad loss = sum_c (dloss/df_c) grad f_c,

which is sum_c (p_c - [c = y]) grad f_c for the cross-entropy of class y, with p the softmax, and
2 (f - y) grad f for the squared error of a regression. Projections are linear and do not know what
they project, so this holds for projected gradients as it does for whole ones.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from stages.gradients.rows import BatchVectors
from stages.model.batches import batches
from stages.model.measurement import row_loss
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError, DataError

BATCH_NUMBERS = 2**23
"""Most numbers of gradients that are held in float64 at a time: 64 MiB."""


def check_writers(ntk: str, gradients: Any, predictions: str, logits: Any) -> None:
    """Refuses gradients that are not those of the logits: `gradients` and `logits` are stages.

    Raises:
        ConfigError: `gradients`, the instance `ntk`, are not those of all logits, or `logits`, the
            instance `predictions`, are another model's.
    """
    which = getattr(gradients, "logit", "all"), getattr(gradients, "output", "logit")
    if which != ("all", "logit"):
        raise ConfigError(
            f"{ntk}: found gradients of logit: {which[0]}, output: {which[1]}, expected those of "
            "all logits. Set logit: all and output: logit there."
        )
    if not (hasattr(gradients, "model") and hasattr(logits, "model")):
        return
    own, other = gradients.model, logits.model
    # Without a model the probe predicts, and fresh adapters change no output.
    if other is None:
        is_same = own.kind.is_fitted
    else:
        is_same = dataclasses.replace(own, train=other.train) == other
    if not is_same:
        raise ConfigError(
            f"{predictions}: found logits of another model than the gradients in {ntk}, expected "
            "the same. Set model alike in both."
        )


def check_parts(details: Mapping[str, Any], dim: int, n_classes: int, read: str) -> None:
    """Raises unless a vector of length `dim` is the gradients of `n_classes` logits, joined.

    `details` are those of the instance `read`, which recorded the blocks of a single gradient.

    Raises:
        DataError: no blocks were recorded, or as many parts as classes do not make up the vector.
    """
    blocks = details.get("blocks") or []
    length = sum(int(block["size"]) for block in blocks)
    if length == 0 or n_classes * length != dim:
        raise DataError(
            f"{read}: found vectors of length {dim} and {len(blocks)} blocks of {length} numbers "
            f"in all, expected blocks for the gradient of one of {n_classes} logits, {n_classes} "
            "of which make up the vector. Name an instance of ntk with logit: all."
        )


def loss_gradients(
    gradients: Float[Tensor, "rows classes dim"],
    logits: Float[Tensor, "rows classes"],
    answers: Tensor,
) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, " rows"]]:
    """The gradient of each row's loss, and the loss (`measurement.row_loss`), in float64.

    `gradients` are those of the logits, `answers` labels or targets; sign: of the loss. Cost rows *
    classes * dim.
    """
    outputs = logits.double().requires_grad_()
    losses = row_loss(outputs, answers)
    (slopes,) = torch.autograd.grad(losses.sum(), outputs)
    return (slopes.unsqueeze(1) @ gradients.double()).squeeze(1), losses.detach()


def rebuilt(
    vectors: pa.Table, logits: Float[np.ndarray, "rows classes"], answers: Tensor
) -> Iterator[BatchVectors]:
    """The loss gradients of all rows, from the gradients of their logits, in bounded memory.

    `vectors` are rows of the table of these gradients, `answers` labels or targets.
    """
    flat, n_classes = matrix_of(vectors["vector"]), logits.shape[1]
    for rows in batches(np.full(len(flat), flat.shape[1]), BATCH_NUMBERS):
        gradients = torch.from_numpy(flat[rows]).reshape(len(rows), n_classes, -1)
        batch_answers = answers[torch.from_numpy(rows)]
        of_losses, losses = loss_gradients(gradients, torch.from_numpy(logits[rows]), batch_answers)
        yield BatchVectors(rows, of_losses.numpy(), losses.unsqueeze(1).numpy())
