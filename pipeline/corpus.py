"""Read the corpus and its queries into `text`, `label`, `extra`, `rejected` and `features`.

The shards of these tables are keyed by their content. Rows are cut into shards once: when a corpus
that lies in the store is read again with more rows or corrected labels, its earlier shards keep
their rows.
Runs in the driver: it is bound by reading one source, and holds the text of the corpus in memory,
and its vectors where it has some.
"""

import contextlib
import dataclasses
import datetime
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.readers import Readers
from pipeline.settings import Run
from stages.corpus import ingest
from stages.corpus.load import fingerprint
from stages.corpus.source import LABELLED
from stages.stage import ConfigError, CorpusTask, DataError, Role
from storage.manifest import Manifest, ShardRecord, digest
from storage.schema import FileError, TableSpec
from storage.shards import content_hash, cut
from storage.table import Store

LOG = logging.getLogger(__name__)
CORPUS = {
    spec.name: spec
    for spec in (ingest.TEXT, ingest.LABEL, ingest.EXTRA, ingest.REJECTED, ingest.FEATURES)
}
SOMETIMES = frozenset({ingest.FEATURES.name})
"""Tables that only some corpora have."""
INGEST_VERSION = 3
NOTES = "ingest"
"""Folder of the store with a note of every reading of a corpus: the manifests that it gave."""
EARLIER_CUTS = 20
"""Earlier readings of a corpus whose cuts into shards are tried."""


@dataclass(frozen=True)
class Corpus:
    """The corpus tables as they stand, by table name."""

    tables: Mapping[str, Manifest]
    """Manifests by table name; `features` only where the sources have vectors."""
    notices: tuple[str, ...] = ()
    """Sentences for the user about how the sources were read, and about their labels."""

    @property
    def task(self) -> CorpusTask:
        """The task of the corpus, such as classification."""
        task: CorpusTask = self.tables["label"].details.get("task", "classification")
        return task

    @property
    def has_text(self) -> bool:
        """Whether rows have a text, or are vectors alone."""
        return bool(self.tables["text"].details.get("has_text", True))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label; none for another task than classification."""
        return tuple(self.tables["label"].details["classes"])

    @property
    def has_chats(self) -> bool:
        """Whether the texts are conversations."""
        return bool(self.tables["text"].details.get("format") == "messages")

    @property
    def unlabelled_queries(self) -> int:
        """Queries without a label, where the task has labels."""
        return int(self.tables["label"].details.get("unlabelled_queries", 0))

    def rows(self, table: str, role: str) -> int:
        """How many rows a table has of one role."""
        return sum(s.rows for s in self.tables[table].shards if s.role == role)


def read_corpus(
    run: Run,
    store: Store,
    is_dry: bool = False,
    readers: Readers | None = None,
    look: Callable[[Mapping[str, Manifest]], None] = lambda _: None,
) -> Corpus:
    """The corpus of `run` in `store`; a dry reading computes every key and writes nothing.

    Rows that one of `readers` refuses are rejected with its reason. Where nothing is refused, the
    keys are those of the corpus without readers. `look` is shown the tables of an earlier reading
    of the same sources, before they are used; what it raises ends the reading.

    Raises:
        stages.stage.ConfigError: the queries have another task than the corpus, or only one of the
            two has features.
        stages.stage.DataError: a source cannot be read, or no row of it can be used.
    """
    _check_same_kind(run)
    sources = [source for source in (run.corpus, run.queries) if source is not None]
    keeps_absent = _has_own_outputs(run)
    refuses = readers.key if readers is not None else []
    refusals = readers.refusals if readers is not None and refuses else None
    fingerprints = [fingerprint(source, store, is_dry) for source in sources]
    read_as = [INGEST_VERSION, run.shard_size, fingerprints]
    name = digest([*read_as, keeps_absent] + ([refuses] if refuses else []))
    wanted = [t for t in CORPUS if t not in SOMETIMES or run.corpus.features is not None]
    known, notices = _known(store, name, wanted, is_dry)
    look(known)
    if set(known) == set(wanted) and all(_lies_whole(m, store) for m in known.values()):
        return Corpus(known, notices)
    examples = ingest.read(run.corpus, "example", refusals=refusals, keeps_absent=keeps_absent)
    read: list[tuple[Role, Any]] = [("example", examples)]
    if run.queries is not None:
        length = examples.vector_length
        queries = ingest.read(run.queries, "query", examples.classes, length, refusals)
        read.append(("query", queries))
        _check_same_form(run, examples, read[1][1])
        _check_same_labels(run, examples, read[1][1])
    writer = _Writer(store, is_dry)
    for role, part in read:
        # A manifest's details must follow from its key: see `details` below.
        salts: dict[str, list[Any]] = {
            "text": [] if part.format == "text" else [part.format],
            "label": list(examples.classes),
            "extra": [part.columns],
            "features": [],
        }
        before = _cut_before(known.values(), role, store)
        cuts = _cut(part.rows, role, run.shard_size, store, salts["text"], before)
        for index, rows in enumerate(cuts):
            for table, cells in ingest.tables(rows).items():
                writer.add(CORPUS[table], role, index, cells, salts[table])
    rejected = pa.concat_tables([part.rejected for _, part in read])
    writer.add(ingest.REJECTED, "", 0, rejected, [])
    details = {
        "label": {
            "task": examples.task,
            "classes": list(examples.classes),
            "label_kind": examples.label_kind,
            "column": run.corpus.label if examples.task in LABELLED else None,
            "is_declared": run.corpus.classes is not None,
            "flip_labels": run.corpus.flip_labels and dataclasses.asdict(run.corpus.flip_labels),
            "unlabelled_queries": sum(part.n_unlabelled for role, part in read if role == "query"),
        },
        "text": {"format": examples.format, "has_text": examples.has_text},
        "extra": {"columns": {role: part.columns for role, part in read}},
    }
    manifests = {
        table: writer.manifest(table, run.shard_size, details.get(table, {})) for table in wanted
    }
    notices = tuple(notice for _, part in read for notice in part.notices)
    if not is_dry:
        keys = {table: store.write_manifest(manifest) for table, manifest in manifests.items()}
        store.write_note(NOTES, name, {**keys, "notices": notices})
    return Corpus(manifests, notices)


def _has_own_outputs(run: Run) -> bool:
    """Whether a model comes with an output for each class, also for those that no row has."""
    models = [run.model, *(stage.model_ref for stage in run.stages.values())]
    kinds = [model.kind for model in models if model is not None]
    return any(kind.has_class_outputs and not kind.is_fitted for kind in kinds)


def _known(
    store: Store, name: str, wanted: list[str], is_dry: bool
) -> tuple[dict[str, Manifest], tuple[str, ...]]:
    """The manifests that an earlier reading of the same sources gave, and its notices.

    Those that are still there.

    Raises:
        storage.schema.CorruptError: one is damaged, and the reading is not dry.
    """
    found: dict[str, Manifest] = {}
    note: dict[str, Any] = {}
    try:
        note = store.read_note(NOTES, name) or {}
        for table in wanted:
            if store.has_manifest(table, str(note.get(table))):
                found[table] = store.read_manifest(table, note[table])
    except FileError:
        if not is_dry:
            raise
    return found, tuple(note.get("notices", ()))


def _lies_whole(manifest: Manifest, store: Store) -> bool:
    """Whether all shards lie in the store, with the sizes that they were written with."""
    sizes = store.sizes(manifest.table)
    return all(sizes.get(f"{s.key}.parquet") == s.bytes for s in manifest.shards)


def _cut_before(manifests: Iterable[Manifest], role: str, store: Store) -> list[np.ndarray] | None:
    """The ids of every shard of an earlier reading of the same sources, by any table that is whole.

    None where there was none, or a shard is damaged in all of its tables.
    """
    by_index: dict[int, list[tuple[str, ShardRecord]]] = {}
    for manifest in manifests:
        for shard in manifest.shards:
            if shard.role == role:
                by_index.setdefault(shard.index, []).append((manifest.table, shard))
    cuts = []
    for index in sorted(by_index):
        for table, shard in by_index[index]:
            with contextlib.suppress(FileError):
                cuts.append(store.read_shard(table, shard.key, ["id"], shard)["id"].to_numpy())
                break
        else:
            return None
    return cuts or None


def _check_same_kind(run: Run) -> None:
    """Raises unless the queries have the task of the corpus, and vectors where it has them."""
    if run.queries is None:
        return
    if run.queries.task != run.corpus.task:
        raise ConfigError(
            f"queries.task: found {run.queries.task}, expected {run.corpus.task}, the task of the "
            "corpus. Remove it there."
        )
    if (run.queries.features is None) != (run.corpus.features is None):
        raise ConfigError(
            f"queries.features: found {run.queries.features} with corpus.features: "
            f"{run.corpus.features}, expected both or neither. Name the vectors of both."
        )


def _check_same_form(run: Run, examples: Any, queries: Any) -> None:
    """Raises unless the texts of the queries have the form of the corpus's, such as pairs."""
    if (examples.format, examples.has_text) != (queries.format, queries.has_text):
        raise DataError(
            f"{run.queries.path if run.queries else ''}: found rows as {_form(queries)}, expected "
            f"{_form(examples)}, as in the corpus. Name the same kind of columns in both."
        )


def _form(part: Any) -> str:
    return str(part.format) if part.has_text else "vectors without text"


def _check_same_labels(run: Run, examples: Any, queries: Any) -> None:
    """Raises where the queries have numbers as labels and the corpus names without an order."""
    is_named = examples.label_kind == "str" and run.corpus.classes is None
    if run.queries is not None and is_named and queries.label_kind == "int":
        raise DataError(
            f"{run.queries.path}: found whole numbers in the label column {run.queries.label}, "
            f"expected class names such as {', '.join(examples.classes[:3])}, as in the corpus. "
            "Name a column of names, or list `classes:` of the corpus in the order of the numbers."
        )


class _Writer:
    """Writes shards that are keyed by their content; in a dry reading only computes the keys."""

    def __init__(self, store: Store, is_dry: bool):
        self.store, self.is_dry = store, is_dry
        self.records: dict[str, list[ShardRecord]] = {table: [] for table in CORPUS}
        self.present = {table: store.shard_keys(table) for table in CORPUS}

    def add(self, spec: TableSpec, role: str, index: int, rows: pa.Table, salt: Any) -> None:
        """Writes one shard; `salt` is all that its key depends on beside the rows."""
        key = digest([content_hash(rows), salt])
        if self.is_dry:
            length = spec.vector_length(rows.schema)
            record = ShardRecord(
                key, role, index, rows.num_rows, rows.nbytes, "", None, None, length
            )
        else:
            stored = self._stored(spec, key, role, index)
            record = stored or self.store.write_shard(spec, key, role, index, rows)
        self.records[spec.name].append(record)

    def _stored(self, spec: TableSpec, key: str, role: str, index: int) -> ShardRecord | None:
        """The record of a shard that lies in the store; None where it does not, or is damaged."""
        if key not in self.present[spec.name]:
            return None
        try:
            return self.store.record_of(spec, key, role, index)
        except FileError as error:
            LOG.warning("written again: %s", error)
            return None

    def manifest(self, table: str, shard_size: int, details: Mapping[str, Any]) -> Manifest:
        """The manifest of a table over the shards that were added."""
        return Manifest(
            table=table,
            stage="ingest",
            version=INGEST_VERSION,
            fields={"shard_size": shard_size},
            inputs={},
            shards=tuple(self.records[table]),
            details=details,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )


def _cut(
    rows: pa.Table,
    role: str,
    shard_size: int,
    store: Store,
    salt: list[Any],
    before: list[np.ndarray] | None,
) -> Iterator[pa.Table]:
    """The rows of each shard, cut as in the earlier reading of which most rows can be reused.

    `before` holds the ids of the shards of an earlier reading of the same sources, which is it.
    """
    ids = rows["id"].to_numpy()
    if before is not None:
        for positions in cut(ids, before, shard_size):
            yield rows.take(pa.array(np.asarray(positions)))
        return
    best = cut(ids, [], shard_size)
    most = 0
    ids_of: dict[str, np.ndarray] = {}
    text = ingest.TEXT.name
    texts = rows.select(ingest.TEXT.schema.names)
    present = store.shard_keys(text)
    for manifest in store.earlier_manifests(text, EARLIER_CUTS):
        if manifest.fields.get("shard_size") != shard_size:
            continue
        shards = [s for s in manifest.shards if s.role == role]
        if not {s.key for s in shards} <= present:
            continue
        try:
            for shard in shards:
                if shard.key not in ids_of:
                    found = store.read_shard(text, shard.key, ["id"], shard)
                    ids_of[shard.key] = found["id"].to_numpy()
        except FileError as error:
            LOG.warning("left out: %s", error)
            continue
        again = cut(ids, [ids_of[shard.key] for shard in shards], shard_size)
        hashes = {digest([content_hash(texts.take(positions)), salt]) for positions in again}
        same = sum(shard.rows for shard in shards if shard.key in hashes)
        if same > most:
            best, most = again, same
        if most == len(ids):
            break
    for positions in best:
        yield rows.take(pa.array(np.asarray(positions)))
