"""What a model says of a text without some of its tokens: deleted, or replaced by a baseline."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from stages.model.batches import Tokens, batches
from stages.saliency.from_embeddings import BaselineName, FromEmbeddings, Targets
from stages.saliency.outputs import ExplainedOutputs

Kind = Literal["probability", "log", "logit"]


class Variant(NamedTuple):
    """A unit with some tokens gone, by their places in its row."""

    unit: int
    deleted: Int[np.ndarray, " deleted"]
    replaced: Int[np.ndarray, " replaced"]


def unchanged(unit: int) -> Variant:
    """The unit as it is."""
    none = np.zeros(0, np.int64)
    return Variant(unit, none, none)


def answers(
    embedded: FromEmbeddings,
    units: ExplainedOutputs,
    variants: Sequence[Variant],
    baseline: BaselineName,
    token_budget: int,
    kind: Kind = "probability",
) -> Float[np.ndarray, " variants"]:
    """Each variant's explained choice: its probability, the logarithm of that, or its logit.

    A model of one output has but the last, its number.

    A deleted token shortens the row: what follows moves up. The place of an answer would move with
    it, so answers are for `replaced` alone. Cost: a forward pass for each.
    """
    rows = [_without(units, variant) for variant in variants]
    columns = {
        name: [row[name] for row in rows] for name in units.tokens.columns if name in rows[0]
    }
    positions = units.tokens.positions
    if positions is not None:
        positions = np.array(
            [positions[v.unit] - int((v.deleted < positions[v.unit]).sum()) for v in variants]
        )
    tokens = Tokens(columns, positions)
    owner = np.array([variant.unit for variant in variants])
    targets: Targets = units.targets.of(owner)
    start = embedded.baseline(baseline)
    found = np.zeros(len(variants))
    for batch in batches(tokens.lengths, token_budget):
        arguments = embedded.batch(tokens, batch)
        given = embedded.table[arguments["input_ids"]]
        for at, row in enumerate(batch.tolist()):
            # Places count in the row before anything was deleted.
            gone = variants[row].replaced
            gone = gone - np.searchsorted(np.sort(variants[row].deleted), gone)
            given[at, torch.from_numpy(gone)] = start
        own = targets.of(batch)
        with torch.no_grad():
            logits = embedded.choices(arguments, own.which, given).double()
            is_number = kind == "logit" or logits.shape[1] == 1
            values = logits if is_number else logits.log_softmax(1)
            values = values[torch.arange(len(batch)), torch.from_numpy(own.choice)]
            values = values.exp() if kind == "probability" and not is_number else values
        found[batch] = values.cpu().numpy()
    return found


def _without(units: ExplainedOutputs, variant: Variant) -> dict[str, list[int]]:
    columns = units.tokens.columns
    if not len(variant.deleted):
        return {name: column[variant.unit] for name, column in columns.items()}
    kept = np.setdiff1d(np.arange(int(units.tokens.lengths[variant.unit])), variant.deleted)
    return {
        name: [column[variant.unit][at] for at in kept.tolist()] for name, column in columns.items()
    }
