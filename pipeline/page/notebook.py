"""The report's tables and charts one by one, as objects of pandas and matplotlib, for notebooks.

Every one shows what a section of the report found (`pipeline.page.report`), in its words.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import escape

from pipeline.errors import RunError
from pipeline.page.answers import answers
from pipeline.page.cautions import cautions
from pipeline.page.chart import Chart
from pipeline.page.document import readable, share
from pipeline.page.labels import labels
from pipeline.page.record import cost, provenance
from pipeline.page.subject import Subject
from pipeline.page.targets import questions, targets
from pipeline.page.trust import evaluations, read_evaluation
from pipeline.page.twins import twins
from pipeline.page.values import groups, values
from storage.names import near

LONGEST = 300
"""Characters of a text in a table."""
TEXTS = ("text", "text_b", "prompt", "answer", "rejected", "question")
"""Columns that people read, where a row has them."""


@dataclass(frozen=True)
class Shown:
    """Something that can be shown: what it is, when it is there, and how it is made."""

    what: str
    is_there: Callable[[Subject], bool]
    needs: str
    """The stage that brings it."""
    make: Callable[[Subject], Any]


def show(run: Any, name: str | None = None, by: str | None = None, evaluation: Any = None) -> Any:
    """A table or a chart of the report, as an object; without a name the list of what there is.

    Tables are Stylers of pandas (`.data` is the DataFrame), charts are figures of matplotlib; of
    evaluations, which may have several, a list of figures.

    Args:
        run: The opened run (`pipeline.open_run.OpenedRun`).
        name: `flags`, `classes`, `matrix`, `scores`, `reasons`, `values`, `class values`, `issues`,
            `duplicates`, `outliers`, `cautions`, `cost` or `provenance`.
        by: In place of a name: flags and values by this column of the source.
        evaluation: In place of a name: the curves of what `evaluate` returned.

    Raises:
        RunError: there is nothing of this name, or the run has no tables for it.
    """
    subject = Subject(run)
    if by is not None:
        return _by(subject, by)
    if evaluation is not None:
        found = evaluations([read_evaluation(evaluation, run.record["run_id"])]) or []
        return [_figure(chart) for one in found for chart in one.charts]
    there = {called: one for called, one in _SHOWN.items() if one.is_there(subject)}
    if name is None:
        rows = [{"name": called, "shows": one.what} for called, one in there.items()]
        return _table("run.show(name)", rows, {"name": "name", "shows": "shows"})
    if name not in _SHOWN:
        raise RunError(
            f"show: found {name!r}{near(name, there)}, expected one of {', '.join(there)}. "
            "Correct the name."
        )
    if name not in there:
        needs = _SHOWN[name].needs
        raise RunError(
            f"{run.folder.path}: found nothing to show as {name}, expected the results of "
            f"{needs}. `run.show()` lists what there is."
        )
    return _SHOWN[name].make(subject)


def _table(caption: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Any:
    """A Styler of these columns of the rows, under their titles; texts are only texts."""
    import pandas as pd  # a second, which other commands are spared

    cells = {title: [_cell(row[key]) for row in rows] for key, title in columns.items()}
    # pandas escapes cells and heads alone.
    style = pd.DataFrame(cells).style.set_caption(str(escape(caption))).hide(axis="index")
    style = style.format(escape="html", precision=4, na_rep="", thousands=",")
    style = style.format_index(escape="html", axis="columns")
    texts = [title for title, values in cells.items() if any(isinstance(v, str) for v in values)]
    return style.set_properties(subset=texts, **{"text-align": "left", "white-space": "pre-wrap"})


def _cell(value: Any) -> Any:
    return readable(value, LONGEST) if isinstance(value, str) else value


def _figure(chart: Chart) -> Any:
    """The chart as a figure that a notebook shows by itself."""
    return chart.figure()


def _shares(rows: Sequence[Mapping[str, Any]], *names: str) -> Iterator[dict[str, Any]]:
    """The rows, with parts of all in percent, as the report has them."""
    for row in rows:
        yield {**row, **{name: share(row[name]) for name in names}}


def _flags(subject: Subject) -> Any:
    worst: Sequence[Mapping[str, Any]]
    columns: dict[str, str] = {}
    if subject.task == "classification":
        found = labels(subject)
        assert found is not None
        worst = [{**row, "flag": "⚑" * row["is_label_issue"]} for row in found.worst.rows]
        columns = {"given_label": "given", "suggested_label": "suggested", "label_score": "score"}
        columns |= {"p_wrong": "p(wrong)", "flag": "flagged"}
        caption = f"The {len(worst)} most suspicious labels"
    elif subject.task in ("completion", "preference"):
        judged = answers(subject)
        assert judged is not None
        worst = [{**row, "flag": "⚑" * row[subject.flag]} for row in judged.worst.rows]
        columns = {"reason": "reason", "p_wrong": "p(wrong)", "flag": "flagged"}
        caption = f"The {len(worst)} {judged.words['worst']}"
    elif subject.task == "regression":
        far = targets(subject)
        assert far is not None
        worst = far.worst.rows
        columns = {"target": "target", "predicted": "predicted"}
        caption = f"The {len(worst)} targets that are farthest off"
    else:
        unsure = questions(subject)
        assert unsure is not None
        worst = unsure.cards
        columns = {"answer": "answer", "probability": "probability"}
        caption = f"The {len(worst)} answers that the model is least sure of"
    columns = {**_texts(worst), **columns, "source_id": "id in the source"}
    return _table(caption, worst, columns)


def _texts(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The columns that people read which some row has, with their titles."""
    found = [name for name in TEXTS if any(row.get(name) is not None for row in rows)]
    titles = {"text_b": "second text"}
    if "rejected" in found:
        titles["answer"] = "chosen"
    return {name: titles.get(name, name) for name in found}


def _classes(subject: Subject) -> Any:
    found = labels(subject)
    assert found is not None
    columns = {
        "given_label": "given label",
        "n": "rows",
        "flagged": "flagged",
        "expected_wrong": "expected wrong",
        "agreeing": "predicted as given",
    }
    return _table("Classes", list(_shares(found.classes.rows, "agreeing")), columns)


def _matrix(subject: Subject) -> Any:
    found = labels(subject)
    assert found is not None
    rows = []
    for given in found.names:
        row: dict[str, Any] = {"": given}
        for suggested in found.names:
            cell = found.cells.get((given, suggested), {"n": 0, "flagged": 0})
            flags = f" ({cell['flagged']} ⚑)" if cell["flagged"] else ""
            row[suggested] = f"{cell['n']:,}{flags}"
        rows.append(row)
    caption = (
        "Rows with the label on the left, for which the label above fits best; ⚑ how many of these "
        "are flagged"
    )
    return _table(caption, rows, {"": "", **_titles(found.names)})


def _titles(names: Sequence[str]) -> dict[str, str]:
    """The names as titles of columns: cut where they are long, but never so that two are alike."""
    titles: dict[str, str] = {}
    for most in (60, LONGEST, *map(len, names)):
        titles = {name: readable(name, most) for name in names}
        if len(set(titles.values())) == len(names):
            break
    return titles


def _scores(subject: Subject) -> Any:
    if subject.task == "regression":
        far = targets(subject)
        assert far is not None
        return _figure(far.chart)
    found = labels(subject) if subject.task == "classification" else answers(subject)
    assert found is not None
    assert found.histogram is not None
    return _figure(found.histogram)


def _reasons(subject: Subject) -> Any:
    found = answers(subject)
    assert found is not None
    assert found.reasons is not None
    columns = {"reason": "reason", "n": "flagged", "share": "of all", "p_wrong": "mean p(wrong)"}
    return _table(
        found.words["reasons"], list(_shares(found.reasons.rows, "share", "p_wrong")), columns
    )


def _values(subject: Subject) -> Any:
    found = values(subject)
    assert found is not None
    rows = [
        {**row, "side": listed.side, "flagged": row["flagged"] or "", "text": _named(row)}
        for listed in found.lists
        for row in listed.rows
    ]
    columns = {
        "side": "",
        "text": "example",
        **({found.answer: found.answer} if found.answer else {}),
    }
    columns |= {
        "value": "value",
        "stderr": "standard error",
        "p_helpful": "p(helpful)",
        "flagged": "flagged",
    }
    caption = f"Most helpful and most harmful examples ({found.utility.replace('_', ' ')})"
    return _table(caption, rows, columns).format(precision=6, escape="html", na_rep="")


def _named(row: Mapping[str, Any]) -> str:
    return " | ".join(row["texts"]) or f"id {row['source_id']}"


def _class_values(subject: Subject) -> Any:
    found = values(subject)
    assert found is not None
    return _groups("class", found.class_rows, False, True)


def _by(subject: Subject, column: str) -> Any:
    found = groups(subject, column)
    return _groups(column, found.rows, found.has_flags, found.has_values)


def _groups(
    column: str, rows: Sequence[Mapping[str, Any]], has_flags: bool, has_values: bool
) -> Any:
    columns = {"name": column, "n": "rows"}
    if has_flags:
        columns |= {"flagged": "flagged", "p_wrong": "expected wrong"}
    if has_values:
        columns |= {"told": "mean value"}
    shown = list(_shares(rows, "p_wrong")) if has_flags else rows
    return _table(f"By {readable(column, 60)}", shown, columns)


def _issues(subject: Subject) -> Any:
    found = twins(subject)
    assert found is not None
    columns = {"issue": "issue", "n": "examples", "share": "part of all"}
    return _table("Duplicates and outliers", list(_shares(found.issues.rows, "share")), columns)


def _duplicates(subject: Subject) -> Any:
    found = twins(subject)
    assert found is not None
    rows = [{**row, "flagged": row["flagged"] or ""} for rows in found.groups for row in rows]
    columns = {"n": "rows of the cluster", **_texts(rows), "label": "label"}
    columns |= {"similarity": "similarity", "source_id": "id in the source", "flagged": "flagged"}
    return _table("Largest clusters of near duplicates", rows, columns)


def _outliers(subject: Subject) -> Any:
    found = twins(subject)
    assert found is not None
    rows = [{**row, "flagged": row["flagged"] or ""} for row in found.far]
    columns = {**_texts(rows), "label": "label", "outlier_score": "score (low: far)"}
    columns |= {"is_outlier": "outlier", "source_id": "id in the source", "flagged": "flagged"}
    return _table("Farthest from all others", rows, columns)


def _cautions(subject: Subject) -> Any:
    found = cautions(subject)
    rows = [{"check": "found", "say": caution.say} for caution in found.found]
    rows += [{"check": "nothing found", "say": name} for name in found.passed]
    return _table("What not to trust", rows, {"check": "", "say": "what was checked"})


def _cost(subject: Subject) -> Any:
    columns = {"instance": "stage", "seconds": "seconds", "rows": "rows", "bytes": "bytes"}
    return _table("Cost, in the order of work", cost(subject).rows, columns)


def _provenance(subject: Subject) -> Any:
    rows = [{"name": name, "value": value} for name, value in provenance(subject).facts]
    return _table("Provenance", rows, {"name": "", "value": "value"})


def _is_judged(subject: Subject) -> bool:
    return subject.judged is not None


def _are_labels_judged(subject: Subject) -> bool:
    return subject.judged is not None and subject.task == "classification"


def _has_targets(subject: Subject) -> bool:
    return subject.task == "regression" and targets(subject) is not None


def _has(view: str) -> Callable[[Subject], bool]:
    return lambda subject: subject.instance(view) is not None


_JUDGES = "label_issues, answer_issues or preference_issues"
_SHOWN = {
    "flags": Shown(
        "the rows that look most wrong",
        lambda s: _is_judged(s) or _has_targets(s) or s.instance("answers") is not None,
        f"{_JUDGES}, of a regression kernel_regression, of questions answer_span",
        _flags,
    ),
    "classes": Shown(
        "classes, and how many of each look wrong", _are_labels_judged, "label_issues", _classes
    ),
    "matrix": Shown("which label is taken for which", _are_labels_judged, "label_issues", _matrix),
    "scores": Shown(
        "a chart of scores and the threshold, or of targets and their predictions",
        lambda s: _is_judged(s) or _has_targets(s),
        f"{_JUDGES}, of a regression kernel_regression",
        _scores,
    ),
    "reasons": Shown(
        "what is wrong with answers, or pairs",
        lambda s: _is_judged(s) and s.task != "classification",
        "answer_issues or preference_issues",
        _reasons,
    ),
    "values": Shown(
        "examples that help and harm most", lambda s: s.values is not None, "freeshap", _values
    ),
    "class values": Shown(
        "mean values of classes", lambda s: s.values is not None, "freeshap", _class_values
    ),
    "issues": Shown(
        "what may be wrong beside labels",
        lambda s: s.has_texts or s.instance("outliers") is not None,
        "outliers, where there are no texts",
        _issues,
    ),
    "duplicates": Shown(
        "the largest clusters of near duplicates",
        _has("near_duplicates"),
        "near_duplicates",
        _duplicates,
    ),
    "outliers": Shown(
        "the examples farthest from all others", _has("outliers"), "outliers", _outliers
    ),
    "cautions": Shown("what not to trust", lambda s: True, "", _cautions),
    "cost": Shown("seconds, rows and bytes of every stage", lambda s: True, "", _cost),
    "provenance": Shown("what the results follow from", lambda s: True, "", _provenance),
}
