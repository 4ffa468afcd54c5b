"""Views to what people see: tables on the terminal, JSON for programs; all of it on stdout."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import click

from pipeline.errors import RunError
from pipeline.progress import told_seconds
from pipeline.terminal import show, table
from stages.stage import StageError
from storage.schema import StorageError

SUSPICIOUS = 20
EXTREMES = 10


def exit_code(error: BaseException) -> int | None:
    """1 for a failure that one of the rooms explains; None for a defect of assay itself."""
    return 1 if isinstance(error, RunError | StageError | StorageError) else None


def print_rows(rows: Any, is_json: bool) -> None:
    """Prints a DuckDB relation, as a table or as JSON."""
    names, cells = list(rows.columns), _fetch(rows)
    if is_json:
        click.echo(json.dumps([dict(zip(names, row, strict=True)) for row in cells], default=str))
        return
    show(table(names, cells))


def print_status(status: Mapping[str, Any], is_json: bool) -> None:
    """Prints how far a run is."""
    if is_json:
        click.echo(json.dumps(status))
        return
    rows = [
        (t["instance"], t["table"], f"{t['done']}/{t['shards']}", "yes" if t["is_whole"] else "no")
        for t in status["tables"]
    ]
    show(table(["stage", "table", "shards", "whole"], rows))
    show(f"run      {status['run_id']}\nstore    {status['store']}")
    rebuilt = " (rebuilt)" if status["is_catalog_rebuilt"] else ""
    show(f"catalog  {status['catalog']}{rebuilt}")


def print_estimate(estimate: Mapping[str, Any], is_json: bool) -> None:
    """Prints what a run would compute and cost."""
    if is_json:
        click.echo(json.dumps(estimate))
        return
    columns = {
        "stage": "stage",
        "tasks": "tasks",
        "reused": "reused",
        "forward_rows": "forward rows",
        "backward_rows": "backward rows",
        "flops": "FLOPs",
        "written_bytes": "written",
        "memory_bytes": "memory/task",
        "seconds": "time",
        "note": "how",
    }
    most = "at most " if any(row["at_most"] for row in estimate["stages"]) else ""
    shown = []
    for row in estimate["stages"]:
        cells = dict(row)
        cells["tasks"] = f"at most {row['tasks']}" if row["at_most"] else row["tasks"]
        cells["flops"] = f"{row['flops']:.1e}" if row["flops"] else ""
        cells["written_bytes"] = _bytes(row["written_bytes"])
        cells["memory_bytes"] = _bytes(row["memory_bytes"])
        cells["seconds"] = told_seconds(row["seconds"])
        shown.append([cells[name] for name in columns])
    show(
        f"{estimate['examples']} examples, {estimate['queries']} queries, {estimate['rejected']} "
        f"rejected rows, {estimate['shards']} shards"
    )
    show(table(list(columns.values()), shown))
    if added := [f"{i} for {', '.join(by)}" for i, by in estimate["added"].items()]:
        show(f"Added, as the file does not name them: {'; '.join(added)}")
    for note in estimate["notes"]:
        show(note)
    show(
        f"In all {most}about {told_seconds(estimate['seconds'])} on {estimate['workers']} workers "
        f"({estimate['flops_per_second']:.1e} FLOP/s each, measured now), "
        f"{_bytes(estimate['written_bytes'])} to write, "
        f"{_bytes(estimate['memory_bytes'])} for the largest task"
    )


def print_evaluation(evaluation: Mapping[str, Any], is_json: bool) -> None:
    """Prints what a metric found; the values it was computed from in JSON alone."""
    if is_json:
        click.echo(json.dumps(evaluation))
        return
    rows = evaluation["rows"]
    show(table(list(rows[0]), [list(row.values()) for row in rows]))
    for name in ("fields", "facts"):
        show(f"\n{name}: " + ", ".join(f"{k} {_told(v)}" for k, v in evaluation[name].items()))


def print_summary(run: Any, is_json: bool) -> None:
    """Prints what a person wants to see of a finished run."""
    summary = summarize(run)
    if is_json:
        click.echo(json.dumps(summary, default=str))
        return
    if summary["suspicious"]:
        show("\nMost suspicious labels")
        names = ["text", "given", "suggested", "score"]
        if summary["planted"]:
            names.append("planted")
        show(table(names, [[row[n] for n in names] for row in summary["suspicious"]]))
    if summary["flagged"] is not None:
        show(f"{summary['flagged']} of {summary['examples']} labels are flagged as issues.")
    if summary["planted"]:
        planted = summary["planted"]
        show(
            f"Of {planted['planted']} planted wrong labels, {planted['flagged']} are among them; "
            f"{planted['in_top']} are among the {len(summary['suspicious'])} above."
        )
    for title, key in (("Most helpful examples", "helpful"), ("Most harmful examples", "harmful")):
        if summary[key]:
            show(f"\n{title} ({summary['utility']} of the queries; positive helps)")
            names = ["text", "label", "value", "stderr", "p_helpful"]
            show(table(names, [[row[n] for n in names] for row in summary[key]]))
    for line in summary["accuracy"]:
        show(f"Accuracy of the {line['source']} on the queries: {line['accuracy']:.3f}")
    for line in summary["regression"]:
        share = "" if line["r_squared"] is None else f"R^2 {line['r_squared']:.3f}, "
        show(
            f"Error of the {line['source']} on the queries: {share}"
            f"mean squared error {line['mean_squared_error']:.4g}"
        )
    show(f"\nCatalog: {_near(summary['catalog'])}   Try:")
    for statement in summary["try"]:
        show(f'  {_command()} sql {_near(summary["run"])} "{statement}"')


def _command() -> str:
    """How this program was called, so that a line can be copied where it is not on the PATH."""
    is_called_by_path = os.path.basename(sys.argv[0]) == "assay" and not shutil.which("assay")
    return _near(sys.argv[0]) if is_called_by_path else "assay"


def _near(path: str) -> str:
    """The path as seen from the working directory, quoted for a shell, where that is shorter."""
    return shlex.quote(min(path, os.path.relpath(path), key=len))


def summarize(run: Any) -> dict[str, Any]:
    """The main results of a run as plain values; empty where a stage did not run."""
    views = set(run.views())
    count = _fetch(run.sql("SELECT count(*) FROM examples"))[0][0]
    summary: dict[str, Any] = {
        "run": str(run.folder.path),
        "run_id": run.record["run_id"],
        "catalog": str(run.folder.catalog),
        "examples": count,
        "suspicious": [],
        "flagged": None,
        "planted": None,
        "helpful": [],
        "harmful": [],
        "utility": None,
        "accuracy": [],
        "regression": [],
        "try": _statements(views, run.task()),
    }
    # With several instances of a stage, the first speaks; the views hold them all.
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
        summary["flagged"], planted, caught = run.sql(
            "SELECT count(*) FILTER (i.is_label_issue), count(*) FILTER (e.true_label <> e.label), "
            "count(*) FILTER (e.true_label <> e.label AND i.is_label_issue) "
            "FROM examples AS e JOIN label_issues AS i USING (example_id) "
            f"WHERE i.method = '{method}'"
        ).fetchall()[0]
        if planted:
            found = sum(row["planted"] for row in summary["suspicious"])
            summary["planted"] = {"planted": planted, "flagged": caught, "in_top": found}
    shown = run.shown_values()
    if shown is not None:
        method, summary["utility"] = shown
        for key, order in (("helpful", "ASC"), ("harmful", "DESC")):
            summary[key] = _dicts(
                run.sql(
                    "SELECT s.example_id, e.text, e.label_name AS label, s.value, s.stderr, "
                    "s.p_helpful FROM shapley AS s JOIN examples AS e USING (example_id) "
                    f"WHERE s.utility = '{summary['utility']}' AND s.semivalue = 'shapley' "
                    f"AND s.method = '{method}' "
                    f"ORDER BY s.rank {order} LIMIT {EXTREMES}"
                )
            )
    if "predictions" in views:
        summary["accuracy"] = _dicts(
            run.sql(
                "SELECT p.source, avg((p.predicted = q.label)::INT) AS accuracy "
                "FROM predictions AS p JOIN queries AS q ON q.query_id = p.id "
                "WHERE p.role = 'query' AND q.label IS NOT NULL GROUP BY ALL ORDER BY 1"
            )
        )
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


def _with_true_names(run: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = dict(run.sql("SELECT label, label_name FROM provenance.class").fetchall())
    return [{**row, "true_name": names.get(row["true_label"])} for row in rows]


def _statements(views: set[str], task: str = "classification") -> list[str]:
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
    from storage.views import fetch  # `assay --help` should not pay for DuckDB

    return fetch(rows)


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(_told, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if count else ""
        count /= 1000
    return ""
