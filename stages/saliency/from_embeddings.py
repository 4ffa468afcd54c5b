"""A network seen as a function of its word embeddings.

Whatever a network does with the ids of its tokens but look up their embeddings (positions, masks,
the place of the last token) it does as always; the looked-up vectors alone are replaced, inside the
network, by a hook on its embedding table. So every architecture that has such a table will do,
also those that scale or normalise behind it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stages.model.batches import Tokens, batches
from stages.model.measurement import Measurement, forward
from stages.model.networks import NextWordNetwork
from stages.stage import ConfigError

BaselineName = Literal["mask", "pad", "zero"]


class Targets(NamedTuple):
    """Which number of its outputs is explained, for each row."""

    which: Int[np.ndarray, " rows"]
    """Of outputs that are several distributions, such as start and end of an answer: which."""
    choice: Int[np.ndarray, " rows"]
    """The class, the token of the vocabulary, or the place of the answer."""

    def of(self, rows: Int[np.ndarray, " some"]) -> "Targets":
        """Those of some rows."""
        return Targets(self.which[rows], self.choice[rows])


class FromEmbeddings:
    """A measurement's network and its embedding table.

    Attributes:
        measurement: Tokenizer, device and specification.
        network: As `Measurement.network`; of a completion model, the logits of the next token.
        table: Rows of the word-embedding table, (words, dim), without gradient.
    """

    def __init__(self, measurement: Measurement) -> None:
        self.measurement = measurement
        self.network: nn.Module = measurement.head.of_embeddings(measurement.network)
        layer = _embedding_layer(self.network)
        self.table: Float[Tensor, "words dim"] = layer.weight.detach()
        self._given: Tensor | None = None
        layer.register_forward_hook(self._replaced)

    @property
    def answers_by_place(self) -> bool:
        """Whether the choices are places in the text, which deleting tokens would change."""
        return self.measurement.head.explains == "answer"

    @property
    def is_regression(self) -> bool:
        """Whether the only output is a number."""
        return self.measurement.head.has_class_outputs and self.measurement.n_outputs == 1

    def batch(self, tokens: Tokens, rows: Int[Any, " rows"]) -> dict[str, Tensor]:
        """The named rows as arguments of the network."""
        batch = self.measurement.batch(tokens, rows)
        if isinstance(self.network, NextWordNetwork):
            batch.pop("targets", None)
            if "position" not in batch:
                batch["position"] = batch["attention_mask"].sum(1) - 1
        return batch

    def choices(
        self,
        batch: Mapping[str, Tensor],
        which: Int[np.ndarray, " rows"],
        embeddings: Float[Tensor, "rows tokens dim"] | None = None,
    ) -> Float[Tensor, "rows choices"]:
        """The logits among which each row's target is; of `embeddings`, where they are given."""
        self._given = embeddings
        try:
            outputs = forward(self.network, batch)
        finally:
            self._given = None
        if outputs.dim() == 3:
            outputs = outputs[torch.arange(len(outputs)), torch.from_numpy(which)]
        return outputs

    def all_choices(
        self, tokens: Tokens, which: Int[np.ndarray, " rows"], token_budget: int
    ) -> list[Float[Tensor, " choices"]]:
        """The logits of every row as it is, without gradient."""
        found: list[Tensor] = [torch.empty(0)] * len(tokens.lengths)
        for rows in batches(tokens.lengths, token_budget):
            with torch.no_grad():
                logits = self.choices(self.batch(tokens, rows), which[rows])
            for row, own in zip(rows.tolist(), logits, strict=True):
                found[row] = own
        return found

    def vectors(self, ids: Sequence[int]) -> Float[Tensor, "tokens dim"]:
        """Word embeddings of some tokens."""
        return self.table[torch.tensor(ids, device=self.table.device)]

    def baseline_id(self, name: BaselineName) -> int | None:
        """The token of a baseline; None for the zero vector.

        Raises:
            ConfigError: the tokenizer has no such token.
        """
        if name == "zero":
            return None
        tokenizer = self.measurement.tokenizer
        found = {"mask": tokenizer.mask_token_id, "pad": tokenizer.pad_token_id}[name]
        if found is None or found >= len(self.table):
            others = [n for n in ("mask", "pad") if getattr(tokenizer, f"{n}_token_id") is not None]
            raise ConfigError(
                f"baseline: found {name} with a tokenizer that has no such token, expected one of "
                f"{', '.join([*others, 'zero'])}. Set baseline to it."
            )
        return int(found)

    def baseline(self, name: BaselineName) -> Float[Tensor, " dim"]:
        """The vector that a word's path begins at."""
        found = self.baseline_id(name)
        return self.table[found] if found is not None else torch.zeros_like(self.table[0])

    def _replaced(self, layer: nn.Module, arguments: Any, output: Tensor) -> Tensor | None:
        return self._given


Points = Callable[[int, Int[np.ndarray, " points"]], Float[Tensor, "points tokens dim"]]
"""Word embeddings of a row at some of its points."""
Take = Callable[[int, Int[np.ndarray, " points"], Float[Tensor, "points tokens dim"], Tensor], None]
"""Is given the gradients of a row at some of its points, and the outputs there."""


def differentiate(
    embedded: FromEmbeddings,
    tokens: Tokens,
    targets: Targets,
    n_points: Sequence[int],
    points: Points,
    take: Take,
    token_budget: int,
    largest: bool = False,
) -> None:
    """Gradients of each row's target by its word embeddings, at several points of each.

    Rows and points are cut together into batches of at most `token_budget` padded tokens: a long
    row is spread over several, short ones share one. `largest` explains at every point the largest
    logit there, whichever it is. Cost: a forward pass and one backward pass without any weight
    gradient, for every point.
    """
    counts = np.asarray(n_points, np.int64)
    owner = np.repeat(np.arange(len(counts)), counts)
    point = np.concatenate([np.arange(n) for n in counts] or [np.zeros(0, np.int64)])
    lengths = tokens.lengths
    for batch in batches(lengths[owner], token_budget):
        rows = owner[batch]
        arguments = embedded.batch(tokens, rows)
        longest = arguments["input_ids"].shape[1]
        dim = embedded.table.shape[1]
        given = torch.zeros(len(rows), longest, dim, device=embedded.table.device)
        groups = list(_runs(rows))
        for start, stop in groups:
            row = int(rows[start])
            given[start:stop, : lengths[row]] = points(row, point[batch[start:stop]])
        given.requires_grad_(True)
        own = targets.of(rows)
        logits = embedded.choices(arguments, own.which, given)
        choice = torch.from_numpy(own.choice).to(logits.device)
        values = logits.amax(1) if largest else logits.gather(1, choice[:, None]).squeeze(1)
        (gradient,) = torch.autograd.grad(values.sum(), given)
        values = values.detach()
        for start, stop in groups:
            row = int(rows[start])
            kept = gradient[start:stop, : lengths[row]]
            take(row, point[batch[start:stop]], kept, values[start:stop])


def _runs(rows: Int[np.ndarray, " rows"]) -> Iterator[tuple[int, int]]:
    """First and behind-last place of every run of equal numbers."""
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
