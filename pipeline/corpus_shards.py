"""Tasks that make the shards of a corpus: read parts of a source again, cut, hash and write them.

A task makes some shards whose rows lie close together, and reads the parts that these overlap. What
comes back are records, and rejected rows with their reasons.
"""

import logging
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from stages.corpus import ingest
from stages.corpus.cells import SourceRows
from stages.corpus.ingest import Survey
from stages.corpus.pieces import Part
from stages.corpus.rows import Recipe, make_rows, reject_rows
from stages.corpus.scan import Columns
from stages.corpus.source import LABELLED
from storage.manifest import ShardRecord, digest
from storage.schema import FileError, TableSpec
from storage.shards import content_hash
from storage.table import Store

LOG = logging.getLogger(__name__)
CORPUS = {
    spec.name: spec
    for spec in (ingest.TEXT, ingest.LABEL, ingest.EXTRA, ingest.REJECTED, ingest.FEATURES)
}
PARTS_AT_ONCE = 2
"""Rows that a task makes, in parts: its first and last part are read by its neighbours, too."""
WRITERS = 4
"""Files that a task writes at a time."""
SCATTERED_BYTES = 256 << 20
"""Of text that a task keeps where the rows of its shards lie all over the source."""


@dataclass(frozen=True)
class Making:
    """What all tasks that make shards of one source share."""

    recipe: Recipe
    store_url: str
    salts: Mapping[str, Sequence[Any]]
    """What the keys of the shards of each table depend on beside their rows."""
    present: Mapping[str, frozenset[str]]
    """Keys of the shards of each table that lie in the store."""
    is_dry: bool
    """Whether keys are computed, and nothing is written."""
    tables: tuple[str, ...]
    """The tables to make."""
    reading: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells this reading of the source from every other, for the parts that a process keeps."""


@dataclass(frozen=True)
class Group:
    """The shards that a task makes."""

    parts: tuple[Part, ...]
    """The parts of the source that hold their rows."""
    shards: tuple[tuple[int, np.ndarray], ...]
    """Index of each shard, and the ascending numbers of its rows in the source."""
    rejected: Mapping[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """For some of the parts, by place: numbers of rows in the part, and the places of their
    `REASONS`."""
    known: Mapping[int, ShardRecord] = field(default_factory=dict)
    """Shards of `text` that lie in the store as they would be made, by index."""

    @property
    def n_rows(self) -> int:
        """Number of rows in the shards."""
        return sum(len(numbers) for _, numbers in self.shards)


class Shards(NamedTuple):
    """What a task has made."""

    records: Mapping[str, list[ShardRecord]]
    rejected: Mapping[int, pa.Table]
    """Rejected rows, by the number of the first row of their part."""
    n_unlabelled: int
    """Number of rows without label or target, in tasks that have these."""
    decided: tuple[np.ndarray, ...]
    """Of each review, which decisions were about rows of the shards."""


def make_shards(making: Making, group: Group) -> Shards:
    """Makes the shards of a group, and writes those that the store lacks.

    Memory: a part of the source, and the rows of shards that begin in it and end in a later one.

    Raises:
        stages.stage.DataError: a part cannot be read again as it was.
        storage.schema.StorageError: the store refuses a shard.
    """
    with _Writer(making) as writer:
        return _made(making, group, writer)


def _made(making: Making, group: Group, writer: "_Writer") -> Shards:
    waiting: dict[int, list[pa.Table]] = {index: [] for index, _ in group.shards}
    decided: list[list[np.ndarray]] = [[] for _ in making.recipe.reviews]
    rejected = {}
    n_unlabelled = 0
    for place, part in enumerate(group.parts):
        loaded = _loaded(making, part)
        if place in group.rejected:
            numbers, reasons = group.rejected[place]
            rejected[part.first] = reject_rows(making.recipe, part, loaded, numbers, reasons)
        of_shards = _numbers_in(group, part)
        if not of_shards:
            continue
        wanted = np.sort(np.concatenate([numbers for _, numbers in of_shards]))
        made = make_rows(making.recipe, part, loaded, wanted)
        n_unlabelled += _unlabelled(making.recipe.columns, made.rows)
        for found, of_rows in zip(decided, made.decided, strict=True):
            found.append(of_rows)
        for index, numbers in of_shards:
            waiting[index].append(_take(made.rows, np.searchsorted(wanted, numbers)))
        end = part.first + part.n_rows
        for index, rows in group.shards:
            if index in waiting and rows[-1] < end:
                whole = pa.concat_tables(waiting.pop(index))
                writer.write(index, whole, group.known.get(index))
    nothing = np.zeros(0, dtype=np.int64)
    return Shards(
        writer.finish(),
        rejected,
        n_unlabelled,
        tuple(np.concatenate([nothing, *found]) for found in decided),
    )


def groups_of(
    survey: Survey, shards: Sequence[np.ndarray], known: Mapping[int, ShardRecord]
) -> Iterator[Group]:
    """The groups of all shards, by the numbers of their rows; each rejected row is in one group.

    Groups hold views of `shards`, and nothing else that grows with the rows.
    """
    firsts = np.array([part.first for part in survey.parts], dtype=np.int64)
    todo = {
        at: numbers
        for at, part in enumerate(survey.parts)
        if len(numbers := np.flatnonzero(survey.reasons[part.first : part.first + part.n_rows]))
    }
    n_rows = len(survey.reasons)
    at_once = PARTS_AT_ONCE * -(-n_rows // max(1, len(survey.parts)))
    n_apart = sum(
        len(np.unique(_places(firsts, shard))) for shard in shards[:: len(shards) // 16 + 1]
    )
    if n_apart > 4 * len(shards[:: len(shards) // 16 + 1]) + len(survey.parts):
        mean_bytes = max(1, survey.text_bytes // n_rows)
        at_once = max(at_once, SCATTERED_BYTES // mean_bytes)

    def group(chosen: list[tuple[int, np.ndarray]], places: list[int]) -> Group:
        rejected = {}
        for at, place in enumerate(places):
            if place in todo:
                numbers = todo.pop(place)
                reasons = survey.reasons[survey.parts[place].first + numbers]
                rejected[at] = (numbers, reasons)
        parts = tuple(survey.parts[place] for place in places)
        indices = {index for index, _ in chosen}
        return Group(
            parts, tuple(chosen), rejected, {i: r for i, r in known.items() if i in indices}
        )

    together: list[tuple[int, np.ndarray]] = []
    places: set[int] = set()
    for index, numbers in enumerate(shards):
        together.append((index, numbers))
        places |= set(np.unique(_places(firsts, numbers)).tolist())
        if sum(len(n) for _, n in together) >= at_once or index + 1 == len(shards):
            yield group(together, sorted(places))
            together, places = [], set()
    left = sorted(todo)
    for start in range(0, len(left), PARTS_AT_ONCE):
        yield group([], left[start : start + PARTS_AT_ONCE])


def _places(firsts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The place of the part that holds each row."""
    return np.searchsorted(firsts, numbers, side="right") - 1


def _numbers_in(group: Group, part: Part) -> list[tuple[int, np.ndarray]]:
    """Of every shard with rows in the part, its index and the numbers of these rows in the part."""
    found = []
    for index, numbers in group.shards:
        start, stop = np.searchsorted(numbers, (part.first, part.first + part.n_rows))
        if start < stop:
            found.append((index, numbers[start:stop].astype(np.int64) - part.first))
    return found


def _take(rows: pa.Table, places: np.ndarray) -> pa.Table:
    """Some rows, without a copy where they follow one another."""
    if places[-1] - places[0] + 1 == len(places):
        return rows.slice(places[0], len(places))
    return rows.take(pa.array(places))


def _unlabelled(columns: Columns, rows: pa.Table) -> int:
    if columns.source.task not in LABELLED:
        return 0
    is_number = columns.source.task == "regression"
    return int(rows["target" if is_number else "label"].null_count)


_last_part: list[tuple[str, Part, SourceRows]] = []
"""The part that was read last in this process, and for which reading: the next group begins with
it. A later reading may find other rows there, and a server need not tell so."""


def _loaded(making: Making, part: Part) -> SourceRows:
    if _last_part and _last_part[0][:2] == (making.reading, part):
        return _last_part[0][2]
    _last_part.clear()
    loaded = making.recipe.columns.read(part)
    _last_part.append((making.reading, part, loaded))
    return loaded


class _Writer:
    """Writes shards that are keyed by their content; in a dry reading only computes the keys.

    Files are written in threads: a disk that makes sure of a file takes longer than all else.
    """

    def __init__(self, making: Making):
        self._making = making
        self._records: dict[str, list[ShardRecord]] = {table: [] for table in making.tables}
        self._pool = ThreadPoolExecutor(WRITERS)
        self._due: deque[tuple[str, Future[ShardRecord]]] = deque()
        self._own = threading.local()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write(self, index: int, rows: pa.Table, text: ShardRecord | None) -> None:
        """Writes one shard of every table; `text` is that of the texts where it is known."""
        making = self._making
        role = making.recipe.columns.role
        for table, cells in ingest.tables(rows).items():
            if table not in making.tables:
                continue
            if text is not None and table == ingest.TEXT.name:
                self._records[table].append(text)
                continue
            key = shard_key(cells, making.salts[table])
            if making.is_dry:
                self._records[table].append(planned(CORPUS[table], key, role, index, cells))
                continue
            self._due.append(
                (table, self._pool.submit(self._write, table, key, role, index, cells))
            )
            if len(self._due) > 2 * WRITERS:
                self._take()

    def finish(self) -> dict[str, list[ShardRecord]]:
        """The records of all shards by table, once they are written."""
        while self._due:
            self._take()
        return self._records

    def _take(self) -> None:
        table, record = self._due.popleft()
        self._records[table].append(record.result())

    def _write(self, table: str, key: str, role: str, index: int, rows: pa.Table) -> ShardRecord:
        if not hasattr(self._own, "store"):
            self._own.store = Store(self._making.store_url)
        is_present = key in self._making.present[table]
        return written(self._own.store, CORPUS[table], key, role, index, rows, is_present)


def shard_key(rows: pa.Table, salt: Any) -> str:
    """The key of a shard with these rows; `salt` is all else that it depends on."""
    return digest([content_hash(rows), salt])


def planned(spec: TableSpec, key: str, role: str, index: int, rows: pa.Table) -> ShardRecord:
    """The record of a shard that is not written, as far as it is known."""
    length = spec.vector_length(rows.schema)
    return ShardRecord(key, role, index, rows.num_rows, rows.nbytes, "", None, None, length)


def written(
    store: Store,
    spec: TableSpec,
    key: str,
    role: str,
    index: int,
    rows: pa.Table,
    is_present: bool,
) -> ShardRecord:
    """The record of a shard, which is written unless it lies in the store and is not damaged."""
    if is_present:
        try:
            return store.record_of(spec, key, role, index)
        except FileError as error:
            LOG.warning("written again: %s", error)
    return store.write_shard(spec, key, role, index, rows)
