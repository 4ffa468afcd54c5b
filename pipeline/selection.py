"""What `select` chooses by, and what training on it is expected to give.

A `run` is an `OpenedRun` everywhere, whose methods call these.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pipeline.budgets import counts_of, is_in_tokens, tokens_of
from pipeline.chosen_rows import warnings_about
from pipeline.decided import undecided
from pipeline.decisions import KEPT, Source, content_of, selected
from pipeline.errors import RunError
from pipeline.pair_selection import BY_PAIRS, pair_source
from pipeline.results import rows_of
from pipeline.trials import trials_of
from storage.names import near
from storage.sql import named, quoted

BY = (
    *("coreset", "shapley", "label_score", "query_relevance", "answer_issues", *BY_PAIRS),
    "random",
)
OF_ASSAY = ("id", "role", "source_id", "row_number", "method", "run_id", "assay_file")
"""Columns of the table `extra` that are not the user's own."""
LOSS = "{kernel: [gradient], utilities: [loss]}"
"""Fields of `freeshap` for a corpus without classes."""
PREFERRED_UTILITY = "cross_entropy"
RANDOM = Source(
    "random",
    "random",
    "random",
    "(SELECT id AS example_id, 'random' AS method FROM tables.label WHERE role = 'example')",
    "NULL::DOUBLE",
    "md5(v.example_id::VARCHAR)",
)
"""Rows in an order that has nothing to do with them, the same on every call."""
SHAPLEY = "(FROM shapley WHERE semivalue = 'shapley')"
"""Shapley values proper, without the leave-one-out values that share their view."""


class LeftOut(NamedTuple):
    """Rows that are not chosen among."""

    rows: str | None = None
    """The statement that gives their example_id; None where all are chosen among."""
    n_flagged: int = 0
    """Those whose answers, or their order, are flagged."""
    n_repeated: int = 0
    """Others, near duplicates of one that is not left out."""


class Chosen(NamedTuple):
    """What rows are chosen by, and the statement that gives them."""

    source: Source
    statement: str
    per_class: bool
    """Whether they are the same share of each class."""
    is_by_quota: bool = False
    """Whether the numbers of each class are given."""
    n_flagged: int = 0
    n_repeated: int = 0
    """As in `LeftOut`."""
    n_unjudged: int = 0
    """Others of completions or preferences that the source has no number to choose by."""
    per: str | None = None
    """The column of the source whose values stand for classes."""


def choose(
    run: Any,
    keep: str | int | None = None,
    drop: str | int | None = None,
    by: str | None = None,
    utility: str | None = None,
    method: str | None = None,
    per_class: bool = True,
    quota: Mapping[str, str | int] | None = None,
    soft: float | None = None,
    keep_flagged: bool = False,
    per: str | None = None,
) -> Chosen:
    """See `OpenedRun.select`.

    Raises:
        RunError: none or several of `keep`, `drop`, `quota` and `soft` are given, a number is out
            of range, or the run lacks what rows are to be chosen by.
    """
    asked = {"keep": keep, "drop": drop, "quota": quota or None, "soft": soft}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise RunError(
            f"select: found {' and '.join(given) or 'none'} of {', '.join(asked)}, expected one. "
            'Say for example keep="20%".'
        )
    if soft is not None and not 0 < soft < math.inf:
        raise RunError(f"select: found soft {soft:g}, expected a number above 0. Say --soft 1.")
    chosen = _source(run, by, utility, method)
    is_of_texts = run.task() in ("completion", "preference")
    without = left_out(run) if is_of_texts and not keep_flagged else LeftOut()
    # Of classes a coreset ranks a share of the rows, and that is no loss.
    n_unjudged = _n_unjudged(run, chosen, without) if is_of_texts else 0
    counts = (without.n_flagged, without.n_repeated, n_unjudged)
    if per is not None:
        _check_column(run, per)
        per_class = True
    of_all: dict[str, Any] = {"without": without.rows, "per": per, "content": content_of(run)}
    if quota:
        statement = selected(chosen, True, _of_classes(run, quota, per), **of_all)
    elif is_in_tokens(keep):
        of_all["counts"] = counts_of(run)
        statement = selected(chosen, per_class, f"tokens <= {tokens_of(str(keep))}", **of_all)
    else:
        count = total = run.sql("SELECT count(*) FROM examples").fetchall()[0][0]
        if keep is not None:
            count = rows_of(str(keep), total)
        elif drop is not None:
            count = total - rows_of(str(drop), total)
        statement = selected(chosen, per_class, f"rank <= {count}", soft, **of_all)
    if not run.sql(f"SELECT 1 FROM ({statement}) LIMIT 1").fetchall():
        told = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
        if left := sum(counts):
            told += (
                f" of rows of which {left} are flagged, near duplicates of others or not judged by "
                f"{chosen.by}"
            )
        raise RunError(
            f"select: found {told}, by which no row is kept, expected at least one. Say for "
            'example keep="20%".'
        )
    return Chosen(chosen, statement, per_class and not quota, bool(quota), *counts, per)


def _n_unjudged(run: Any, source: Source, without: LeftOut) -> int:
    """How many rows that are not left out the source has no number for."""
    instance = quoted(source.instance)
    judged = f"SELECT v.example_id FROM {source.view} AS v WHERE v.method = {instance}"
    left = f"AND example_id NOT IN ({without.rows})" if without.rows else ""
    ((n,),) = run.sql(
        f"SELECT count(*) FROM examples WHERE example_id NOT IN ({judged}) {left}"
    ).fetchall()
    return int(n)


def _check_column(run: Any, column: str) -> None:
    """Refuses a column that the corpus does not have.

    Raises:
        RunError: it does not.
    """
    columns = run.sql("SELECT * FROM tables.extra LIMIT 0").columns
    own = [name for name in columns if name not in OF_ASSAY]
    if column not in own:
        raise RunError(
            f"select: found per={column!r}, expected a column of the corpus that is carried along: "
            f"{', '.join(own) or 'there is none'}. Correct the name."
        )


def left_out(run: Any) -> LeftOut:
    """Rows of completions or preferences that are flagged, and near duplicates of others.

    A row that a review has decided about is not flagged: it was accepted, or is right by now.
    """
    flagged, rows = "SELECT NULL::BIGINT AS example_id WHERE false", None
    if run.methods("answer_issues"):
        rows = flagged = f"SELECT example_id FROM answer_issues WHERE is_answer_issue AND {KEPT}"
    if run.methods("preference_issues"):
        of_pairs = "SELECT example_id FROM preference_issues WHERE is_preference_issue"
        rows = flagged = f"{of_pairs} AND {KEPT}"
    if rows is not None:
        rows = flagged = f"{flagged} {undecided(run)}"
    if run.methods("near_duplicates"):
        # The first of a cluster that is not flagged stands for it.
        rows = (
            f"{flagged} UNION SELECT example_id FROM near_duplicates WHERE {KEPT} AND example_id "
            f"NOT IN ({flagged}) QUALIFY row_number() OVER (PARTITION BY method, cluster "
            "ORDER BY example_id) > 1"
        )
    n_flagged, n = (
        run.sql(f"SELECT count(DISTINCT example_id) FROM ({of})").fetchall()[0][0]
        for of in (flagged, rows or flagged)
    )
    return LeftOut(rows, n_flagged, n - n_flagged)


def _source(run: Any, by: str | None, utility: str | None, method: str | None) -> Source:
    """What rows are chosen by: `by`, or the order of a coreset where the run has one, or values.

    Raises:
        RunError: the run lacks it.
    """
    if by is not None and by not in BY:
        raise RunError(
            f"select: found by={by!r}{near(by, BY)}, expected one of {', '.join(BY)}. Correct it."
        )
    if by == "random":
        return RANDOM
    if run.task() == "preference" and by in (None, *BY_PAIRS):
        return pair_source(run, by, method)
    if by in BY_PAIRS:
        raise RunError(
            f"select: found by={by!r} in a corpus with task: {run.task()}, expected it of task: "
            "preference. Choose by something else."
        )
    if by is None and run.task() == "completion":
        by = "query_relevance" if run.methods("query_relevance") else "answer_issues"
    if by is None:
        is_named = method is not None and method not in run.methods("coreset")
        by = "coreset" if run.methods("coreset") and not is_named and utility is None else "shapley"
    if by == "query_relevance":
        run.require("query_relevance", "query_relevance", None)
        instance = run.choice("query_relevance", "method", method)
        return Source(by, by, instance, "query_relevance", "v.similarity", "-v.rank")
    if by == "answer_issues":
        run.require("answer_issues", "answer_issues", "completion")
        instance = run.choice("answer_issues", "method", method)
        return Source(by, by, instance, "answer_issues", "1 - v.p_wrong", "-v.p_wrong")
    if by == "coreset":
        run.require("coreset", "coreset")
        instance = run.choice("coreset", "method", method)
        return Source(by, by, instance, "coreset", "v.gain", "-v.rank")
    if by == "label_score":
        run.require("label_issues", "label_issues")
        instance = run.choice("label_issues", "method", method)
        return Source(by, by, instance, "label_issues", "v.label_score", "v.label_score")
    is_valued = run.task() == "classification"
    run.require("shapley", "freeshap", None, "{}" if is_valued else LOSS)
    chosen = run.choice(SHAPLEY, "utility", utility, preferred=PREFERRED_UTILITY)
    view = f"(FROM {SHAPLEY} WHERE utility = {quoted(chosen)})"
    instance = run.choice(view, "method", method)
    return Source(by, chosen, instance, view, "v.value", "v.value")


def _of_classes(run: Any, quota: Mapping[str, str | int], per: str | None) -> str:
    """The condition that a row is among the first so many of its class, or value of a column.

    Raises:
        RunError: there is no such class, or there are no classes at all.
    """
    of, called = "label::VARCHAR", "label_name"
    if per is not None:
        of = called = f"{named(per)}::VARCHAR"
    # Columns of the source may have any name: what is counted has one of its own, by place.
    counted = f"SELECT {of}, {called} FROM examples"
    sizes = {
        str(name): (label, n)
        for label, name, n in run.sql(
            f"SELECT a, b, count(*) FROM ({counted}) AS t(a, b) WHERE a IS NOT NULL GROUP BY ALL"
        ).fetchall()
    }
    if not sizes:
        raise RunError(
            "select: found a quota of classes in a corpus without any, expected per, the column "
            "whose values are meant. Say for example --per source --quota web=100."
        )
    for name in quota:
        if name not in sizes:
            raise RunError(
                f"select: found quota of {name!r}, expected "
                f"{'classes of the run' if per is None else f'values of {per}'}: "
                f"{', '.join(sizes)}. Correct the name."
            )
    limits = [
        f"class::VARCHAR = {quoted(sizes[name][0])} AND "
        f"in_class <= {rows_of(str(count), sizes[name][1])}"
        for name, count in quota.items()
    ]
    return f"({' OR '.join(limits)})"


def expected(
    run: Any, chosen: Chosen, stepped: Callable[[str, int, int], None] | None = None
) -> dict[str, Any]:
    """What training on the rows is expected to give, before they are used.

    Keys:
        by: What chose, one of `BY`.
        per: As in `Chosen`.
        n_rows, n_examples: How many rows are kept, of how many.
        classes: For each class, or value of `per`, its name, and its shares of all rows (`before`)
            and of those kept.
        rows: As the metric `selection` has them: of what is kept, of random rows and of all;
            empty where `why_not` says why there is no forecast.
        n_queries: Queries that it is judged on.
        why_not: A sentence, or None.
        trials: As `trials.trials_of` has them, those that chose by the same.
        n_flagged, n_repeated: Rows of a corpus of completions that are not chosen among: answers
            that are flagged, and near duplicates of others.
        n_unjudged: Others of completions or preferences that have no number to choose by, such as
            those whose answer is cut off.
        warnings: As `chosen_rows.warnings_about` gives them.
    """
    from pipeline.evaluate import evaluate
    from stages.stage import StageError

    counted = class_counts(run, chosen.statement, chosen.per)
    n_examples, n_rows = sum(n for _, n, _ in counted), sum(kept for _, _, kept in counted)
    found: dict[str, Any] = {
        "by": chosen.source.by,
        "per": chosen.per,
        "n_rows": n_rows,
        "n_examples": n_examples,
        "classes": [
            {"class": name, "before": before / n_examples, "kept": kept / max(1, n_rows)}
            for name, before, kept in counted
        ],
        "rows": [],
        "n_queries": 0,
        "why_not": None,
        "trials": trials_of(run, chosen.source.by, chosen.source.instance),
        "n_flagged": chosen.n_flagged,
        "n_repeated": chosen.n_repeated,
        "n_unjudged": chosen.n_unjudged,
        "warnings": warnings_about(run, chosen.statement),
    }
    try:
        if not 0 < n_rows < n_examples:
            raise RunError("all rows are kept" if n_rows else "no row is kept")
        if run.task() != "classification":
            raise RunError(
                "the surrogate is one of classes, which this corpus has none of"
                + (
                    "; `selection_trial: {}` under `stages:` measures it by short trainings"
                    if run.task() in ("completion", "preference")
                    else ""
                )
            )
        if chosen.is_by_quota:
            raise RunError("the numbers of each class are your own")
        if chosen.source is RANDOM:
            raise RunError("they are random rows")
        if chosen.per is not None:
            raise RunError(f"they are chosen by the values of {chosen.per}, not by class")
        overrides = _as_chosen(run, chosen, n_rows / n_examples)
        evaluation = evaluate(run.folder.path, "selection", overrides, stepped)
    except (RunError, StageError) as error:
        return found | {"why_not": str(error)}
    kept = [
        row for row in evaluation["rows"] if row["by"] in ("all", "random", chosen.source.called)
    ]
    return found | {"rows": kept, "n_queries": evaluation["facts"]["n_queries"]}


def class_counts(
    run: Any, statement: str, per: str | None = None
) -> list[tuple[str | None, int, int]]:
    """Of each class, or value of `per`: its name, and how many rows it has in all and chosen."""
    of = f"examples.{named(per)}::VARCHAR" if per else "examples.label_name"
    rows: list[tuple[str | None, int, int]] = run.sql(
        f"SELECT {of}, count(*), count(k.example_id) FROM examples "
        f"LEFT JOIN ({statement}) AS k USING (example_id) GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    return rows


def _as_chosen(run: Any, chosen: Chosen, share: float) -> list[str]:
    """Fields of the metric `selection`, by which it chooses as the stage behind `chosen` does."""
    from pipeline.config import parse_metric, plain, stage_name
    from pipeline.finished import Finished

    by = chosen.source.by
    stages = Finished(run.folder).stages
    stage = stages[chosen.source.instance]
    if by == "shapley" and stage_name(stage) != "freeshap":
        raise RunError(f"the values of {stage_name(stage)} have seen all queries")
    metric = plain(parse_metric("selection"))
    fields = plain(stage)
    if by == "label_score":
        fields |= plain(stages[fields["predictions"]])
    own = {"seed", "rounds", "keep", "share"}
    fields = {name: value for name, value in fields.items() if name in metric and name not in own}
    method = "freeshap" if by == "shapley" else by
    fields |= {"methods": [method], "keep": [share], "per_class": chosen.per_class}
    return [f"{name}={json.dumps(value)}" for name, value in fields.items()]
