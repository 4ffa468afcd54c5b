"""Support sets and support spectra of the predictions for queries; see `stages/spectrum.py`.

A spectrum and the size of a set follow from those of the parts of a corpus, so shards are looked at
one by one and merged: the frontier of several frontiers is the frontier of all.

Source: arXiv:2408.05976, whose text could not be read: `stages/spectrum.py` says what is quoted and
what is derived. The global score only ranks here: it has a sign, other than in `components`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.answer import count_classes
from stages.batching import matrix_of
from stages.spectrum import (
    GENERAL,
    General,
    Membership,
    Weight,
    frontier,
    global_scores,
    is_between,
    merged,
    runner_up,
)
from stages.stage import ConfigError, Cost, DataError, Inputs, Role, Split, Work
from storage.schema import TableSpec

SUPPORT = TableSpec(
    name="support",
    schema=pa.schema(
        [
            ("query_id", pa.int64()),
            ("contrast", pa.int64()),
            ("rank", pa.int64()),
            ("example_id", pa.int64()),
            ("global_score", pa.float64()),
            ("local_score", pa.float64()),
        ]
    ),
    key=("query_id", "contrast", "rank"),
)
"""A query's spectrum towards a class, -1 for the general one; rank 1 is the most global example."""

SUPPORT_SIZE = TableSpec(
    name="support_size",
    schema=pa.schema(
        [("query_id", pa.int64()), ("contrast", pa.int64()), ("n_support", pa.int64())]
    ),
    key=("query_id", "contrast"),
)
"""How many examples the set has; 0 is a result: no example lies between the query and the class."""


class Queries(NamedTuple):
    """The queries that have features and logits, by id."""

    ids: np.ndarray
    features: np.ndarray
    logits: np.ndarray
    contrasts: list[list[int]]
    """The classes that each is held against."""


@dataclass(frozen=True)
class Support:
    """Spectra of all queries, general and towards other classes.

    A task holds one shard's features and logits and those of all queries. Cost 2 dim per query and
    example, and a sort of the examples of a set.
    """

    features: str = "embedding"
    """What the model's last layer reads, for the local score."""
    predictions: str = "prediction"
    """Instance with the model's logits."""
    contrasts: Literal["all", "runner_up"] | tuple[str | int, ...] = "all"
    """Classes that predictions are held against: every other one, the second largest logit, or
    those of some names or numbers."""
    general: General | None = "logit"
    """How the set without a class k is read (`stages/spectrum.py`); null leaves it out."""
    membership: Membership = "label"
    """Whether examples must be predicted, too, to be of the class that they are labelled."""
    weight: Weight = "negative_logit"
    """The global score; `residual` is the other reading (`stages/spectrum.py`)."""
    similarity: Literal["inner_product", "cosine"] = "inner_product"
    """The local score; the inner product, which is quoted of the paper, favours long vectors."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    opens: ClassVar[tuple[Role, ...]] = ("query",)
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    def __post_init__(self) -> None:
        """Refuses to compute nothing.

        Raises:
            ConfigError: neither a general set nor a class is wanted.
        """
        if self.contrasts == () and self.general is None:
            raise ConfigError(
                "contrasts: found none with general: null, expected classes or a reading of the "
                "general set. Set contrasts: all."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """Features, logits and labels."""
        return (self.features, self.predictions, "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Spectra, and the sizes of the sets."""
        return (SUPPORT, SUPPORT_SIZE)

    def open(self, inputs: Inputs) -> Queries:
        """The queries' side.

        Raises:
            ConfigError: a class that is named is none.
            DataError: there is no query with features and logits.
        """
        table = inputs.table(self.predictions, "query")
        table = table.filter(pc.equal(table["role"], "query")).sort_by("id")
        vectors = inputs.vectors(self.features, "query")
        ids = np.intersect1d(table["id"].to_numpy(), vectors.ids)
        if len(ids) == 0:
            raise DataError(
                f"{self.features}: found no query with features and logits, expected at least one "
                "to explain. Add `queries:`."
            )
        logits = matrix_of(table["logits"])[np.searchsorted(table["id"].to_numpy(), ids)]
        order = np.argsort(vectors.ids, kind="stable")
        rows = order[np.searchsorted(vectors.ids, ids, sorter=order)]
        features = self._scaled(np.array(vectors.matrix[rows], np.float64))
        logits = logits.astype(np.float64)
        return Queries(ids, features, logits, self._contrasts(inputs, logits))

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Spectra and sizes among the examples of one shard."""
        queries: Queries = inputs.opened
        ids, labels, logits, features = self._examples(inputs, queries.logits.shape[1])
        chosen, found = queries.logits.argmax(1), logits.argmax(1)
        second = runner_up(queries.logits)
        spectra, sizes = [], []
        for predicted in np.unique(chosen).tolist():
            is_own = labels == predicted
            if self.membership == "label_and_prediction":
                is_own &= found == predicted
            at = np.flatnonzero(is_own)
            own, local_all = logits[at], features[at]
            for row in np.flatnonzero(chosen == predicted):
                local = local_all @ queries.features[row]
                for contrast in queries.contrasts[row]:
                    k = contrast
                    if contrast == GENERAL and self.general == "runner_up":
                        k = int(second[row])
                    general = self.general or "logit"
                    inside = is_between(own, queries.logits[row], predicted, k, general)
                    kept = np.flatnonzero(inside)
                    sizes.append((queries.ids[row], contrast, len(kept)))
                    g = global_scores(own[kept], predicted, k, self.weight)
                    front = frontier(ids[at[kept]], g, local[kept])
                    n = len(front.at)
                    columns = [np.full(n, queries.ids[row]), np.full(n, contrast)]
                    columns += [np.arange(1, n + 1), ids[at[kept[front.at]]], *front[1:]]
                    spectra.append(columns)
        yield SUPPORT_SIZE.name, _sizes(sizes)
        whole = [np.concatenate(column) for column in zip(*spectra, strict=True)]
        order = np.lexsort((whole[2], whole[1], whole[0]))
        arrays = [pa.array(column[order]) for column in whole]
        yield SUPPORT.name, pa.RecordBatch.from_arrays(arrays, schema=SUPPORT.schema)

    def merge(
        self, parts: Mapping[str, Sequence[pa.Table]]
    ) -> Iterator[tuple[str, pa.RecordBatch]]:
        """The frontiers of frontiers, and the sums of sizes."""
        sizes = pa.concat_tables(parts[SUPPORT_SIZE.name]).group_by(list(SUPPORT_SIZE.key))
        summed = sizes.aggregate([("n_support", "sum")]).rename_columns(SUPPORT_SIZE.schema.names)
        summed = summed.sort_by([(name, "ascending") for name in SUPPORT_SIZE.key])
        for batch in summed.combine_chunks().to_batches():
            yield SUPPORT_SIZE.name, batch
        rows = pa.concat_tables(parts[SUPPORT.name])
        queries, contrasts, _, ids, globally, locally = (c.to_numpy() for c in rows.columns)
        at, rank = merged((queries, contrasts), (ids,), globally, locally)
        columns = [queries[at], contrasts[at], rank, ids[at], globally[at], locally[at]]
        arrays = [pa.array(column) for column in columns]
        yield SUPPORT.name, pa.RecordBatch.from_arrays(arrays, schema=SUPPORT.schema)

    def cost(self, work: Work) -> Cost:
        """An inner product per query and example, and a sort per set."""
        towards = work.n_classes if self.contrasts == "all" else 2
        pairs = work.n_queries * work.n_examples / max(1, work.n_classes)
        shard = work.n_examples / max(1, work.n_shards)
        return Cost(
            flops=pairs * (2.0 * work.dim + 200.0 * towards),
            written_bytes=work.n_queries * towards * work.n_shards * 8 * 40,
            memory_bytes=round(8 * (shard + work.n_queries) * (work.dim + work.n_classes)),
        )

    def _scaled(self, rows: np.ndarray) -> np.ndarray:
        if self.similarity == "inner_product":
            return rows
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(length > 0, length, 1.0)

    def _contrasts(self, inputs: Inputs, logits: np.ndarray) -> list[list[int]]:
        """The classes that each query is held against, its own left out."""
        predicted, n_classes = logits.argmax(1), logits.shape[1]
        first = [] if self.general is None else [GENERAL]
        if self.contrasts == "runner_up":
            return [[*first, int(k)] for k in runner_up(logits)]
        wanted = list(range(n_classes))
        if self.contrasts != "all":
            names = [str(name) for name in inputs.details("label")["classes"]]
            for name in self.contrasts:
                if str(name) not in names and not (isinstance(name, int) and name < n_classes):
                    raise ConfigError(
                        f"contrasts: found {name!r}, expected classes of {', '.join(names[:8])}. "
                        "Name some of them."
                    )
            wanted = [
                names.index(str(name)) if str(name) in names else int(name)
                for name in self.contrasts
            ]
        return [[*first, *(k for k in sorted(set(wanted)) if k != c)] for c in predicted.tolist()]

    def _examples(
        self, inputs: Inputs, n_classes: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Ids, labels, logits and features of the shard's examples that have them all, by id."""
        if count_classes(inputs) != n_classes:
            raise DataError(
                f"{self.predictions}: found {n_classes} logits a row, expected "
                f"{count_classes(inputs)}, one per class. Name predictions of this corpus."
            )
        label = inputs.table("label").select(["id", "label"]).drop_null().sort_by("id")
        tables = [inputs.table(name).sort_by("id") for name in (self.predictions, self.features)]
        ids = label["id"].to_numpy()
        for table in tables:
            ids = np.intersect1d(ids, table["id"].to_numpy())
        if len(ids) == 0:
            none = np.zeros(0, np.int64)
            return none, none, np.zeros((0, n_classes)), np.zeros((0, 0))
        labels = label["label"].to_numpy()[np.searchsorted(label["id"].to_numpy(), ids)]
        at = [np.searchsorted(table["id"].to_numpy(), ids) for table in tables]
        logits = matrix_of(tables[0]["logits"])[at[0]].astype(np.float64)
        features = matrix_of(tables[1]["vector"])[at[1]].astype(np.float64)
        return ids, labels, logits, self._scaled(features)


def _sizes(rows: list[tuple[Any, int, int]]) -> pa.RecordBatch:
    columns = [np.array(column, np.int64) for column in zip(*rows, strict=True)]
    order = np.lexsort((columns[1], columns[0]))
    arrays = [pa.array(column[order]) for column in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=SUPPORT_SIZE.schema)


STAGE = Support
