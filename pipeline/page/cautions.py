"""What speaks against trusting a run's results, and what was checked without finding anything."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.agreement import CONFUSION, barely_knows, mismatches
from pipeline.answer_trust import areas_of, distrust
from pipeline.decisions import KEPT
from pipeline.page.asked import Asked
from pipeline.page.document import readable, share
from pipeline.page.subject import NOUNS, Subject
from storage.sql import quoted

ALIKE = 0.65
"""Of two classes, the mean part of their rows that predictions tell apart below which a report
warns; one half is chance."""
RELIABLE = 0.8
"""Part of the variance of values that is not error of sampling, below which a report warns."""
CUT = 0.01
"""Part of texts that may be cut without a warning."""
PAIRS = 5
"""Pairs of classes, and reasons, that a warning names."""


@dataclass(frozen=True)
class Caution:
    """A warning: what was found, and what to make of it."""

    say: str
    asked: Asked


class Cautions(NamedTuple):
    """What was found, and the names of the checks that found nothing."""

    found: list[Caution]
    passed: list[str]


Check = Callable[[Subject], Iterator[Caution]]


def cautions(subject: Subject) -> Cautions:
    """All checks that the run has tables for."""
    found: list[Caution] = []
    passed: list[str] = []
    for name, check in _CHECKS.items():
        if (
            not _NEEDS.get(name, set()) <= subject.views
            or (name in _OF_CLASSES and subject.task != "classification")
            or (name in _OF_TEXTS and not subject.has_texts)
            or (name in _OF_VERDICTS and subject.judged is None)
            or (check is _untold and not _areas(subject))
        ):
            continue
        said = list(check(subject))
        found += said
        if not said:
            passed.append(name)
    return Cautions(found, passed)


def _rejected(subject: Subject) -> Iterator[Caution]:
    asked = subject.ask(
        "SELECT role, reason, count(*) AS n FROM rejected GROUP BY ALL ORDER BY n DESC, reason"
    )
    total = sum(row["n"] for row in asked.rows)
    if total:
        listed = "; ".join(
            f"{row['n']:,} {'queries' if row['role'] == 'query' else 'examples'}: "
            f"{readable(row['reason'], 120)}"
            for row in asked.rows[:PAIRS]
        )
        yield Caution(f"{total:,} rows of the source could not be used. {listed}.", asked)


def _mismatched(subject: Subject) -> Iterator[Caution]:
    for row in mismatches(subject.run):
        yield Caution(
            f"{row['method']} is right on {row['right']:,} of {row['rows']:,} labelled rows, where "
            f"chance alone would be {row['chance']:,.0f}: its outputs are probably not the classes "
            "that they are taken for.",
            Asked(CONFUSION.strip(), []),
        )


def _weak(subject: Subject) -> Iterator[Caution]:
    asked = subject.ask(
        """
        SELECT p.method, p.source, p.role, avg((p.predicted = l.label)::INT) AS accuracy,
               count(*) AS n,
               (SELECT max(n) / sum(n) FROM (SELECT count(*) AS n FROM tables.label AS c
                WHERE c.role = p.role AND c.label IS NOT NULL GROUP BY c.label)) AS most_frequent
        FROM predictions AS p JOIN tables.label AS l ON l.id = p.id AND l.role = p.role
        WHERE p.predicted IS NOT NULL AND l.label IS NOT NULL
          AND (p.role = 'query' OR p.source IN ('kernel', 'cross_fitting', 'ensemble'))
        GROUP BY ALL ORDER BY ALL"""
    )
    for row in asked.rows:
        base, accuracy = row["most_frequent"], row["accuracy"]
        if base < 1 and barely_knows(accuracy, base):
            rows = "queries" if row["role"] == "query" else "examples, out of sample"
            yield Caution(
                f"The {row['source']} ({row['method']}) is right on {share(accuracy)} of the "
                f"{row['n']:,} {rows}; always saying the most frequent class would be right on "
                f"{share(base)}. What follows from its predictions is worth little more.",
                asked,
            )


def _alike(subject: Subject) -> Iterator[Caution]:
    asked = subject.ask(
        """
        WITH told AS (
            SELECT p.method, l.label, a.label AS first, b.label AS second,
                   (CASE WHEN l.label = a.label
                         THEN p.logits[a.label + 1] > p.logits[b.label + 1]
                         ELSE p.logits[b.label + 1] > p.logits[a.label + 1] END)::INT AS is_right
            FROM tables.prediction AS p
            JOIN tables.label AS l ON l.id = p.id AND l.role = p.role
            JOIN provenance.class AS a ON true
            JOIN provenance.class AS b ON b.label > a.label AND l.label IN (a.label, b.label)
            WHERE p.role = 'example' AND p.source IN ('kernel', 'cross_fitting', 'ensemble')
        )
        SELECT method, any_value(f.label_name) AS first, any_value(s.label_name) AS second,
               avg(is_right) AS told_apart
        FROM (SELECT method, first, second, label, avg(is_right) AS is_right
              FROM told GROUP BY ALL) AS t
        JOIN provenance.class AS f ON f.label = t.first
        JOIN provenance.class AS s ON s.label = t.second
        GROUP BY t.method, t.first, t.second HAVING count(*) = 2
        ORDER BY told_apart, method, first, second"""
    )
    low = [row for row in asked.rows if row["told_apart"] < ALIKE]
    if low:
        listed = "; ".join(
            f"{readable(row['first'], 60)} and {readable(row['second'], 60)} "
            f"({share(row['told_apart'])} told apart)"
            for row in low[:PAIRS]
        )
        yield Caution(
            f"{'Classes' if len(low) > 1 else 'Two classes'} that predictions can hardly tell "
            f"apart: {listed}; one half would be chance. Flags between them say little.",
            Asked(asked.statement, low),
        )


def _areas(subject: Subject) -> list[dict[str, float]]:
    """What instances of `answer_issues` measured; an earlier version did not."""
    measured = (areas_of(subject.run, name) for name in subject.run.methods("answer_issues"))
    return [areas for areas in measured if areas]


def _untold(subject: Subject) -> Iterator[Caution]:
    for warning in filter(None, map(distrust, _areas(subject))):
        asked = Asked("SELECT details FROM runs WHERE \"table\" = 'answer_issue'", [])
        yield Caution(warning, asked)


def _unjudged(subject: Subject) -> Iterator[Caution]:
    assert subject.judged is not None
    is_answer = subject.task != "classification"
    labelled = "" if is_answer else " AND label IS NOT NULL"
    asked = subject.ask(
        f"SELECT count(*) AS unjudged FROM tables.label WHERE role = 'example'{labelled}\n"
        f"AND id NOT IN (SELECT example_id FROM {subject.judged.rows})"
    )
    if asked.number:
        yield Caution(
            f"Rows without a usable prediction, which were not judged: {asked.number:,}.",
            asked,
        )


def _gradients(subject: Subject) -> Iterator[Caution]:
    asked = subject.ask(
        """
        SELECT method, role, count(*) FILTER (is_outlier) AS outliers,
               count(*) FILTER (status <> 'ok') AS without, count(*) AS n
        FROM diagnostics GROUP BY ALL ORDER BY ALL"""
    )
    for row in asked.rows:
        rows = "queries" if row["role"] == "query" else "examples"
        if row["outliers"]:
            yield Caution(
                f"{row['outliers']:,} of {row['n']:,} {rows} have a gradient of unusual length "
                f"({row['method']}): scores and values that rest on it may be led by them.",
                asked,
            )
        if row["without"]:
            yield Caution(
                f"{row['without']:,} of {row['n']:,} {rows} have no usable gradient "
                f"({row['method']}).",
                asked,
            )


def _unsettled(subject: Subject) -> Iterator[Caution]:
    if subject.values is None:
        return
    method, utility = subject.values
    asked = subject.ask(
        f"""
        SELECT 1 - avg(stderr * stderr) / nullif(var_pop(value), 0) AS reliability,
               avg((p_helpful BETWEEN 0.025 AND 0.975)::INT) AS sign_in_doubt, count(*) AS n
        FROM shapley WHERE semivalue = 'shapley' AND method = {quoted(method)}
          AND utility = {quoted(utility)}"""
    )
    row = asked.first
    if row["reliability"] is not None and row["reliability"] < RELIABLE:
        yield Caution(
            f"The values of examples have not converged: {share(1 - max(0.0, row['reliability']))} "
            "of their variance is error of sampling, and the sign of "
            f"{share(row['sign_in_doubt'])} is in doubt. Raise `rounds` of {method}: rounds that "
            "are there are kept.",
            asked,
        )


def _shared(subject: Subject) -> Iterator[Caution]:
    asked = subject.ask(
        """
        SELECT count(DISTINCT example_id) AS n FROM issues
        WHERE issue IN ('also a query', 'near a query')"""
    )
    if asked.number:
        yield Caution(
            f"Examples that are the same as a query or nearly so: {asked.number:,}. What is "
            "measured on the queries flatters the model, and these examples come out too valuable.",
            asked,
        )


def _contradictory(subject: Subject) -> Iterator[Caution]:
    asked = subject.ask(
        """
        SELECT count(DISTINCT example_id) AS n FROM issues
        WHERE issue IN ('duplicate with another label', 'near duplicate with another label')"""
    )
    if asked.number:
        noun = NOUNS[subject.task][0]
        yield Caution(
            f"Examples with a twin under another {noun}: {asked.number:,}. Of each pair one {noun} "
            "is wrong, or the text does not decide.",
            asked,
        )


def _rare(subject: Subject) -> Iterator[Caution]:
    asked = subject.ask(
        """
        SELECT e.label_name, count(*) AS n FROM issues JOIN examples AS e USING (example_id)
        WHERE issue = 'rare class' GROUP BY ALL ORDER BY n, label_name"""
    )
    if asked.rows:
        listed = ", ".join(
            f"{readable(r['label_name'], 60)} ({r['n']:,})" for r in asked.rows[:PAIRS]
        )
        yield Caution(
            f"Classes with less than a tenth of an even share of rows: {listed}. Little can be "
            "said of them.",
            asked,
        )


def _cut(subject: Subject) -> Iterator[Caution]:
    asked = subject.ask(
        f"""
        SELECT method, avg(is_cut::INT) AS share, count(*) FILTER (is_cut) AS n, max(max_length) AS
               max_length
        FROM (SELECT *, id AS example_id FROM text_lengths WHERE role = 'example')
        WHERE {KEPT} GROUP BY ALL ORDER BY method"""
    )
    for row in asked.rows:
        if row["share"] is not None and row["share"] > CUT:
            yield Caution(
                f"{row['n']:,} texts ({share(row['share'])}) are longer than the "
                f"{row['max_length']} tokens that the model reads, and were judged without "
                "their ends. Raise "
                "`max_length` of the model if it reads more.",
                asked,
            )


def _unfinished(subject: Subject) -> Iterator[Caution]:
    open_tables = [
        instance
        for instance, tables in subject.run.record["tables"].items()
        if any(state["manifest"] is None for state in tables.values())
    ]
    if open_tables:
        yield Caution(
            f"The run has not come to its end: {', '.join(open_tables)}. `assay run` goes on.",
            Asked('SELECT instance, "table", rows FROM runs', []),
        )


_CHECKS: dict[str, Check] = {
    "every stage finished": _unfinished,
    "no row of the source was rejected": _rejected,
    "models are right more often than chance": _mismatched,
    "predictions know clearly more than the most frequent class": _weak,
    "no two classes are near chance to be told apart": _alike,
    "answers that were made bad on purpose are told from the rows": _untold,
    "every row was judged": _unjudged,
    "no gradient of unusual length": _gradients,
    "less than a fifth of the variance of values is error of sampling": _unsettled,
    "no example is also a query": _shared,
    "no twins with different labels": _contradictory,
    "no rare class": _rare,
    "no more than 1 % of the texts lose their end": _cut,
}
_NEEDS: dict[str, set[str]] = {
    "models are right more often than chance": {"predictions"},
    "predictions know clearly more than the most frequent class": {"predictions"},
    "no two classes are near chance to be told apart": {"predictions"},
    "answers that were made bad on purpose are told from the rows": {"answer_issues"},
    "no gradient of unusual length": {"diagnostics"},
    "less than a fifth of the variance of values is error of sampling": {"shapley"},
    "no more than 1 % of the texts lose their end": {"text_lengths"},
}
_OF_CLASSES = {
    "models are right more often than chance",
    "predictions know clearly more than the most frequent class",
    "no two classes are near chance to be told apart",
    "no rare class",
}
_OF_TEXTS = {"no example is also a query", "no twins with different labels"}
_OF_VERDICTS = {"every row was judged"}
