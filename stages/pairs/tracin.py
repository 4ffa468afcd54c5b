"""TracIn: the inner product of the loss gradients of a query and of an example.

A gradient step on example i at rate eta lowers the loss of query t by eta g_i . g_t, to first
order, and so raises the log-probability of the class that the query's loss is taken at: its label,
or the class that the model predicts where it has none, and everywhere with `gradient: {queries:
predicted}`. Over checkpoints these add up, weighed by their rates.

Global: the length of the example's gradients, sqrt(sum_c eta_c |g_i,c|^2), the root of its
self-influence; local: what is left.

With `layer: last` the gradients are those of a linear last layer's weight alone, r f' with r = p -
e_y and f the features that it reads, so that embeddings and logits are enough:

    score(t, i) = (r_i . r_t)(f_i . f_t),    global |r_i|,    local (r_i . r_t / |r_i|)(f_i . f_t),

where r_t is taken at the class that the model predicts. Where the model's last layer reads anything
but the embedding that is named, this stands for its gradient and is not it.

Source: Pruthi et al. 2020, arXiv:2002.08484, eq. 3 (TracInCP); projected gradients stand for whole
ones here. The parts of the last layer are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from stages.pairs.scores import FactorRows, PairScores, check_gradients, left_out
from stages.reading.logits import read_predicted
from stages.reading.supervision import count_classes, read_labels
from stages.reading.vectors import query_vectors, vectors_of
from stages.stage import (
    TASKS,
    ConfigError,
    DataError,
    Inputs,
    Role,
    Work,
)
from stages.surrogate.probe_head import slopes


@dataclass(frozen=True)
class TracIn(PairScores):
    """Scores of the pairs of all queries and examples that have gradients.

    A task holds one shard's gradients and the queries', and 16 million scores.
    """

    layer: Literal["all", "last"] = "all"
    """Whose weights a step moves: those that the gradients are of, or the last layer's."""
    gradients: tuple[str, ...] = ("gradient",)
    """Instances of `gradient`, one per checkpoint, projected in the same way or not."""
    rates: tuple[float, ...] | None = None
    """Learning rate of each checkpoint; by default 1."""
    embedding: str = "embedding"
    """What the last layer reads, for `layer: last`: an instance of `embedding`, or `features`."""
    predictions: str = "prediction"
    """Instance with the model's logits, for `layer: last`."""

    def __post_init__(self) -> None:
        """Refuses fields that do not fit each other.

        Raises:
            ConfigError: no gradients are named, or rates do not fit them.
        """
        super().__post_init__()
        used = {"all": ("gradients", "rates"), "last": ("embedding", "predictions")}[self.layer]
        for name in ("gradients", "rates", "embedding", "predictions"):
            if name not in used and getattr(self, name) != getattr(type(self), name):
                raise ConfigError(
                    f"{name}: found {getattr(self, name)} with layer: {self.layer}, which uses "
                    f"{' and '.join(used)}, expected nothing. Remove it, or set layer."
                )
        if not self.gradients or len(set(self.gradients)) < len(self.gradients):
            raise ConfigError(
                f"gradients: found {list(self.gradients)}, expected at least one instance, each "
                "once. Name instances of gradient."
            )
        rates = self.rates or (1.0,) * len(self.gradients)
        if len(rates) != len(self.gradients) or min(rates) <= 0:
            raise ConfigError(
                f"rates: found {list(rates)} for {len(self.gradients)} checkpoints, expected one "
                "positive number for each. Correct them, or leave them out."
            )

    @property
    def speaks_for(self) -> str | None:
        """Residuals of queries are taken at the predicted class; gradients say it of themselves."""
        return "prediction" if self.layer == "last" else None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those with classes, for the last layer."""
        return ("classification",) if self.layer == "last" else TASKS

    @property
    def reads(self) -> tuple[str, ...]:
        """The gradients of every checkpoint, or what those of the last layer are made of."""
        if self.layer == "last":
            return (self.embedding, self.predictions, "label")
        return self.gradients

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses gradients per token.

        Raises:
            ConfigError: a checkpoint's gradients are.
        """
        for name in self.gradients if self.layer == "all" else ():
            check_gradients(name, writers[name])

    def queries(self, inputs: Inputs) -> FactorRows:
        """Gradients of the queries that every checkpoint has, or their last layer's factors.

        Raises:
            DataError: there is none.
        """
        if self.layer == "all":
            return self._joined([query_vectors(inputs, name) for name in self.gradients])
        queries = self._last(inputs, "query")
        if len(queries.ids) == 0:
            raise DataError(
                f"{self.embedding}, {self.predictions}: found no query in both, expected at least "
                "one, as pairs are scored. Add `queries:`."
            )
        return queries

    def examples(self, inputs: Inputs) -> FactorRows:
        """Gradients of a shard's examples that all checkpoints have, or last-layer factors."""
        if self.layer == "last":
            examples = self._last(inputs, "example")
        else:
            examples = self._joined([vectors_of(inputs, name) for name in self.gradients])
        if len(examples.ids) == 0:
            return examples
        return examples._replace(magnitude=examples.factors[0].norm(dim=1))

    def width(self, work: Work) -> int:
        """Gradients of all checkpoints."""
        return work.dim * (len(self.gradients) if self.layer == "all" else 1)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """How many examples of the shard lack embedding or logits."""
        if self.layer == "all":
            return {}
        return {"n_left_out": left_out(inputs, (self.embedding, self.predictions))}

    def _last(self, inputs: Inputs, role: Role) -> FactorRows:
        """Residuals and features of rows with logits; at labels, or at what is predicted."""
        ids, logits, features = read_predicted(inputs, self.embedding, self.predictions, role)
        answers = logits.argmax(1)
        if role == "example":
            labelled, labels = read_labels(inputs, role, count_classes(inputs))
            kept = np.isin(ids, labelled)
            ids, logits, features = ids[kept], logits[kept], features[kept]
            answers = labels[np.searchsorted(labelled, ids)]
        if len(ids) == 0:
            return FactorRows(ids, ())
        residuals = slopes(torch.from_numpy(logits), torch.from_numpy(answers))
        return FactorRows(ids, (residuals.float(), torch.from_numpy(features).float()))

    def _joined(self, gradients: list[tuple[np.ndarray, torch.Tensor]]) -> FactorRows:
        """Gradients of all checkpoints side by side, times the root of their rates.

        `gradients` are ids and vectors of each checkpoint; rows that one of them lacks are left
        out.
        """
        ids = gradients[0][0]
        for other, _ in gradients[1:]:
            ids = np.intersect1d(ids, other)
        parts = []
        rates = self.rates or (1.0,) * len(gradients)
        for rate, (row_ids, rows) in zip(rates, gradients, strict=True):
            parts.append(rows[torch.from_numpy(np.searchsorted(row_ids, ids))] * rate**0.5)
        return FactorRows(ids, (torch.cat(parts, 1) if len(parts) > 1 else parts[0],))


STAGE = TracIn
