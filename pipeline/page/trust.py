"""The section on evaluations: curves of selection and removal, and what other metrics measured."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from pipeline.page.chart import Chart, curves
from pipeline.page.document import significant

Row = Mapping[str, Any]
Line = Sequence[tuple[float, float, float, float]]
UTILITIES = ("accuracy", "cross_entropy")
KEYS = ("run_id", "metric", "fields", "facts", "rows")
AXES = {
    "keep": "part of the rows that is kept",
    "remove_harmful": "part of the rows, the most harmful, that is left out",
    "remove_helpful": "part of the rows, the most helpful, that is left out",
}


@dataclass(frozen=True)
class Evaluation:
    """What a metric measured of the run."""

    metric: str
    charts: list[Chart]
    columns: list[str]
    rows: list[list[str]]
    fields: str


def read_evaluation(given: str | Path | Row, run_id: str) -> Row:
    """What `evaluate` returned, or the file of what `assay evaluate --json` printed.

    Raises:
        RunError: the file cannot be read, is no evaluation, or is of another run.
    """
    if isinstance(given, Mapping):
        found: Any = given
        name = "evaluation"
    else:
        name = str(given)
        try:
            found = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(
                f"{name}: found that it cannot be read ({error}), expected what `assay evaluate "
                "RUN METRIC --json` printed. Write that to the file again."
            ) from error
    if not isinstance(found, Mapping) or not set(KEYS) <= set(found) or not found["rows"]:
        raise RunError(
            f"{name}: found no evaluation, expected what `assay evaluate RUN METRIC --json` "
            "printed. Write that to the file."
        )
    if found["run_id"] != run_id:
        raise RunError(
            f"{name}: found an evaluation of run {found['run_id']}, expected one of {run_id}. "
            "Evaluate this run."
        )
    return found


def evaluations(found: Sequence[Row]) -> list[Evaluation] | None:
    """The section; None where nothing was evaluated."""
    return [_shown(one) for one in found] or None


def _shown(found: Row) -> Evaluation:
    rows: list[Row] = found["rows"]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    fields = ", ".join(f"{name} {value}" for name, value in found["fields"].items())
    return Evaluation(str(found["metric"]), _charts(rows), columns, cells, fields)


def _charts(rows: Sequence[Row]) -> list[Chart]:
    """A chart for each utility: of the metric `selection`, or of each action of `curves`."""
    charts = []
    for utility in UTILITIES:
        if all({"keep", "by", utility} <= set(row) for row in rows):
            lines = {
                str(by): [
                    (row["keep"], row[utility], *_interval(row, utility))
                    for row in rows
                    if row["by"] == by
                ]
                for by in dict.fromkeys(row["by"] for row in rows)
            }
            charts.append(curves(_across(lines), AXES["keep"], _named(utility)))
        elif all({"share", "action", utility} <= set(row) for row in rows):
            for action in dict.fromkeys(row["action"] for row in rows):
                charts.append(_of_action(rows, action, utility))
    return charts


def _of_action(rows: Sequence[Row], action: str, utility: str) -> Chart:
    """The curve of every ranking and of random rows, of one action."""
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in (row for row in rows if row["action"] == action and row["share"] is not None):
        x, gain = row["share"], f"gain_{utility}"
        random, spread = row[f"random_{utility}"], row[f"random_{utility}_sd"] or 0.0
        utilities = f", {row['utility']}" if row.get("utility") else ""
        ends = [random + (row.get(f"{gain}_{end}") or 0.0) for end in ("low", "high")]
        lines.setdefault(f"{row['method']}{utilities}", []).append((x, row[utility], *ends))
        beside = lines.setdefault("random rows", [])
        if all(point[0] != x for point in beside):
            beside.append((x, random, random - spread, random + spread))
    return curves(lines, AXES.get(action, action), _named(utility))


def _across(lines: Mapping[str, Line]) -> dict[str, Line]:
    """The lines; the one point of all rows is drawn as a line across."""
    shares = [x for name, points in lines.items() if name != "all" for x, *_ in points]
    shown = dict(lines)
    if len(shown.get("all", ())) == 1 and shares:
        ((_, y, low, high),) = shown["all"]
        shown["all"] = [(x, y, low, high) for x in (min(shares), max(shares))]
    return shown


def _interval(row: Row, name: str) -> tuple[float, float]:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return (row[name], row[name]) if low is None or high is None else (low, high)


def _named(utility: str) -> str:
    return "accuracy on queries" if utility == "accuracy" else "mean log-probability of the label"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return significant(value, 4) if isinstance(value, float) else str(value)
