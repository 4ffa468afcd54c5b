"""Near duplicates: examples whose texts are nearly the same, in clusters, and those near a query.

Two texts are near duplicates when the Jaccard similarity of their shingles of five characters,
without case and signs, reaches a threshold; MinHash finds them without comparing all pairs
(`stages/ranking/near_texts.py`), and no pair is told that was not compared. Clusters are what such
pairs connect, so that two texts of one cluster may themselves be less alike. Passages that many
texts share, such as the instruction of a task, do not count (`stages/reading/shared_passages.py`).

Both texts of a pair count as one, which the longer rules; so questions about texts, of which all
about one text would be near duplicates, are refused. Of prompts with completions and of
conversations the answers must be alike, too, and the lesser similarity counts: two questions about
one text are not the same row, nor are two answers to one question. Of a preference the text is the
prompt with its chosen answer, and its answer both of them.

In a sentence of 85 characters another word of five moves the similarity to 0.79, in one of 50 to
0.69.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64, Int64, UInt64

from stages.model.answers import answer_of
from stages.model.templates import plain_texts
from stages.ranking.near_texts import (
    BANDS,
    ROWS,
    SHINGLES,
    WINDOW,
    Pairs,
    Sketches,
    candidates,
    components,
    similarities,
    sketches_of,
)
from stages.reading.shared_passages import shared_windows, without_shared
from stages.reading.shingles import letters_of
from stages.reading.vectors import evenly
from stages.stage import ConfigError, Cost, Inputs, Role, Rows, Split, Stage, Work
from storage.schema import TableSpec

NEAR_DUPLICATE = TableSpec(
    name="near_duplicate",
    schema=pa.schema(
        [
            ("example_id", pa.int64()),
            ("cluster", pa.int64()),
            ("other_id", pa.int64()),
            ("similarity", pa.float64()),
            ("query_id", pa.int64()),
            ("query_similarity", pa.float64()),
        ]
    ),
    key=("example_id",),
)
"""An example that is nearly the same as another one or as a query: the smallest id of its cluster,
its own where it is alone, the nearest other example and the nearest query, null where there is
none, and how alike they are, from the threshold to 1."""

LEAST = 0.6
"""The smallest threshold at which the bands find nearly all pairs: 96 in 100."""
TEXTS = 512
"""Texts whose shingles are held at a time."""
SAMPLED, SAMPLED_SHARDS, OF_SHARD = 2000, 64, 500
"""Texts, shards, and texts of one at most, in which passages that many share are looked for."""
BEGIN = 4000
"""Characters of these texts that are looked at."""


class Sketched(NamedTuple):
    """Rows with a letter or digit: the examples by ascending id, and then the queries."""

    ids: Int64[np.ndarray, " rows"]
    is_query: Bool[np.ndarray, " rows"]
    sketches: Sketches


class Nearest(NamedTuple):
    """The nearest partner of each text that has one, by ascending number of the text."""

    texts: Int64[np.ndarray, " texts"]
    partners: Int64[np.ndarray, " texts"]
    similarities: Float64[np.ndarray, " texts"]


def nearest_of(pairs: Pairs, alike: Float64[np.ndarray, " pairs"]) -> Nearest:
    """The most similar partner of each text; of equally similar ones that of the least number."""
    texts, partners = np.concatenate(pairs), np.concatenate(pairs[::-1])
    both = np.concatenate([alike, alike])
    order = np.lexsort((partners, -both, texts))
    texts, first = np.unique(texts[order], return_index=True)
    return Nearest(texts, partners[order][first], both[order][first])


@dataclass(frozen=True)
class NearDuplicates(Stage):
    """Clusters of nearly the same texts. One task, which reads every text twice.

    It holds 380 bytes a row, and the texts that are nearly another's.
    """

    similarity: float = 0.7
    """Least Jaccard similarity of near duplicates, from 0.6 to 1."""

    version: ClassVar[int] = 5
    split: ClassVar[Split] = "whole"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "completion", "preference")

    def __post_init__(self) -> None:
        """Refuses a threshold that the bands are not made for.

        Raises:
            ConfigError: it is below 0.6, or above 1.
        """
        if not LEAST <= self.similarity <= 1:
            raise ConfigError(
                f"near_duplicates: found similarity: {self.similarity}, expected a share of common "
                f"shingles from {LEAST} to 1. Set 0.7 to find sentences in which a word differs."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The texts."""
        return ("text",)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per example with a near duplicate."""
        return (NEAR_DUPLICATE,)

    def compute(self, inputs: Inputs) -> Rows:
        """Examples with a near duplicate among examples or queries."""
        shared = _shared(inputs)
        rows = _sketches(inputs, shared)
        # Rows with the same shingles are one text: the first row stands for all, in each role.
        contents, bands, marks = rows.sketches
        content = np.where(rows.is_query, ~contents, contents)
        _, first, text_of = np.unique(content, return_index=True, return_inverse=True)
        order = np.argsort(first)
        first, text_of = first[order], np.argsort(order)[text_of]
        pairs, n_crowded = candidates(
            bands[first], marks[first], rows.is_query[first], self.similarity
        )
        if n_crowded:
            inputs.tell(
                f"near_duplicates: {n_crowded} texts have parts in common with more than {WINDOW} "
                "others; of these the most alike are compared"
            )
        pairs, alike = self._alike(inputs, shared, rows, first, pairs)
        yield NEAR_DUPLICATE.name, _rows(rows, first, text_of, pairs, alike)

    def _alike(
        self,
        inputs: Inputs,
        shared: UInt64[np.ndarray, " windows"],
        rows: Sketched,
        first: Int64[np.ndarray, " texts"],
        pairs: Pairs,
    ) -> tuple[Pairs, Float64[np.ndarray, " pairs"]]:
        """The pairs of texts that reach the threshold, and their similarities."""
        wanted, place = np.unique(np.concatenate(pairs), return_inverse=True)
        of_pairs = rows.ids[first[wanted]], rows.is_query[first[wanted]]
        places = Pairs(*place.reshape(2, -1))
        alike = similarities(_letters(inputs, shared, *of_pairs), places)
        if _form(inputs) != "text":
            answers = _letters(inputs, shared[:0], *of_pairs, answers_alone=True)
            # Answers without a letter are alike.
            is_empty = pc.equal(answers, "")
            alike = np.minimum(alike, similarities(pc.if_else(is_empty, "-", answers), places))
        is_near = alike >= self.similarity
        return Pairs(pairs.first[is_near], pairs.second[is_near]), alike[is_near]

    def cost(self, work: Work) -> Cost:
        """A few hundred operations for every character, and a sort of the rows for every band."""
        n = work.n_examples + work.n_queries
        characters = 4 * work.n_tokens
        return Cost(
            flops=400.0 * characters + 4000.0 * n,
            written_bytes=5 * work.n_examples,
            memory_bytes=((8 + ROWS) * BANDS + 88) * n + characters + 100 * SHINGLES,
        )


def _shared(inputs: Inputs) -> UInt64[np.ndarray, " windows"]:
    """The windows that many examples share, of texts that are evenly spread over the corpus."""
    drawn = [pa.array([], pa.large_string())]
    for _, letters in _texts(inputs, "example", SAMPLED_SHARDS):
        begins = pc.utf8_slice_codeunits(letters, 0, BEGIN)
        drawn.append(begins.take(pa.array(evenly(len(letters), OF_SHARD))))
    letters = pa.concat_arrays(drawn)
    return shared_windows(letters.take(pa.array(evenly(len(letters), SAMPLED))))


def _form(inputs: Inputs) -> str:
    return str(inputs.details("text").get("format", "text"))


def _texts(
    inputs: Inputs, role: Role, most: int | None = None, answers_alone: bool = False
) -> Iterator[tuple[np.ndarray, pa.Array]]:
    """Ids and texts of one role, a shard at a time: both texts, or all messages.

    With `most` of so many shards, evenly spread. With `answers_alone` only what is learned last.
    """
    form = _form(inputs)
    for table in inputs.by_shard("text", role, most):
        table = table.filter(pc.is_valid(table["text"])) if table["text"].null_count else table
        ids, letters = table["id"].to_numpy(), _letters_of_rows(table, form, answers_alone)
        del table
        yield ids, letters


def _letters_of_rows(table: pa.Table, form: str, answers_alone: bool) -> pa.Array:
    texts, seconds = (table[name].to_pylist() for name in ("text", "text_b"))
    if answers_alone:
        rows = zip(texts, seconds, strict=True)
        texts, seconds = [answer_of(*row, form) for row in rows], [None] * len(texts)
    else:
        texts, seconds = plain_texts(texts, seconds, form, with_calls=True)
    return letters_of([a if b is None else f"{a} {b}" for a, b in zip(texts, seconds, strict=True)])


def _sketches(inputs: Inputs, shared: UInt64[np.ndarray, " windows"]) -> Sketched:
    """The sketches of all rows with a letter or digit."""
    found = []
    roles: tuple[Role, ...] = ("example", "query")
    for role in roles:
        of_role = []
        for ids, letters in _texts(inputs, role):
            is_empty = pc.equal(letters, "").to_numpy(zero_copy_only=False)
            if is_empty.any():
                ids, letters = ids[~is_empty], letters.filter(pa.array(~is_empty))
            for start in range(0, len(ids), TEXTS):
                bare = without_shared(letters.slice(start, TEXTS), shared)
                of_role.append((ids[start : start + TEXTS], *sketches_of(bare)))
        none = (np.zeros(0, np.int64), *sketches_of(pa.array([], pa.large_string())))
        columns = [*map(np.concatenate, zip(*of_role or [none], strict=True))]
        order = np.argsort(columns[0], kind="stable")
        found.append([np.full(len(order), role == "query"), *(of[order] for of in columns)])
    is_query, ids, *sketches = map(np.concatenate, zip(*found, strict=True))
    return Sketched(ids, is_query, Sketches(*sketches))


def _letters(
    inputs: Inputs,
    shared: UInt64[np.ndarray, " windows"],
    ids: Int64[np.ndarray, " texts"],
    is_query: Bool[np.ndarray, " texts"],
    answers_alone: bool = False,
) -> pa.Array:
    """The texts of some rows, as `_sketches` has them, in the order that they are asked for.

    With `answers_alone` as in `_texts`.
    """
    found, places = [pa.array([], pa.large_string())], []
    for role in ("example", "query"):
        asked = np.flatnonzero(is_query == (role == "query"))
        asked = asked[np.argsort(ids[asked])]
        if not len(asked):
            continue
        for own, letters in _texts(inputs, role, answers_alone=answers_alone):
            at = np.searchsorted(ids[asked], own).clip(max=len(asked) - 1)
            is_asked = ids[asked[at]] == own
            found.append(without_shared(letters.filter(pa.array(is_asked)), shared))
            places.append(asked[at[is_asked]])
    order = np.argsort(np.concatenate(places or [np.zeros(0, np.int64)]))
    return pa.concat_arrays(found).take(pa.array(order))


def _rows(
    rows: Sketched,
    first: Int64[np.ndarray, " texts"],
    text_of: Int64[np.ndarray, " rows"],
    pairs: Pairs,
    alike: Float64[np.ndarray, " pairs"],
) -> pa.RecordBatch:
    """Rows of `NEAR_DUPLICATE`; `pairs` are of texts, whose first rows are `first`."""
    n, n_texts = int((~rows.is_query).sum()), len(first)
    text = text_of[:n]
    # Texts are in the order of their first rows, so that those of queries come last.
    is_across = rows.is_query[first][pairs.second]
    among, across = (Pairs(*(side[own] for side in pairs)) for own in (~is_across, is_across))
    cluster = rows.ids[first[components(n_texts, among)[text]]]
    other, similarity = _spread(nearest_of(among, alike[~is_across]), first, text, n_texts)
    query, likeness = _spread(nearest_of(across, alike[is_across]), first, text, n_texts)
    # Of examples with one text the nearest is the first; of the first it is the second.
    again = np.flatnonzero(first[text] != np.arange(n))
    _, second = np.unique(text[again], return_index=True)
    repeated = again[second]
    other[again], other[first[text[repeated]]] = first[text[again]], repeated
    similarity[again] = similarity[first[text[repeated]]] = 1.0
    kept = np.flatnonzero((other >= 0) | (query >= 0))
    columns = [pa.array(rows.ids[kept]), pa.array(cluster[kept])]
    for partner, near in ((other[kept], similarity[kept]), (query[kept], likeness[kept])):
        columns += [pa.array(rows.ids[partner], mask=partner < 0), pa.array(near, mask=partner < 0)]
    return pa.RecordBatch.from_arrays(columns, schema=NEAR_DUPLICATE.schema)


def _spread(
    nearest: Nearest,
    first: Int64[np.ndarray, " texts"],
    text: Int64[np.ndarray, " examples"],
    n_texts: int,
) -> tuple[np.ndarray, np.ndarray]:
    """For each example the first row of the text nearest to its own, or -1, and how near it is."""
    partner, near = np.full(n_texts, -1), np.zeros(n_texts)
    partner[nearest.texts] = first[nearest.partners]
    near[nearest.texts] = nearest.similarities
    return partner[text], near[text]


STAGE = NearDuplicates
