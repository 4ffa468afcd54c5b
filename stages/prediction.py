"""Predictions: the logits of every row.

With a probe head they come from the stored embeddings, in float64 and without a pass of the model:
the head's input is the mean-pooled last hidden state, which is what `embedding` holds. The other
heads run the model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from stages.batching import batches, matrix_of, vector_rows
from stages.measurement import ModelSpec, load_measurement, network_size, read_probe
from stages.stage import Cost, DataError, Inputs, Split, Work
from stages.tables import PREDICTION
from storage.schema import TableSpec


@dataclass(frozen=True)
class Prediction:
    """Logits per row of text; the predicted class is the largest, the first among equals."""

    model: ModelSpec
    """The model that predicts."""
    token_budget: int = 2048
    """Padded tokens per batch, where the model is run."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"

    @property
    def reads(self) -> tuple[str, ...]:
        """Embeddings and the probe, or the text for a head of another kind."""
        return ("embedding", "probe") if self.model.head == "probe" else ("text",)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Logits, with `source` "probe" or "model"."""
        return (PREDICTION,)

    def open(self, inputs: Inputs) -> Any:
        """Weight and bias of the probe, or the classifier."""
        if self.model.head == "probe":
            return read_probe(inputs.table("probe"))
        return load_measurement(self.model, inputs)

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Logits of one shard."""
        found = self._from_probe(inputs) if self.model.head == "probe" else self._from_model(inputs)
        source = "probe" if self.model.head == "probe" else "model"
        for batch in found:
            sources = pa.array([source] * batch.num_rows)
            columns = [batch["id"], batch["role"], sources, batch["logits"]]
            yield PREDICTION.name, pa.RecordBatch.from_arrays(columns, PREDICTION.schema.names)

    def _from_probe(self, inputs: Inputs) -> Iterator[pa.RecordBatch]:
        weight, bias = (tensor.double().numpy() for tensor in inputs.opened)
        embedding = inputs.table("embedding")
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
        measurement = inputs.opened
        text = inputs.table("text")
        tokens = measurement.tokenise(text)
        for rows in batches(tokens.lengths, self.token_budget):
            with torch.no_grad():
                logits = measurement.outputs(measurement.batch(tokens, rows))
            yield vector_rows(text, rows, logits.cpu().numpy(), "logits")

    def cost(self, work: Work) -> Cost:
        """A matrix product with a probe, else one forward pass per row."""
        n_rows = work.n_examples + work.n_queries
        written = n_rows * (4 * work.n_classes + 24)
        size = network_size(self.model, work.n_classes)
        if self.model.head == "probe":
            flops = 2.0 * n_rows * size.dim * work.n_classes
            return Cost(flops=flops, written_bytes=written)
        return Cost(
            forward_rows=n_rows,
            flops=size.forward_flops(work.n_tokens),
            written_bytes=written,
            memory_bytes=size.forward_bytes(self.token_budget),
        )


STAGE = Prediction
