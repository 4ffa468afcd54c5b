"""The rows of a part of a source as they are kept, or rejected, once all parts were looked at."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import SourceRows, compact, row_of
from stages.corpus.columns import OWN, VECTOR
from stages.corpus.flips import Flips
from stages.corpus.labels import label_cells
from stages.corpus.pieces import Part
from stages.corpus.reasons import REASONS, REFUSED
from stages.corpus.review import Review, correct
from stages.corpus.row_ids import read_ids
from stages.corpus.scan import Columns, refusals_of
from stages.corpus.targets import read_targets
from stages.corpus.texts import read_texts
from stages.corpus.vectors import as_lists, read_features
from storage.schema import TableSpec

REJECTED = TableSpec(
    "rejected",
    pa.schema(
        [
            ("role", pa.string()),
            ("source", pa.string()),
            ("row_number", pa.int64()),
            ("source_id", pa.string()),
            ("reason", pa.string()),
            ("raw", pa.string()),
        ]
    ),
    ("role", "row_number"),
)


@dataclass(frozen=True)
class Recipe:
    """What makes the rows of a source, beside the source itself; the same for all of its parts."""

    columns: Columns
    stored: tuple[dict[str, Any], ...]
    """The source's columns, as `stages.corpus.ingest.Survey.stored` has them."""
    distinct: pa.Array | None
    """The different cells of the label column; None where rows have no class."""
    codes: np.ndarray
    """Class index of each of these cells; -1 of one that is none, and at the end."""
    n_classes: int
    flips: Flips | None
    reviews: tuple[Review, ...]


class Made(NamedTuple):
    """Rows that are kept."""

    rows: pa.Table
    """Columns id, role, text, text_b, label, true_label, label_before_review, target, is_dropped,
    source_id, row_number, features_vector where the source has features, then its other columns; in
    source order."""
    decided: tuple[np.ndarray, ...]
    """Of each review, which decisions were about these rows."""


def make_rows(recipe: Recipe, part: Part, loaded: SourceRows, numbers: np.ndarray) -> Made:
    """The rows of a part that are kept, by their ascending numbers in the part.

    `loaded` are all rows of the part, as `Columns.read` gives them.
    """
    columns = recipe.columns
    source = columns.source
    n_rows = len(numbers)
    chosen = pa.array(numbers)
    if n_rows != loaded.table.num_rows:
        is_range = n_rows and numbers[-1] - numbers[0] + 1 == n_rows
        table = loaded.table.slice(numbers[0], n_rows) if is_range else loaded.table.take(chosen)
        loaded = loaded._replace(table=table)
    row_numbers = part.first + numbers
    if source.id is None:
        ids, source_ids = row_numbers, pc.cast(pa.array(row_numbers), pa.string())
    else:
        ids, source_ids = read_ids(source, loaded)
    ignored = np.zeros(n_rows, dtype=np.int8)
    texts = read_texts(source, columns.form, loaded, ignored)
    codes, true_codes = _codes(recipe, loaded), np.full(n_rows, -1)
    if recipe.flips is not None:
        codes, true_codes = recipe.flips.of(codes, ids, recipe.n_classes), codes
    targets = np.full(n_rows, np.nan)
    if source.task == "regression":
        targets = read_targets(source, loaded, ignored, columns.role)
    cells = {
        "id": pa.array(ids),
        "role": pa.repeat(pa.scalar(columns.role), n_rows),
        "text": texts.text,
        "text_b": texts.text_b,
        "label": pa.array(codes, pa.int64(), mask=codes < 0),
        "true_label": pa.array(true_codes, pa.int64(), mask=true_codes < 0),
        "label_before_review": pa.nulls(n_rows, pa.int64()),
        "target": pa.array(targets, pa.float64(), mask=np.isnan(targets)),
        "is_dropped": pa.repeat(pa.scalar(False), n_rows),
        "source_id": source_ids,
        "row_number": pa.array(row_numbers),
    }
    if source.features:
        cells[VECTOR] = as_lists(_vectors(columns, part, loaded, numbers))
    for column in recipe.stored:
        if column["stored"] not in (*OWN, VECTOR):
            cells[column["stored"]] = loaded.table[column["name"]]
    rows = pa.table(cells)
    decided = []
    named = {column["name"]: column["stored"] for column in recipe.stored}
    answers = [named.get(str(name), "") for name in (source.chosen, source.rejected)]
    for review in recipe.reviews:
        rows, about_rows = correct(rows, review, source.task, answers)
        decided.append(about_rows)
    return Made(rows, tuple(decided))


def reject_rows(
    recipe: Recipe, part: Part, loaded: SourceRows, numbers: np.ndarray, reasons: np.ndarray
) -> pa.Table:
    """The rejected rows of a part, by their numbers in it and the places of their `REASONS`.

    An unreadable row has no source id.
    """
    columns = recipe.columns
    source = columns.source
    chosen = pa.array(numbers)
    cells = loaded.table.take(chosen)
    told = [REASONS[reason] for reason in reasons.tolist()]
    of_model = numbers[reasons == REASONS.index(REFUSED)]
    if len(of_model) and columns.refusals is not None:
        texts = read_texts(source, columns.form, loaded, np.zeros(part.n_rows, dtype=np.int8))
        refused = refusals_of(columns.refusals, texts, of_model)
        told = [refused.get(row, why) for row, why in zip(numbers.tolist(), told, strict=True)]
    raws = [
        loaded.faults[row][1] if row in loaded.faults else compact(row_of(cells, at))
        for at, row in enumerate(numbers.tolist())
    ]
    is_known = pa.array([row not in loaded.faults for row in numbers.tolist()], pa.bool_())
    _, source_ids = read_ids(source, loaded, part.first)
    known_ids = pc.if_else(is_known, source_ids.take(chosen), pa.scalar(None, pa.string()))
    return pa.table(
        {
            "role": [columns.role] * len(numbers),
            "source": [source.path] * len(numbers),
            "row_number": pa.array(part.first + numbers),
            "source_id": known_ids,
            "reason": told,
            "raw": raws,
        },
        schema=REJECTED.schema,
    )


def _codes(recipe: Recipe, loaded: SourceRows) -> np.ndarray:
    """The class index of every row; -1 where it has no class."""
    if recipe.distinct is None or not len(recipe.distinct):
        return np.full(loaded.table.num_rows, -1)
    column = label_cells(recipe.columns.source, loaded)
    found = pc.index_in(column, value_set=recipe.distinct)
    codes: np.ndarray = recipe.codes[pc.fill_null(found, -1).to_numpy()]
    return codes


def _vectors(columns: Columns, part: Part, loaded: SourceRows, numbers: np.ndarray) -> np.ndarray:
    """The vectors of some rows of a part; `loaded` are these rows."""
    ignored = np.zeros(len(numbers), dtype=np.int8)
    if columns.source.features_file is None or not len(numbers):
        return read_features(columns.source, loaded, ignored, columns.vector_length)[0]
    first, n_rows = int(numbers[0]), int(numbers[-1] - numbers[0] + 1)
    span = loaded._replace(table=pa.table({"row": pa.nulls(n_rows)}))
    ignored = np.zeros(n_rows, dtype=np.int8)
    vectors, _ = read_features(columns.source, span, ignored, None, part.first + first)
    chosen: np.ndarray = vectors[numbers - first]
    return chosen
