"""Read the corpus and its queries into `text`, `label`, `extra`, `rejected` and `features`.

The shards of these tables are keyed by their content. Rows are cut into shards once: when a corpus
that lies in the store is read again with more rows or corrected labels, its earlier shards keep
their rows.

Tasks read the source in parts, twice: to learn what becomes of every row (`stages.corpus.ingest`),
and to make the shards (`pipeline.corpus_shards`). The driver holds ids and reasons of rows, and
rejected rows up to a shard of them; neither the parts nor the number of workers change a byte. A
source of one part is read in the driver.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.corpus_cuts import best_cut, cut_as_before, ids_of_shards
from pipeline.corpus_shards import CORPUS as CORPUS
from pipeline.corpus_writer import INGEST_VERSION, CorpusShards
from pipeline.lengths import Lengths
from pipeline.readers import Readers
from pipeline.settings import Run
from pipeline.shard_sizes import AUTO, SMALL_SIZE, ShardSize
from stages.corpus import ingest
from stages.corpus.forms import CARRIED
from stages.corpus.load import fingerprint
from stages.corpus.pieces import PIECE_BYTES, Each, in_turn
from stages.corpus.remote_file import changed
from stages.corpus.source import LABELLED
from stages.stage import ConfigError, CorpusTask, DataError
from storage.manifest import Manifest, ShardRecord, digest
from storage.schema import FileError
from storage.table import Store

LOG = logging.getLogger(__name__)
SOMETIMES = frozenset({ingest.FEATURES.name})
"""Tables that only some corpora have."""
NOTES = "ingest"
"""Folder of the store with a note of every reading of a corpus: the manifests that it gave."""


@dataclass(frozen=True)
class Corpus:
    """The corpus tables as they stand, by table name."""

    tables: Mapping[str, Manifest]
    """Manifests by table name; `features` only where the sources have vectors."""
    notices: tuple[str, ...] = ()
    """Sentences for the user about how the sources were read, and about their labels."""
    lengths: Mapping[str, Lengths] = field(default_factory=dict)
    """Lengths of completions in a model's tokens, by how the model reads and the rows' role:
    `reading/role`."""

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
        return self.tables["text"].details.get("format") in ("messages", "preference_messages")

    @property
    def unlabelled_queries(self) -> int:
        """Queries without a label, where the task has labels."""
        return int(self.tables["label"].details.get("unlabelled_queries", 0))

    @property
    def shard_size(self) -> int:
        """Rows per shard."""
        return int(self.tables["text"].fields["shard_size"])

    def rows(self, table: str, role: str) -> int:
        """How many rows a table has of one role."""
        return sum(s.rows for s in self.tables[table].shards if s.role == role)


def read_corpus(
    run: Run,
    store: Store,
    is_dry: bool = False,
    readers: Readers | None = None,
    look: Callable[[Mapping[str, Manifest]], None] = lambda _: None,
    each: Each = in_turn,
    piece_bytes: int = PIECE_BYTES,
) -> Corpus:
    """The corpus of `run` in `store`; a dry reading computes every key and writes nothing.

    Rows that one of `readers` refuses are rejected with its reason. Where nothing is refused, the
    keys are those of the corpus without readers. `look` is shown the tables of an earlier reading
    of the same sources, before they are used; what it raises ends the reading. `each` reads parts
    of about `piece_bytes`, and makes shards.

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
    measures = readers.lengths if readers is not None and readers.learns_completions else None
    fingerprints = [fingerprint(source, store, is_dry) for source in sources]

    # With a new column, or another form whose cells are carried along, all is read again.
    declared = [*(spec.signature for spec in CORPUS.values()), *CARRIED]

    def name_of(shard_size: int | str) -> str:
        read_as = [INGEST_VERSION, declared, shard_size, fingerprints, keeps_absent]
        return digest(read_as + ([refuses] if refuses else []))

    wanted = [t for t in CORPUS if t not in SOMETIMES or run.corpus.features is not None]
    known, note = _known(store, name_of(run.shard_size), wanted, is_dry)
    if not known and run.shard_size == AUTO:
        # Once the only size.
        known, note = _known(store, name_of(SMALL_SIZE), wanted, is_dry)
    look(known)
    if set(known) == set(wanted) and all(_lies_whole(m, store) for m in known.values()):
        kept = {name: Lengths.read(written) for name, written in note.get("lengths", {}).items()}
        return Corpus(known, tuple(note.get("notices", ())), kept)
    examples = ingest.survey(
        run.corpus,
        "example",
        refusals=refusals,
        keeps_absent=keeps_absent,
        each=each,
        piece_bytes=piece_bytes,
        measures=measures,
    )
    surveys = [examples]
    if run.queries is not None:
        queries = ingest.survey(
            run.queries,
            "query",
            examples.classes,
            examples.vector_length,
            refusals,
            each=each,
            piece_bytes=piece_bytes,
            measures=measures,
            as_messages=examples.format == "messages",
        )
        surveys.append(queries)
        _check_same_form(run, examples, queries)
        _check_same_labels(run, examples, queries)
    shards = CorpusShards(store, wanted, is_dry, each)
    size = ShardSize(run.shard_size, int((examples.reasons == 0).sum()), examples.text_bytes)
    unlabelled = 0
    for part in surveys:
        # A manifest's details must follow from its key: see `details` below.
        salts: dict[str, list[Any]] = {
            "text": [] if part.format == "text" else [part.format],
            "label": list(examples.classes),
            "extra": [part.stored],
            "features": [],
        }
        making = shards.making(part, salts)
        before = _cut_before(known.values(), making.recipe.columns.role, store, each)
        if before is not None:
            size.keep(next(iter(known.values())))
            cut = cut_as_before(part, before, size.rows)
        else:
            cut = best_cut(part, making, store, each, size.rows, size.fits)
            if cut.earlier is not None:
                size.keep(cut.earlier)
        n_unlabelled = shards.make(making, part, cut)
        unlabelled += n_unlabelled if part is not examples else 0
    shards.close()
    details: dict[str, dict[str, Any]] = {
        "label": {
            "task": examples.task,
            "classes": list(examples.classes),
            "label_kind": examples.label_kind,
            "column": run.corpus.label if examples.task in LABELLED else None,
            "is_declared": run.corpus.classes is not None,
            "flip_labels": run.corpus.flip_labels and dataclasses.asdict(run.corpus.flip_labels),
            "unlabelled_queries": unlabelled,
        },
        "text": {"format": examples.format, "has_text": examples.has_text},
        "extra": {"columns": {p.recipe.columns.role: p.stored for p in surveys}},
    }
    manifests = {
        table: shards.manifest(table, size.fields, details.get(table, {})) for table in wanted
    }
    said = dict.fromkeys(notice for part in surveys for notice in part.notices)
    notices = (*said, *size.notes)
    lengths = {
        f"{reading}/{part.recipe.columns.role}": Lengths.of(found, int((part.reasons == 0).sum()))
        for part in surveys
        for reading, found in part.lengths.items()
    }
    if not is_dry:
        # The note says of which files these are the rows: they must be the same still.
        for source, was in zip(sources, fingerprints, strict=True):
            if fingerprint(source, store) != was:
                raise changed(source.path)
        keys = {table: store.write_manifest(manifest) for table, manifest in manifests.items()}
        # The run's resolved YAML has the size.
        for name in sorted({name_of(run.shard_size), name_of(size.rows)}):
            written = {name: found.written() for name, found in lengths.items()}
            store.write_note(NOTES, name, {**keys, "notices": notices, "lengths": written})
    return Corpus(manifests, notices, lengths)


def _has_own_outputs(run: Run) -> bool:
    """Whether a model comes with an output for each class, also for those that no row has."""
    models = [run.model, *(stage.model_ref for stage in run.stages.values())]
    kinds = [model.kind for model in models if model is not None]
    return any(kind.has_class_outputs and not kind.is_fitted for kind in kinds)


def _known(
    store: Store, name: str, wanted: list[str], is_dry: bool
) -> tuple[dict[str, Manifest], dict[str, Any]]:
    """The manifests that an earlier reading of the same sources gave, and the note of it.

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
    return found, note


def _lies_whole(manifest: Manifest, store: Store) -> bool:
    """Whether all shards lie in the store, with the sizes that they were written with."""
    sizes = store.sizes(manifest.table)
    return all(sizes.get(f"{s.key}.parquet") == s.bytes for s in manifest.shards)


def _cut_before(
    manifests: Iterable[Manifest], role: str, store: Store, each: Each
) -> list[np.ndarray] | None:
    """The ids of every shard of an earlier reading of the same sources, by any table that is whole.

    None where there was none, or a shard is damaged in all of its tables.
    """
    by_index: dict[int, list[tuple[str, ShardRecord]]] = {}
    for manifest in manifests:
        for shard in manifest.shards:
            if shard.role == role:
                by_index.setdefault(shard.index, []).append((manifest.table, shard))
    choices = [[(store.url, [place]) for place in by_index[index]] for index in sorted(by_index)]
    cuts: list[np.ndarray | None] = [None] * len(choices)
    for at, ids in each(_first_ids, None, choices):
        cuts[at] = ids
    found = [ids for ids in cuts if ids is not None]
    return found if found and len(found) == len(cuts) else None


def _first_ids(_: None, choices: Sequence[tuple[str, Any]]) -> np.ndarray | None:
    """The ids of a shard by the first of its tables that is whole; None where none is."""
    for store_url, place in choices:
        ids = ids_of_shards(store_url, place)
        if not isinstance(ids, FileError):
            return ids[0]
    return None


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
