"""Networks that are trained many times: a head on vectors, a model's upper blocks, or all of it.

The rows of a learner are the labelled examples of a corpus, ascending by id, and then its queries.
Hidden states below the trained blocks are computed once, so that a step costs the upper blocks
alone.
"""

from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from stages.model.batches import Tokens, batches
from stages.model.layers import blocks_of, parameters_above
from stages.model.measurement import Measurement, forward, load_measurement
from stages.model.networks import PooledNetwork, UpperNetwork
from stages.model.spec import ModelSpec, Trained
from stages.model.training import Batch, Learner, Rows, learner
from stages.reading.supervision import count_classes, read_labels
from stages.reading.vectors import aligned
from stages.stage import DataError, Inputs, ModelError, Role

LastBlocks = int | Literal["all"]
ROWS = 2**18
"""Vectors that are copied from their memory map at a time."""


class Players(NamedTuple):
    """The rows of a learner: labelled examples, then queries."""

    example_ids: Int64[np.ndarray, " examples"]
    query_ids: Int64[np.ndarray, " queries"]
    labels: Int64[Tensor, " examples_and_queries"]
    """Class indices of the examples, then of the queries; -1 for a query without a label."""

    @property
    def n(self) -> int:
        """The number of labelled examples."""
        return len(self.example_ids)


def read_players(inputs: Inputs, query_ids: Int64[np.ndarray, " queries"]) -> Players:
    """The labelled examples, and the queries with these ids, with their labels.

    Raises:
        DataError: no example or no query has a label, or a label is outside of the classes.
    """
    n_classes = count_classes(inputs)
    example_ids, labels = read_labels(inputs, "example", n_classes)
    known_ids, known = read_labels(inputs, "query", n_classes)
    if not len(example_ids) or not len(known_ids):
        raise DataError(
            f"label: found labels of {len(example_ids)} examples and {len(known_ids)} queries, "
            "expected at least one of each. Label some rows."
        )
    label_of = dict(zip(known_ids.tolist(), known.tolist(), strict=True))
    of_queries = [label_of.get(query_id, -1) for query_id in query_ids.tolist()]
    joined = torch.tensor([*labels.tolist(), *of_queries])
    return Players(example_ids, query_ids, joined)


def read_vectors(inputs: Inputs, table: str) -> tuple[Players, Learner]:
    """The rows, and a learner that trains a head on the vectors of the feature table `table`."""
    queries = inputs.vectors(table, "query")
    players = read_players(inputs, np.array(queries.ids))
    examples = inputs.vectors(table, "example")
    vectors = torch.empty(len(players.labels), examples.matrix.shape[1])
    for start in range(0, players.n, ROWS):
        part = slice(start, min(start + ROWS, players.n))
        vectors[part] = aligned(examples, players.example_ids[part])
    vectors[players.n :] = aligned(queries, players.query_ids)
    return players, vector_learner(vectors, count_classes(inputs))


def read_texts(
    inputs: Inputs, model: ModelSpec, last_blocks: LastBlocks, token_budget: int
) -> tuple[Players, Learner]:
    """The rows, and a learner that trains the last blocks of `model` on their texts.

    Raises:
        ModelError: the head has another number of outputs than there are classes.
    """
    n_classes = count_classes(inputs)
    players = read_players(inputs, inputs.table("text", "query")["id"].to_numpy())
    measurement, fresh = load_start(inputs, model, n_classes)

    def text_of(role: Role, ids: Int64[np.ndarray, " rows"]) -> pa.Table:
        text = inputs.table("text", role)
        return text.take(pc.index_in(pa.array(ids), text["id"].combine_chunks()))

    texts = [text_of("example", players.example_ids), text_of("query", players.query_ids)]
    tokens = measurement.tokenise(pa.concat_tables(texts))
    return players, text_learner(measurement, tokens, last_blocks, fresh, token_budget)


def load_start(
    inputs: Inputs, model: ModelSpec, n_classes: int
) -> tuple[Measurement, list[nn.Parameter]]:
    """The model before any training, and the parameters of its head if that is a fresh one.

    For `head: probe` the head is zero instead of the probe, which was fitted to all labels.

    Raises:
        ModelError: the head has another number of outputs than there are classes.
    """
    is_zero = model.kind.is_fitted
    start = replace(model, train=Trained(), dtype="float32")
    if is_zero:
        start = replace(start, head="random", num_labels=n_classes)
    measurement = load_measurement(start, inputs)
    if measurement.n_outputs != n_classes:
        raise ModelError(
            f"{model.path}: found a head of {measurement.n_outputs} outputs, expected one for each "
            f"of {n_classes} classes. Set head: probe for a fresh one."
        )
    if not isinstance(measurement.network, PooledNetwork):
        return measurement, []
    fresh = list(measurement.network.head.parameters())
    if is_zero:
        for weights in fresh:
            nn.init.zeros_(weights)
    return measurement, fresh


def vector_learner(vectors: Float[Tensor, "rows dim"], n_classes: int) -> Learner:
    """A learner that trains a linear head on vectors, from zero weights."""
    head = nn.Linear(vectors.shape[1], n_classes, dtype=vectors.dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)

    def batch(rows: Rows) -> dict[str, Tensor]:
        return {"input": vectors[torch.from_numpy(rows)]}

    weights = list(head.parameters())
    return learner(head, batch, np.ones(len(vectors), dtype=np.int64), weights, weights)


def text_learner(
    measurement: Measurement,
    tokens: Tokens,
    last_blocks: int | Literal["all"],
    fresh: list[nn.Parameter],
    token_budget: int,
) -> Learner:
    """A learner that trains a model's last blocks and the layers above them, or `all`, on texts.

    `fresh` are the parameters of a fresh head.

    One pass of the whole model over all rows computes the hidden states below the last blocks;
    memory: a float32 number for each token and hidden dimension.

    Raises:
        ConfigError: the model has fewer blocks.
        ModelError: its blocks return more than hidden states.
    """
    network = measurement.network

    def batch(rows: Rows) -> dict[str, Tensor]:
        return measurement.batch(tokens, rows)

    if last_blocks == "all":
        return learner(network, batch, tokens.lengths, list(network.parameters()), fresh)
    tuned = list(parameters_above(network, last_blocks).values())
    stack = blocks_of(network, last_blocks)[1]
    lower = list(stack)[: len(stack) - last_blocks]
    if not lower:
        return learner(network, batch, tokens.lengths, tuned, fresh)
    states = hidden_states(network, lower[-1], batch, tokens.lengths, token_budget)

    def upper_batch(rows: Rows) -> dict[str, Tensor]:
        of_rows = nn.utils.rnn.pad_sequence([states[row] for row in rows], batch_first=True)
        return {**batch(rows), "hidden_states": of_rows}

    return learner(UpperNetwork(network, lower), upper_batch, tokens.lengths, tuned, fresh)


def hidden_states(
    network: nn.Module, block: nn.Module, batch: Batch, lengths: Rows, token_budget: int
) -> list[Float[Tensor, "_ dim"]]:
    """The hidden states of each row's tokens behind `block`, a module of `network`.

    Raises:
        ModelError: the block returns more than hidden states.
    """
    block_outputs: list[Tensor] = []

    def listen(_: nn.Module, __: object, output: object) -> None:
        if not isinstance(output, Tensor):
            raise ModelError(
                f"last_blocks: found blocks that return a {type(output).__name__}, expected hidden "
                "states alone. Set last_blocks: all, or train the head alone by last_blocks: 0 and "
                "head: probe."
            )
        block_outputs.append(output)

    states_of: list[Tensor] = [torch.empty(0)] * len(lengths)
    handle = block.register_forward_hook(listen)
    try:
        for rows in batches(lengths, token_budget):
            with torch.no_grad():
                forward(network, batch(rows))
            for row, states in zip(rows, block_outputs.pop(), strict=True):
                states_of[row] = states[: lengths[row]].clone()
    finally:
        handle.remove()
    return states_of
