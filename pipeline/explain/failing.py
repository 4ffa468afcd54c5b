"""Explain a set of queries, such as those that a model gets wrong: what causes the failures.

Of each method of the run the examples that speak most against the labels of all of the set's
queries together, and for them; how alike the queries are, and those that do not belong; and what
the kernel regression would say without the worst examples, or with them relabelled.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from pipeline.explain.lacking import advice
from pipeline.explain.query import Rows, said_of
from pipeline.explain.query_set import QuerySet, read_query_set
from pipeline.explain.set_forecast import forecast, halves
from pipeline.explain.set_scores import Scores, set_scores
from pipeline.explain.stored_query import COLUMNS, dicts
from pipeline.explain.titles import OUTPUTS, method_title
from pipeline.finished import Finished
from pipeline.progress import Progress
from storage.names import near
from storage.sql import quoted

MOST_REMOVED = 1000
"""Examples that a forecast leaves out at most."""


def explain_set(
    run: Any,
    queries: str | Path | Iterable[str | int],
    methods: Sequence[str],
    top: int,
    n_removed: int,
    progress: Progress,
    alone: Sequence[Any] = (),
) -> dict[str, Any]:
    """The examples behind the predictions of several queries together, as plain values.

    Keys:
        run_id, task, file: The run, the task of its corpus, and the file that named the queries.
        queries: query_id, source_id, text, text_b, label of each; of completions and preferences
            also prompt and answer as people read them, as of examples.
        predictions: For each model and label of the set: method, source, label, n, and n_right.
        methods: For each pairwise method `speaks_for`, `top_k` (scores of each sign that are stored
            of a query; None for all), n_queries (those with scores), and the lists `harmful` (mean
            score below 0: against the labels) and `helpful`: example_id, source_id, text, text_b,
            label, score, in_top (how many of the queries have it among their 20 of that sign),
            unseen (how far the mean may be off, see `pipeline.explain.set_scores`), and where there
            are any suggested_label and p_wrong (of a flagged label) and issues. `of_labels` has
            the same list `harmful` for the queries of each label alone, where there are several:
            failures of different labels may have opposite causes. `cosines` has of each query how
            alike its scores are to those of the others.
        values: The same by stored values of examples for single queries.
        forecast: See `pipeline.explain.set_forecast.forecast`.

    Args:
        run: The `pipeline.open_run.OpenedRun`.
        queries: A file or a list of ids; see `pipeline.explain.query_set.read_query_set`.
        methods: Methods whose stored scores are wanted; empty for all.
        top: Examples of each sign, and as many more that are the farthest from 0 in their class.
        n_removed: How many of the worst examples the forecast leaves out.
        progress: Hears of methods that are left out.
        alone: A single query, text or prompt, which no set may stand beside: all None.

    Raises:
        RunError: the queries cannot be told, the run lacks a method, or too many examples are to
            be left out.
    """
    if any(value is not None for value in alone):
        raise RunError(
            "explain: found queries beside a single query or a text, expected one of them. Leave "
            "the others out."
        )
    if not 1 <= n_removed <= MOST_REMOVED:
        raise RunError(
            f"explain: found remove: {n_removed}, expected 1 to {MOST_REMOVED} examples, whose "
            "effects on each other are held in memory. Name another number."
        )
    finished = Finished(run.folder)
    source = finished.run.queries
    chosen = read_query_set(run, queries, source.id if source is not None else None, progress)
    said = said_of(run, "query", chosen.ids)
    found: dict[str, Any] = {
        "run_id": run.record["run_id"],
        "task": run.task(),
        "file": chosen.name,
        "queries": [
            {k: v for k, v in row.items() if k != "answer"} | said.get(row["query_id"], {})
            for row in chosen.rows
        ],
        "predictions": _predictions(run, chosen),
        "methods": [],
        "values": [],
    }
    # Targets of a regression and texts of completions are no kinds that queries could be of.
    has_classes = found["task"] == "classification"
    label_of = {row["query_id"]: row["label"] if has_classes else None for row in chosen.rows}
    half_of = halves(chosen)
    worst: dict[tuple[str, str], Mapping[str, list[int]]] = {}
    for entry, scores, signs in _entries(run, finished, chosen, methods, progress):
        summed = set_scores(run, scores, signs, label_of, half_of, top, n_removed)
        if summed is None:
            progress.say(f"left out: {method_title(entry)} has no scores of these queries")
            continue
        if summed.n_queries < len(chosen.rows):
            progress.say(
                f"{method_title(entry)}: {len(chosen.rows) - summed.n_queries} of "
                f"{len(chosen.rows)} queries have no scores and do not count"
            )
        kind = "values" if "utility" in entry else "methods"
        found[kind].append(
            {
                **entry,
                "top_k": scores.top_k,
                "n_queries": summed.n_queries,
                "harmful": summed.harmful,
                "helpful": summed.helpful,
                "of_labels": summed.of_labels,
                "cosines": summed.cosines,
            }
        )
        if scores.has_sign:
            worst[method_title(entry), "set"] = summed.worst
            if summed.worst_of_labels:
                worst[method_title(entry), "labels"] = summed.worst_of_labels
    suggested = _add_facts(
        run, found, {i for lists in worst.values() for ids in lists.values() for i in ids}
    )
    found["forecast"] = forecast(run, finished, chosen, worst, suggested, n_removed)
    return found


def _entries(
    run: Any, finished: Finished, chosen: QuerySet, wanted: Sequence[str], progress: Progress
) -> Iterable[tuple[dict[str, Any], Scores, dict[int, float]]]:
    """Each method that has scores of pairs: its facts, its scores, and the sign for each query."""
    pairwise, valued = run.methods("attributions"), run.methods("shapley_by_query")
    known = [*pairwise, *valued]
    if unknown := [name for name in wanted if name not in known]:
        raise RunError(
            f"found --method {unknown[0]}{near(unknown[0], known)}, expected one of "
            f"{', '.join(known) or 'none'}, whose scores of single queries are stored. "
            "Name one, or add the stage and run again."
        )
    if not known:
        raise RunError(
            f"{run.folder.path}: found no scores of single queries in the run, {advice(run)}."
        )
    taken = list(dict.fromkeys(wanted)) or known
    for method in (name for name in pairwise if name in taken):
        output = finished.speaks_for(method)
        signs = dict.fromkeys(chosen.ids, 1.0)
        if output == "prediction":
            predicted = _predicted(run, finished, method, chosen)
            if predicted is None:
                progress.say(
                    f"left out: {method} explains the predicted class, and the run has no "
                    "prediction of these queries that would say which that is"
                )
                continue
            signs = {i: 1.0 if predicted[i] else -1.0 for i in chosen.ids if i in predicted}
        pairs = (
            f"SELECT query_id, example_id, score FROM attributions WHERE method = {quoted(method)}"
        )
        top_k = getattr(finished.stages[method], "top_k", None)
        entry = {"method": method, "speaks_for": output}
        yield entry, Scores(pairs, top_k, has_sign=output in OUTPUTS), signs
    for method in (name for name in valued if name in taken):
        for semivalue, utility in run.sql(
            "SELECT DISTINCT semivalue, utility FROM shapley_by_query "
            f"WHERE method = {quoted(method)} ORDER BY ALL"
        ).fetchall():
            pairs = (
                "SELECT query_id, example_id, value AS score FROM shapley_by_query "
                f"WHERE method = {quoted(method)} AND semivalue = {quoted(semivalue)} "
                f"AND utility = {quoted(utility)}"
            )
            top_k = getattr(finished.stages[method], "top_k", None)
            entry = {"method": method, "semivalue": semivalue, "utility": utility}
            yield entry, Scores(pairs, top_k, has_sign=True), dict.fromkeys(chosen.ids, 1.0)


def _predicted(
    run: Any, finished: Finished, method: str, chosen: QuerySet
) -> dict[int, bool] | None:
    """By query_id whether the class that `method` explains is the label; None if none is known.

    The class is that of the predictions that the method reads or, where it reads none, as of
    gradients and of a probe, of the first model or probe of the run. Of a regression, whose one
    output is explained, whether a larger output is nearer to the target.
    """
    if "predictions" not in run.views():
        return None
    writers = [writer for writer, _ in finished.sources(method).values()]
    rows = run.sql(
        "SELECT p.id, coalesce(p.predicted = q.label, p.logits[1] < q.target) "
        "FROM predictions AS p JOIN tables.label AS q ON "
        "q.id = p.id AND q.role = p.role WHERE p.role = 'query' AND p.method = (SELECT method FROM "
        "predictions WHERE role = 'query' AND (source <> 'kernel' OR method IN "
        f"({', '.join(map(quoted, writers))})) ORDER BY method NOT IN "
        f"({', '.join(map(quoted, writers))}), method LIMIT 1) "
        f"AND p.id IN ({', '.join(map(str, chosen.ids))})"
    ).fetchall()
    return {int(i): bool(is_label) for i, is_label in rows} or None


def _predictions(run: Any, chosen: QuerySet) -> Rows:
    """How many of the set's queries of each label each model gets right."""
    if "predictions" not in run.views() or run.task() != "classification":
        return []
    return dicts(
        run.sql(
            "SELECT p.method, p.source, c.label_name AS label, count(*) AS n, "
            "count(*) FILTER (p.predicted = l.label) AS n_right FROM predictions AS p "
            "JOIN tables.label AS l ON l.id = p.id AND l.role = 'query' "
            "JOIN provenance.class AS c ON c.label = l.label WHERE p.role = 'query' "
            f"AND p.id IN ({', '.join(map(str, chosen.ids))}) GROUP BY ALL ORDER BY ALL"
        )
    )


def _add_facts(run: Any, found: Mapping[str, Any], ids: set[int]) -> dict[int, int]:
    """Adds texts, labels, flags and issues to the examples that are shown.

    Returns the suggested labels, by example_id, of those among `ids` that are flagged. Of several
    instances of `label_issues` the last of the run counts.
    """
    entries = [*found["methods"], *found["values"]]
    parts = [part for entry in entries for part in [entry, *entry["of_labels"]]]
    lists = [part[side] for part in parts for side in ("harmful", "helpful") if side in part]
    shown = {row["example_id"] for rows in lists for row in rows}
    if not shown | ids:
        return {}
    id_list = ", ".join(map(str, sorted(shown | ids)))
    facts: dict[int, dict[str, Any]] = {
        row["example_id"]: row
        for row in dicts(
            run.sql(
                f"SELECT example_id, {COLUMNS} FROM examples WHERE example_id IN "
                f"({', '.join(map(str, sorted(shown))) or 'NULL'})"
            )
        )
    }
    suggested: dict[int, int] = {}
    flaggers = [name for name in run.record["tables"] if name in run.methods("label_issues")]
    if flaggers:
        for example_id, label, name, p_wrong in run.sql(
            "SELECT i.example_id, i.suggested_label, c.label_name, i.p_wrong "
            "FROM tables.label_issues AS i JOIN provenance.class AS c ON "
            f"c.label = i.suggested_label WHERE i.method = {quoted(flaggers[-1])} "
            f"AND i.is_label_issue AND i.example_id IN ({id_list})"
        ).fetchall():
            suggested[example_id] = int(label)
            if example_id in facts:
                facts[example_id] |= {"suggested_label": name, "p_wrong": p_wrong}
    if "issues" in run.views():
        for example_id, issues in run.sql(
            "SELECT example_id, string_agg(issue, ', ' ORDER BY issue) FROM issues "
            f"WHERE example_id IN ({', '.join(map(str, sorted(shown))) or 'NULL'}) GROUP BY ALL"
        ).fetchall():
            facts[example_id]["issues"] = issues
    for example_id, said in said_of(run, "example", shown).items():
        facts[example_id] |= said
    for row in (row for rows in lists for row in rows):
        row.update(facts[row["example_id"]])
    return {i: label for i, label in suggested.items() if i in ids}
