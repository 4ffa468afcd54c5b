"""Gradients of the loss of each predicted token of a completion by itself."""

import numpy as np
import pyarrow as pa
import torch

from stages.gradients.passes import Passes, make_features
from stages.gradients.rows import STATUSES, DType, as_stored, diagnostic_rows, usable_rows
from stages.model.batches import Tokens
from stages.model.measurement import row_loss
from stages.model.templates import one_position_each
from stages.stage import Rows, Tell
from stages.tables import DIAGNOSTICS, TOKEN_GRADIENT


def token_rows(
    passes: Passes, text: pa.Table, tokens: Tokens, token_budget: int, dtype: DType, tell: Tell
) -> Rows:
    """Rows of `token_gradient`, one per predicted token, and of `diagnostics`, one per row of text.

    A pass for every predicted token, over the tokens before it. Memory: beside a batch one vector
    in float64 for each row of text.
    """
    each, owners, indices = one_position_each(tokens)
    of_tokens, more = text.take(pa.array(owners)), {"token_index": indices}
    n_rows = text.num_rows
    totals = torch.zeros(n_rows, passes.projector.sketch.dim, dtype=torch.float64)
    losses, worst = np.zeros(n_rows), np.zeros(n_rows, dtype=np.int64)
    for made in make_features(
        passes, each, token_budget, lambda outputs, _: row_loss(outputs, None), tell
    ):
        stored, status = as_stored(made, dtype)
        yield from usable_rows(TOKEN_GRADIENT.name, of_tokens, made.rows, stored, status, more)
        rows = owners[made.rows]
        totals.index_add_(0, torch.from_numpy(rows), torch.from_numpy(made.vectors).double())
        np.add.at(losses, rows, made.numbers[:, 0])
        np.maximum.at(worst, rows, [STATUSES.index(s) for s in status])
    tell(n_not_finite=int((worst > 0).sum()))
    if n_rows:
        is_mean = passes.measurement.spec.reduction == "mean"
        counts = np.bincount(owners) if is_mean else np.ones(n_rows)
        losses, norms = losses / counts, totals.norm(dim=1).numpy() / counts
        every, status = np.arange(n_rows), np.array(STATUSES)[worst]
        yield (
            DIAGNOSTICS.name,
            diagnostic_rows(text, every, tokens.lengths, losses, norms, status),
        )
