"""A person's review of a corpus, a file of decisions: labels to be fixed, rows to be dropped.

The answers of a preference that is to be fixed change places.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import SourceRows
from stages.corpus.labels import class_code
from stages.corpus.load import load_file
from stages.corpus.preferences import SIDES, swapped
from stages.corpus.reviewed_texts import SHOWN, first_other
from stages.corpus.source import LABELLED
from stages.corpus.targets import parse_number
from stages.stage import CorpusTask, DataError
from storage.names import near
from storage.spreadsheet import unescaped

_VERDICTS = ("", "accept", "fix", "drop")
_SHOWN = 60
"""Characters of a cell that a message shows."""
ALIKE = 0.85
"""How like an id must be to one that was meant: ids of one source are much alike."""
_EXACT = re.compile(r"\s*-?(\d{1,15}|\d{13,16}(?!000)\d{3})\s*")


class Review(NamedTuple):
    """The decisions of one file, in its order, as arrays of one length."""

    path: str
    key: str
    """What names the rows: "source_id" or "example_id"."""
    rows: pa.Array
    """Their ids as text, each once."""
    verdicts: np.ndarray
    """Places in `_VERDICTS`."""
    values: np.ndarray
    """The class index or target number to be put in; of other decisions than fix, NaN."""
    shown: Mapping[str, Sequence[Any]] = {}
    """Cells that show the row, by column of `stages.corpus.reviewed_texts.SHOWN`."""
    example_ids: Sequence[Any] = ()
    """Cells of the column example_id that stands beside source_id, where there is one."""


def read_review(path: str, task: CorpusTask, classes: tuple[str, ...]) -> Review:
    """The decisions of the review at `path`.

    Raises:
        DataError: the review cannot be read, or names a row twice or unknown decisions or labels; a
            label is to be fixed though the task has none.
    """
    reviewed = _loaded(path)
    key = _review_column(path, reviewed, "source_id", "example_id")
    decisions = _values(reviewed, _review_column(path, reviewed, "decision"))
    names: list[Any] = [None] * len(decisions)
    is_pair = task == "preference"
    if not is_pair and any(_verdict(d) == "fix" for d in decisions):
        names = _values(reviewed, _review_column(path, reviewed, "new_label", "suggested_label"))
    beside = key == "source_id" and "example_id" in reviewed.table.column_names
    example_ids = _values(reviewed, "example_id") if beside else []
    seen: dict[str, int] = {}
    verdicts = np.zeros(len(decisions), dtype=np.int8)
    values = np.full(len(decisions), np.nan)
    for at, (value, decision, name) in enumerate(
        zip(_values(reviewed, key), decisions, names, strict=True)
    ):
        row_id, verdict = str(value), _verdict(decision)
        where = f"{path}: {_place(path, at)} ({key} {short(row_id)})"
        if at in reviewed.faults:
            raise DataError(
                f"{where}: found a row that is {reviewed.faults[at][0]}, expected UTF-8 rows. "
                "Save the review again."
            )
        if row_id in seen:
            raise DataError(
                f"{where}: found the same {key} as in {_place(path, seen[row_id])}, expected each "
                f"once. Remove one of the two rows.{_rewritten(example_ids[at : at + 1])}"
            )
        seen[row_id] = at
        if verdict not in _VERDICTS:
            raise DataError(
                f"{where}: found decision {short(decision)!r}{near(verdict, _VERDICTS[1:])}, "
                "expected accept, fix, drop or nothing. Correct it."
            )
        verdicts[at] = _VERDICTS.index(verdict)
        if verdict == "fix" and not is_pair:
            values[at] = _new_label(where, name, task, classes)
    shown = {name: _values(reviewed, name) for name in SHOWN if name in reviewed.table.column_names}
    rows = pa.array(list(seen), pa.string())
    return Review(path, key, rows, verdicts, values, shown, example_ids)


def correct(
    rows: pa.Table, review: Review, task: CorpusTask, answers: Sequence[str] = SIDES
) -> tuple[pa.Table, np.ndarray]:
    """The rows with the decisions about them, and which of the review's these are.

    Labels or targets are fixed; what the label of a decided row was before the first review is kept
    beside it. Of a preference the answers change places, also in the columns `answers` of the
    source. A dropped row stays, marked in `is_dropped`.

    Raises:
        DataError: a decision names two rows, by source_id and by example_id, or was made about
            another text than its row has; or the answers are columns of two types.
    """
    ids = rows["source_id"] if review.key == "source_id" else pc.cast(rows["id"], pa.string())
    found = pc.fill_null(pc.index_in(ids, value_set=review.rows), -1).to_numpy()
    places = np.flatnonzero(found >= 0)
    if not len(places):
        return rows, places
    decided = found[places]
    verdicts = review.verdicts[decided]
    _check_ids(rows["id"].to_numpy()[places[verdicts > 0]], review, decided[verdicts > 0])
    other = first_other(rows, places[verdicts > 0], decided[verdicts > 0], review.shown)
    if other is not None:
        at, read, text = other
        raise DataError(
            f"{review.path}: {_place(review.path, at)} ({review.key} "
            f"{short(review.rows[at].as_py())}): found a decision about {short(read)!r}, expected "
            f"one about {short(text)!r}, which has this id in the source now. Where the source has "
            "changed, name an id column and review again; texts are corrected in the source, not "
            "here. Where it is the same row, remove the column of texts from the review."
        )
    if task == "preference":
        rows = _turned(rows, places[verdicts == _VERDICTS.index("fix")], answers, review.path)
        return _with_dropped(rows, places, verdicts), decided
    if task == "classification":
        before = rows["label_before_review"].to_numpy(zero_copy_only=False)
        is_decided = np.isin(np.arange(rows.num_rows), places[verdicts > 0])
        labels = pc.if_else(
            pa.array(is_decided & np.isnan(before)), rows["label"], rows["label_before_review"]
        )
        rows = _with(rows, "label_before_review", labels)
    column = "target" if task == "regression" else "label"
    fixed = rows[column].to_pylist()
    for place, at in zip(places.tolist(), decided.tolist(), strict=True):
        if _VERDICTS[review.verdicts[at]] == "fix":
            value = float(review.values[at])
            fixed[place] = value if task == "regression" else int(value)
    rows = _with(rows, column, pa.array(fixed, rows.schema.field(column).type))
    return _with_dropped(rows, places, verdicts), decided


def _check_ids(ids: np.ndarray, review: Review, decided: np.ndarray) -> None:
    """Raises where the example_id beside the source_id of a decision is not that of its row.

    Raises:
        DataError: it is another's.
    """
    if not review.example_ids:
        return
    for row_id, at in zip(ids.tolist(), decided.tolist(), strict=True):
        beside = exact_id(review.example_ids[at])
        if beside not in (None, row_id):
            raise DataError(
                f"{review.path}: {_place(review.path, at)} (source_id "
                f"{short(review.rows[at].as_py())}): found example_id {beside} beside it, expected "
                f"{row_id}, which the row with this source_id has. Correct the one that is wrong."
                f"{_rewritten([beside])}"
            )


def _with_dropped(rows: pa.Table, places: np.ndarray, verdicts: np.ndarray) -> pa.Table:
    """The rows, those at `places` marked as dropped or not by what was decided of them."""
    is_dropped = rows["is_dropped"].to_numpy().copy()
    is_decided = verdicts > 0
    is_dropped[places[is_decided]] = verdicts[is_decided] == _VERDICTS.index("drop")
    return _with(rows, "is_dropped", pa.array(is_dropped))


def _turned(rows: pa.Table, places: np.ndarray, answers: Sequence[str], path: str) -> pa.Table:
    """The rows, those at `places` with the chosen answer rejected and the rejected one chosen."""
    if not len(places):
        return rows
    chosen, rejected = (rows[name] for name in answers)
    if chosen.type != rejected.type:
        raise DataError(
            f"{path}: found {chosen.type} in {answers[0]} and {rejected.type} in {answers[1]}, "
            "expected one type in both, as the answers of a pair change places. Write both alike "
            "in the source."
        )
    is_turned = np.zeros(rows.num_rows, dtype=bool)
    is_turned[places] = True
    pairs = rows["text_b"].to_pylist()
    for place in places.tolist():
        pairs[place] = swapped(pairs[place])
    rows = _with(rows, "text_b", pa.array(pairs, pa.string()))
    both = pa.chunked_array([*chosen.chunks, *rejected.chunks], chosen.type)
    of_chosen = np.arange(rows.num_rows) + rows.num_rows * is_turned
    own = (of_chosen, (of_chosen + rows.num_rows) % (2 * rows.num_rows))
    for name, cells in zip(answers, own, strict=True):
        rows = _with(rows, name, both.take(pa.array(cells)))
    return rows


def _with(rows: pa.Table, name: str, values: Any) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, values)


def check_used(
    review: Review,
    used: Sequence[np.ndarray],
    refused: Mapping[str, str],
    known: Callable[[], Iterable[str]] = tuple,
) -> None:
    """Raises unless each decision was about one row.

    `used` says which were about one, and `refused` why a row was rejected, by its `source_id`.
    `known` gives ids that rows have, of the kind that the review names rows by.

    Raises:
        DataError: a decision fits no row, or several.
    """
    times = np.bincount(
        np.concatenate([np.zeros(0, dtype=np.int64), *used]), minlength=len(review.rows)
    )
    for at in np.flatnonzero(times != 1).tolist():
        row_id = review.rows[at].as_py()
        where = f"{review.path}: {_place(review.path, at)} ({review.key} {short(row_id)})"
        if times[at]:
            raise DataError(
                f"{where}: found a {review.key} that {times[at]} rows have, expected one. Name "
                "the row by its example_id."
            )
        note = f", where it was rejected: {refused[row_id]}" if row_id in refused else ""
        meant = "" if note else near(row_id[: 10 * _SHOWN], known(), short, ALIKE)
        raise DataError(
            f"{where}: found a {review.key} that no row has{meant}, expected one of the "
            f"source{note}. Remove the row or correct its id."
            f"{'' if note else _rewritten(review.example_ids[at : at + 1])}"
        )


def _rewritten(example_ids: Sequence[Any]) -> str:
    """What to do where a program rewrote ids, as 007 as 7; `example_ids` may have the row's."""
    if not example_ids:
        return ""
    if exact_id(example_ids[0]) is not None:
        return (
            " Where a program rewrote ids, such as 007 as 7, remove the column source_id: rows go "
            "by example_id then."
        )
    return (
        " Where a spreadsheet rewrote ids, such as 007 as 7, open the review as it was written "
        "with all columns as text, and fill it in there."
    )


def new_labels(path: str) -> set[str]:
    """The labels that the review at `path` puts in the place of others.

    Raises:
        DataError: the review cannot be read.
    """
    reviewed = _loaded(path)
    found: set[str] = set()
    for name in {"new_label", "suggested_label"} & set(reviewed.table.column_names):
        found |= {str(value) for value in _values(reviewed, name) if value is not None}
    return found


def read_decisions(path: str) -> tuple[str, dict[str, str]]:
    """What names the rows of the review at `path`, and the decision about each that has one.

    Raises:
        DataError: the review cannot be read.
    """
    reviewed = _loaded(path)
    key = _review_column(path, reviewed, "source_id", "example_id")
    decisions = _values(reviewed, _review_column(path, reviewed, "decision"))
    pairs = zip(_values(reviewed, key), map(_verdict, decisions), strict=True)
    return key, {str(row_id): verdict for row_id, verdict in pairs if verdict}


def read_cells(path: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of the review at `path`: where each stands, and its cells as text by column.

    Raises:
        DataError: the review cannot be read.
    """
    reviewed = _loaded(path)
    columns = {name: _values(reviewed, name) for name in reviewed.table.column_names}
    for at in range(reviewed.table.num_rows):
        if at in reviewed.faults:
            raise DataError(
                f"{path}: {_place(path, at)}: found a row that is {reviewed.faults[at][0]}, "
                "expected UTF-8 rows. Save the review again."
            )
        cells = {name: values[at] for name, values in columns.items()}
        yield _place(path, at), {k: "" if v is None else str(v) for k, v in cells.items()}


def _loaded(path: str) -> SourceRows:
    """The rows of a review, without empty ones at its end, as spreadsheets leave them there.

    Raises:
        DataError: the review cannot be read.
    """
    reviewed = load_file(path)
    n_rows = reviewed.table.num_rows
    while n_rows and n_rows - 1 not in reviewed.faults:
        if any(column[n_rows - 1].is_valid for column in reviewed.table.columns):
            break
        n_rows -= 1
    return reviewed._replace(table=reviewed.table.slice(0, n_rows))


def exact_id(cell: Any) -> int | None:
    """The example_id in a cell; None where it is none, or a spreadsheet rounded it to 15 digits."""
    return int(str(cell)) if _EXACT.fullmatch(str(cell)) else None


def short(value: Any) -> str:
    """A cell of a review in a message."""
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def _given(name: Any) -> str:
    """The cell of new_label in a message."""
    return "no new_label" if name is None else f"new_label {short(name)!r}"


def _meant(name: Any, known: Iterable[str]) -> str:
    """What is said of a cell that a person wrote by hand and that is nearly a known name."""
    return "" if name is None else near(str(name)[: 10 * _SHOWN], known, short)


def _values(reviewed: SourceRows, name: str) -> list[Any]:
    """The cells of a column; of a CSV file as they were before they were escaped."""
    cells = reviewed.values(name)
    if reviewed.is_typed:
        return cells
    return [cell if cell is None else unescaped(str(cell)) for cell in cells]


def _verdict(decision: Any) -> str:
    return "" if decision is None else str(decision).strip().lower()


def _place(path: str, at: int) -> str:
    """Where a spreadsheet shows the row `at` of a CSV file; of other files its number."""
    return f"line {at + 2}" if path.lower().endswith(".csv") else f"row {at + 1}"


def _new_label(where: str, name: Any, task: CorpusTask, classes: tuple[str, ...]) -> int | float:
    """The class index or target that a person wrote in new_label; `where` begins the messages.

    Raises:
        DataError: it is no class or number, or the task has no labels.
    """
    if task not in LABELLED:
        raise DataError(
            f"{where}: found decision fix, expected accept, drop or nothing: rows of task: {task} "
            "have no label. Correct the text in the source instead."
        )
    if task == "regression":
        number = parse_number(str(name))
        if number is None:
            raise DataError(
                f"{where}: found {_given(name)}, expected a finite number. Write the target."
            )
        return number
    # One that begins with an apostrophe may be typed as it is.
    spelled = () if name is None else (str(name), f"'{name}")
    codes = (class_code(spelt, classes) for spelt in spelled)
    code = next((code for code in codes if code >= 0), -1)
    if code < 0:
        raise DataError(
            f"{where}: found {_given(name)}{_meant(name, classes)}, expected one of "
            f"{', '.join(classes)}. Write the name of the class."
        )
    return code


def _review_column(path: str, reviewed: SourceRows, *names: str) -> str:
    for name in names:
        if name in reviewed.table.column_names:
            return name
    raise DataError(
        f"{path}: found the columns {', '.join(reviewed.table.column_names)}, expected "
        f"{' or '.join(names)} among them. Add the column to the review."
    )
