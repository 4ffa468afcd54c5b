"""The section on values: which examples help, which harm, by how much, and how sure that is."""

from dataclasses import dataclass
from typing import Any

from pipeline.main_results import SIDES, between_classes, extremes, named_content
from pipeline.page.asked import Asked, Rows
from pipeline.page.document import readable, significant
from pipeline.page.subject import Subject, flag
from pipeline.terminal import TEXTS
from pipeline.trials import NORMAL
from storage.sql import named, quoted

FEW, GROUPS = 12, 30
"""Different numbers that are groups of their own, of more quarters are; and most groups shown."""


@dataclass(frozen=True)
class Listed:
    """The most helpful or the most harmful examples."""

    side: str
    asked: Asked
    rows: Rows


@dataclass(frozen=True)
class Values:
    """What the section shows."""

    method: str
    utility: str
    answer: str | None
    """What rows have beside their texts: `label`, `target` or nothing."""
    lists: list[Listed]
    classes: Asked
    class_rows: Rows
    of_classes: Asked


def values(subject: Subject) -> Values | None:
    """The section of a run with Shapley values; None of another."""
    if subject.values is None:
        return None
    method, utility = subject.values
    content = named_content(subject.run)
    asked = {side: subject.ask(extremes(method, utility, side, content)) for side in SIDES}
    ends = [abs(row["value"]) + _reach(row) for found in asked.values() for row in found.rows]
    scale = max(ends, default=0.0) or 1.0
    lists = [
        Listed(side, found, flag(subject, [_listed(row, scale) for row in found.rows]))
        for side, found in asked.items()
    ]
    classes = subject.ask(
        f"""
        SELECT coalesce(e.label_name, 'all') AS name, count(*) AS n, avg(v.value) AS value,
               stddev_samp(v.value) / sqrt(count(*)) AS stderr, sum(v.value) AS total,
               avg((v.value > 0)::INT) AS helping
        FROM shapley AS v JOIN examples AS e USING (example_id)
        WHERE v.semivalue = 'shapley' AND v.method = {quoted(method)}
          AND v.utility = {quoted(utility)}
        GROUP BY ALL ORDER BY value DESC, name"""
    )
    return Values(
        method,
        utility,
        {"classification": "label", "regression": "target"}.get(subject.task),
        lists,
        classes,
        _scaled(classes.rows),
        subject.ask(between_classes(method, utility)),
    )


def _listed(row: dict[str, Any], scale: float) -> dict[str, Any]:
    """A row as it is drawn, with its texts that are not empty."""
    return {**row, **_drawn(row, scale), "texts": [row[n] for n in TEXTS if row.get(n)]}


@dataclass(frozen=True)
class Groups:
    """Flags and values of rows by a column of the source."""

    column: str
    asked: Asked
    rows: Rows
    has_flags: bool
    has_values: bool


def groups(subject: Subject, column: str) -> Groups:
    """Flags and values by a column of the source; many different numbers in quarters.

    Raises:
        RunError: the source has no such column.
    """
    name = f"e.{named(subject.column(column))}"
    facts = subject.ask(
        f"SELECT count(DISTINCT {name}) AS n, any_value(typeof({name})) AS kind FROM examples AS e"
    ).first
    kind = str(facts["kind"])
    is_number = kind.endswith(("INT", "INTEGER")) or kind.startswith(("DOUBLE", "FLOAT", "DECIMAL"))
    group, source = f"{name}::VARCHAR", "examples"
    if is_number and facts["n"] > FEW:
        # Rows without a number are in no quarter.
        place = f"ntile(4) OVER (PARTITION BY {name} IS NULL ORDER BY {name})"
        quarter = f"CASE WHEN {name} IS NOT NULL THEN {place} END"
        source = f"(SELECT *, {quarter} AS assay_quarter FROM examples AS e)"
        group = "e.assay_quarter"
    label = (
        f"min({name})::VARCHAR || ' to ' || max({name})::VARCHAR"
        if group == "e.assay_quarter"
        else f"any_value({group})"
    )
    parts, joins = [], []
    judged = subject.judged
    if judged is not None:
        parts.append(f"count(*) FILTER (i.{subject.flag}) AS flagged, avg(i.p_wrong) AS p_wrong")
        joins.append(f"LEFT JOIN (FROM {judged.rows}) AS i USING (example_id)")
    if subject.values is not None:
        method, utility = subject.values
        parts.append("avg(v.value) AS value, stddev_samp(v.value) / sqrt(count(v.value)) AS stderr")
        joins.append(
            "LEFT JOIN (FROM shapley WHERE semivalue = 'shapley' AND method = "
            f"{quoted(method)} AND utility = {quoted(utility)}) AS v USING (example_id)"
        )
    asked = subject.ask(
        f"SELECT {label} AS name, count(*) AS n{''.join(f', {part}' for part in parts)}\n"
        f"FROM {source} AS e {' '.join(joins)}\n"
        f"GROUP BY {group} ORDER BY n DESC, name LIMIT {GROUPS}"
    )
    rows = _scaled(asked.rows) if subject.values is not None else asked.rows
    return Groups(column, asked, rows, judged is not None, subject.values is not None)


def _scaled(rows: Rows) -> Rows:
    """Rows with a value and a standard error, drawn on one scale."""
    ends = [abs(row["value"]) + _reach(row) for row in rows if row["value"] is not None]
    scale = max(ends, default=0.0) or 1.0
    return [{**row, **_drawn(row, scale)} for row in rows]


def _reach(row: dict[str, Any]) -> float:
    """Half of the 95 % interval of a value."""
    return NORMAL * (row["stderr"] or 0.0)


def _drawn(row: dict[str, Any], scale: float) -> dict[str, Any]:
    """Where a value and its interval lie on an axis from -scale to scale, in percent."""
    value = row["value"]
    if value is None:
        return {"ends": None, "told": ""}
    start, end = sorted((50.0, 50 + 50 * value / scale))
    low, high = (50 + 50 * (value + sign * _reach(row)) / scale for sign in (-1, 1))
    told = f"{significant(value)} ± {significant(_reach(row), 2)}"
    return {
        "ends": {
            "x": f"{start:.2f}%",
            "width": f"{end - start:.2f}%",
            "low": f"{max(0.0, low):.2f}%",
            "high": f"{min(100.0, high):.2f}%",
            "kind": "plus" if value > 0 else "minus",
        },
        "told": readable(told),
    }
