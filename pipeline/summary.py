"""What commands print on stdout: tables and lines for people, or JSON for programs."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import click

from pipeline.agreement import mismatches
from pipeline.errors import RunError, told
from pipeline.terminal import show, table

SUSPICIOUS = 20
"""Labels that `assay run` shows."""
EXTREMES = 10
"""Examples that `assay run` shows as most helpful, and as most harmful."""
LIKELIER = 4
"""Labels are worth a look where another class is so many times as likely."""
PAIRS = 3
"""Pairs of classes that `assay run` names as confused."""


def exit_code(error: BaseException) -> int | None:
    """The command's exit code for an error: 1 for one with advice; None for a defect of assay."""
    # Here, not above: `assay --help` should not pay for pyarrow.
    from stages.stage import StageError
    from storage.schema import StorageError

    is_told = isinstance(error, RunError | StageError | StorageError) or told(error) is not None
    return 1 if is_told else None


def print_rows(rows: Any, is_json: bool) -> None:
    """Prints a DuckDB relation, as a table or as JSON."""
    names, cells = list(rows.columns), _fetch(rows)
    if is_json:
        click.echo(json.dumps([dict(zip(names, row, strict=True)) for row in cells], default=str))
        return
    show(table(names, cells))


def print_status(status: Mapping[str, Any], is_json: bool) -> None:
    """Prints the shards of every table of a run: how many are written, of how many."""
    if is_json:
        click.echo(json.dumps(status))
        return
    rows = [
        (t["instance"], t["table"], f"{t['done']}/{t['shards']}", "yes" if t["is_whole"] else "no")
        for t in status["tables"]
    ]
    show(table(["stage", "table", "shards written", "complete"], rows))
    show(f"run      {status['run_id']}\nstore    {status['store']}")
    rebuilt = " (rebuilt)" if status["is_catalog_rebuilt"] else ""
    show(f"catalog  {status['catalog']}{rebuilt}")
    if status["driver"]:
        at_work = status["driver"]
        show(f"driver   process {at_work['pid']} on {at_work['host']}, since {at_work['since']}")


def print_leftovers(found: Mapping[str, Any], is_json: bool) -> None:
    """Prints what is left over: a row for each file, and how many bytes they are."""
    if is_json:
        click.echo(json.dumps(found))
        return
    for item in found["items"]:
        show(f"{item['kind']:<9} {item['bytes']:>15,}  {item['path']}")
    count = f"{len(found['items'])} leftovers, {found['bytes']:,} bytes"
    show(count + (" removed" if found["is_removed"] else ""))
    if found["runs"]:
        show(f"kept is what these runs need: {', '.join(found['runs'])}")
    for note in found["notes"]:
        show(note)
    if found["items"] and not found["is_removed"]:
        show("Nothing was removed; --remove does.")


def print_verified(found: Mapping[str, Any], is_json: bool) -> None:
    """Prints the damaged files of a run, or that there are none."""
    if is_json:
        click.echo(json.dumps(found))
        return
    damaged = found["damaged"]
    if not damaged:
        show(f"{found['n_files']} files of {found['run_id']} are as they were written")
        return
    show(table(["file", "found"], [[row["file"], row["found"]] for row in damaged]))
    config = _shell_path(f"{found['run']}/config.yaml")
    show(
        f"{len(damaged)} of {found['n_files']} files are damaged"
        + (
            f", and removed: `{_command()} run {config}` computes them again"
            if found["is_repaired"]
            else f": `{_command()} verify {_shell_path(found['run'])} --repair` removes them, and "
            f"`{_command()} run {config}` computes them again"
        )
    )


def print_evaluation(evaluation: Mapping[str, Any], is_json: bool) -> None:
    """Prints the rows of a metric, its fields and what it was computed from.

    The values that the rows are means of are in the JSON alone.
    """
    if is_json:
        click.echo(json.dumps(evaluation))
        return
    rows = evaluation["rows"]
    show(table(list(rows[0]), [list(row.values()) for row in rows]))
    for name in ("fields", "facts"):
        show(f"\n{name}: " + ", ".join(f"{k} {_short(v)}" for k, v in evaluation[name].items()))


def print_summary(run: Any, is_json: bool) -> None:
    """Prints the main results of a finished run: suspicious labels, best and worst examples."""
    summary = summarize(run)
    if is_json:
        click.echo(json.dumps(summary, default=str))
        return
    if summary["suspicious"]:
        show("\nMost suspicious labels (score from 0 to 1, low: probably wrong)")
        names = ["text", "given", "suggested", "score"]
        if summary["planted"]:
            names.append("planted")
        show(table(names, [[row[n] for n in names] for row in summary["suspicious"]]))
    if summary["flagged"] is not None:
        show(_about_flags(summary))
    for pair in summary["pairs"]:
        show(
            f"{pair['expected']:.0f} labels {pair['given']!r} are expected to be rows of class "
            f"{pair['class']!r}."
        )
    if summary["planted"]:
        planted = summary["planted"]
        show(
            f"Of {planted['planted']} planted wrong labels, {planted['flagged']} are flagged; "
            f"{planted['in_top']} are among the {len(summary['suspicious'])} above."
        )
    for key, effect in (("helpful", "above 0: improves"), ("harmful", "below 0: worsens")):
        if summary[key]:
            utility = summary["utility"]
            show(
                f"\nMost {key} examples of each class (value {effect} predictions of the queries, "
                f"by {utility})"
            )
            names = ["text", "label", "value", "stderr", "p_helpful"]
            show(table(names, [[row[n] for n in names] for row in summary[key]]))
    if summary["of_classes"] is not None:
        show(
            f"{summary['of_classes']:.0%} of the variance of values lies between classes, which "
            "says which class the queries need more of, not which row."
        )
    for line in summary["accuracy"]:
        show(f"Accuracy of the {line['source']} on the queries: {line['accuracy']:.3f}")
    for line in summary["mismatch"]:
        rows = {"example": "examples", "query": "queries"}[line["role"]]
        show(
            f"{line['method']}: the model is right on {line['right']} of {line['rows']} labelled "
            f"{rows}, where chance alone would be {line['chance']:.0f}: its outputs are probably "
            "not the classes that they are taken for. Compare id2label in the model's config.json, "
            "or label_words, with the corpus's classes; `classes:` of the corpus lists them in the "
            "order of the outputs."
        )
    for line in summary["regression"]:
        share = "" if line["r_squared"] is None else f"R^2 {line['r_squared']:.3f}, "
        show(
            f"Error of the {line['source']} on the queries: {share}"
            f"mean squared error {line['mean_squared_error']:.4g}"
        )
    show(f"\nCatalog: {_shell_path(summary['catalog'])}   Ask it in SQL, for example:")
    for statement in summary["try"]:
        show(f'  {_command()} sql {_shell_path(summary["run"])} "{statement}"')


def _about_flags(summary: Mapping[str, Any]) -> str:
    """How many labels are flagged, and how much weight the number has."""
    flagged, n, doubtful = (summary[name] for name in ("flagged", "examples", "doubtful"))
    if summary["agreement"] is None:
        return f"{flagged} of {n} labels are flagged as probably wrong."
    agreement = f"out-of-sample predictions agree with {summary['agreement']:.0%} of the labels"
    if flagged:
        return (
            f"{flagged} of {n} labels are flagged as probably wrong; {agreement}. The order is "
            "surer than this number: assay flag RUN --top 100 reads on."
        )
    look = (
        f"{doubtful} labels are worth a look all the same, as another class is {LIKELIER} times as "
        f"likely: assay flag RUN --top {doubtful}."
    )
    return (
        f"None of {n} labels is flagged: {agreement}, and of the others none is surely wrong "
        f"rather than hard to predict. {look if doubtful else ''}".rstrip()
    )


def _command() -> str:
    """`assay`, or the path by which it was called where it is not on the PATH, for copied lines."""
    is_called_by_path = os.path.basename(sys.argv[0]) == "assay" and not shutil.which("assay")
    return _shell_path(sys.argv[0]) if is_called_by_path else "assay"


def _shell_path(path: str) -> str:
    """The path quoted for a shell, relative to the working directory where that is shorter."""
    return shlex.quote(min(path, os.path.relpath(path), key=len))


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
        "suspicious": [],
        "flagged": None,
        "doubtful": None,
        "agreement": None,
        "pairs": [],
        "planted": None,
        "helpful": [],
        "harmful": [],
        "utility": None,
        "of_classes": None,
        "accuracy": [],
        "mismatch": [],
        "regression": [],
        "try": _statements(views, run.task()),
    }
    # Of several instances of a stage the first is shown; the views hold them all.
    for method in run.methods("label_issues")[:1]:
        rows = _dicts(run.flag(top=SUSPICIOUS, method=method))
        summary["suspicious"] = [
            {
                "example_id": r["example_id"],
                "text": r["text"],
                "given": r["given_label"],
                "suggested": r["suggested_label"],
                "score": r["label_score"],
                "planted": r["true_label"] is not None and r["true_name"] != r["given_label"],
            }
            for r in _with_true_names(run, rows)
        ]
        # Of many rows few are flagged, and few are planted: these alone are brought together.
        flagged = f"FROM tables.label_issues WHERE method = '{method}' AND is_label_issue"
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


def _values(run: Any, method: str, utility: str) -> dict[str, Any]:
    """The most helpful and harmful examples, by their places within their classes.

    And the part of the values' variance that lies between classes.
    """
    values = (
        "SELECT v.example_id, v.value, v.stderr, v.p_helpful, l.label FROM shapley AS v "
        "JOIN tables.label AS l ON l.id = v.example_id AND l.role = 'example' "
        f"WHERE v.utility = '{utility}' AND v.semivalue = 'shapley' AND v.method = '{method}'"
    )
    ((of_classes,),) = _fetch(
        run.sql(
            "SELECT 1 - sum(n * within) / nullif(sum(n) * any_value(total), 0) FROM "
            f"(SELECT count(*) AS n, var_pop(value) AS within FROM ({values}) GROUP BY label), "
            f"(SELECT var_pop(value) AS total FROM ({values}))"
        )
    )
    found = {"utility": utility, "of_classes": of_classes}
    for key, order in (("helpful", "DESC"), ("harmful", "ASC")):
        found[key] = _dicts(
            run.sql(
                "SELECT s.example_id, e.text, e.label_name AS label, s.value, s.stderr, "
                f"s.p_helpful FROM (SELECT *, row_number() OVER (PARTITION BY label ORDER BY value "
                f"{order}, example_id) AS place FROM ({values}) ORDER BY place, value {order}, "
                f"example_id LIMIT {EXTREMES}) AS s JOIN examples AS e USING (example_id) "
                f"ORDER BY s.place, s.value {order}, s.example_id"
            )
        )
    return found


def _noise(run: Any, method: str) -> dict[str, Any]:
    """What is known of the labels beside the flags of an instance of `label_issues`.

    How many are contradicted by far, the share that the predictions agree with, and the pairs of
    classes that are confused most, where some are confused more than others.
    """
    ((details, noise),) = _fetch(
        run.sql(
            "SELECT details, json_extract_string(fields, '$.noise') FROM runs "
            f"WHERE instance = '{method}' AND \"table\" = 'label_issues'"
        )
    )
    facts = json.loads(details)
    if "rates" not in facts:  # of an earlier version
        return {}
    ((doubtful,),) = _fetch(
        run.sql(
            f"SELECT count(*) FROM tables.label_issues WHERE method = '{method}' "
            f"AND suggested_label <> given_label AND confidence >= {LIKELIER} * label_score"
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
                f"WHERE method = '{noise}' AND class <> given_label AND expected >= 1 "
                f"ORDER BY expected DESC LIMIT {PAIRS}"
            )
        )
    agreement = facts["n_agreeing"] / facts["n_judged"]
    return {"doubtful": doubtful, "agreement": agreement, "pairs": pairs}


def _with_true_names(run: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `true_name`, the class that a planted wrong label had before."""
    names = dict(run.sql("SELECT label, label_name FROM provenance.class").fetchall())
    return [{**row, "true_name": names.get(row["true_label"])} for row in rows]


def _statements(views: set[str], task: str = "classification") -> list[str]:
    """Up to three SQL statements to try, over views that the run has."""
    of_examples = {
        "classification": "SELECT label_name, count(*) FROM examples GROUP BY ALL",
        "regression": "SELECT count(*), avg(target), stddev(target) FROM examples",
        "completion": "SELECT text, text_b FROM examples LIMIT 20",
        "question_answering": "SELECT text_b AS question, text FROM examples LIMIT 20",
    }
    statements = {
        "label_issues": "SELECT text, given_label, suggested_label, label_score FROM label_issues "
        "JOIN examples USING (example_id) ORDER BY label_score LIMIT 20",
        "shapley": "SELECT label_name, utility, sum(value) FROM shapley JOIN examples "
        "USING (example_id) GROUP BY ALL",
        "predictions": "SELECT text, target, logits[1] AS predicted FROM predictions JOIN "
        "examples ON id = example_id WHERE role = 'example' ORDER BY loss DESC LIMIT 20",
        "runs": "SELECT instance, stage, rows, bytes, seconds FROM runs",
        "rejected": "SELECT reason, count(*) FROM rejected GROUP BY ALL",
        "answers": "SELECT question, answer, probability FROM answers LIMIT 20",
        "examples": of_examples[task],
    }
    if task != "regression":
        del statements["predictions"]
    return [text for view, text in statements.items() if view in views][:3]


def _dicts(rows: Any) -> list[dict[str, Any]]:
    return [dict(zip(rows.columns, row, strict=True)) for row in _fetch(rows)]


def _fetch(rows: Any) -> list[tuple[Any, ...]]:
    from storage.catalog import fetch  # `assay --help` should not pay for DuckDB

    return fetch(rows)


def _short(value: Any) -> str:
    """A field or fact on one line, with numbers rounded."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
