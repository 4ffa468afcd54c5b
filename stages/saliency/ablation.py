"""A model's outputs for texts without some of their tokens, deleted or replaced by a baseline."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.model.batches import Tokens, batches
from stages.saliency.from_embeddings import BaselineName, FromEmbeddings, Targets
from stages.saliency.outputs import ExplainedOutputs

Kind = Literal["probability", "log", "logit"]


class Variant(NamedTuple):
    """An explained row without some of its tokens, which are given by their positions in it."""

    row: int
    """Number of the row in `ExplainedOutputs`."""
    deleted: Int[np.ndarray, " deleted"]
    """Positions of the tokens that are cut out, which shortens the row."""
    replaced: Int[np.ndarray, " replaced"]
    """Positions, in the uncut row, of the tokens whose embedding becomes the baseline's."""


def unchanged(row: int) -> Variant:
    """The variant of a row that keeps all of its tokens."""
    none = np.zeros(0, np.int64)
    return Variant(row, none, none)


def variant_outputs(
    embedded: FromEmbeddings,
    explained: ExplainedOutputs,
    variants: Sequence[Variant],
    baseline: BaselineName,
    token_budget: int,
    kind: Kind = "probability",
) -> Float[np.ndarray, " variants"]:
    """Each variant's explained output: its probability, the logarithm of that, or its logit.

    `kind` says which. A model with a single output, a regression, gives that number for all kinds.

    A deleted token shortens the row, and the tokens behind it move up by one position. An output
    that is a position, such as the start of an answer, would move with them: for a model that
    explains positions use `replaced` alone. Cost: a forward pass for each variant.
    """
    shortened = [_without_deleted(explained, variant) for variant in variants]
    columns = {
        name: [row[name] for row in shortened]
        for name in explained.tokens.columns
        if name in shortened[0]
    }
    positions = explained.tokens.positions
    if positions is not None:
        positions = np.array(
            [positions[v.row] - int((v.deleted < positions[v.row]).sum()) for v in variants]
        )
    tokens = Tokens(columns, positions)
    rows = np.array([variant.row for variant in variants])
    targets: Targets = explained.targets.take(rows)
    baseline_vector = embedded.baseline(baseline)
    outputs = np.zeros(len(variants))
    for batch in batches(tokens.lengths, token_budget):
        arguments = embedded.batch(tokens, batch)
        embeddings = embedded.table[arguments["input_ids"]]
        for batch_row, number in enumerate(batch.tolist()):
            # Positions count in the row before any token was deleted.
            replaced = variants[number].replaced
            replaced = replaced - np.searchsorted(np.sort(variants[number].deleted), replaced)
            embeddings[batch_row, torch.from_numpy(replaced)] = baseline_vector
        batch_targets = targets.take(batch)
        with torch.no_grad():
            logits = embedded.choices(arguments, batch_targets.distribution, embeddings)
        outputs[batch] = chosen_values(logits, batch_targets, kind)
    return outputs


def chosen_values(
    logits: Float[Tensor, "rows choices"], targets: Targets, kind: Kind
) -> Float[np.ndarray, " rows"]:
    """The probability, its logarithm or the logit of each row's target; a regression's number."""
    logits = logits.double()
    is_number = kind == "logit" or logits.shape[1] == 1
    values = logits if is_number else logits.log_softmax(1)
    values = values[torch.arange(len(values)), torch.from_numpy(targets.choice)]
    values = values.exp() if kind == "probability" and not is_number else values
    chosen: np.ndarray = values.cpu().numpy()
    return chosen


def _without_deleted(explained: ExplainedOutputs, variant: Variant) -> dict[str, list[int]]:
    columns = explained.tokens.columns
    if not len(variant.deleted):
        return {name: column[variant.row] for name, column in columns.items()}
    kept = np.setdiff1d(np.arange(int(explained.tokens.lengths[variant.row])), variant.deleted)
    return {
        name: [column[variant.row][at] for at in kept.tolist()] for name, column in columns.items()
    }
