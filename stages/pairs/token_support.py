"""Support spectra of generated tokens: which places of the corpus stand behind a next token.

The classes are the words of the vocabulary, and a training row is a place of a text of the corpus
whose next token is the generated one. Such a place i, with the hidden state f_i that the output
layer reads, supports the query's token c where logit_c(i) < logit_c(t); its global score is
-logit_c(i), its local score f_i . f_t, and the spectrum is as in `stages/ranking/spectrum.py`. With
some 10^4 classes only the general set is looked at. Hidden states and logits are computed at such
places alone, in texts that have one: what most texts cost is a look at their tokens.

Source: arXiv:2408.05976, its part on text generation, whose text could not be read (methods.md 2.2
and 2.4; `stages/ranking/spectrum.py` says what is quoted and what derived).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from stages.model.batches import Tokens, batches
from stages.model.measurement import Measurement, forward, load_measurement
from stages.model.networks import TokenNetwork
from stages.model.size import network_size
from stages.model.spec import ModelSpec, RunsModel
from stages.ranking.spectrum import Similarity, frontier, merged, scaled
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError, Cost, DataError, Inputs, Merges, Rows, Split, Work
from storage.schema import TableSpec

TOKEN_SUPPORT = TableSpec(
    name="token_support",
    schema=pa.schema(
        [
            ("query_id", pa.int64()),
            ("token_index", pa.int64()),
            ("rank", pa.int64()),
            ("example_id", pa.int64()),
            ("example_token_index", pa.int64()),
            ("global_score", pa.float64()),
            ("local_score", pa.float64()),
            ("context", pa.string()),
        ]
    ),
    key=("query_id", "token_index", "rank"),
)
"""A place of the spectrum of a generated token; rank 1 is the most global one. `context` is what
leads up to it in the text of the example."""

TOKEN_SUPPORT_SIZE = TableSpec(
    name="token_support_size",
    schema=pa.schema(
        [
            ("query_id", pa.int64()),
            ("token_index", pa.int64()),
            ("n_places", pa.int64()),
            ("n_support", pa.int64()),
        ]
    ),
    key=("query_id", "token_index"),
)
"""In how many places of the corpus the token comes next, and how many of them support it."""

CONTEXT_TOKENS = 24


class Opening(NamedTuple):
    """What a worker keeps: the model, and the tokens to be explained."""

    measurement: Measurement
    network: TokenNetwork
    query_ids: np.ndarray
    token_index: np.ndarray
    token_id: np.ndarray
    logit: np.ndarray
    states: np.ndarray


class Places(NamedTuple):
    """Places of texts whose next token is asked for."""

    example_id: np.ndarray
    token_index: np.ndarray
    token_id: np.ndarray
    logit: np.ndarray
    states: np.ndarray
    contexts: list[str]


@dataclass(frozen=True)
class TokenSupport(RunsModel, Merges):
    """Spectra of the tokens of a `continuation`, over all predicted places of the corpus.

    A task holds the model, a batch, and the hidden states of the places of its shard.
    """

    model: ModelSpec
    """The language model that wrote the continuations."""
    continuation: str = "continuation"
    """Instance with the tokens to be explained."""
    similarity: Similarity = "inner_product"
    """The local score."""
    token_budget: int = 2048
    """Padded tokens per batch."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    tasks: ClassVar[tuple[str, ...]] = ("completion",)

    @property
    def reads(self) -> tuple[str, ...]:
        """The texts, and the tokens to be explained."""
        return ("text", self.continuation)

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """Continuations by the same model."""
        return {self.continuation: {"model": asdict(self.model)}}

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Spectra, and the sizes of the sets."""
        return (TOKEN_SUPPORT, TOKEN_SUPPORT_SIZE)

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses continuations by another model.

        Raises:
            ConfigError: they are.
        """
        other = getattr(writers[self.continuation], "model", None)
        if other != self.model:
            raise ConfigError(
                f"{self.continuation}: found that its model is not that of token_support, expected "
                "one for both. Set model in both stages."
            )

    def open(self, inputs: Inputs) -> Opening:
        """The model and the tokens.

        Raises:
            DataError: there is no token to explain.
        """
        asked = inputs.table(self.continuation)
        if asked.num_rows == 0:
            raise DataError(
                f"{self.continuation}: found no token to explain, expected at least one. Give more "
                "new_tokens or positions, or name other words."
            )
        order = [("query_id", "ascending"), ("token_index", "ascending")]
        asked = asked.sort_by(order)
        states = scaled(matrix_of(asked["vector"]), self.similarity)
        measurement = load_measurement(self.model, inputs)
        return Opening(
            measurement,
            TokenNetwork(measurement.network),
            asked["query_id"].to_numpy(),
            asked["token_index"].to_numpy(),
            asked["token_id"].to_numpy(),
            asked["logit"].to_numpy(),
            states,
        )

    def compute(self, inputs: Inputs) -> Rows:
        """Spectra and sizes among the texts of one shard."""
        opened: Opening = inputs.opened
        places = self._places(opened, inputs.table("text"))
        sizes, spectra = [], []
        for at, query_id in enumerate(opened.query_ids):
            same = np.flatnonzero(places.token_id == opened.token_id[at])
            kept = same[places.logit[same] < opened.logit[at]]
            sizes.append([query_id, opened.token_index[at], len(same), len(kept)])
            local = places.states[kept] @ opened.states[at]
            front = frontier(kept, -places.logit[kept], local)
            for rank, (one, g, near) in enumerate(zip(*front, strict=True), start=1):
                place = kept[one]
                row = [query_id, opened.token_index[at], rank, places.example_id[place]]
                row += [places.token_index[place], g, near, places.contexts[place]]
                spectra.append(row)
        for spec, rows in ((TOKEN_SUPPORT, spectra), (TOKEN_SUPPORT_SIZE, sizes)):
            columns = list(zip(*rows, strict=True)) if rows else [()] * len(spec.schema)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, spec.schema, strict=True)]
            yield spec.name, pa.RecordBatch.from_arrays(arrays, schema=spec.schema)

    def merge(self, parts: Mapping[str, Sequence[pa.Table]]) -> Rows:
        """The frontiers of frontiers, and the sums of sizes."""
        keys = list(TOKEN_SUPPORT_SIZE.key)
        sizes = pa.concat_tables(parts[TOKEN_SUPPORT_SIZE.name]).group_by(keys)
        summed = sizes.aggregate([("n_places", "sum"), ("n_support", "sum")])
        summed = summed.rename_columns(TOKEN_SUPPORT_SIZE.schema.names)
        for batch in summed.sort_by([(k, "ascending") for k in keys]).combine_chunks().to_batches():
            yield TOKEN_SUPPORT_SIZE.name, batch
        rows = pa.concat_tables(parts[TOKEN_SUPPORT.name])
        query, index, example, place, g, near = (
            rows[name].to_numpy() for name in rows.column_names if name not in ("rank", "context")
        )
        at, rank = merged((query, index), (example, place), g, near)
        kept = rows.take(pa.array(at)).set_column(2, "rank", pa.array(rank))
        for batch in kept.combine_chunks().to_batches():
            yield TOKEN_SUPPORT.name, batch

    def cost(self, work: Work) -> Cost:
        """At most one forward pass per text; texts without such a place are not run."""
        size = network_size(self.model, None)
        return Cost(
            forward_rows=work.n_examples,
            flops=size.forward_flops(work.n_tokens),
            memory_bytes=size.forward_bytes(self.token_budget),
            note="at most",
        )

    def _places(self, opened: Opening, text: pa.Table) -> Places:
        """The shard's places where one of the tokens comes next, by example and place."""
        measurement = opened.measurement
        text = text.sort_by("id")
        tokens = measurement.tokenise(text)
        wanted = set(opened.token_id.tolist())
        found = [
            [at for at, target in enumerate(row) if target in wanted]
            for row in tokens.columns["targets"]
        ]
        rows = np.flatnonzero([len(places) > 0 for places in found])
        states: dict[int, Tensor] = {}
        some = Tokens({"input_ids": [tokens.columns["input_ids"][row] for row in rows]})
        for batch in batches(some.lengths, self.token_budget):
            with torch.no_grad():
                hidden = forward(opened.network, measurement.batch(some, batch))
            for place, row in enumerate(rows[batch].tolist()):
                states[row] = hidden[place, found[row]].double().cpu()
        head = opened.network.head
        ids = text["id"].to_numpy()
        example_id, index, word, logit, contexts = [], [], [], [], []
        for row in rows.tolist():
            given = tokens.columns["input_ids"][row]
            for at, state in zip(found[row], states[row], strict=True):
                token = given[at + 1]
                own = head.weight[token].double().cpu() @ state
                bias = 0.0 if head.bias is None else float(head.bias[token])
                example_id.append(ids[row])
                index.append(at + 1)
                word.append(token)
                logit.append(float(own) + bias)
                start = max(0, at + 1 - CONTEXT_TOKENS)
                contexts.append(measurement.tokenizer.decode(given[start : at + 1]))
        matrix = torch.cat([states[row] for row in rows.tolist()]).numpy() if len(rows) else None
        dim = opened.states.shape[1]
        return Places(
            np.array(example_id, np.int64),
            np.array(index, np.int64),
            np.array(word, np.int64),
            np.array(logit, np.float64),
            np.zeros((0, dim)) if matrix is None else scaled(matrix, self.similarity),
            contexts,
        )


STAGE = TokenSupport
