"""The rows of a source as a corpus that every stage can rely on: stable ids, texts, labels.

A row that cannot be used is rejected with a reason and never stops the others. An id is a property
of the row alone, an integer from the id column or a hash of any other id, so it survives appended
rows and corrected labels; rows without an id column have their row number as id, which survives
appending only. Shards are cut once: a row stays in the shard it was first put into.

Labels of the corpus are taken from the source, then flipped on purpose (`flip_labels`), and then
corrected by a person's review (`corrections`), in this order.

A source is read twice, in parts, wherever `Each` does that. `survey` learns from the first reading
what becomes of every row, and holds nine bytes for each; the second makes the rows
(`stages.corpus.rows`). One reading would have to hold the corpus: which labels are classes, and
which row of an id is the first, is known at its end.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import decoded
from stages.corpus.columns import (
    JSON,
    OWN,
    VECTOR,
    check_columns,
    stored_columns,
    used_columns,
    with_columns,
)
from stages.corpus.flips import flips
from stages.corpus.forms import CONVERSATIONS, Form, form_of, notice
from stages.corpus.labels import Labels, read_labels
from stages.corpus.load import reading
from stages.corpus.pieces import PIECE_BYTES, Each, Part, Reading, in_turn, read_part
from stages.corpus.reasons import REASONS, REFUSED, mark, mark_repeated, most_rejected
from stages.corpus.review import new_labels, read_review
from stages.corpus.row_ids import read_ids, written_type
from stages.corpus.rows import REJECTED, Recipe
from stages.corpus.scan import Columns, Measures, Refusals, Scanned, scan
from stages.corpus.source import LABELLED, LEARNED, Source
from stages.corpus.texts import Format
from stages.corpus.vectors import FEATURES, check_length, length_of_file, most_frequent
from stages.stage import ConfigError, CorpusTask, DataError, Role
from storage.schema import TableSpec

__all__ = [
    "EXTRA",
    "FEATURES",
    "LABEL",
    "REASONS",
    "REJECTED",
    "TEXT",
    "Survey",
    "survey",
    "tables",
]

_ID_ROLE = [("id", pa.int64()), ("role", pa.string())]
TEXT = TableSpec(
    "text", pa.schema([*_ID_ROLE, ("text", pa.string()), ("text_b", pa.string())]), ("id",)
)
LABEL = TableSpec(
    "label",
    pa.schema(
        [
            *_ID_ROLE,
            ("label", pa.int64()),
            ("true_label", pa.int64()),
            ("label_before_review", pa.int64()),
            ("target", pa.float64()),
        ]
    ),
    ("id",),
)
"""The class index of a row, or its target number in a regression; null in other tasks.

`label_before_review` is the class that a row was given before a person accepted or fixed it, null
where nobody did.
"""
EXTRA = TableSpec(
    "extra",
    pa.schema([*_ID_ROLE, ("source_id", pa.string()), ("row_number", pa.int64())]),
    ("id",),
    carries_columns=True,
)


class Survey(NamedTuple):
    """What becomes of every row of a source, and what the rows have in common."""

    recipe: Recipe
    """What makes the rows."""
    parts: tuple[Part, ...]
    ids: np.ndarray
    """Of every row of the source, in its order; that of a row without one is 0."""
    reasons: np.ndarray
    """Of every row the place in `REASONS` of why it is rejected; 0 where it is kept."""
    classes: tuple[str, ...]
    """Names of the classes by index; empty for a source without labels and for other tasks."""
    label_kind: Literal["int", "str", "classlabel", "float", "none"]
    """Type of the label column: of a regression "float", of a task without labels "none"."""
    stored: list[dict[str, Any]]
    """The source's columns in order: `name` there, `stored` name in the rows, and the Arrow `type`
    of its cells there, "json" where they are of several. Of the label also `cells`, one per class.
    """
    format: Format
    """Content of the columns text and text_b: texts, prompts with completions, or conversations."""
    text_bytes: int
    """Of the texts of usable rows."""
    notices: tuple[str, ...] = ()
    """What a person should know of how the source was read, and of its labels."""
    lengths: Mapping[str, np.ndarray] = MappingProxyType({})
    """Of usable rows, or at most `MEASURED` evenly spread ones, what `Measures` gives."""

    def names(self, key: str) -> Iterator[str]:
        """What names the usable rows: their `source_id` or `example_id`, read anew."""
        for part in self.parts:
            loaded = self.recipe.columns.read(part)
            ids, source_ids = read_ids(self.recipe.columns.source, loaded, part.first)
            usable = self.reasons[part.first : part.first + part.n_rows] == 0
            named = source_ids.to_numpy(zero_copy_only=False) if key == "source_id" else ids
            yield from map(str, named[usable])

    @property
    def task(self) -> CorpusTask:
        """What a model learns from a row."""
        return self.recipe.columns.source.task

    @property
    def has_text(self) -> bool:
        """Whether rows have a text; a source may have vectors alone."""
        return self.recipe.columns.has_text

    @property
    def vector_length(self) -> int | None:
        """Length of the vectors; None without features."""
        return self.recipe.columns.vector_length


def survey(
    source: Source,
    role: Role,
    classes: tuple[str, ...] | None = None,
    vector_length: int | None = None,
    refusals: Refusals | None = None,
    keeps_absent: bool = False,
    each: Each = in_turn,
    piece_bytes: int = PIECE_BYTES,
    measures: Measures | None = None,
    as_messages: bool = False,
) -> Survey:
    """What becomes of every row of a source: it is usable, or rejected with a reason.

    `classes` fixes the classes: for queries they are those of the corpus. Without it they are
    those of `source.classes`, of the names of a `ClassLabel`, or of the distinct labels that rows
    have, or with `keeps_absent` all of them. `vector_length` is that of the corpus, for queries
    with features. `refusals` says which rows no model could read, `measures` how long completions
    are in a model's tokens. `as_messages` makes conversations of prompts and completions. `each`
    reads the parts of about `piece_bytes`; neither it nor their size changes anything. Memory: 17
    bytes a row, and the parts that are read here.

    Raises:
        ConfigError: `flip_labels` on queries, or no label column for examples.
        DataError: the source cannot be read, lacks a column, or has no usable row; its labels are
            no classes; its vectors do not fit; a correction cannot be used.
    """
    _check_role(source, role)
    read = reading(source, each, piece_bytes)
    empty = read.empty
    given, source = source, with_columns(source, empty.table.column_names)
    check_columns(source, role, empty.table.column_names)
    form = form_of(given, source, empty, partial(_first_cell, read), as_messages)
    measures = measures if source.task in LEARNED else None
    columns = Columns(source, role, empty, form, refusals, vector_length, measures, read.n_rows)
    if source.features_file is not None:
        length = length_of_file(source, read.n_rows)
        check_length(source, length, vector_length)
        columns = dataclasses.replace(columns, vector_length=length)
    rows = _Rows(read.parts)
    rows.scan(columns, each)
    if source.features is not None and source.features_file is None:
        columns = _with_length(columns, rows.scanned)
        odd = [at for at, p in enumerate(rows.scanned) if set(p.lengths) - {columns.vector_length}]
        rows.scan(columns, each, odd)
    ids, reasons, scanned = rows.ids, rows.reasons, rows.scanned
    _check_usable(source, reasons, scanned)
    distinct, labels = None, None
    if source.task == "classification":
        distinct, n_of, entries = _together(scanned, read.parts)
        reviewed = frozenset[str]().union(*map(new_labels, source.corrections))
        labels = read_labels(source, empty, distinct, n_of, classes, role, keeps_absent, reviewed)
        _mark_labels(reasons, labels, entries, role)
    mark_repeated(reasons, ids)
    _check_usable(source, reasons, scanned)
    are_numbers = all(part.ids_are_numbers for part in scanned)
    stored = _stored(columns, labels, are_numbers)
    names = labels.classes if labels is not None else ()
    flipped = None
    if source.flip_labels:
        flipped = flips(ids, reasons == 0, source.flip_labels)
    reviews = tuple(read_review(path, source.task, names) for path in source.corrections)
    codes = labels.codes if labels is not None else np.array([-1])
    return Survey(
        Recipe(columns, tuple(stored), distinct, codes, len(names), flipped, reviews),
        read.parts,
        ids,
        reasons,
        names,
        labels.kind if labels is not None else "float" if source.task == "regression" else "none",
        stored,
        _format(form),
        sum(part.text_bytes for part in scanned),
        (
            *read.notices,
            *filter(None, [most_rejected(reasons, source.id)]),
            *filter(None, [notice(given, source, form, empty.table.column_names)]),
            *(labels.notices if labels is not None else ()),
        ),
        rows.measures(),
    )


def tables(rows: pa.Table) -> dict[str, pa.Table]:
    """Rows of a `Corpus`, or some of them, as the tables `text`, `label`, `extra` and `features`.

    Dropped rows have no label; their text stays, so that features computed from it are reused. Of a
    source without features there is no table of them.
    """
    carried = [name for name in rows.column_names if name not in OWN]
    kept = rows.filter(pc.invert(rows["is_dropped"]))
    cut = {
        TEXT.name: rows.select(TEXT.schema.names),
        LABEL.name: kept.select(LABEL.schema.names),
        EXTRA.name: rows.select([*EXTRA.schema.names, *carried]),
    }
    if VECTOR in rows.column_names:
        vectors = rows.select(["id", "role", VECTOR])
        cut[FEATURES.name] = vectors.rename_columns(FEATURES.schema.names)
    return cut


class _Rows:
    """What the parts of a source say of its rows, put together as they say it."""

    def __init__(self, parts: Sequence[Part]):
        n_rows = sum(part.n_rows for part in parts)
        self.ids = np.zeros(n_rows, dtype=np.int64)
        self.reasons = np.zeros(n_rows, dtype=np.int8)
        self.scanned: list[Scanned] = []
        """Of each part, without its ids and reasons."""
        self._parts = parts

    def scan(self, columns: Columns, each: Each, places: Sequence[int] | None = None) -> None:
        """Scans the parts at these places, or all."""
        places = range(len(self._parts)) if places is None else places
        found: dict[int, Scanned] = dict(enumerate(self.scanned))
        nothing = np.zeros(0, dtype=np.int8)
        for at, said in each(scan, columns, [self._parts[place] for place in places]):
            part = self._parts[places[at]]
            rows = slice(part.first, part.first + part.n_rows)
            self.ids[rows], self.reasons[rows] = said.ids, said.reasons
            found[places[at]] = said._replace(ids=nothing, reasons=nothing)
        self.scanned = [found[place] for place in range(len(self._parts))]

    def measures(self) -> dict[str, np.ndarray]:
        """What was measured of the rows that are kept, in the order of the source."""
        found: dict[str, list[np.ndarray]] = {}
        for said in self.scanned:
            is_kept = self.reasons[said.measured] == 0
            for name, lengths in said.measures.items():
                found.setdefault(name, []).append(lengths[is_kept])
        return {name: np.concatenate(parts) for name, parts in found.items()}


def _with_length(columns: Columns, scanned: Sequence[Scanned]) -> Columns:
    """The columns with the length of their vectors: the most frequent one, if none is given."""
    lengths: Counter[int] = Counter()
    for part in scanned:
        lengths.update(part.lengths)
    length = columns.vector_length or most_frequent(lengths)
    check_length(columns.source, length, columns.vector_length)
    return dataclasses.replace(columns, vector_length=length)


def _together(
    scanned: Sequence[Scanned], parts: Sequence[Part]
) -> tuple[pa.Array | None, np.ndarray, list[np.ndarray]]:
    """The different labels of all usable rows, and how many have each, and each row's label.

    Of each part the labels of its rows as places among the labels of all; the last place, which no
    label has, stands for null.
    """
    if scanned[0].distinct is None:
        return None, np.zeros(0), [np.full(part.n_rows, -1, np.int8) for part in parts]
    distinct = pa.concat_arrays([part.distinct for part in scanned]).unique()
    n_of = np.zeros(len(distinct), dtype=np.int64)
    entries = []
    for part in scanned:
        places = pc.index_in(part.distinct, value_set=distinct)
        places = np.append(places.to_numpy(zero_copy_only=False), -1)
        of_rows = places[part.entries].astype(np.min_scalar_type(-max(len(distinct), 1)))
        n_of += np.bincount(of_rows[of_rows >= 0], minlength=len(distinct))
        entries.append(of_rows)
    return distinct, n_of, entries


def _mark_labels(
    reasons: np.ndarray, labels: Labels, entries: list[np.ndarray], role: Role
) -> None:
    """Rejects rows without a label, or with one that is no class."""
    start = 0
    for places in entries:
        of_part = reasons[start : start + len(places)]
        is_missing = labels.is_missing[places]
        if role == "example":
            mark(of_part, is_missing, "missing label")
        mark(of_part, (labels.codes[places] < 0) & ~is_missing, "unknown label")
        start += len(places)


def _stored(columns: Columns, labels: Labels | None, ids_are_numbers: bool) -> list[dict[str, Any]]:
    """The columns of the source, as `Survey.stored` has them."""
    source = columns.source
    empty = decoded(columns.empty, used_columns(source))
    type_of_ids = written_type(source, empty, ids_are_numbers)
    stored = stored_columns(source, columns.form, empty, type_of_ids)
    written = labels.written if labels is not None else ()
    for column in stored:
        if column["stored"] == "label":
            column["cells"] = list(written)
            # Of rejected rows the labels may be of other types, and those of CSV may be numbers.
            if column["type"] == JSON or not empty.is_typed:
                kinds = {type(cell) for cell in written}
                column["type"] = str(pa.infer_type(written)) if len(kinds) == 1 else JSON
    return stored


def _format(form: Form) -> Format:
    if form in CONVERSATIONS:
        return "messages"
    if form == "text" or form == "preference" or form == "preference_messages":
        return form
    return "prompt_completion"


def _first_cell(read: Reading, name: str) -> Any:
    """The first cell of a column that is not null, of the first part that has one."""
    for part in read.parts:
        for cell in read_part((read.path, read.empty), part).values(name):
            if cell is not None:
                return cell
    return None


def _check_role(source: Source, role: Role) -> None:
    if role == "query" and source.flip_labels:
        raise ConfigError(
            "flip_labels: found on queries, expected on the corpus only. Remove it there."
        )
    if role == "example" and source.label is None and source.task in LABELLED:
        raise ConfigError(
            f"{source.path}: found label: null for examples, expected the name of a column. "
            "Set label; only queries may lack one."
        )


def _check_usable(source: Source, reasons: np.ndarray, scanned: Sequence[Scanned]) -> None:
    if (reasons == 0).any():
        return
    # In the order in which they come.
    codes, first, counts = np.unique(reasons, return_index=True, return_counts=True)
    told: Counter[str] = Counter()
    for at in np.argsort(first).tolist():
        reason = REASONS[codes[at]]
        if reason == REFUSED:
            for part in scanned:
                told.update(part.refused)
        else:
            told[reason] = int(counts[at])
    shown = ", ".join(f"{n} {reason}" for reason, n in told.most_common(5)) or "no rows at all"
    raise DataError(
        f"{source.path}: found no usable row among {len(reasons)} ({shown}), expected at "
        "least one. Check which columns text, label, id and the like name, and the reasons."
    )
