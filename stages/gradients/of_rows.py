"""Gradients of the loss of each row of a shard, by passes of the model.

What is common to the stages that take them: which rows have a loss, what it is, and how it comes to
rows of a feature table.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.gradients.of_tokens import token_rows
from stages.gradients.passes import Passes, make_features
from stages.gradients.rows import DType, diagnostic_rows, feature_rows
from stages.model.batches import Tokens
from stages.model.measurement import UNLABELLED, row_loss
from stages.model.spec import ModelSpec
from stages.stage import DataError, Inputs, ModelError, Rows
from stages.tables import DIAGNOSTICS, TOKEN_GRADIENT
from storage.schema import TableSpec


def labelled_rows(
    text: pa.Table,
    label: pa.Table,
    n_outputs: int,
    task: str = "classification",
    queries: Literal["label", "predicted"] = "label",
) -> tuple[pa.Table, Tensor | None]:
    """Rows of the text that have a row in `label`, and their labels or targets.

    Labels are integers, -1 for a query without one, or for all queries where the predicted class
    stands for the label; targets of a regression are floats; a completion has neither (None).

    Raises:
        DataError: an example's label is null, or a label is not a class of the model.
    """
    text = text.filter(pc.is_in(text["id"], value_set=label["id"].combine_chunks()))
    label = label.take(pc.index_in(text["id"], value_set=label["id"].combine_chunks()))
    if task in ("completion", "preference"):
        return text, None
    if task == "regression":
        has_target = pc.is_valid(label["target"])
        targets = label["target"].filter(has_target).to_numpy()
        return text.filter(has_target), torch.from_numpy(targets.astype(np.float64))
    unlabelled = pc.is_null(label["label"]).to_numpy(zero_copy_only=False)
    is_example = pc.equal(text["role"], "example").to_numpy(zero_copy_only=False)
    labels = pc.fill_null(label["label"], UNLABELLED).to_numpy(zero_copy_only=False)
    wrong = (unlabelled & is_example) | (~unlabelled & ((labels < 0) | (labels >= n_outputs)))
    if wrong.any():
        at_row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"gradient: found label {label['label'][at_row]} for {text['role'][at_row]} "
            f"{text['id'][at_row]}, expected 0 to {n_outputs - 1}, the model's classes. "
            "Correct the label, or use a head with that many classes."
        )
    if queries == "predicted":
        labels = np.where(is_example, labels, UNLABELLED)
    return text, torch.from_numpy(labels.astype(np.int64))


def check_task(model: ModelSpec, n_outputs: int, task: str) -> None:
    """Refuses a model whose head does not measure what a corpus with this task asks for.

    Raises:
        ModelError: it does not.
    """
    kind = model.kind
    is_regression = kind.has_class_outputs and n_outputs == 1
    if task not in kind.tasks or is_regression != (task == "regression"):
        raise ModelError(
            f"{model.path}: found head: {model.head} with {n_outputs} outputs for a "
            f"corpus with task: {task}, expected head: completion for completions, one output "
            "for a regression, and one per class otherwise. Correct model.head or corpus.task."
        )


def loss_rows(
    passes: Passes,
    inputs: Inputs,
    text: pa.Table,
    answers: Tensor | None,
    table: TableSpec,
    token_budget: int,
    dtype: DType,
) -> Rows:
    """Rows of the feature table `table` for the rows of `text`, and of `diagnostics`.

    `answers` as `labelled_rows` gives them; of `token_gradient` a row per token. A row whose
    completion `max_length` cuts away has none.
    """
    tokens = passes.measurement.tokenise(text)
    has_target = np.array(passes.measurement.has_target(tokens), dtype=bool)
    yield from _without_target(text, tokens, has_target)
    kept = np.flatnonzero(has_target)
    text, tokens = text.take(pa.array(kept)), tokens.take(kept)
    if table is TOKEN_GRADIENT:
        yield from token_rows(passes, text, tokens, token_budget, dtype, inputs.tell)
        return
    if answers is not None:
        answers = answers[torch.from_numpy(kept)].to(passes.measurement.device)

    def measured(
        outputs: Float[Tensor, "batch outputs"], rows: Int[np.ndarray, " batch"]
    ) -> Float[Tensor, " batch"]:
        at = None if answers is None else answers[torch.from_numpy(rows).to(answers.device)]
        return row_loss(outputs, at)

    for made in make_features(passes, tokens, token_budget, measured, inputs.tell):
        lengths = tokens.lengths[made.rows]
        yield from feature_rows(table.name, text, lengths, made, dtype, inputs.tell)


def _without_target(
    text: pa.Table, tokens: Tokens, has_target: np.ndarray
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Rows of `diagnostics` for texts whose completion `max_length` cut away."""
    rows = np.flatnonzero(~has_target)
    if len(rows):
        none = np.full(len(rows), np.nan)
        status = np.array(["no target"] * len(rows))
        yield (
            DIAGNOSTICS.name,
            diagnostic_rows(text, rows, tokens.lengths[rows], none, none, status),
        )
