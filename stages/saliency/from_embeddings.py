"""A network as a function of the word embeddings of its tokens, and its gradients by them.

The network is called with token ids, from which it makes positions, masks and the index of the last
token as always. A hook on its embedding table replaces the looked-up vectors alone by the given
ones. So every architecture that has such a table will do, also those that scale or normalise its
vectors; given are always those of the table, before it scales them itself, as that of Gemma does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stages.model.batches import Tokens, batches
from stages.model.layers import scale_of
from stages.model.measurement import Measurement, forward
from stages.model.networks import NextWordNetwork, widened
from stages.stage import ConfigError

BaselineName = Literal["mask", "pad", "zero"]


class Targets(NamedTuple):
    """The output that is explained of each row, by its indices in what the network returns."""

    distribution: Int[np.ndarray, " rows"]
    """Index of the distribution, where the network returns several: 0 is the start and 1 the end of
    an answer; otherwise 0."""
    choice: Int[np.ndarray, " rows"]
    """Index in that distribution: a class, a token of the vocabulary, or an answer's position."""

    def take(self, rows: Int[np.ndarray, " kept"]) -> "Targets":
        """The targets of the rows with these numbers."""
        return Targets(self.distribution[rows], self.choice[rows])


class FromEmbeddings:
    """A measurement's network, which can be called with word embeddings in place of token ids.

    Attributes:
        measurement: The model's tokenizer, device and specification.
        network: As `Measurement.network`; of a completion model, the logits of the next token.
        table: Rows of the word-embedding table, (words, dim), without gradient.
    """

    def __init__(self, measurement: Measurement) -> None:
        self.measurement = measurement
        self.network: nn.Module = measurement.head.of_embeddings(widened(measurement.network))
        layer = _embedding_layer(self.network)
        self.table: Float[Tensor, "words dim"] = layer.weight.detach()
        self._scale = scale_of(layer)
        self._embeddings: Tensor | None = None
        self._n_read = 0
        layer.register_forward_hook(self._replaced)

    @property
    def explains_positions(self) -> bool:
        """Whether the explained choices are token positions, which deleting tokens would change."""
        return self.measurement.head.explains == "answer"

    @property
    def is_regression(self) -> bool:
        """Whether the model predicts one number."""
        return self.measurement.head.has_class_outputs and self.measurement.n_outputs == 1

    def batch(self, tokens: Tokens, rows: Int[Any, " rows"]) -> dict[str, Tensor]:
        """The rows with these numbers, padded to the longest, as arguments of the network."""
        batch = self.measurement.batch(tokens, rows)
        if isinstance(self.network, NextWordNetwork):
            batch.pop("targets", None)
            if "position" not in batch:
                batch["position"] = batch["attention_mask"].sum(1) - 1
        return batch

    def choices(
        self,
        batch: Mapping[str, Tensor],
        distribution: Int[np.ndarray, " rows"],
        embeddings: Float[Tensor, "rows tokens dim"] | None = None,
    ) -> Float[Tensor, "rows choices"]:
        """The logits of the distribution that each row's target belongs to.

        The network reads `embeddings` where they are given, otherwise those of `batch`'s token ids.

        Raises:
            ConfigError: the network does not look its words up once, in its one table.
        """
        self._embeddings, self._n_read = embeddings, 0
        try:
            outputs = forward(self.network, batch)
        finally:
            self._embeddings = None
        if self._n_read != 1:
            raise ConfigError(
                f"{self.measurement.spec.path}: found a model that looks words up in its embedding "
                f"table {self._n_read} times, expected once: replaced words would not reach its "
                "outputs. Set head: probe, or leave token attribution out."
            )
        if outputs.dim() == 3:
            outputs = outputs[torch.arange(len(outputs)), torch.from_numpy(distribution)]
        return outputs

    def all_choices(
        self, tokens: Tokens, distribution: Int[np.ndarray, " rows"], token_budget: int
    ) -> list[Float[Tensor, " choices"]]:
        """The logits of every row of unchanged tokens, as `choices`, without gradient."""
        all_logits: list[Tensor] = [torch.empty(0)] * len(tokens.lengths)
        for rows in batches(tokens.lengths, token_budget):
            with torch.no_grad():
                logits = self.choices(self.batch(tokens, rows), distribution[rows])
            for row, row_logits in zip(rows.tolist(), logits, strict=True):
                all_logits[row] = row_logits
        return all_logits

    def vectors(self, ids: Sequence[int]) -> Float[Tensor, "tokens dim"]:
        """The word embeddings of these token ids."""
        return self.table[torch.tensor(ids, device=self.table.device)]

    def baseline_id(self, name: BaselineName) -> int | None:
        """The token id of a baseline; None for the zero vector.

        Raises:
            ConfigError: the tokenizer has no such token.
        """
        if name == "zero":
            return None
        tokenizer = self.measurement.tokenizer
        token_id = {"mask": tokenizer.mask_token_id, "pad": tokenizer.pad_token_id}[name]
        if token_id is None or token_id >= len(self.table):
            others = [n for n in ("mask", "pad") if getattr(tokenizer, f"{n}_token_id") is not None]
            raise ConfigError(
                f"baseline: found {name} with a tokenizer that has no such token, expected one of "
                f"{', '.join([*others, 'zero'])}. Set baseline to it."
            )
        return int(token_id)

    def baseline(self, name: BaselineName) -> Float[Tensor, " dim"]:
        """The embedding of a baseline: the first point of every word's path."""
        token_id = self.baseline_id(name)
        return self.table[token_id] if token_id is not None else torch.zeros_like(self.table[0])

    def _replaced(self, layer: nn.Module, arguments: Any, output: Tensor) -> Tensor | None:
        self._n_read += 1
        given = self._embeddings
        if given is None:
            return None
        given = given if self._scale == 1 else self._scale * given
        n_rows, n_tokens, _ = given.shape
        if output.shape[0] != n_rows or output.shape[1] < n_tokens:
            raise ConfigError(
                f"{self.measurement.spec.path}: found a model that looks up words of shape "
                f"{tuple(output.shape[:2])} for {n_rows} rows of {n_tokens} tokens, expected them "
                "row by row. Leave token attribution out."
            )
        # Longformer pads rows to a multiple of its window.
        more = output[:, n_tokens:].detach()
        return torch.cat([given, more], 1) if more.shape[1] else given


Points = Callable[[int, Int[np.ndarray, " points"]], Float[Tensor, "points tokens dim"]]
"""The word embeddings of a row at those of its points that have these numbers."""
Accumulate = Callable[
    [int, Int[np.ndarray, " points"], Float[Tensor, "points tokens dim"], Tensor], None
]
"""Receives of a row the numbers of some of its points, and the gradients and outputs there."""


def differentiate(
    embedded: FromEmbeddings,
    tokens: Tokens,
    targets: Targets,
    n_points: Sequence[int],
    points: Points,
    accumulate: Accumulate,
    token_budget: int,
    largest: bool = False,
) -> None:
    """Takes the gradient of each row's target by its word embeddings, at several points of the row.

    Row i has `n_points[i]` points, whose embeddings `points` gives; `accumulate` receives their
    gradients. Rows and points are cut together into batches of at most `token_budget` padded
    tokens: the points of a long row are spread over several batches, those of short rows share one.
    `largest` explains at every point the largest logit there instead of the row's target. Cost: a
    forward pass and one backward pass without any weight gradient, for every point.
    """
    counts = np.asarray(n_points, np.int64)
    row_of = np.repeat(np.arange(len(counts)), counts)
    point_of = np.concatenate([np.arange(n) for n in counts] or [np.zeros(0, np.int64)])
    lengths = tokens.lengths
    for batch in batches(lengths[row_of], token_budget):
        rows = row_of[batch]
        arguments = embedded.batch(tokens, rows)
        longest = arguments["input_ids"].shape[1]
        dim = embedded.table.shape[1]
        embeddings = torch.zeros(len(rows), longest, dim, device=embedded.table.device)
        groups = list(_runs(rows))
        for start, stop in groups:
            row = int(rows[start])
            embeddings[start:stop, : lengths[row]] = points(row, point_of[batch[start:stop]])
        embeddings.requires_grad_(True)
        batch_targets = targets.take(rows)
        logits = embedded.choices(arguments, batch_targets.distribution, embeddings)
        choice = torch.from_numpy(batch_targets.choice).to(logits.device)
        values = logits.amax(1) if largest else logits.gather(1, choice[:, None]).squeeze(1)
        (gradient,) = torch.autograd.grad(values.sum(), embeddings)
        values = values.detach()
        for start, stop in groups:
            row = int(rows[start])
            kept = gradient[start:stop, : lengths[row]]
            accumulate(row, point_of[batch[start:stop]], kept, values[start:stop])


def _runs(rows: Int[np.ndarray, " rows"]) -> Iterator[tuple[int, int]]:
    """Start and stop (exclusive) of every run of equal row numbers."""
    cuts = np.flatnonzero(np.diff(rows)) + 1
    yield from zip([0, *cuts.tolist()], [*cuts.tolist(), len(rows)], strict=True)


def _embedding_layer(network: nn.Module) -> nn.Embedding:
    for module in network.children():
        find: Any = getattr(module, "get_input_embeddings", None)
        if find is not None:
            layer: nn.Embedding = find()
            return layer
    raise ConfigError(
        f"model: found a {type(network).__name__} without a word-embedding table, expected a model "
        "of text. Leave token attribution out."
    )
