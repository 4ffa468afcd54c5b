"""The statements behind `flag` and `select`: which rows, in which order.

Rows are chosen by scores and values alone, and the texts of these few read then.
"""

from typing import Any, NamedTuple

from pipeline.errors import RunError
from storage.sql import named, quoted

OF_TASK = {
    "regression": "For the targets that are worst predicted, use `assay sql`: FROM predictions "
    "WHERE role = 'example' ORDER BY loss DESC.",
    "completion": "Answers are judged by answer_issues, and rows chosen by query_relevance.",
    "preference": "The order of two answers is judged by preference_issues, and rows are chosen by "
    "answer_margin.",
    "question_answering": "See the run's views with `assay sql`.",
    "classification": "Labels are judged by label_issues, and rows chosen by coreset or freeshap.",
}
"""What there is for each task of a corpus, where results of another are asked for."""

KEPT = "example_id IN (SELECT id FROM tables.label WHERE role = 'example')"
"""The condition that a review has not dropped a row: what is told of texts stays in the tables."""


class Source(NamedTuple):
    """What rows are chosen by."""

    by: str
    """One of `pipeline.selection.BY`."""
    called: str
    """What the metric `selection` calls it: a utility for `shapley`, else the same."""
    instance: str
    """The stage instance."""
    view: str
    """A view or subquery, to be named v."""
    value: str
    """The column that is shown: above 0 helps, but for `label_score`."""
    score: str
    """The expression that is highest for the best row."""


class Content(NamedTuple):
    """What a person reads of a row `e` of the view `examples`."""

    columns: str
    """Its texts and what it teaches."""
    join: str = ""
    """The join that brings them."""


JOIN = "JOIN {} AS t ON t.id = e.example_id AND t.role = 'example'"
OF_TEXTS = {
    "completion": Content("t.prompt, t.answer", JOIN.format("completions")),
    "preference": Content("t.prompt, t.chosen, t.rejected", JOIN.format("preferences")),
}


def content_of(run: Any, of_class: str = "e.label, e.label_name") -> Content:
    """What a person reads of the rows of `run`: columns that its task does not have are left out.

    `of_class` are the columns that tell the class of a row.

    Cost: reads the second texts once, to know whether there are any.
    """
    task = run.task()
    if task in OF_TEXTS:
        return OF_TEXTS[task]
    answer = {"regression": ", e.target", "classification": f", {of_class}"}
    return Content(f"e.text{', e.text_b' if has_pairs(run) else ''}{answer.get(task, '')}")


def has_pairs(run: Any) -> bool:
    """Whether rows of the corpus have a second text."""
    return bool(run.sql("SELECT count(text_b) FROM tables.text").fetchall()[0][0])


def suspicious(
    run: Any,
    top: int | None,
    method: str | None,
    precision: float | None,
    reviewed: str | None = None,
    is_all: bool = False,
) -> str:
    """The rows of `run` whose labels, answers or orders are suspicious: see `OpenedRun.flag`.

    `reviewed` is the SQL of `pipeline.decided.decisions`, whose rows are left out, or marked where
    `is_all`.

    Raises:
        RunError: both `top` and `precision` are given, or it is not between 0 and 1; or the run
            lacks the results.
    """
    if precision is not None and (top is not None or not 0 < precision <= 1):
        raise RunError(
            f"flag: found precision {precision:g}{f' with top {top}' if top else ''}, expected "
            "a number above 0 and up to 1, and no top. Say for example precision=0.8."
        )
    if run.task() == "completion":
        run.require("answer_issues", "answer_issues", "completion")
        instance = run.choice("answer_issues", "method", method)
        return flagged_answers(instance, top, precision, reviewed, is_all)
    if run.task() == "preference":
        run.require("preference_issues", "preference_issues", "preference")
        instance = run.choice("preference_issues", "method", method)
        return flagged_pairs(instance, top, precision, reviewed, is_all)
    run.require("label_issues", "label_issues")
    instance = run.choice("label_issues", "method", method)
    return flagged(instance, top, precision, has_pairs(run), reviewed, is_all)


def flagged(
    instance: str,
    top: int | None,
    precision: float | None,
    are_pairs: bool,
    reviewed: str | None = None,
    is_all: bool = False,
) -> str:
    """The rows whose labels an instance of `label_issues` flags, the lowest scores first.

    Or the lowest `top` scores, or as many as have a mean `p_wrong` of `precision`.
    """
    lowest = _worst("label_score", "is_label_issue", top, precision)
    pair = "e.text_b, " if are_pairs else ""
    undecided, decision, join = _of_reviews(reviewed, is_all)
    return f"""
        SELECT e.example_id, e.source_id, e.text, {pair}i.given_label, i.suggested_label,
               i.label_score, i.p_wrong, i.is_label_issue, i.method, e.true_label,
               c.label_name AS true_label_name{decision}
        FROM (FROM label_issues WHERE method = {quoted(instance)} AND {KEPT}
              {undecided} {lowest}) AS i
        JOIN examples AS e USING (example_id)
        LEFT JOIN provenance.class AS c ON c.label = e.true_label
        {join} ORDER BY i.label_score, e.example_id"""


def _of_reviews(reviewed: str | None, is_all: bool) -> tuple[str, str, str]:
    """What leaves out rows that were decided about; or the column that marks them, and its join."""
    if reviewed is None:
        return "", ", NULL::VARCHAR AS decision" if is_all else "", ""
    if is_all:
        return "", ", r.decision", f"LEFT JOIN ({reviewed}) AS r USING (example_id)"
    return f"AND example_id NOT IN (SELECT example_id FROM ({reviewed}))", "", ""


def _worst(order: str, flag: str, top: int | None, precision: float | None) -> str:
    """The end of a statement over scored rows: `top` ones, up to a `precision`, or flagged."""
    if top is not None:
        return f"ORDER BY {order}, example_id LIMIT {int(top)}"
    if precision is not None:
        return (
            f"QUALIFY avg(p_wrong) OVER (ORDER BY {order}, example_id ROWS UNBOUNDED "
            f"PRECEDING) >= {float(precision)!r}"
        )
    return f"AND {flag}"


def flagged_answers(
    instance: str,
    top: int | None,
    precision: float | None,
    reviewed: str | None = None,
    is_all: bool = False,
) -> str:
    """The rows whose answers an instance of `answer_issues` flags, the worst first.

    Or the worst `top`, or as many as have a mean `p_wrong` of `precision`.
    """
    worst = _worst("p_wrong DESC", "is_answer_issue", top, precision)
    undecided, decision, join = _of_reviews(reviewed, is_all)
    return f"""
        SELECT e.example_id, e.source_id, c.prompt, c.answer,
               i.reason, i.p_wrong, i.p_reason, i.is_answer_issue, i.method{decision}
        FROM (FROM answer_issues WHERE method = {quoted(instance)} AND {KEPT}
              {undecided} {worst}) AS i
        JOIN examples AS e USING (example_id)
        JOIN completions AS c ON c.id = i.example_id AND c.role = 'example'
        {join} ORDER BY i.p_wrong DESC, e.example_id"""


def flagged_pairs(
    instance: str,
    top: int | None,
    precision: float | None,
    reviewed: str | None = None,
    is_all: bool = False,
) -> str:
    """The pairs whose order an instance of `preference_issues` flags, the worst first.

    Or the worst `top`, or as many as have a mean `p_wrong` of `precision`. `reviewed` and `is_all`
    as in `suspicious`.
    """
    worst = _worst("p_wrong DESC", "is_preference_issue", top, precision)
    undecided, decision, join = _of_reviews(reviewed, is_all)
    return f"""
        SELECT e.example_id, e.source_id, p.prompt, p.chosen, p.rejected,
               i.reason, i.p_wrong, i.is_preference_issue, i.method{decision}
        FROM (FROM preference_issues WHERE method = {quoted(instance)} AND {KEPT}
              {undecided} {worst}) AS i
        JOIN examples AS e USING (example_id)
        JOIN preferences AS p ON p.id = i.example_id AND p.role = 'example'
        {join} ORDER BY i.p_wrong DESC, e.example_id"""


def selected(
    source: Source,
    per_class: bool,
    limit: str,
    soft: float | None = None,
    counts: str | None = None,
    without: str | None = None,
    per: str | None = None,
    *,
    content: Content,
) -> str:
    """Rows that a scored `source` chooses, the best first; `limit` is an SQL condition on them.

    It may name `rank`, the row's place among all, `in_class`, that among its class, and with
    `counts`, a view of numbers of tokens, also `tokens`, of all rows up to this one. With
    `per_class` ranks go by places in classes, between 0 and 1, so that the first of any number have
    the same share of each class. `soft` adds a column `weight`, of mean 1 in every class: the best
    row of a class has exp(2 / soft) times that of its last. Rows of `without`, a statement that
    gives example_id, are as if they were not there. `per` is a column of the source whose values
    stand for classes.
    """
    of_class = "PARTITION BY class" if per_class else ""
    of_row = f"x.{named(per)}::VARCHAR" if per is not None else "l.label"
    extra = "JOIN tables.extra AS x ON x.id = v.example_id AND x.role = 'example'"
    # Beside that of the first row, so that none is too large to be a number.
    weights = f"exp(2 * (first - place) / {float(soft or 1)!r})"
    weight = f", {weights} / avg({weights}) OVER ({of_class}) AS weight" if soft is not None else ""
    ranked = f"""
        SELECT *, row_number() OVER (ORDER BY place, score DESC, example_id) AS rank{weight}
        FROM (SELECT *, (in_class - 0.5) / count(*) OVER ({of_class}) AS place,
                     0.5 / count(*) OVER ({of_class}) AS first
              FROM (SELECT v.example_id, {of_row} AS class, {source.value} AS value,
                           {source.score} AS score,
                           row_number() OVER ({of_class.replace("class", of_row)}
                               ORDER BY {source.score} DESC, v.example_id) AS in_class
                    FROM {source.view} AS v JOIN tables.label AS l ON l.id = v.example_id
                    {extra if per is not None else ""}
                    WHERE v.method = {quoted(source.instance)} AND l.role = 'example'
                      {f"AND v.example_id NOT IN ({without})" if without else ""}))"""
    if counts is not None:
        ranked = f"""
            SELECT r.*, sum(t.n) OVER (ORDER BY rank ROWS UNBOUNDED PRECEDING) AS tokens
            FROM ({ranked}) AS r
            JOIN (SELECT id, max(n_tokens) AS n FROM {counts}
                  WHERE role = 'example' GROUP BY id) AS t ON t.id = r.example_id"""
    return f"""
        SELECT e.example_id, e.source_id, {content.columns}, c.value, c.rank
               {", c.weight" if soft is not None else ""}
        FROM (FROM ({ranked}) WHERE {limit}) AS c
        JOIN examples AS e USING (example_id) {content.join} ORDER BY c.rank"""
