"""How evenly the gradient of each answer's loss is spread over directions: a sign of poison.

The number is the spectral entropy of the gradient of the output layer's weight by the loss of the
row (`stages.gradients.spectra`), between 0 and 1. The source finds it higher of poisoned rows than
of clean ones, and flags above a valley between two peaks of its density. Here it is a number, and
no part of `answer_issues`.

An answer of few tokens has few directions: entropy is at most log(tokens) / log(top). So compare
answers of one length, or within a task.

Only the output layer counts, as in the source, so that there are no layers to sum over, and no
backward pass: its output gradient is p - [word], p the probabilities of the next word. Where an
embedding table shares its weight, its use as output layer alone counts. The source takes an eighth
of both sides of the matrix, to spare time, and approximate singular values; here the whole and the
exact ones.

Source: GradSentry, arXiv:2605.26574, and the code published with it, whose `top` is 16.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch

from stages.gradients.spectra import singular_values, spectral_entropy
from stages.model.batches import batches
from stages.model.measurement import Measurement, forward, load_measurement
from stages.model.networks import IGNORED, TokenNetwork, widened
from stages.model.size import network_size
from stages.model.spec import ModelSpec, RunsModel
from stages.stage import ConfigError, Cost, Inputs, Role, Rows, Split, Stage, Work
from storage.schema import TableSpec

SPECTRAL_ENTROPY = TableSpec(
    name="spectral_entropy",
    schema=pa.schema(
        [
            ("example_id", pa.int64()),
            ("n_tokens", pa.int64()),
            ("spectral_entropy", pa.float64()),
        ]
    ),
    key=("example_id",),
)
"""Tokens of an answer, and the entropy of its gradient; null where the gradient is 0."""


@dataclass(frozen=True)
class SpectralEntropy(RunsModel, Stage):
    """The spectral entropy of each example with an answer. One forward pass a row."""

    model: ModelSpec
    """The language model, head: completion. The source takes it before any fine-tuning."""
    top: int = 16
    """Singular values that count."""
    token_budget: int = 2048
    """Padded tokens per batch; changes the last bits of a number, hence part of the key."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    opens: ClassVar[tuple[Role, ...]] = ("example",)
    roles: ClassVar[tuple[Role, ...]] = ("example",)
    tasks: ClassVar[tuple[str, ...]] = ("completion",)
    outside_key: ClassVar[frozenset[str]] = frozenset({"model.train", "model.reduction"})

    def __post_init__(self) -> None:
        """Refuses a spectrum of one value.

        Raises:
            ConfigError: `top` is below 2.
        """
        if self.top < 2:
            raise ConfigError(
                f"spectral_entropy: found top: {self.top}, expected at least 2 singular values. "
                "Raise it."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The texts."""
        return ("text",)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per example of whose answer a token is read."""
        return (SPECTRAL_ENTROPY,)

    def open(self, inputs: Inputs) -> tuple[Measurement, TokenNetwork]:
        """The model, and its states of all tokens."""
        measurement = load_measurement(self.model, inputs)
        return measurement, TokenNetwork(widened(measurement.network))

    def compute(self, inputs: Inputs) -> Rows:
        """The entropies of one shard of examples."""
        measurement, network = inputs.opened
        text = inputs.table("text", "example")
        tokens = measurement.tokenise(text)
        kept = np.flatnonzero(measurement.has_target(tokens))
        found, counts = np.zeros(len(kept)), np.zeros(len(kept), np.int64)
        for rows in batches(tokens.lengths[kept], self.token_budget):
            batch = measurement.batch(tokens, kept[rows])
            targets = batch.pop("targets")
            with torch.no_grad():
                states = forward(network, batch)
                for place, row in enumerate(rows.tolist()):
                    at = torch.nonzero(targets[place] != IGNORED)[:, 0]
                    words, own = targets[place, at], states[place, at]
                    deltas = network.head(own).float().softmax(1)
                    deltas[torch.arange(len(at)), words] -= 1
                    found[row] = spectral_entropy(singular_values(deltas, own), self.top)
                    counts[row] = len(at)
        ids = text["id"].to_numpy()[kept]
        order = np.argsort(ids)
        columns = [
            pa.array(ids[order]),
            pa.array(counts[order]),
            pa.array(found[order], mask=np.isnan(found[order])),
        ]
        yield (
            SPECTRAL_ENTROPY.name,
            pa.RecordBatch.from_arrays(columns, schema=SPECTRAL_ENTROPY.schema),
        )

    def cost(self, work: Work) -> Cost:
        """A forward pass per row, and products of its tokens with each other."""
        size = network_size(self.model, None)
        n, words = work.n_examples, max(n_out for _, n_out in size.linear)
        per_row = math.ceil(work.n_tokens / max(1, n + work.n_queries))
        return Cost(
            forward_rows=n,
            flops=size.forward_flops(n * per_row) + 2.0 * n * per_row**2 * (words + size.dim),
            written_bytes=24 * n,
            memory_bytes=size.forward_bytes(self.token_budget)
            + 8 * per_row * words
            + 60 * (n // max(1, work.n_shards)) * per_row,
        )


STAGE = SpectralEntropy
