"""Support sets and support spectra of the predictions for queries (`stages/ranking/spectrum.py`).

The spectrum and the size of a support set follow from those of the shards of a corpus, so shards
are computed one by one and merged: the frontier of several frontiers is the frontier of all.

Source: arXiv:2408.05976, whose text could not be read: `stages/ranking/spectrum.py` says what is
quoted and what is derived. The global score only ranks here: it has a sign, other than in
`components`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from stages.capabilities import Merges
from stages.ranking.spectrum import (
    Frontier,
    General,
    Membership,
    Similarity,
    Weight,
    frontier,
    global_scores,
    is_between,
    merged,
    runner_up,
    scaled,
)
from stages.reading.logits import read_predicted
from stages.reading.supervision import count_classes, read_labels
from stages.stage import ConfigError, Cost, DataError, Inputs, Role, Rows, Split, Work
from stages.tables import GENERAL
from storage.schema import TableSpec

SET_COST = 5e6
"""Time for one set of a shard, in operations of matrix products; seen on one core."""
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
"""How many examples a support set has; 0 says that none lies between the query and the class."""


SET_BYTES = 8000
"""Memory of a support set of a shard with its spectrum, as seen on 64 numbers and two classes."""


class SupportQueries(NamedTuple):
    """The queries that have features and logits, by ascending id."""

    ids: np.ndarray
    features: np.ndarray
    logits: np.ndarray
    contrasts: list[list[int]]
    """The classes k of each query's support sets, -1 for the general set."""


@dataclass(frozen=True)
class Support(Merges):
    """Support spectra of all queries, general and towards other classes.

    A task holds one shard's features and logits and those of all queries. Cost 2 dim per query and
    example, and a sort of the examples of a set.
    """

    features: str = "embedding"
    """Feature table with what the model's last layer reads, for the local score."""
    predictions: str = "prediction"
    """Instance with the model's logits."""
    contrasts: Literal["all", "runner_up"] | tuple[str | int, ...] = "all"
    """Classes k of the support sets: every other class, the one with the second largest logit, or
    the classes of these names or numbers."""
    general: General | None = "logit"
    """How the set without a class k is read (`stages/ranking/spectrum.py`); null leaves it out."""
    membership: Membership = "label"
    """Whether examples must be predicted, too, to be of the class that they are labelled."""
    weight: Weight = "negative_logit"
    """The global score; `residual` is the other reading (`stages/ranking/spectrum.py`)."""
    similarity: Similarity = "inner_product"
    """The local score."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    opens: ClassVar[tuple[Role, ...]] = ("query",)
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    def __post_init__(self) -> None:
        """Refuses fields without any support set.

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

    def open(self, inputs: Inputs) -> SupportQueries:
        """The queries with their features, logits and classes k, once per worker.

        Raises:
            ConfigError: a class that is named is none.
            DataError: there is no query with features and logits.
        """
        ids, logits, features = read_predicted(inputs, self.features, self.predictions, "query")
        if len(ids) == 0:
            raise DataError(
                f"{self.features}: found no query with features and logits, expected at least one "
                "to explain. Add `queries:`."
            )
        features = scaled(features, self.similarity)
        return SupportQueries(ids, features, logits, self._contrasts(inputs, logits))

    def compute(self, inputs: Inputs) -> Rows:
        """Spectra and sizes of every query's support sets among the examples of one shard."""
        queries: SupportQueries = inputs.opened
        ids, labels, logits, features = self._examples(inputs)
        if len(ids) == 0:
            features = np.zeros((0, queries.features.shape[1]))
        chosen, predicted_of_examples = queries.logits.argmax(1), logits.argmax(1)
        second = runner_up(queries.logits)
        spectra, sizes = [], []
        for predicted in np.unique(chosen).tolist():
            is_own = labels == predicted
            if self.membership == "label_and_prediction":
                is_own &= predicted_of_examples == predicted
            of_class = ids[is_own], logits[is_own], features[is_own]
            for row in np.flatnonzero(chosen == predicted):
                local = of_class[2] @ queries.features[row]
                for contrast in queries.contrasts[row]:
                    towards = int(second[row]) if self._is_second(contrast) else contrast
                    kept, front = self._spectrum(
                        of_class[0], of_class[1], local, queries.logits[row], predicted, towards
                    )
                    n = len(front.at)
                    pair = [np.full(n, queries.ids[row]), np.full(n, contrast)]
                    sizes.append([queries.ids[row], contrast, len(kept)])
                    spectra.append([*pair, np.arange(1, n + 1), kept[front.at], *front[1:]])
        yield SUPPORT_SIZE.name, _batch(SUPPORT_SIZE, [np.array(row)[:, None] for row in sizes])
        yield SUPPORT.name, _batch(SUPPORT, spectra)

    def _is_second(self, contrast: int) -> bool:
        """Whether `contrast` is the general set, and that is the one towards the runner-up."""
        return contrast == GENERAL and self.general == "runner_up"

    def _spectrum(
        self,
        ids: np.ndarray,
        logits: np.ndarray,
        local: np.ndarray,
        query: np.ndarray,
        predicted: int,
        towards: int,
    ) -> tuple[np.ndarray, Frontier]:
        """Ids of the examples in a support set, and its frontier, by position among these ids.

        `ids`, `logits` and `local` scores are of examples of the predicted class, `query` is the
        query's logits.
        """
        inside = is_between(logits, query, predicted, towards, self.general or "logit")
        g = global_scores(logits[inside], predicted, towards, self.weight)
        return ids[inside], frontier(ids[inside], g, local[inside])

    def merge(self, parts: Mapping[str, Sequence[pa.Table]]) -> Rows:
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
        sets = work.n_queries * towards * work.n_shards
        return Cost(
            flops=pairs * (2.0 * work.dim + 200.0 * towards) + SET_COST * sets,
            written_bytes=sets * 2 * 40,
            memory_bytes=round(
                24 * (shard + work.n_queries) * (work.dim + work.n_classes)
                + SET_BYTES * work.n_queries * towards
            ),
        )

    def _contrasts(self, inputs: Inputs, logits: np.ndarray) -> list[list[int]]:
        """The classes k of each query's support sets, its predicted class left out."""
        predicted, n_classes = logits.argmax(1), logits.shape[1]
        first = [] if self.general is None else [GENERAL]
        if self.contrasts == "runner_up":
            return [[*first, int(k)] for k in runner_up(logits)]
        wanted = list(range(n_classes))
        if self.contrasts != "all":
            names = [str(name) for name in inputs.details("label")["classes"]]
            for name in self.contrasts:
                if str(name) not in names and not (isinstance(name, int) and 0 <= name < n_classes):
                    raise ConfigError(
                        f"contrasts: found {name!r}, expected classes of {', '.join(names[:8])}. "
                        "Name some of them."
                    )
            wanted = [
                names.index(str(name)) if str(name) in names else int(name)
                for name in self.contrasts
            ]
        return [[*first, *(k for k in sorted(set(wanted)) if k != c)] for c in predicted.tolist()]

    def _examples(self, inputs: Inputs) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Ids, labels, logits, features of the shard's examples that have them all, by id."""
        labelled, labels = read_labels(inputs, "example", count_classes(inputs))
        ids, logits, features = read_predicted(inputs, self.features, self.predictions, "example")
        kept = np.isin(ids, labelled)
        own = labels[np.searchsorted(labelled, ids[kept])]
        return ids[kept], own, logits[kept], scaled(features[kept], self.similarity)


def _batch(spec: TableSpec, parts: list[Any]) -> pa.RecordBatch:
    """Rows of the table `spec`, in key order, from parts that each hold all of its columns."""
    if not parts:
        return pa.RecordBatch.from_pylist([], schema=spec.schema)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.lexsort([columns[at] for at in reversed(range(len(spec.key)))])
    arrays = [pa.array(column[order]) for column in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=spec.schema)


STAGE = Support
