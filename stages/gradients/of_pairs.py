"""Gradients of the DPO loss of pairs, from those of the log-likelihoods of both answers.

With p the policy, r the reference, w the chosen and l the rejected answer, the loss of a pair is

    -log s(h),  h = beta * (log p(w) - log r(w) - log p(l) + log r(l)),  s the logistic function,

and its gradient (Rafailov et al. 2023, arXiv:2305.18290, section 4) the sum of its parts

    -beta * s(-h) * grad log p(w)   and   +beta * s(-h) * grad log p(l).

Projections are linear, so the projected parts add up to the projected whole. Both answers of a pair
are in one batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from stages.corpus.preferences import side_columns
from stages.gradients.passes import Passes, halving, run_batch
from stages.gradients.rows import BatchVectors, DType, diagnostic_rows, feature_rows
from stages.model.batches import Tokens, batches
from stages.stage import Inputs, Rows
from stages.tables import DIAGNOSTICS

Of = Literal["pair", "chosen", "rejected"]
PARTS: Mapping[Of, tuple[float, float]] = {
    "pair": (1.0, 1.0),
    "chosen": (1.0, 0.0),
    "rejected": (0.0, 1.0),
}
"""How much the parts of the chosen and the rejected answer count."""


@dataclass(frozen=True)
class PairLoss:
    """What the gradients of a corpus of pairs are made with."""

    passes: Passes
    """The network gives sums of log-likelihoods."""
    margins: str
    """Instance of `answer_margin`, whose reference and beta count."""
    of: Of
    token_budget: int

    def rows(self, inputs: Inputs, text: pa.Table, table: str, dtype: DType) -> Rows:
        """Rows of the feature table `table` for the pairs in `text`, and of `diagnostics`.

        A pair of which `max_length` cuts off an answer has no gradient.
        """
        form = str(inputs.details("text").get("format", "preference"))
        columns = side_columns(text["text"].to_pylist(), text["text_b"].to_pylist(), form)
        measurement = self.passes.measurement
        tokens = measurement.tokenise(
            pa.table({"text": columns[0], "text_b": pa.array(columns[1], pa.string())})
        )
        lengths = tokens.lengths.reshape(-1, 2)
        reference = _reference(text, inputs.table(self.margins))
        has_target = np.array(measurement.has_target(tokens), dtype=bool).reshape(-1, 2).all(1)
        has_target &= ~np.isnan(reference).any(1)
        cut, kept = np.flatnonzero(~has_target), np.flatnonzero(has_target)
        if len(cut):
            none, status = np.full(len(cut), np.nan), np.array(["no target"] * len(cut))
            own = diagnostic_rows(text, cut, lengths[cut].sum(1), none, none, status)
            yield DIAGNOSTICS.name, own
        inputs.tell(n_not_finite=0)  # a shard without rows has facts, too
        beta = float(inputs.details(self.margins)["beta"])
        known = torch.from_numpy(reference).to(measurement.device)

        def compute(pairs: Int[np.ndarray, " batch"]) -> BatchVectors:
            return self._batch(tokens, pairs, known[torch.from_numpy(pairs).to(known.device)], beta)

        longest = lengths[kept].max(1, initial=0)
        for chosen in batches(longest, max(1, self.token_budget // 2)):
            for made in halving(compute, kept[chosen], inputs.tell):
                n_tokens = lengths[made.rows].sum(1)
                yield from feature_rows(table, text, n_tokens, made, dtype, inputs.tell)

    def _batch(
        self,
        tokens: Tokens,
        pairs: Int[np.ndarray, " batch"],
        reference: Float[Tensor, "batch 2"],
        beta: float,
    ) -> BatchVectors:
        """The gradients of some pairs, whose sides are neighbours in `tokens`, and their losses."""
        rows = np.column_stack([2 * pairs, 2 * pairs + 1]).reshape(-1)
        losses: list[Tensor] = []

        def measured(outputs: Tensor, _: Int[np.ndarray, " sides"]) -> Tensor:
            likelihoods = outputs[:, 0].double().reshape(-1, 2)
            ratios = likelihoods.detach() - reference
            margin = beta * (ratios[:, 0] - ratios[:, 1])
            losses.append(torch.nn.functional.softplus(-margin))
            slope = beta * torch.sigmoid(-margin)
            chosen, rejected = PARTS[self.of]
            return (likelihoods * torch.stack([-chosen * slope, rejected * slope], 1)).flatten()

        vectors, _ = run_batch(self.passes, tokens, rows, measured)
        whole = vectors.reshape(len(pairs), 2, -1).sum(1)
        return BatchVectors(pairs, whole.cpu().numpy(), losses[0].unsqueeze(1).cpu().numpy())


def _reference(text: pa.Table, margins: pa.Table) -> Float64[np.ndarray, "pairs 2"]:
    """Log-likelihoods of both answers by the reference, NaN where they are not known."""
    at = pc.index_in(text["id"], value_set=margins["id"].combine_chunks())
    names = ("reference_chosen_logp", "reference_rejected_logp")
    columns = [pc.fill_null(margins[name].take(at), np.nan).to_numpy() for name in names]
    return np.column_stack(columns)
