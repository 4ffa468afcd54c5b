"""The main results of a finished run, as plain values that its folder keeps."""

import json
from typing import Any

from pipeline.agreement import mismatches
from pipeline.answer_trust import areas_of
from pipeline.corpus_told import corpus_facts
from pipeline.decided import undecided
from pipeline.decisions import KEPT, Content, content_of
from pipeline.terminal import PROMPT, TEXTS
from pipeline.trials import trials
from storage.sql import named, quoted

SUSPICIOUS = 20
"""Labels that `assay run` shows."""
EXTREMES = 10
"""Examples that `assay run` shows as most helpful, and as most harmful."""
SIDES = ("helpful", "harmful")
PAIRS = 3
"""Pairs of classes that `assay run` names as confused."""
WORTH_A_LOOK = 0.1
"""Least `p_wrong` of the answers and pairs that `assay run` shows."""
TEXT_LENGTH = 2_000
"""Characters that are kept of a text: of a prompt the last, of others the first."""
OTHER_ANSWER = "same prompt with another answer"
"""The issue of rows whose prompt stands in a corpus of completions with other answers, too."""
OTHER_ORDER = "same pair the other way round"
"""The issue of pairs that stand in a corpus of preferences both ways round."""
LIKELIER = 4
"""Labels are worth a look where another class is so many times as likely."""


VALUED = {
    "regression": "text, target, value FROM shapley JOIN examples USING (example_id)",
    "completion": "prompt, answer, value FROM shapley JOIN completions ON id = example_id "
    "AND role = 'example'",
}
"""What is asked of the values of examples that have no classes, by task."""


def summarize(run: Any) -> dict[str, Any]:
    """The main results of a run as plain values; a key is empty where its stage did not run.

    They are kept in the run's folder: to ask again reads every shard.
    """
    kept: dict[str, Any] | None = run.folder.kept_summary(run.record)
    if kept is None:
        kept = _summary(run)
        run.folder.keep_summary(run.record, kept)
    return kept


def _summary(run: Any) -> dict[str, Any]:
    views = set(run.views())
    (count,) = _fetch(run.sql("SELECT count(*) FROM tables.label WHERE role = 'example'"))[0]
    summary: dict[str, Any] = {
        "run": str(run.folder.path),
        "run_id": run.record["run_id"],
        "catalog": str(run.folder.catalog),
        "examples": count,
        "corpus": None,
        "suspicious": [],
        "flagged": None,
        "doubtful": None,
        "agreement": None,
        "most_frequent": None,
        "expected_precision": None,
        "pairs": [],
        "answers": [],
        "judged": None,
        "bad_answers": None,
        "told_answers": {},
        "other_answers": n_other_answers(run),
        "other_orders": n_other_orders(run),
        "trials": trials(run) if "selection_trial" in views else [],
        "pairs_of_answers": [],
        "wrong_orders": None,
        "planted": None,
        "helpful": [],
        "harmful": [],
        "utility": None,
        "of_classes": None,
        "accuracy": [],
        "mismatch": [],
        "regression": [],
        "try": _statements(views, run.task(), run.facts("text").get("has_text", True)),
    }
    # Of several instances of a stage the first is shown; the views hold them all.
    for method in run.methods("label_issues")[:1]:
        rows = _dicts(_shortened(run.flag(top=SUSPICIOUS, method=method)))
        summary["suspicious"] = [
            {
                "example_id": r["example_id"],
                "source_id": r["source_id"],
                "text": r["text"],
                **({"text_b": r["text_b"]} if "text_b" in r else {}),
                "given": r["given_label"],
                "suggested": r["suggested_label"],
                "score": r["label_score"],
                "planted": r["true_label_name"] not in (None, r["given_label"]),
            }
            for r in rows
        ]
        # Of many rows few are flagged, and few are planted: these alone are brought together.
        flagged = f"FROM tables.label_issues WHERE method = {quoted(method)} AND is_label_issue"
        wrong = "FROM tables.label WHERE role = 'example' AND true_label <> label"
        ((summary["flagged"], planted, caught),) = _fetch(
            run.sql(
                f"SELECT (SELECT count(*) {flagged}), (SELECT count(*) {wrong}), "
                f"(SELECT count(*) {wrong} AND id IN (SELECT example_id {flagged}))"
            )
        )
        summary |= _noise(run, method)
        if planted:
            in_top = sum(row["planted"] for row in summary["suspicious"])
            summary["planted"] = {"planted": planted, "flagged": caught, "in_top": in_top}
    for method in run.methods("answer_issues")[:1]:
        summary |= _answers(run, method)
    for method in run.methods("preference_issues")[:1]:
        summary |= _orders(run, method)
    summary["corpus"] = corpus_facts(run, summary["trials"])
    shown_values = run.shown_values()
    if shown_values is not None:
        summary |= _values(run, *shown_values)
    if "predictions" in views:
        summary["accuracy"] = _dicts(
            run.sql(
                "SELECT p.source, avg((p.predicted = q.label)::INT) AS accuracy "
                "FROM predictions AS p JOIN queries AS q ON q.query_id = p.id "
                "WHERE p.role = 'query' AND q.label IS NOT NULL GROUP BY ALL ORDER BY 1"
            )
        )
        summary["mismatch"] = mismatches(run)
        # R^2 has no value where all targets are equal.
        summary["regression"] = _dicts(
            run.sql(
                "SELECT p.source, p.method, avg(p.loss) AS mean_squared_error, "
                "1 - avg(p.loss) / nullif(var_pop(q.target), 0) AS r_squared "
                "FROM predictions AS p JOIN queries AS q ON q.query_id = p.id "
                "WHERE p.role = 'query' AND q.target IS NOT NULL AND p.loss IS NOT NULL "
                "GROUP BY ALL ORDER BY 1, 2"
            )
        )
    return summary


def _answers(run: Any, method: str) -> dict[str, Any]:
    """The answers that are probably bad, the worst first, and how many for each reason."""
    rows = _dicts(_shortened(run.flag(top=SUSPICIOUS, method=method)))
    names = ("example_id", "prompt", "answer", "reason", "p_wrong")
    reasons = _dicts(
        run.sql(
            f"SELECT reason, count(*) AS n FROM answer_issues WHERE is_answer_issue AND {KEPT} "
            f"AND method = {quoted(method)} {undecided(run)} GROUP BY ALL ORDER BY n DESC, reason"
        )
    )
    return {
        "answers": [{name: row[name] for name in names} for row in rows],
        "judged": _n_judged(run, "answer_issues", method),
        "bad_answers": {row["reason"]: row["n"] for row in reasons},
        "told_answers": areas_of(run, method),
    }


def _n_judged(run: Any, view: str, method: str) -> int:
    """How many rows an instance has judged: not those without a loss, cut by `max_length`."""
    ((n,),) = _fetch(
        run.sql(f"SELECT count(*) FROM {view} WHERE {KEPT} AND method = {quoted(method)}")
    )
    return int(n)


def n_other_answers(run: Any) -> int | None:
    """How many rows have their prompt in common with a row that has another answer.

    None where no stage of the run looks for what may be wrong with answers or for duplicates.
    """
    return _n_issues(run, "completion", OTHER_ANSWER, "answer_issues")


def n_other_orders(run: Any) -> int | None:
    """How many pairs stand in the corpus the other way round, too; None as of other answers."""
    return _n_issues(run, "preference", OTHER_ORDER, "preference_issues")


def _n_issues(run: Any, task: str, issue: str, view: str) -> int | None:
    if run.task() != task or not {view, "near_duplicates"} & set(run.views()):
        return None
    ((n,),) = _fetch(run.sql(f"SELECT count(*) FROM issues WHERE issue = {quoted(issue)}"))
    return int(n)


def _orders(run: Any, method: str) -> dict[str, Any]:
    """The pairs whose order is probably wrong, how many are flagged, and their expected share."""
    rows = _dicts(_shortened(run.flag(top=SUSPICIOUS, method=method)))
    names = ("example_id", "prompt", "chosen", "rejected", "reason", "p_wrong")
    ((flagged, details),) = _fetch(
        run.sql(
            f"SELECT (SELECT count(*) FROM preference_issues WHERE is_preference_issue AND {KEPT} "
            f"AND method = '{method}' {undecided(run)}), details FROM runs "
            f"WHERE instance = '{method}' AND \"table\" = 'preference_issue'"
        )
    )
    told = {"flagged": flagged, "share": json.loads(details)["share"]}
    found = [{name: row[name] for name in names} for row in rows]
    judged = _n_judged(run, "preference_issues", method)
    return {"pairs_of_answers": found, "judged": judged, "wrong_orders": told}


def _values(run: Any, method: str, utility: str) -> dict[str, Any]:
    """The most helpful and harmful examples, by their places within their classes.

    And the part of the values' variance that lies between classes.
    """
    found: dict[str, Any] = {"utility": utility}
    if run.task() == "classification":
        ((found["of_classes"],),) = _fetch(run.sql(between_classes(method, utility)))
    content = named_content(run)
    for side in SIDES:
        found[side] = _dicts(_shortened(run.sql(extremes(method, utility, side, content))))
    return found


def named_content(run: Any) -> Content:
    """What a person reads of the rows of `run`, with the name of the class as `label`."""
    return content_of(run, of_class="e.label_name AS label")


def between_classes(method: str, utility: str) -> str:
    """The statement of the part of the values' variance that lies between classes."""
    values = _labelled_values(method, utility)
    return (
        "SELECT 1 - sum(n * within) / nullif(sum(n) * any_value(total), 0) AS of_classes FROM "
        f"(SELECT count(*) AS n, var_pop(value) AS within FROM ({values}) GROUP BY label), "
        f"(SELECT var_pop(value) AS total FROM ({values}))"
    )


def extremes(method: str, utility: str, side: str, content: Content) -> str:
    """The statement of the most `helpful` or `harmful` examples, by their places in their classes.

    A class without a value above 0 has no helpful one. By class, the best or the worst first.
    Columns: example_id, those of `content`, value, stderr, p_helpful, source_id.
    """
    order, sign = {"helpful": ("DESC", ">"), "harmful": ("ASC", "<")}[side]
    return (
        f"SELECT s.example_id, {content.columns}, s.value, s.stderr, s.p_helpful, e.source_id "
        "FROM (SELECT *, row_number() OVER "
        f"(PARTITION BY label ORDER BY value {order}, example_id) AS place "
        f"FROM ({_labelled_values(method, utility)}) WHERE value {sign} 0 "
        f"ORDER BY place, value {order}, example_id "
        f"LIMIT {EXTREMES}) AS s JOIN examples AS e USING (example_id) {content.join} "
        f"ORDER BY e.label, s.value {order}, s.example_id"
    )


def _labelled_values(method: str, utility: str) -> str:
    return (
        "SELECT v.example_id, v.value, v.stderr, v.p_helpful, l.label FROM shapley AS v "
        "JOIN tables.label AS l ON l.id = v.example_id AND l.role = 'example' "
        f"WHERE v.utility = {quoted(utility)} AND v.semivalue = 'shapley' "
        f"AND v.method = {quoted(method)}"
    )


def _noise(run: Any, method: str) -> dict[str, Any]:
    """What is known of the labels beside the flags of an instance of `label_issues`.

    How many are contradicted by far, the share that the predictions agree with, the share of the
    flagged that is expected to be wrong, and the pairs of classes that are confused most, where
    some are confused more than others.
    """
    ((details, noise),) = _fetch(
        run.sql(
            "SELECT details, json_extract_string(fields, '$.noise') FROM runs "
            f"WHERE instance = {quoted(method)} AND \"table\" = 'label_issues'"
        )
    )
    facts = json.loads(details)
    if "rates" not in facts:  # of an earlier version
        return {}
    ((doubtful, right),) = _fetch(
        run.sql(
            "SELECT count(*) FILTER (suggested_label <> given_label "
            f"AND confidence >= {LIKELIER} * label_score), avg(p_wrong) FILTER (is_label_issue) "
            f"FROM tables.label_issues WHERE method = {quoted(method)}"
        )
    )
    replaced = [
        rate
        for clean, rates in enumerate(facts["rates"])
        for given, rate in enumerate(rates)
        if clean != given
    ]
    pairs = []
    if max(replaced) > 1.01 * min(replaced):
        pairs = _dicts(
            run.sql(
                "SELECT class, given_label AS given, expected FROM label_noise "
                f"WHERE method = {quoted(noise)} AND class <> given_label AND expected >= 1 "
                f"ORDER BY expected DESC LIMIT {PAIRS}"
            )
        )
    agreement = facts["n_agreeing"] / facts["n_judged"]
    ((majority,),) = _fetch(
        run.sql(
            "SELECT max(n) / sum(n) FROM (SELECT count(*) AS n FROM tables.label_issues "
            f"WHERE method = {quoted(method)} GROUP BY given_label)"
        )
    )
    known = {"doubtful": doubtful, "agreement": agreement, "most_frequent": majority}
    return {**known, "expected_precision": right, "pairs": pairs}


def _statements(views: set[str], task: str = "classification", has_texts: bool = True) -> list[str]:
    """Up to three SQL statements to try, over views that the run has."""
    row = "text" if has_texts else "source_id"
    kept = "example_id IN (SELECT example_id FROM examples)"  # not dropped in a review
    of_examples = {
        "classification": "SELECT label_name, count(*) FROM examples GROUP BY ALL",
        "regression": "SELECT count(*), avg(target), stddev(target) FROM examples",
        "completion": "SELECT prompt, answer FROM completions WHERE role = 'example' LIMIT 20",
        "preference": "SELECT prompt, chosen, rejected FROM preferences WHERE role = 'example' "
        "LIMIT 20",
        "question_answering": "SELECT text_b AS question, text FROM examples LIMIT 20",
    }
    statements = {
        "label_issues": f"SELECT {row}, given_label, suggested_label, label_score FROM "
        "label_issues JOIN examples USING (example_id) ORDER BY label_score LIMIT 20",
        "answer_issues": "SELECT prompt, answer, reason, p_wrong FROM answer_issues JOIN "
        f"completions ON id = example_id AND role = 'example' WHERE {kept} "
        "ORDER BY p_wrong DESC LIMIT 20",
        "preference_issues": "SELECT prompt, chosen, rejected, reason, p_wrong FROM "
        f"preference_issues JOIN preferences ON id = example_id AND role = 'example' WHERE {kept} "
        "ORDER BY p_wrong DESC LIMIT 20",
        "answer_margins": "SELECT role, avg(margin), avg(loss) FROM answer_margins GROUP BY ALL",
        "shapley": "SELECT label_name, utility, sum(value) FROM shapley JOIN examples "
        "USING (example_id) GROUP BY ALL",
        "predictions": f"SELECT {row}, target, logits[1] AS predicted FROM predictions JOIN "
        "examples ON id = example_id WHERE role = 'example' ORDER BY loss DESC LIMIT 20",
        "runs": "SELECT instance, stage, rows, bytes, seconds FROM runs",
        "rejected": "SELECT reason, count(*) FROM rejected GROUP BY ALL",
        "answers": "SELECT question, answer, probability FROM answers LIMIT 20",
        "examples": of_examples[task],
    }
    if task != "regression":
        del statements["predictions"]
    if task in VALUED:
        statements["shapley"] = f"SELECT {VALUED[task]} ORDER BY value DESC LIMIT 20"
    return [text for view, text in statements.items() if view in views][:3]


def _shortened(rows: Any) -> Any:
    """The rows with `TEXT_LENGTH` characters of each text: a text may be as long as a book."""
    ends = {name: "right" if name == PROMPT else "left" for name in rows.columns if name in TEXTS}
    cut = [
        f"{ends[name]}({name}, {TEXT_LENGTH}) AS {name}" if name in ends else named(name)
        for name in rows.columns
    ]
    return rows.project(", ".join(cut))


def _dicts(rows: Any) -> list[dict[str, Any]]:
    return [dict(zip(rows.columns, row, strict=True)) for row in _fetch(rows)]


def _fetch(rows: Any) -> list[tuple[Any, ...]]:
    from storage.catalog import fetch  # `assay --help` should not pay for DuckDB

    return fetch(rows)
