"""The shards and manifests of the corpus tables, from what the tasks that make them give back."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.corpus_cuts import Cut
from pipeline.corpus_shards import Making, groups_of, make_shards, planned, shard_key, written
from stages.corpus import ingest
from stages.corpus.ingest import Survey
from stages.corpus.pieces import Each
from stages.corpus.review import Review, check_used
from storage.manifest import Manifest, ShardRecord
from storage.table import Store

INGEST_VERSION = 6
REJECTED_ROWS = 20_000
"""In a shard of rejected rows, each of at most 2,000 characters."""


class CorpusShards:
    """The shards of the corpus tables, made by tasks; in a dry reading only their keys."""

    def __init__(self, store: Store, tables: Sequence[str], is_dry: bool, each: Each):
        self._store, self._is_dry, self._each = store, is_dry, each
        self._tables = tuple(table for table in tables if table != ingest.REJECTED.name)
        self._records: dict[str, list[ShardRecord]] = {table: [] for table in tables}
        self._present = {table: frozenset(store.shard_keys(table)) for table in tables}
        self._rejected: list[pa.Table] = []

    def making(self, survey: Survey, salts: Mapping[str, Sequence[Any]]) -> Making:
        """What the tasks that make the shards of a source share."""
        return Making(
            survey.recipe, self._store.url, salts, self._present, self._is_dry, self._tables
        )

    def make(self, making: Making, survey: Survey, cut: Cut) -> int:
        """Makes the shards of a source; returns how many of its rows have no label.

        Raises:
            DataError: a review names a row that the source has not.
        """
        groups = list(groups_of(survey, cut.shards, cut.known))
        firsts = [p.first for g in groups for place, p in enumerate(g.parts) if place in g.rejected]
        of_parts: dict[int, pa.Table] = {}
        waiting = iter(sorted(firsts))
        due = next(waiting, None)
        decided: list[list[np.ndarray]] = [[] for _ in making.recipe.reviews]
        refused: dict[str, str] = {}
        n_unlabelled = 0
        records: dict[str, list[ShardRecord]] = {table: [] for table in self._tables}
        for _, result in self._each(make_shards, making, groups):
            for table, of_group in result.records.items():
                records[table] += of_group
            n_unlabelled += result.n_unlabelled
            for found, of_rows in zip(decided, result.decided, strict=True):
                found.append(of_rows)
            of_parts |= result.rejected
            while due in of_parts:
                rows = of_parts.pop(due)
                if decided:
                    refused |= _reasons(rows, making.recipe.reviews)
                self._reject(rows)
                due = next(waiting, None)
        for review, found in zip(making.recipe.reviews, decided, strict=True):
            check_used(review, found, refused, partial(survey.names, review.key))
        for table, of_table in records.items():
            self._records[table] += sorted(of_table, key=lambda record: record.index)
        return n_unlabelled

    def close(self) -> None:
        """Makes the last shard of rejected rows, which may have none."""
        if self._rejected or not self._records[ingest.REJECTED.name]:
            rows = pa.concat_tables([ingest.REJECTED.schema.empty_table(), *self._rejected])
            self._write_rejected(rows)

    def manifest(
        self, table: str, fields: Mapping[str, Any], details: Mapping[str, Any]
    ) -> Manifest:
        """The manifest of a table over the shards that were made."""
        return Manifest(
            table=table,
            stage="ingest",
            version=INGEST_VERSION,
            fields=fields,
            inputs={},
            shards=tuple(self._records[table]),
            details=details,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def _reject(self, rows: pa.Table) -> None:
        """Takes in the next rejected rows, and makes a shard of them where there are enough."""
        self._rejected.append(rows)
        while sum(table.num_rows for table in self._rejected) >= REJECTED_ROWS:
            whole = pa.concat_tables(self._rejected)
            self._write_rejected(whole.slice(0, REJECTED_ROWS))
            rest = whole.slice(REJECTED_ROWS)
            self._rejected = [rest] if rest.num_rows else []

    def _write_rejected(self, rows: pa.Table) -> None:
        spec, table = ingest.REJECTED, ingest.REJECTED.name
        key, index = shard_key(rows, []), len(self._records[table])
        self._records[table].append(
            planned(spec, key, "", index, rows)
            if self._is_dry
            else written(self._store, spec, key, "", index, rows, key in self._present[table])
        )


def _reasons(rejected: pa.Table, reviews: Sequence[Review]) -> Iterator[tuple[str, str]]:
    """Why rows were rejected that reviews name, by their source id."""
    named = {row_id for review in reviews for row_id in review.rows.to_pylist()}
    for row_id, reason in zip(
        *(rejected[c].to_pylist() for c in ("source_id", "reason")), strict=True
    ):
        if row_id in named:
            yield row_id, reason
