"""Neighbour vote: which labels the nearest neighbours contradict.

The K nearest of the other labelled examples vote: v_c is the share of them with label c. By the
vote a given label y is wrong where another class has more of them. By rank the rows are ordered by
the cosine of their votes with their label,

    label_score = v_y / sqrt(sum_c v_c^2),

and of the rows of each label as many are wrong, the lowest first, as P(clean != y | given = y)
says. Source: SimiFeat, both variants (Zhu, Dong, Liu 2022, arXiv:2110.06283), in one pass over all
rows in place of votes among random views of them.

That probability is read from the labels of rows and of their two nearest neighbours. Were the
clean labels of the three equal, their given labels would be three draws from one row of the rates
T[i, j] = P(given = j | clean = i):

    P(j, k, l) = sum_i p_i T[i, j] T[i, k] T[i, l]    (Zhu, Song, Liu 2021, arXiv:2102.05291).

The source matches these numbers by least squares; here p and T are those of greatest likelihood.
Neighbours whose clean labels differ count as noise: where classes overlap, too many labels are
flagged. `label_issues` is the better judge (`scripts/benchmarks/noise.md`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int64

from stages.ranking.nearest import (
    EXAMPLES,
    QUERIES,
    Points,
    blocks_of_distances,
    nearest,
    place_points,
    queries_at_once,
)
from stages.reading.drawn import is_drawn
from stages.reading.supervision import answered_rows_of, count_classes, labels_in, read_labels
from stages.reading.vectors import evenly, matrix_of
from stages.stage import ConfigError, Cost, DataError, Inputs, Role, Rows, Split, Stage, Work
from storage.schema import TableSpec

NEIGHBOUR_VOTE = TableSpec(
    name="neighbour_vote",
    schema=pa.schema(
        [
            ("example_id", pa.int64()),
            ("given_label", pa.int64()),
            ("voted_label", pa.int64()),
            ("share", pa.float64()),
            ("label_score", pa.float64()),
            ("is_outvoted", pa.bool_()),
            ("is_low_ranked", pa.bool_()),
        ]
    ),
    key=("example_id",),
)
FIT_ROWS = 2**12
"""Most rows that rates, and the last scores that are flagged, are read from."""
STEPS = 500
"""Steps of the search for the likeliest rates, at most."""
LEAST_STEP = 1e-7
"""The search ends where no rate moves by more."""
KEPT_AT_FIRST = 0.8
"""Share of labels that are right, where the search starts; ones that are not told otherwise."""


class Voters(NamedTuple):
    """The labelled examples that vote, ascending by id, and what is flagged by rank."""

    ids: Int64[np.ndarray, " voters"]
    labels: Int64[np.ndarray, " voters"]
    points: Points
    n_classes: int
    rates: Float[np.ndarray, "classes classes"]
    """T[i, j], the probability that a row of class i was given label j."""
    wrong: Float[np.ndarray, " classes"]
    """P(clean != y | given = y) of each label y."""
    last_score: Float[np.ndarray, " classes"]
    """Of each label the last score that is flagged; -1 where none is."""
    last_id: Int64[np.ndarray, " classes"]
    """Of the rows with that score, the last id that is flagged."""


class Votes(NamedTuple):
    """Votes about the labels of some rows."""

    counts: Int64[np.ndarray, "rows classes"]
    """Neighbours of each label."""
    two: Int64[np.ndarray, "rows 2"]
    """Labels of the two nearest neighbours."""


def scores(
    counts: Int64[np.ndarray, "rows classes"], labels: Int64[np.ndarray, " rows"]
) -> Float[np.ndarray, " rows"]:
    """The cosine of each row's votes with its label, between 0 and 1; low is suspicious."""
    own = counts[np.arange(len(labels)), labels]
    found: np.ndarray = own / np.sqrt((counts**2).sum(1))
    return found


def winners(
    counts: Int64[np.ndarray, "rows classes"], labels: Int64[np.ndarray, " rows"]
) -> Int64[np.ndarray, " rows"]:
    """The class with most votes; of several the given label, else the first."""
    own = counts[np.arange(len(labels)), labels]
    found: np.ndarray = np.where(own == counts.max(1), labels, counts.argmax(1))
    return found


def likeliest_rates(
    triples: Int64[np.ndarray, "rows 3"], n_classes: int
) -> tuple[Float[np.ndarray, " classes"], Float[np.ndarray, "classes classes"]]:
    """Shares p and rates T of greatest likelihood, for labels of rows and of their two neighbours.

    By expectation and maximisation: the posterior of the clean label of each kind of triple, then
    the shares and rates of the labels weighed by it. A class that nobody was given keeps rates that
    say nothing. Cost O(kinds * classes) a step, for at most classes^3 / 6 kinds of triples.
    """
    kinds, times = np.unique(np.sort(triples, axis=1), axis=0, return_counts=True)
    shares = np.bincount(triples[:, 0], minlength=n_classes) / max(len(triples), 1)
    rates = np.full((n_classes, n_classes), (1 - KEPT_AT_FIRST) / (n_classes - 1))
    np.fill_diagonal(rates, KEPT_AT_FIRST)
    for _ in range(STEPS):
        joint = shares * rates.T[kinds].prod(axis=1)
        weighed = joint * (times / joint.sum(1))[:, None]
        counts = np.zeros((n_classes, n_classes))
        for place in range(3):
            np.add.at(counts, kinds[:, place], weighed)
        total = counts.sum(0)
        shares = total / total.sum()
        moved = np.where(total > 0, counts / np.where(total > 0, total, 1), rates.T).T
        step, rates = np.abs(moved - rates).max(), moved
        if step < LEAST_STEP:
            break
    return shares, rates


def wrong_of_each(
    shares: Float[np.ndarray, " classes"], rates: Float[np.ndarray, "classes classes"]
) -> Float[np.ndarray, " classes"]:
    """P(clean != y | given = y) of each label y; 0 of one that is not given."""
    seen = shares @ rates
    right = np.divide(shares * rates.diagonal(), seen, out=np.ones_like(seen), where=seen > 0)
    found: np.ndarray = np.clip(1 - right, 0, 1)
    return found


def last_of_each(
    found: Float[np.ndarray, " rows"],
    ids: Int64[np.ndarray, " rows"],
    labels: Int64[np.ndarray, " rows"],
    wrong: Float[np.ndarray, " classes"],
) -> tuple[Float[np.ndarray, " classes"], Int64[np.ndarray, " classes"]]:
    """Of each label the score and id of the last row that is flagged; ties go by id.

    Of the rows of a label the share `wrong` is flagged, rounded down.
    """
    last_score, last_id = np.full(len(wrong), -1.0), np.full(len(wrong), -1)
    for label, share in enumerate(wrong):
        members = np.flatnonzero(labels == label)
        count = int(share * len(members))
        if count:
            last = members[np.lexsort((ids[members], found[members]))[count - 1]]
            last_score[label], last_id[label] = found[last], ids[last]
    return last_score, last_id


@dataclass(frozen=True)
class NeighbourVote(Stage):
    """What the nearest neighbours say of every label, and which labels they contradict.

    `share` is that of the neighbours with the given label, `voted_label` has most of them and is
    the given one in a tie, `is_outvoted` says that it is another one. `label_score` is low where
    the votes contradict the label, and `is_low_ranked` flags the lowest of each label.

    A task holds one shard of vectors, and of 65,536 voters the distances to 128 rows; the voters'
    vectors stay in their memory map. Cost: rows times voters inner products.
    """

    features: str = "embedding"
    """The feature table that distances are taken in."""
    neighbours: int = 10
    """K, how many neighbours vote; as many as the source takes."""
    rows: int = 65_536
    """Most examples that vote, drawn by a hash of their ids."""
    normalize: bool = True
    """Nearest is the largest cosine, and a zero vector has cosine 0 with all; without it, the least
    Euclidean distance."""

    version: ClassVar[int] = 1
    judges_rows: ClassVar[bool] = True
    split: ClassVar[Split] = "shard"
    opens: ClassVar[tuple[Role, ...]] = ("example",)
    roles: ClassVar[tuple[Role, ...]] = ("example",)
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    def __post_init__(self) -> None:
        """Refuses fewer than two neighbours, or too few rows to find them among.

        Raises:
            ConfigError: there are.
        """
        if self.neighbours < 2:
            raise ConfigError(
                f"neighbour_vote: found neighbours: {self.neighbours}, expected at least 2, whose "
                "labels are compared. Raise it."
            )
        if self.rows <= self.neighbours:
            raise ConfigError(
                f"neighbour_vote: found rows: {self.rows}, expected more than neighbours: "
                f"{self.neighbours}. Raise it."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature table and the labels."""
        return (self.features, "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per example that has a label and features."""
        return (NEIGHBOUR_VOTE,)

    def open(self, inputs: Inputs) -> Voters:
        """The voters and what is flagged by rank, once per worker.

        Raises:
            DataError: too few examples have a label and features, or a vector is too long to be
                multiplied in float32.
        """
        n_classes = count_classes(inputs)
        labelled, labels = read_labels(inputs, "example", n_classes)
        ids, matrix = inputs.vectors(self.features, "example")
        rows, places = answered_rows_of(np.asarray(ids), labelled)
        order = np.argsort(places, kind="stable")
        rows, places = rows[order], places[order]
        if len(rows) <= self.neighbours:
            raise DataError(
                f"{self.features}: found {len(rows)} examples with a label and features, expected "
                f"more than neighbours: {self.neighbours}. Label more rows, or lower neighbours."
            )
        drawn = is_drawn(labelled[places], self.rows)
        own, voters = labels[places], places[drawn]
        points = place_points(matrix, rows[drawn], self.normalize)
        unknown = np.zeros(n_classes)
        opened = Voters(
            labelled[voters],
            labels[voters],
            points,
            n_classes,
            np.eye(n_classes),
            unknown,
            unknown - 1,
            unknown.astype(np.int64) - 1,
        )
        chosen = evenly(len(rows), FIT_ROWS)
        some, given = labelled[places][chosen], own[chosen]
        votes = self._votes(opened, some, np.asarray(matrix[rows[chosen]]))
        shares, rates = likeliest_rates(np.column_stack([given, votes.two]), n_classes)
        wrong = wrong_of_each(shares, rates)
        last = last_of_each(scores(votes.counts, given), some, given, wrong)
        return opened._replace(rates=rates, wrong=wrong, last_score=last[0], last_id=last[1])

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """How many vote, the rates, and the shard's labelled examples without features."""
        voters: Voters = inputs.opened
        labels = inputs.table("label")["label"]
        n_labelled = len(labels) - labels.null_count
        return {
            "n_voters": len(voters.ids),
            "rates": voters.rates.tolist(),
            "wrong": voters.wrong.tolist(),
            "n_left_out": n_labelled - len(self._shard(inputs)[0]),
        }

    def compute(self, inputs: Inputs) -> Rows:
        """The votes about one shard of examples."""
        voters: Voters = inputs.opened
        ids, labels, vectors = self._shard(inputs)
        if not len(ids):
            return
        counts = self._votes(voters, ids, vectors).counts
        found, voted = scores(counts, labels), winners(counts, labels)
        last_score, last_id = voters.last_score[labels], voters.last_id[labels]
        columns = [
            ids,
            labels,
            voted,
            counts[np.arange(len(labels)), labels] / self.neighbours,
            found,
            voted != labels,
            (found < last_score) | ((found == last_score) & (ids <= last_id)),
        ]
        rows = pa.RecordBatch.from_arrays(list(map(pa.array, columns)), NEIGHBOUR_VOTE.schema.names)
        yield NEIGHBOUR_VOTE.name, rows

    def cost(self, work: Work) -> Cost:
        """An inner product per row and voter, and the least of the distances."""
        n, voters = work.n_examples, min(work.n_examples, self.rows)
        per_shard = n // max(1, work.n_shards)
        return Cost(
            flops=n * voters * (2.0 * work.dim + 20.0),
            written_bytes=40 * n,
            memory_bytes=80 * n
            + (4 * queries_at_once(voters) + 40) * voters
            + 12 * work.dim * per_shard
            + 4 * (EXAMPLES + QUERIES) * work.dim,
        )

    def _shard(
        self, inputs: Inputs
    ) -> tuple[
        Int64[np.ndarray, " rows"], Int64[np.ndarray, " rows"], Float[np.ndarray, "rows dim"]
    ]:
        """Ids, ascending, labels and vectors of the shard's examples that have both."""
        n_classes = inputs.opened.n_classes
        labelled, labels = labels_in(inputs.table("label", "example"), "example", n_classes)
        table = inputs.table(self.features, "example").sort_by("id")
        rows, places = answered_rows_of(table["id"].to_numpy(), labelled)
        vectors = matrix_of(table["vector"])[rows] if len(rows) else np.zeros((0, 1), np.float32)
        return labelled[places], labels[places], vectors

    def _votes(
        self,
        voters: Voters,
        ids: Int64[np.ndarray, " rows"],
        vectors: Float[np.ndarray, "rows dim"],
    ) -> Votes:
        """The votes of the nearest voters other than the row itself."""
        counts, two = np.zeros((len(ids), voters.n_classes), np.int64), np.empty((len(ids), 2), int)
        itself = dict(zip(*answered_rows_of(ids, voters.ids), strict=True))
        blocks = blocks_of_distances(voters.points, vectors.astype(np.float32))
        distances = (row for block in blocks for row in block)
        for row, of_row in enumerate(distances):
            if (place := itself.get(row)) is not None:
                of_row[place] = np.inf
            votes = voters.labels[nearest(of_row, self.neighbours)]
            counts[row], two[row] = np.bincount(votes, minlength=voters.n_classes), votes[:2]
        return Votes(counts, two)


STAGE = NeighbourVote
