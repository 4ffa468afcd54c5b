"""Predictions: the logits of every row.

With a probe head they come from the vectors that the probe was fitted on, in float64 and without a
pass of the model: the head's input is the mean-pooled last hidden state, which is what `embedding`
holds. The other heads run the model. A probe on vectors of the user's own needs no model at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from stages.model.batches import batches
from stages.model.heads.probe import read_probe
from stages.model.measurement import load_measurement
from stages.model.size import network_size
from stages.model.spec import ModelSpec, RunsModel
from stages.reading.vectors import matrix_of, vector_rows
from stages.stage import ConfigError, Cost, DataError, Inputs, Rows, Split, Stage, Work
from stages.surrogate.probe_head import check_fitted_on
from stages.tables import PREDICTION
from storage.schema import TableSpec


@dataclass(frozen=True)
class Prediction(RunsModel, Stage):
    """Logits per row; the predicted class is the largest, the first among equals."""

    model: ModelSpec | None = None
    """The model that predicts; null, like `head: probe`, stands for the probe."""
    embedding: str = "embedding"
    """Feature table that the probe was fitted on: an instance of `embedding`, or `features`."""
    token_budget: int = 2048
    """Padded tokens per batch, where the model is run."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "completion")
    outside_key: ClassVar[frozenset[str]] = frozenset({"model.train"})
    """Fresh adapters change no output."""

    def __post_init__(self) -> None:
        """Refuses a field that would be without effect.

        Raises:
            ConfigError: an embedding is named for a head that reads the text.
        """
        if self.embedding != "embedding" and self._running is not None:
            raise ConfigError(
                f"embedding: found {self.embedding} with a model of head: {self._running.head}, "
                "which reads the text, expected head: probe. Set model: null in this stage."
            )

    @property
    def _running(self) -> ModelSpec | None:
        """The model, where it is run; None where the probe predicts."""
        return None if self.model is None or self.model.kind.is_fitted else self.model

    @property
    def reads(self) -> tuple[str, ...]:
        """Embeddings and the probe, or the text for a head of another kind."""
        return (self.embedding, "probe") if self._running is None else ("text",)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Logits, with `source` "probe" or "model"."""
        return (PREDICTION,)

    def open(self, inputs: Inputs) -> Any:
        """Weight and bias of the probe, or the classifier.

        Raises:
            ConfigError: the probe was fitted on another table.
        """
        if self._running is not None:
            return load_measurement(self._running, inputs)
        check_fitted_on(inputs, self.embedding)
        return read_probe(inputs.table("probe"))

    def compute(self, inputs: Inputs) -> Rows:
        """Logits of one shard."""
        is_run = self._running is not None
        batches_of_logits = self._from_model(inputs) if is_run else self._from_probe(inputs)
        source = "model" if is_run else "probe"
        for batch in batches_of_logits:
            sources = pa.array([source] * batch.num_rows)
            columns = [batch["id"], batch["role"], sources, batch["logits"]]
            yield PREDICTION.name, pa.RecordBatch.from_arrays(columns, PREDICTION.schema.names)

    def _from_probe(self, inputs: Inputs) -> Iterator[pa.RecordBatch]:
        """Id, role and logits of a shard's rows, from their embeddings."""
        weight, bias = (tensor.double().numpy() for tensor in inputs.opened)
        embedding = inputs.table(self.embedding)
        if embedding.num_rows == 0:
            return
        vectors = matrix_of(embedding["vector"])
        if vectors.shape[1] != weight.shape[1]:
            raise DataError(
                f"prediction: found embeddings of length {vectors.shape[1]}, expected "
                f"{weight.shape[1]}, which the probe was fitted on. Fit the probe again."
            )
        logits = vectors.astype(np.float64) @ weight.T + bias
        yield vector_rows(embedding, np.arange(len(logits)), logits, "logits")

    def _from_model(self, inputs: Inputs) -> Iterator[pa.RecordBatch]:
        """Id, role and logits of a shard's rows, by a forward pass of the model."""
        measurement = inputs.opened
        text = inputs.table("text")
        tokens = measurement.tokenise(text)
        # Of a completion that `max_length` cuts off there is nothing to predict.
        kept = np.flatnonzero(measurement.has_target(tokens))
        if len(kept) < len(tokens.lengths):
            inputs.tell(notice="rows are left out whose answer max_length cuts off")
        for batch in batches(tokens.lengths[kept], self.token_budget):
            rows = kept[batch]
            with torch.no_grad():
                logits = measurement.outputs(measurement.batch(tokens, rows))
            yield vector_rows(text, rows, logits.cpu().numpy(), "logits")

    def cost(self, work: Work) -> Cost:
        """A matrix product with a probe, else one forward pass per row."""
        n_rows = work.n_examples + work.n_queries
        written = n_rows * (4 * work.n_classes + 24)
        if self._running is None:
            dim = work.dim
            if self.model is not None and self.embedding == "embedding":
                dim = network_size(self.model, work.n_classes).dim
            shard = -(-work.n_examples // max(1, work.n_shards))
            return Cost(
                flops=2.0 * n_rows * dim * work.n_classes,
                written_bytes=written,
                memory_bytes=shard * (12 * dim + 24 * work.n_classes + 64),
            )
        size = network_size(self._running, work.n_classes)
        return Cost(
            forward_rows=n_rows,
            flops=size.forward_flops(work.n_tokens),
            written_bytes=written,
            memory_bytes=size.forward_bytes(self.token_budget),
        )


STAGE = Prediction
